"""What an iteration of PPO works with: sampled answers, their log-probabilities, values and rewards, and two losses.

Prompt and answer stand side by side in a row (B, T), padded on the right. With x the tokens of a row, arrays (B, T − 1)
speak of the tokens that follow: place t is of token x[t + 1], whose log-probability comes out of the logits at t, and
whose value V_t was computed from x[0 … t], before that token was known. The mask is true where x[t + 1] is a token of
the answer, its end token among them.

Log-probabilities are always those of `Llama.forward` on such rows, never the sampler's own, which differ in the last
bits: the log-probabilities before an update are made from the same rows in the same pieces as those in it, so that on
the first minibatch the ratio of both is exactly 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from minillama import layers
from minillama.alignment.advantages import gae, token_rewards, whiten
from minillama.alignment.combine import combine, logit
from minillama.alignment.policy import (
    policy_loss,
    policy_loss_backward,
    policy_measures,
    value_loss,
    value_loss_backward,
)
from minillama.alignment.ppo_prompts import EncodedPrompt
from minillama.alignment.ranking import sigmoid
from minillama.alignment.reward_model import RewardModel
from minillama.backend import Array, to_host
from minillama.generate import Sampling, generate
from minillama.model import Llama
from minillama.params import Params, accumulate
from minillama.training.threads import ONE_THREAD, Threads
from minillama.training.workers import Batch

# The score of an answer that does not come to its end. Scores of the others have the mean 0 and the deviation 1, and a
# reward model has learned to score ends only: what it would say of an answer broken off means nothing.
UNFINISHED = -3.0


class Scorer(Protocol):
    """What PPO asks of a reward model: see `RewardModel.rewards`."""

    def rewards(self, tokens: Array, last: Array, *, first: Array, recompute: bool = False) -> tuple[Array, Any]:
        """The scores (B,) of answers from `first` to `last`, and what a backward pass would need."""
        ...


@dataclass(frozen=True)
class Rollout:
    """A sampled answer. tokens: with the end token, if it came to it (`finished`). logprobs: the sampler's."""

    prompt: EncodedPrompt
    tokens: list[int]
    logprobs: list[float]
    finished: bool

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt.tokens) + len(self.tokens)


def sample(
    model: Llama,
    prompts: Sequence[EncodedPrompt],
    end: int,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    threads: Threads | None = None,
) -> list[Rollout]:
    """An answer to each prompt, from the full softmax(logits / temperature): without top-k or top-p, under which the
    ratio of PPO would be one of other distributions. end: the token that ends an answer.
    """
    completions = generate(
        model,
        [prompt.tokens for prompt in prompts],
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature),
        seed=seed,
        stop_ids=(end,),
        logprobs=True,
        threads=threads,
    )
    return [
        Rollout(prompt, completion.tokens, completion.logprobs, completion.tokens[-1] == end)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def as_batch(rollouts: Sequence[Rollout], answers: int = 1) -> Batch:
    """Answers as arrays: "tokens" (B, T) with 0 as padding, "mask" and "sampled" (B, T − 1), the sampler's
    log-probabilities; "last" (B,), the place of the last token; "finished" and "safety" (B,) bool; "asked" (B,), the
    number of its prompt, of which there are so many `answers` side by side.
    """
    B, T = len(rollouts), max(rollout.length for rollout in rollouts)
    batch: Batch = {
        "tokens": np.zeros((B, T), np.int64),
        "mask": np.zeros((B, T - 1), bool),
        "sampled": np.zeros((B, T - 1), np.float32),
        "last": np.array([rollout.length - 1 for rollout in rollouts]),
        "finished": np.array([rollout.finished for rollout in rollouts]),
        "safety": np.array([rollout.prompt.safety for rollout in rollouts]),
        "asked": np.arange(B) // answers,
    }
    for i, rollout in enumerate(rollouts):
        batch["tokens"][i, : rollout.length] = rollout.prompt.tokens + rollout.tokens
        answer = slice(len(rollout.prompt.tokens) - 1, rollout.length - 1)
        batch["mask"][i, answer] = True
        batch["sampled"][i, answer] = rollout.logprobs
    return batch


def take(batch: Batch, rows: Any) -> Batch:
    """Some rows of a batch, cut to the longest of them."""
    some = {name: x[rows] for name, x in batch.items()}
    T, longest = some["tokens"].shape[1], some["last"].max() + 1
    return {name: x[:, : x.shape[1] - T + longest] if x.ndim == 2 else x for name, x in some.items()}


def minibatches(rows: int, size: int, seed: int, iteration: int, epoch: int) -> list[np.ndarray]:
    """The rows of each minibatch of an epoch: every row once, at most `size` of them together, in an order drawn from
    (seed, iteration, epoch).
    """
    order = np.random.default_rng([seed, 1, iteration, epoch]).permutation(rows)
    return np.array_split(order, -(-rows // size))


def pieces(batch: Batch, parts: Sequence[np.ndarray], micro_batch: int) -> Iterator[np.ndarray]:
    """The rows that are computed together, of all minibatches `parts`."""
    for part in parts:
        ordered = by_length(batch, part)
        for start in range(0, len(ordered), micro_batch):
            yield ordered[start : start + micro_batch]


def by_length(batch: Batch, rows: np.ndarray) -> np.ndarray:
    """The rows with the shortest first, so that those computed together need little padding."""
    return rows[np.argsort(batch["last"][rows], kind="stable")]


def answer_logprobs(
    model: Llama, batch: Batch, *, temperature: float = 1.0, entropy: bool = False, recompute: bool = False
) -> tuple[Array, Array | None, Any]:
    """log softmax(logits / temperature) of every token of the answers: (B, T − 1), 0 where the mask is false.

    batch: "tokens" (B, T), "mask" (B, T − 1). The next-token head runs on the places of the mask alone. entropy:
    whether the second result is the entropy of the predictions, (B, T − 1), else None. Returns what
    `answer_logprobs_backward` needs as the third.
    """
    xp = model.xp
    at = np.nonzero(batch["mask"])  # N places
    places = tuple(map(xp.asarray, at))
    hidden, saved = model.forward(batch["tokens"][:, :-1], recompute=recompute)
    answer = hidden[places]  # (B, T - 1, C) -> (N, C)
    logits = model.logits(answer)
    targets = xp.asarray(batch["tokens"][:, 1:][at])
    found, saved_logprobs = layers.token_logprobs(logits, targets, temperature=temperature)

    def spread(x: Array) -> Array:
        y = xp.zeros(batch["mask"].shape, x.dtype)
        y[places] = x  # (N,) -> (B, T - 1)
        return y

    nats = spread(layers.entropy(logits, temperature=temperature)) if entropy else None
    return spread(found), nats, (saved, saved_logprobs, answer, places, hidden.shape)


def answer_logprobs_backward(model: Llama, dlogprobs: Array, saved: tuple) -> Params:
    """Gradient of everything trained, given that of `answer_logprobs` (B, T − 1)."""
    saved_forward, saved_logprobs, answer, places, shape = saved
    dlogits = layers.token_logprobs_backward(dlogprobs[places], saved_logprobs, overwrite=True)
    danswer, head_grads = model.logits_backward(dlogits, answer)
    dhidden = model.xp.zeros(shape, danswer.dtype)
    dhidden[places] = danswer  # (N, C) -> (B, T - 1, C)
    return accumulate(model.backward(dhidden, saved_forward), head_grads)


def answer_values(model: RewardModel, batch: Batch, *, recompute: bool = False) -> tuple[Array, Any]:
    """V_t, what the value model expects before each token is known: (B, T − 1), of no meaning outside the mask."""
    return model.values(batch["tokens"][:, :-1], recompute=recompute)


@dataclass(frozen=True)
class Update:
    """The numbers in both losses: temperature divides the logits, clip is ε of both. recompute: see `Llama.forward`."""

    temperature: float = 1.0
    clip: float = 0.2
    recompute: bool = False


def policy_gradients(
    model: Llama, batch: Batch, weight: float, update: Update
) -> tuple[Array, Params, dict[str, Array]]:
    """PPO's policy loss of some rows, its gradients, and `policy_measures`.

    batch: as `experience` makes it. weight: the tokens of the answers of the whole minibatch, which the mean is over.
    """
    xp = model.xp
    old, advantages, mask = (xp.asarray(batch[name]) for name in ("old_logprobs", "advantages", "mask"))
    logprobs, _, saved = answer_logprobs(model, batch, temperature=update.temperature, recompute=update.recompute)
    loss, saved_loss = policy_loss(logprobs, old, advantages, mask, clip=update.clip, count=weight)
    measures = policy_measures(logprobs, old, advantages, mask, clip=update.clip, count=weight)
    return loss, answer_logprobs_backward(model, policy_loss_backward(saved_loss), saved), measures


def value_gradients(model: RewardModel, batch: Batch, weight: float, update: Update) -> tuple[Array, Params]:
    """PPO's value loss of some rows, and its gradients; the arguments are `policy_gradients`'."""
    xp = model.xp
    old, returns, mask = (xp.asarray(batch[name]) for name in ("old_values", "returns", "mask"))
    values, saved = answer_values(model, batch, recompute=update.recompute)
    loss, saved_loss = value_loss(values, old, returns, mask, clip=update.clip, count=weight)
    return loss, model.values_backward(value_loss_backward(saved_loss), saved)


@dataclass(frozen=True)
class Judges:
    """The reward models, one at least, and what they say of answers."""

    helpfulness: Scorer | None = None
    safety: Scorer | None = None

    def scores(self, batch: Batch, rows: Sequence[np.ndarray], threads: Threads = ONE_THREAD) -> dict[str, np.ndarray]:
        """What each model gives each answer, before any sigmoid: name -> (B,) float64. rows: computed together."""
        found = {name: np.zeros(len(batch["last"])) for name in ("helpfulness", "safety") if getattr(self, name)}

        def work(worker: int) -> None:
            for piece in rows[worker :: threads.count]:
                some = take(batch, piece)
                first = some["mask"].argmax(axis=1) + 1  # place t of the mask is of token t + 1
                for name, scores in found.items():
                    judge: Scorer = getattr(self, name)
                    scores[piece] = to_host(judge.rewards(some["tokens"], some["last"], first=first, recompute=True)[0])

        threads.each(work)
        return found


def combined(scores: dict[str, np.ndarray], safety_prompt: np.ndarray) -> np.ndarray:
    """LOGIT(R_c), (B,): of the safety score where the prompt is tagged or the answer unsafe, else of the helpfulness
    score (`combine.combine`). Where there is one model, R_c is its score.
    """
    on_sigmoid_scale = {name: sigmoid(x) for name, x in scores.items()}
    if len(on_sigmoid_scale) == 1:
        return logit(*on_sigmoid_scale.values())
    return logit(combine(on_sigmoid_scale["safety"], on_sigmoid_scale["helpfulness"], safety_prompt))


def whitened(
    scores: np.ndarray, finished: np.ndarray, scale: np.ndarray | None = None, asked: np.ndarray | None = None
) -> np.ndarray:
    """R̃_c = WHITEN(LOGIT(R_c)) over the answers that are finished, (B,), and UNFINISHED for the others.

    scores: as `combined` gives them. scale: (B,) integers, which of several scales each is of; each is whitened by
    itself. None: all are of one. asked: (B,) integers, which prompt each answers: scores are then counted from the mean
    of the finished answers to the same one, so that a prompt all of whose answers are good makes none of them more
    likely. It takes the whole batch: a part of it would have another mean.
    """
    if asked is not None:
        total, count = (np.bincount(asked, weights=x) for x in (np.where(finished, scores, 0), finished))
        scores = scores - (total / np.maximum(count, 1))[asked]
    scale = np.zeros(len(scores), int) if scale is None else scale
    of_each = [whiten(scores, finished & (scale == each)) for each in np.unique(scale)]  # 0 outside of the mask
    return np.where(finished, sum(of_each), UNFINISHED)


def experience(batch: Batch, scores: np.ndarray, *, beta: float, gamma: float = 1.0, lam: float = 0.95) -> Batch:
    """`batch` with what the losses need besides: "advantages" (whitened over the batch) and "returns", (B, T − 1).

    batch: with "old_logprobs", "ref_logprobs" and "old_values" (B, T − 1). scores: (B,), as `whitened` gives them.
    """
    mask = batch["mask"]
    scores = scores.astype(batch["old_logprobs"].dtype)  # else all that follows would be float64
    rewards = token_rewards(scores, batch["old_logprobs"], batch["ref_logprobs"], mask, beta=beta)
    advantages, returns = gae(rewards, batch["old_values"], mask, gamma=gamma, lam=lam)
    return batch | {"raw_advantages": advantages, "advantages": whiten(advantages, mask), "returns": returns}
