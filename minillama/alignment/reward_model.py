"""The Llama with a scalar head: a reward model, where the score of an answer counts, or a value model, where that of
every token does.

The next-token head is removed (Llama 2, section 3.2.2). In its place stands a single row, `score.weight` (1, C),
without a bias. On disk it is what transformers calls LlamaForSequenceClassification, with one label.

With the head 'score+likelihood' the next-token head stays, and the log-probability of the answer counts too, with a
weight that is learned:

    r = w · h_T + a · 1/√n Σ log p(x_t | x_<t)        over the n tokens of the answer

√n is between the sum, for which a long answer is a bad one, and the mean, for which it is a good one: a refusal, all of
whose tokens but the first are sure, would pass for the likeliest answer to anything.

A large model knows at the end of a text how likely it was. In four layers there is no room to find that out: what comes
next is only known at the top, where no attention follows that could gather it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minillama import layers
from minillama.backend import Array, Device, get_array_module, resolve_device, to_device
from minillama.errors import MinillamaError, UsageError
from minillama.lora import LoraLlama
from minillama.model import Llama
from minillama.params import Params, accumulate, views

SCORE, LIKELIHOOD = "score.weight", "score.likelihood"
LIKELIHOOD_WEIGHT = 0.5  # a at the beginning: sixteen tokens that are half as likely each score 1.4 less


class RewardModel(Llama):
    """Scores texts. Its parameters are those of a Llama of the same config with the head 'score'."""

    @classmethod
    def from_llama(cls, llama: Llama, seed: int = 0, likelihood: bool = False) -> RewardModel:
        """A copy of `llama` with a fresh head, N(0, 1/(C + 1)), so its deviation is 1/√(C + 1) (lm-human-preferences);
        the copy of one that is a reward model keeps its head.

        likelihood: whether the likelihood of answers counts too; then it is all that counts at first, and a fresh head
        is zero, for numbers drawn at random would drown it.
        """
        kept = llama.config.head == "score+likelihood"
        config = replace(llama.config, head="score+likelihood" if likelihood or kept else "score")
        shapes, xp = config.param_shapes(), llama.xp
        params = views(xp.empty(sum(map(math.prod, shapes.values())), llama.dtype), shapes)
        for name, p in params.items():
            if name in llama.params:
                p[...] = llama.params[name]
            else:
                p[...] = (
                    LIKELIHOOD_WEIGHT
                    if name == LIKELIHOOD
                    else 0
                    if likelihood
                    else xp.asarray(_fresh(config.dim, seed))
                )
        return cls(config, params)

    @classmethod
    def load(cls, source: str | Path, device: Device | None = "cpu", dtype: type = np.float32) -> RewardModel:
        """The reward model at `source`, as `Llama.load`. Raises MinillamaError where a model of text is there."""
        from minillama import catalog, weights

        device = resolve_device(device)
        path = catalog.resolve(source)
        checkpoint = weights.load(path, dtype=dtype)
        if checkpoint.config.head is None:
            raise MinillamaError(f"{path}: expected a reward model, found a model that writes text")
        return cls(checkpoint.config, {name: to_device(x, device) for name, x in checkpoint.params.items()})

    def values(
        self,
        tokens: Array,
        *,
        mask: Array | None = None,
        starts: np.ndarray | None = None,
        recompute: bool = False,
    ) -> tuple[Array, Any]:
        """v[b, t] = w · h[b, t], a number for every token that knows the tokens up to this one.

        tokens, mask, starts, recompute: as `Llama.forward`. Returns v (B, T), where the mask is false of no meaning,
        and what `values_backward` needs.
        """
        hidden, saved = self.forward(tokens, mask=mask, starts=starts, recompute=recompute)
        v, saved_head = layers.linear(hidden, self.params[SCORE])  # (B, T, C) -> (B, T, 1)
        return v[..., 0], (saved, saved_head)

    def values_backward(self, dvalues: Array, saved: tuple) -> Params:
        """Gradient of every parameter, given that of `values` (B, T), 0 at padding."""
        saved_forward, saved_head = saved
        dhidden, dweight = layers.linear_backward(dvalues[..., None], saved_head)  # (B, T, 1) -> (B, T, C)
        grads = self.backward(dhidden, saved_forward)
        grads[SCORE] = dweight
        return grads

    def rewards(
        self,
        tokens: Array,
        last: Array,
        *,
        first: Array | None = None,
        mask: Array | None = None,
        recompute: bool = False,
    ) -> tuple[Array, Any]:
        """r[b]: the score at the last real token, the end token of the answer, v[b, last[b]].

        tokens: (B, T) integers; after `last` they may be anything, for nothing sees them. last: (B,) integers. first:
        (B,) integers, the place of the answer's first token, at least 1; only asked for by the head
        'score+likelihood', which adds a · ℓ[b]. mask: (B, T) bool, false at padding on the left; None for none.
        Returns r (B,) and what `rewards_backward` needs. Raises UsageError where `first` is missing.
        """
        xp = get_array_module(tokens)
        places = xp.arange(tokens.shape[1])
        real = places <= xp.asarray(last)[:, None]  # (T,) <= (B, 1) -> (B, T)
        if mask is not None:
            real &= xp.asarray(mask)
        tokens = xp.where(real, tokens, 0)
        hidden, saved = self.forward(tokens, mask=mask, recompute=recompute)
        at = self.xp.arange(len(hidden)), self.xp.asarray(last)
        ends = hidden[at]  # (B, T, C) -> (B, C)
        v, saved_head = layers.linear(ends, self.params[SCORE])  # (B, C) -> (B, 1)
        r, saved_likelihood = v[:, 0], None
        if self.config.head == "score+likelihood":
            if first is None:
                raise UsageError("a reward model with likelihood: expected where the answers begin, found nothing")
            answer = real & (places >= xp.asarray(first)[:, None])
            likelihood, saved_likelihood = self._likelihood(hidden, tokens, answer)
            r = r + self.params[LIKELIHOOD] * likelihood
        return r, (saved, saved_head, at, hidden.shape, saved_likelihood)

    def rewards_backward(self, drewards: Array, saved: tuple) -> Params:
        """Gradient of every parameter, given that of `rewards` (B,)."""
        saved_forward, saved_head, at, shape, saved_likelihood = saved
        dhidden = self.xp.zeros(shape, drewards.dtype)
        dhidden[at], dweight = layers.linear_backward(drewards[:, None], saved_head)  # (B, 1) -> (B, C)
        head_grads: Params = {SCORE: dweight}
        if saved_likelihood is not None:
            likelihood = saved_likelihood[0]
            head_grads[LIKELIHOOD] = (drewards * likelihood).sum(keepdims=True)
            dlikelihood, grads = self._likelihood_backward(drewards * self.params[LIKELIHOOD], saved_likelihood, shape)
            dhidden += dlikelihood
            head_grads |= grads
        return accumulate(self.backward(dhidden, saved_forward), head_grads)

    def _likelihood(self, hidden: Array, tokens: Array, answer: Array) -> tuple[Array, tuple]:
        """ℓ (B,), the sum of the log-probabilities of the n tokens (B, T) where `answer` (B, T) is true, over √n, and
        what its backward pass needs.
        """
        xp = self.xp
        rows, places = (xp.asarray(x) for x in answer.nonzero())  # N tokens
        before = rows, places - 1
        predicted = hidden[before]  # (B, T, C) -> (N, C)
        targets = xp.asarray(tokens)[rows, places]
        logprobs, saved_logprobs = layers.token_logprobs(self.logits(predicted), targets)
        roots = xp.sqrt(xp.bincount(rows, minlength=len(hidden))).astype(hidden.dtype)
        sums = xp.zeros(len(hidden), hidden.dtype)
        xp.add.at(sums, rows, logprobs)
        return sums / roots, (sums / roots, saved_logprobs, predicted, before, roots)

    def _likelihood_backward(self, dlikelihood: Array, saved: tuple, shape: tuple) -> tuple[Array, Params]:
        """dhidden (B, T, C), and the gradient of the next-token head, given that of `_likelihood` (B,)."""
        _, saved_logprobs, predicted, before, roots = saved
        dlogprobs = (dlikelihood / roots)[before[0]]  # (B,) -> (N,)
        dlogits = layers.token_logprobs_backward(dlogprobs, saved_logprobs, overwrite=True)
        dpredicted, grads = self.logits_backward(dlogits, predicted)
        dhidden = self.xp.zeros(shape, dlikelihood.dtype)
        dhidden[before] = dpredicted  # every place once
        return dhidden, grads


class LoraRewardModel(LoraLlama, RewardModel):  # type: ignore[misc]  # either's `load` returns the class it is of
    """A reward model of which only adapters and the head are trained: wrap a RewardModel, `also` its score.weight."""


def _fresh(dim: int, seed: int) -> np.ndarray:
    """The head's weights at the beginning, (1, C)."""
    return np.random.default_rng([seed, dim]).standard_normal((1, dim)) / math.sqrt(dim + 1)
