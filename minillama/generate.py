"""Text out of a model: batched sampling with a KV cache, token by token, with stop rules.

`stream` yields every token as it is drawn; `generate` collects them. A row's randomness is its own generator, seeded
by (seed, row), so a row draws the same numbers whatever stands beside it in the batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from minillama.backend import Array, to_host
from minillama.errors import UsageError
from minillama.model import KVCache, Llama

if TYPE_CHECKING:
    from minillama.tokenizer import Tokenizer

PREFILL = 512  # prompt tokens at a time: bounds the memory of a long prompt's activations

FinishReason = Literal["stop", "length", "context"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the logits.

    temperature: divides the logits; 0 is greedy. Then, in this order, each on what the one before left: top_k keeps
    the k most probable tokens; top_p the fewest whose probabilities reach p (nucleus, arXiv:1904.09751); min_p those
    at least min_p times as probable as the first. None leaves a rule out.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature {self.temperature}: expected a number of at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k {self.top_k}: expected a positive integer")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p {self.top_p}: expected a number above 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p {self.min_p}: expected a number from 0 to 1")


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Step:
    """One token of one row.

    text: what it adds to the row's text; held back while it could be the beginning of a stop string or is half a
    character. logprob: its log-probability under softmax(logits / temperature), before top-k, top-p and min-p (greedy:
    under softmax(logits)); None unless asked for. finish_reason: set on a row's last token.
    """

    row: int
    token: int
    logprob: float | None
    text: str
    finish_reason: FinishReason | None


@dataclass
class Completion:
    """What a row became. tokens hold the stop token where one ended it; text holds neither it nor a stop string.

    finish_reason: 'stop' (a stop token or string), 'length' (max_new_tokens) or 'context' (no room left).
    """

    tokens: list[int]
    logprobs: list[float]
    text: str
    finish_reason: FinishReason


def generate(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    stop_ids: Collection[int] = (),
    stop_strings: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    logprobs: bool = False,
) -> list[Completion]:
    """Continue every prompt; see `stream` for the arguments. Returns a Completion a prompt, in order."""
    completions = [Completion([], [], "", "length") for _ in prompts]
    for step in stream(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seed=seed,
        stop_ids=stop_ids,
        stop_strings=stop_strings,
        tokenizer=tokenizer,
        logprobs=logprobs,
    ):
        completion = completions[step.row]
        completion.tokens.append(step.token)
        completion.text += step.text
        if step.logprob is not None:
            completion.logprobs.append(step.logprob)
        if step.finish_reason is not None:
            completion.finish_reason = step.finish_reason
    return completions


def stream(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    stop_ids: Collection[int] = (),
    stop_strings: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    logprobs: bool = False,
    cache: KVCache | None = None,
) -> Iterator[Step]:
    """Continue every prompt at once, yielding each token of each row as it is drawn.

    prompts: token ids, any lengths, at least one each. max_new_tokens: a row; None for as many as fit the context.
    A row ends at a token of stop_ids, at a text that contains one of stop_strings (which need the tokenizer), after
    max_new_tokens, or when the context is full: nothing of a prompt is ever dropped to make room. Without a tokenizer
    the steps' texts are empty. cache: of a single prompt, holding its first `cache.used` tokens already, with room for
    all that may come; it then holds every token but the last, and serves again. Raises UsageError for prompts that are
    empty or leave no room for a token.
    """
    _check(model, prompts, max_new_tokens, stop_strings, tokenizer)
    context = model.config.max_seq_len
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    room = [min(context - n, max_new_tokens if max_new_tokens is not None else context) for n in lengths]
    pads = np.array([longest - n for n in lengths])
    if cache is None:
        size = longest + max(room) - 1
        cache = KVCache(model.config, len(prompts), size, like=model.params["norm.weight"], pads=pads)
    padded = np.array([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    rngs = [np.random.default_rng([seed, row]) for row in range(len(prompts))]
    texts = [TextStream(tokenizer, prompt, stop_strings) for prompt in prompts]

    if cache.used >= longest:
        raise UsageError(f"the KV cache holds {cache.used} tokens already, the prompt has {longest}: nothing to read")
    for start in range(cache.used, longest, PREFILL):
        hidden, _ = model.forward(padded[:, start : start + PREFILL], cache=cache)
    rows = list(range(len(prompts)))  # the row of each place in the batch
    alive = set(rows)
    drawn = 0
    while True:
        tokens, scores = _draw(model.logits(hidden[:, -1]), sampling, [rngs[row] for row in rows], logprobs)
        drawn += 1
        for place, row in enumerate(rows):
            if row not in alive:
                continue
            token = int(tokens[place])
            text, text_stopped = texts[row].feed(token)
            reason: FinishReason | None = None
            if token in stop_ids or text_stopped:
                reason = "stop"
            elif drawn == max_new_tokens:
                reason = "length"
            elif drawn == room[row]:
                reason = "context"
            if reason is not None:
                alive.remove(row)
                if not text_stopped:
                    text += texts[row].finish()
            yield Step(row, token, float(scores[place]) if scores is not None else None, text, reason)
        if not alive:
            return
        if 2 * len(alive) <= len(rows):  # at most log2(B) copies of the cache in all
            keep = [place for place, row in enumerate(rows) if row in alive]
            cache.select(keep)
            rows, tokens = [rows[place] for place in keep], tokens[keep]
        hidden, _ = model.forward(tokens[:, None], cache=cache)


def sample(logits: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> int:
    """One token drawn from logits (V,) by the rules of `sampling`; greedy takes the first of equals."""
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / sampling.temperature  # float64: a CDF over 128,256 tokens in float32 drifts
    candidates = np.arange(len(scaled))
    if sampling.top_k is not None and sampling.top_k < len(scaled):
        candidates = np.argpartition(scaled, -sampling.top_k)[-sampling.top_k :]
    probs = np.exp(scaled[candidates] - scaled[candidates].max())
    probs /= probs.sum()
    if sampling.top_p is not None and sampling.top_p < 1:
        # A token below this cannot be in the nucleus: all that are, together, hold less than 1 - top_p.
        likely = np.flatnonzero(probs >= (1 - sampling.top_p) / len(probs))
        likely = likely[np.argsort(-probs[likely], kind="stable")]
        size = int(np.searchsorted(np.cumsum(probs[likely]), sampling.top_p)) + 1
        candidates, probs = candidates[likely[:size]], probs[likely[:size]]
    if sampling.min_p is not None:
        likely = np.flatnonzero(probs >= sampling.min_p * probs.max())
        candidates, probs = candidates[likely], probs[likely]
    cdf = np.cumsum(probs)
    at = int(np.searchsorted(cdf, rng.random() * cdf[-1], side="right"))
    return int(candidates[min(at, len(candidates) - 1)])


def _draw(
    logits: Array, sampling: Sampling, rngs: list[np.random.Generator], logprobs: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """A token for each row of logits (B, V), and its log-probability where asked for."""
    logits = to_host(logits)
    if sampling.temperature == 0:
        tokens = logits.argmax(axis=-1)
    else:
        tokens = np.array([sample(row, sampling, rng) for row, rng in zip(logits, rngs, strict=True)])
    if not logprobs:
        return tokens, None
    scaled = logits.astype(np.float64) / (sampling.temperature or 1.0)
    scaled -= scaled.max(axis=-1, keepdims=True)
    chosen = scaled[np.arange(len(tokens)), tokens]
    return tokens, chosen - np.log(np.exp(scaled).sum(axis=-1))


class TextStream:
    """A row's text as it grows, cut before the first stop string; always empty without a tokenizer."""

    def __init__(self, tokenizer: Tokenizer | None, prompt: Sequence[int], stop_strings: Sequence[str]) -> None:
        self._decoder = None
        if tokenizer is not None:
            from minillama.tokenizer import StreamDecoder

            self._decoder = StreamDecoder(tokenizer, continues=list(prompt) != [tokenizer.bos_id])
        self._stop_strings = stop_strings
        self._held = ""  # decoded, not yet given out: it may turn out to be the beginning of a stop string

    def feed(self, token: int) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string has ended it."""
        if self._decoder is None:
            return "", False
        self._held += self._decoder.feed(token)
        return self._release()

    def finish(self) -> str:
        """What was held back, once no more can come."""
        if self._decoder is None:
            return ""
        self._held += self._decoder.finish()
        text, stopped = self._release()
        return text if stopped else text + self._held

    def _release(self) -> tuple[str, bool]:
        found = [at for stop in self._stop_strings if (at := self._held.find(stop)) >= 0]
        if found:
            text, self._held = self._held[: min(found)], ""
            return text, True
        keep = max((_overlap(self._held, stop) for stop in self._stop_strings), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text, False


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def _check(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | None,
    stop_strings: Sequence[str],
    tokenizer: Tokenizer | None,
) -> None:
    context = model.config.max_seq_len
    if not prompts:
        raise UsageError("no prompt was given")
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise UsageError(f"prompt {row} is empty: a model needs at least one token to continue")
        if len(prompt) >= context:
            raise UsageError(f"prompt {row} has {len(prompt)} tokens and leaves no room in the context of {context}")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UsageError(f"max_new_tokens {max_new_tokens}: expected a positive integer")
    if stop_strings and tokenizer is None:
        raise UsageError("stop strings need a tokenizer")
    if any(not stop for stop in stop_strings):
        raise UsageError("a stop string is empty")
