"""Text out of a model: batched sampling with a KV cache, token by token, with stop rules.

`stream` yields every token as it is drawn; `generate` collects them. A row's randomness is its own generator, seeded
by (seed, row), so a row draws the same numbers whatever stands beside it in the batch.

A small model writes thousands of answers at a time, for rewards to judge: `generate` takes threads for that.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from minillama.backend import to_host
from minillama.errors import UsageError
from minillama.layers.blocks import row_blocks
from minillama.model import KVCache, Llama
from minillama.prefix import Prefix, resumed

if TYPE_CHECKING:
    from minillama.tokenizer import Tokenizer
    from minillama.training.threads import Threads

PREFILL = 512  # tokens of a prompt at a time: bounds the memory of a long prompt's activations
READ = 4096  # tokens of all prompts at a time: more, and activations leave a core's cache
GROUP = 128  # rows of a thread at a time: fewer, and a step is more Python than arithmetic; more only take memory
SLOTS = 1 << 15  # of a thread's KV cache, about: fewer rows at a time where they are long
DRAWS = 32  # random numbers of a row at a time

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
    threads: Threads | None = None,
    prefixes: Sequence[Prefix] | None = None,
) -> list[Completion]:
    """Continue every prompt; see `stream` for the arguments. Returns a Completion a prompt, in order.

    threads: share the prompts out among these, at most GROUP at a time and those of like lengths together, so that
    little is padded. For dozens of prompts and more, and a model that is small itself; a GPU does without. What a row
    draws depends on its group as it does on its batch: not at all, but for the rounding of float32. prefixes: one a
    prompt, none twice: what it holds of the prompt is not read again, and it then holds all of the text but the last
    token.
    """
    _check(model, prompts, max_new_tokens, stop_strings, tokenizer)
    completions = [Completion([], [], "", "length") for _ in prompts]
    while_drawn = tokenizer if stop_strings else None  # else a text is decoded in one go once it is complete

    def complete(rows: Sequence[int]) -> None:
        for step in stream(
            model,
            [prompts[row] for row in rows],
            rows=rows,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            stop_ids=stop_ids,
            stop_strings=stop_strings,
            tokenizer=while_drawn,
            logprobs=logprobs,
            prefixes=None if prefixes is None else [prefixes[row] for row in rows],
        ):
            completion = completions[step.row]
            completion.tokens.append(step.token)
            completion.text += step.text
            if step.logprob is not None:
                completion.logprobs.append(step.logprob)
            if step.finish_reason is not None:
                completion.finish_reason = step.finish_reason
                if tokenizer is not None and while_drawn is None:
                    completion.text = TextStream(tokenizer, prompts[step.row], ()).whole(completion.tokens)

    if threads is None:
        complete(range(len(prompts)))
        return completions
    by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    longest = model.config.max_seq_len if max_new_tokens is None else max_new_tokens
    slots = sum(min(len(prompt) + longest, model.config.max_seq_len) for prompt in prompts)
    count = threads.count * math.ceil(max(len(prompts) / GROUP, slots / SLOTS) / threads.count)  # as many for each
    bounds = [len(prompts) * i // count for i in range(count + 1)]
    groups = [by_length[start:stop] for start, stop in pairwise(bounds) if stop > start]
    waiting = reversed(groups)  # the longest first, so that all threads end at about the same time

    def work(_: int) -> None:
        for rows in waiting:  # whoever is free takes the next
            complete(rows)

    threads.each(work)
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
    rows: Sequence[int] | None = None,
    cache: KVCache | None = None,
    prefixes: Sequence[Prefix] | None = None,
) -> Iterator[Step]:
    """Continue every prompt at once, yielding each token of each row as it is drawn.

    prompts: token ids, any lengths, at least one each. max_new_tokens: a row; None for as many as fit the context.
    A row ends at a token of stop_ids, at a text that contains one of stop_strings (which need the tokenizer), after
    max_new_tokens, or when the context is full: nothing of a prompt is ever dropped to make room. Without a tokenizer
    the steps' texts are empty. rows: each prompt's number, which seeds it and stands in its steps; None for 0, 1, 2, …
    With its numbers among many prompts, a part of them draws what it would draw among all. cache: of a single prompt,
    holding its first `cache.used` tokens already, with room for all that may come; it then holds every token but the
    last, and serves again. prefixes: the same for many, as in `generate`; a row's is brought up to date when it ends.
    Raises UsageError for prompts that are empty or leave no room for a token.
    """
    _check(model, prompts, max_new_tokens, stop_strings, tokenizer)
    context = model.config.max_seq_len
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    room = [min(context - n, max_new_tokens if max_new_tokens is not None else context) for n in lengths]
    pads = np.array([longest - n for n in lengths])
    numbers = range(len(prompts)) if rows is None else rows
    if cache is None:
        size = longest + max(room) - 1
        if prefixes is None:
            cache = KVCache(model.config, len(prompts), size, like=model.params["norm.weight"], pads=pads)
        else:
            cache = resumed(model, prompts, prefixes, size)
    padded = np.array([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    rngs = [np.random.default_rng([seed, number]) for number in numbers]
    uniforms = np.empty((len(prompts), DRAWS)) if sampling.temperature else None
    texts = [TextStream(tokenizer, prompt, stop_strings) for prompt in prompts]
    said: list[list[int]] = [[] for _ in prompts]
    stop_ids = frozenset(stop_ids)

    if cache.used >= longest:
        raise UsageError(f"the KV cache holds {cache.used} tokens already, the prompt has {longest}: nothing to read")
    piece = min(PREFILL, max(1, READ // len(prompts)))
    for start in range(cache.used, longest, piece):
        hidden, _ = model.forward(padded[:, start : start + piece], cache=cache)
    batch = list(range(len(prompts)))  # which prompt each place of the batch continues
    ended = [False] * len(prompts)
    drawn = 0
    while True:
        if uniforms is not None and drawn % DRAWS == 0:
            uniforms[batch] = [rngs[i].random(DRAWS) for i in batch]
        now = None if uniforms is None else uniforms[batch, drawn % DRAWS]
        tokens, scores = draw(to_host(model.logits(hidden[:, -1])), sampling, now, logprobs)
        drawn += 1
        for place, (i, token) in enumerate(zip(batch, tokens.tolist(), strict=True)):
            if ended[i]:
                continue
            text, text_stopped = texts[i].feed(token)
            reason: FinishReason | None = None
            if token in stop_ids or text_stopped:
                reason = "stop"
            elif drawn == max_new_tokens:
                reason = "length"
            elif drawn == room[i]:
                reason = "context"
            if reason is not None:
                ended[i] = True
                if not text_stopped:
                    text += texts[i].finish()
                if prefixes is not None:
                    prefixes[i].keep(cache, place, [*prompts[i], *said[i]])
            said[i].append(token)
            yield Step(numbers[i], token, float(scores[place]) if scores is not None else None, text, reason)
        left = [place for place, i in enumerate(batch) if not ended[i]]
        if not left:
            return
        if 8 * len(left) <= 7 * len(batch):  # not for every row that ends: to move one takes time, too
            # The last rows take the places of those that have ended, so that few are moved.
            keep = [*range(len(left))]
            gaps = [place for place in keep if ended[batch[place]]]
            for gap, place in zip(gaps, left[len(left) - len(gaps) :], strict=True):
                keep[gap] = place
            cache.select(keep)
            batch, tokens = [batch[place] for place in keep], tokens[keep]
        hidden, _ = model.forward(tokens[:, None], cache=cache)


def draw(
    logits: np.ndarray, sampling: Sampling, uniforms: np.ndarray | None = None, logprobs: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """A token for each row of logits, by the rules of `sampling`; greedy takes the first of equals.

    logits: (B, V). uniforms: (B,) float64, a random number from [0, 1) for each row; greedy needs none. Returns tokens
    (B,) and, where asked for, their log-probabilities (B,) as in `Step`, else None.
    """
    B, V = logits.shape
    greedy = sampling.temperature == 0
    if greedy and not logprobs:
        return logits.argmax(axis=-1), None
    tokens, scores = np.empty(B, np.int64), np.empty(B)
    for block in row_blocks(np, B, V):
        # float64: a CDF over 128,256 tokens in float32 drifts
        scaled = logits[block].astype(np.float64)  # (b, V)
        if not greedy and sampling.temperature != 1:
            scaled /= sampling.temperature
        scaled -= scaled.max(axis=-1, keepdims=True)
        # e^(scaled - highest) of all tokens; where top_k leaves a few, of those alone unless all have to be summed
        exps = np.exp(scaled) if logprobs or sampling.top_k is None else None
        total = exps.sum(axis=-1) if logprobs and exps is not None else None
        if greedy:
            drawn = logits[block].argmax(axis=-1)
        else:
            assert uniforms is not None
            drawn = _drawn(scaled, exps, sampling, uniforms[block])
        tokens[block] = drawn
        if total is not None:
            scores[block] = np.take_along_axis(scaled, drawn[:, None], axis=-1)[:, 0] - np.log(total)
    return tokens, scores if logprobs else None


def sample(logits: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> int:
    """One token from logits (V,): `draw` for a single row, which takes one number of `rng` unless it is greedy."""
    uniforms = np.array([rng.random()]) if sampling.temperature else None
    return int(draw(logits[None], sampling, uniforms)[0][0])


def _drawn(scaled: np.ndarray, exps: np.ndarray | None, sampling: Sampling, uniforms: np.ndarray) -> np.ndarray:
    """For each row, where `uniforms` (B,) falls among the probabilities that the rules leave.

    scaled: (B, V), the logits divided by the temperature, the highest 0. exps: (B, V), e^scaled, where it is there
    already; it is used up. Returns tokens (B,).
    """
    candidates = None  # (B, n) the token in each column of `probs`; None where column v is token v
    if sampling.top_k is not None and sampling.top_k < scaled.shape[1]:
        candidates = np.argpartition(scaled, -sampling.top_k, axis=-1)[:, -sampling.top_k :]
        probs = np.exp(np.take_along_axis(scaled, candidates, axis=-1))
    else:
        probs = np.exp(scaled) if exps is None else exps  # (B, n), times a constant of each row
    if sampling.top_p is not None and sampling.top_p < 1:
        probs /= probs.sum(axis=-1, keepdims=True)
        # A token below this cannot be in the nucleus: all that are, together, hold less than 1 - top_p.
        probs[probs < (1 - sampling.top_p) / probs.shape[1]] = 0
        columns = np.flatnonzero(probs.any(axis=0))  # few are left to be sorted
        probs = probs[:, columns]
        order = np.argsort(-probs, axis=-1, kind="stable")
        probs = np.take_along_axis(probs, order, axis=-1)
        probs[:, 1:][np.cumsum(probs, axis=-1)[:, :-1] >= sampling.top_p] = 0  # those before reach top_p already
        order = columns[order]
        candidates = order if candidates is None else np.take_along_axis(candidates, order, axis=-1)
    if sampling.min_p is not None:
        probs[probs < sampling.min_p * probs.max(axis=-1, keepdims=True)] = 0
    cdf = np.cumsum(probs, axis=-1)
    # u < 1, but u times the sum can round to the sum, which no part of it exceeds; it is the last token's then.
    bounds = np.minimum(uniforms * cdf[:, -1], np.nextafter(cdf[:, -1], 0))  # (B,)
    at = (cdf > bounds[:, None]).argmax(axis=-1)  # the first; what a rule has left out, with probability 0, is none
    return at if candidates is None else np.take_along_axis(candidates, at[:, None], axis=-1)[:, 0]


class TextStream:
    """A row's text as it grows, cut before the first stop string; always empty without a tokenizer."""

    def __init__(self, tokenizer: Tokenizer | None, prompt: Sequence[int], stop_strings: Sequence[str]) -> None:
        self._decoder = None
        if tokenizer is not None:
            from minillama.tokenizer import StreamDecoder

            self._decoder = StreamDecoder(tokenizer, continues=list(prompt) != [tokenizer.bos_id])
        self._stop_strings = stop_strings
        self._held = ""  # decoded, not yet given out: it may turn out to be the beginning of a stop string

    def whole(self, tokens: Sequence[int]) -> str:
        """The text of all tokens at once, where no stop string is looked for: what `feed` and `finish` would give."""
        return "" if self._decoder is None else self._decoder.feed(*tokens) + self._decoder.finish()

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
