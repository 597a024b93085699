"""The Llama with a scalar head: a reward model, where the score of an answer counts, or a value model, where that of
every token does.

The next-token head is removed (Llama 2, section 3.2.2). In its place stands a single row, `score.weight` (1, C),
without a bias. On disk it is what transformers calls LlamaForSequenceClassification, with one label.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minillama import layers
from minillama.backend import Array, Device, get_array_module, resolve_device, to_device
from minillama.errors import MinillamaError
from minillama.lora import LoraLlama
from minillama.model import Llama
from minillama.params import Params, views

SCORE = "score.weight"


class RewardModel(Llama):
    """Scores texts. Its parameters are those of a Llama of the same config with the head 'score'."""

    @classmethod
    def from_llama(cls, llama: Llama, seed: int = 0) -> RewardModel:
        """A copy of `llama` with a fresh head, N(0, 1/(C + 1)), so its deviation is 1/√(C + 1) (lm-human-preferences);
        the copy of one that is a reward model keeps its head.
        """
        config = replace(llama.config, head="score")
        shapes, xp = config.param_shapes(), llama.xp
        params = views(xp.empty(sum(map(math.prod, shapes.values())), llama.dtype), shapes)
        for name, p in params.items():
            p[...] = llama.params[name] if name in llama.params else xp.asarray(_fresh(config.dim, seed))
        return cls(config, params)

    @classmethod
    def load(cls, source: str | Path, device: Device | None = "cpu", dtype: type = np.float32) -> RewardModel:
        """The reward model at `source`, as `Llama.load`. Raises MinillamaError where a model of text is there."""
        from minillama import catalog, weights

        device = resolve_device(device)
        path = catalog.resolve(source)
        checkpoint = weights.load(path, dtype=dtype)
        if checkpoint.config.head != "score":
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
        self, tokens: Array, last: Array, *, mask: Array | None = None, recompute: bool = False
    ) -> tuple[Array, Any]:
        """r[b] = v[b, last[b]]: the score at the last real token, the end token of the answer.

        tokens: (B, T) integers; after `last` they may be anything, for nothing sees them. last: (B,) integers. mask:
        (B, T) bool, false at padding on the left; None for none. Returns r (B,) and what `rewards_backward` needs.
        """
        xp = get_array_module(tokens)
        real = xp.arange(tokens.shape[1]) <= xp.asarray(last)[:, None]  # (T,) <= (B, 1) -> (B, T)
        if mask is not None:
            real &= xp.asarray(mask)
        v, saved = self.values(xp.where(real, tokens, 0), mask=mask, recompute=recompute)
        at = self.xp.arange(len(v)), self.xp.asarray(last)
        return v[at], (saved, at, v.shape)

    def rewards_backward(self, drewards: Array, saved: tuple) -> Params:
        """Gradient of every parameter, given that of `rewards` (B,)."""
        saved_values, at, shape = saved
        dvalues = self.xp.zeros(shape, drewards.dtype)
        dvalues[at] = drewards
        return self.values_backward(dvalues, saved_values)


class LoraRewardModel(LoraLlama, RewardModel):  # type: ignore[misc]  # either's `load` returns the class it is of
    """A reward model of which only adapters and the head are trained: wrap a RewardModel, `also` its score.weight."""


def _fresh(dim: int, seed: int) -> np.ndarray:
    """The head's weights at the beginning, (1, C)."""
    return np.random.default_rng([seed, dim]).standard_normal((1, dim)) / math.sqrt(dim + 1)
