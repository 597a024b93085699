"""Continuous batching: one thread that computes all requests together, token by token.

Requests join and leave between steps. A step reads a part of the prompt that is next in line, then draws one token for
every sequence under way: one forward pass for all of them, which costs little more than one for a single sequence,
because it is the weights that take time to read. A long prompt is read in parts so that the others go on meanwhile.

Every choice of a request draws from a generator of its own, seeded by (seed, choice): it gets the same random numbers
whatever stands beside it in the batch, those that `generate` gives it as well. Logits still differ in their last bits
with the size of the batch, since a matrix product sums in another order; so the same seed gives the same tokens unless
two candidates are as near to each other as float32 rounding. The same holds for a prompt whose beginning was read
before, which is not read again: a conversation that goes on, a system prompt that all have in common.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from minillama.backend import to_host
from minillama.errors import MinillamaError, UsageError
from minillama.generate import PREFILL, FinishReason, Sampling, TextStream, sample
from minillama.model import KVCache, Llama
from minillama.prefix import common
from minillama.serving.cache import RowCache
from minillama.tokenizer import Tokenizer

SHARED = 128  # prompt tokens that are read in a step while answers are being written: bounds how long those pause


class Busy(MinillamaError):
    """There are as many requests in the queue as it holds."""


@dataclass(frozen=True)
class Request:
    """What to continue, and how.

    prompt: token ids. max_tokens: of each choice; None for as many as fit the context. n: how many choices.
    top_logprobs: how many alternatives to tell of each token, with its own log-probability; None for neither.
    """

    prompt: list[int]
    sampling: Sampling
    seed: int
    max_tokens: int | None = None
    n: int = 1
    stop_strings: tuple[str, ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Token:
    """A token of one choice, as it is drawn.

    text: what it adds (see `generate.Step`). logprob and alternatives (token, logprob), likeliest first: of
    softmax(logits), before temperature and the rules of sampling; None and empty unless asked for. finish_reason: set
    on a choice's last token.
    """

    choice: int
    token: int
    text: str
    logprob: float | None
    alternatives: tuple[tuple[int, float], ...]
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class Failure:
    """The request ends here, without all of its tokens."""

    message: str


Listener = Callable[[Token | Failure], None]


class Job:
    """A request in the engine. `cancel` may be called from any thread, at any time, more than once."""

    def __init__(self, request: Request, listen: Listener) -> None:
        self.request = request
        self.cancelled = False
        self._listen = listen

    def cancel(self) -> None:
        """Nobody waits for the answer any more: its rows are free after the step that is being computed."""
        self.cancelled = True

    def tell(self, event: Token | Failure) -> None:
        """Hand an event to whoever asked; a listener that cannot take it has gone."""
        try:
            if not self.cancelled:
                self._listen(event)
        except Exception:
            self.cancelled = True


class Engine:
    """The thread, its queue and its batch.

    rows: how many sequences are computed at a time; the others wait in line. queue: how many requests may wait.
    """

    def __init__(self, model: Llama, tokenizer: Tokenizer, *, rows: int = 16, queue: int = 256) -> None:
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self._queue_size = queue
        # The cache masks what a sliding window hides (see RowCache).
        windowed = model.config.sliding_window is not None
        self._decoder = Llama(replace(model.config, sliding_window=None), model.params) if windowed else model
        self._cache = RowCache(model.config, rows, like=model.params["norm.weight"])
        self._choices: list[_Choice] = []  # the choice in each row of the cache
        self._reading: tuple[Job, KVCache] | None = None  # the prompt of which a part has been read
        self._read: deque[tuple[list[int], KVCache]] = deque()  # the last prompts, for others that begin alike
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="minillama-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, listen: Listener) -> Job:
        """Put a request in line. `listen` is called on the engine's thread, and must return at once.

        Raises UsageError for a request that cannot be computed, Busy when the queue is full.
        """
        context = self.model.config.max_seq_len
        if not 0 < len(request.prompt) < context:
            raise UsageError(f"the prompt has {len(request.prompt)} tokens: expected 1 to {context - 1}")
        if not 1 <= request.n <= self.rows:
            raise UsageError(f"n {request.n}: expected 1 to {self.rows}")
        if request.max_tokens is not None and request.max_tokens < 1:
            raise UsageError(f"max_tokens {request.max_tokens}: expected a positive integer")
        job = Job(request, listen)
        with self._changed:
            if self._closed:
                raise Busy("the server is shutting down")
            if len(self._waiting) >= self._queue_size:
                raise Busy(f"{len(self._waiting)} requests are waiting already")
            self._waiting.append(job)
            self._changed.notify()
        return job

    def close(self) -> None:
        """End the thread; whoever still waits is told."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def load(self) -> tuple[int, int]:
        """How many sequences are under way, and how many requests wait in line."""
        return len(self._choices), len(self._waiting)

    def _run(self) -> None:
        while self._work_is_there():
            self._drop_cancelled()
            self._read_prompts()
            self._decode()
        self._fail(self._jobs() | set(self._waiting), "the server is shutting down")

    def _work_is_there(self) -> bool:
        """Wait for something to do. False when the engine is to end."""
        with self._changed:
            while not (self._closed or self._waiting or self._reading or self._choices):
                self._changed.wait()
            return not self._closed

    def _drop_cancelled(self) -> None:
        """Free the rows of those who have gone."""
        self._remove({job for job in self._jobs() if job.cancelled})
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.cancelled)

    def _read_prompts(self) -> None:
        """Read prompts, as many tokens as a step may take; one read to its end joins the batch with its first token."""
        read = 0
        while (room := (SHARED if self._choices else PREFILL) - read) > 0 and (reading := self._next_prompt()):
            job, cache = reading
            try:
                part = job.request.prompt[cache.used : cache.used + room]
                read += len(part)
                hidden, _ = self.model.forward(np.array([part]), cache=cache)
                if cache.used == len(job.request.prompt):
                    self._join(job, cache, to_host(self.model.logits(hidden[:, -1]))[0])
            except Exception as error:
                self._fail({job}, _described(error))

    def _next_prompt(self) -> tuple[Job, KVCache] | None:
        """The prompt being read, else the first in line if there are rows for it."""
        with self._changed:
            first = self._waiting[0] if self._waiting else None
            if not self._reading and first and first.request.n <= self.rows - len(self._choices):
                self._reading = first, self._begun(self._waiting.popleft().request.prompt)
        return self._reading

    def _begun(self, prompt: list[int]) -> KVCache:
        """A cache for a prompt, with what an earlier one has in common with it; its last token is always to be read."""
        cache = KVCache(self.model.config, 1, len(prompt), like=self.model.params["norm.weight"])
        shared = [common(prompt[:-1], known) for known, _ in self._read]
        if n := max(shared, default=0):
            known = self._read[shared.index(n)][1]
            cache.keys[:, :, :, :n], cache.values[:, :, :, :n] = known.keys[:, :, :, :n], known.values[:, :, :, :n]
            cache.used = n
        return cache

    def _remember(self, prompt: list[int], cache: KVCache) -> None:
        """Keep a prompt that was read, and of the earlier ones the last: as many tokens in all as fit one context."""
        self._read.append((prompt, cache))
        while sum(len(known) for known, _ in self._read) > self.model.config.max_seq_len:
            self._read.popleft()

    def _join(self, job: Job, cache: KVCache, logits: np.ndarray) -> None:
        """Put the choices of a request whose prompt is read into the batch, with their first tokens."""
        self._reading = None
        self._remember(job.request.prompt, cache)
        first = len(self._choices)
        for number in range(job.request.n):
            choice = _Choice(job, number, self.model.config.max_seq_len, self.tokenizer)
            self._cache.join(cache)
            self._choices.append(choice)
        self._draw(range(first, len(self._choices)), [logits] * job.request.n)

    def _decode(self) -> None:
        """The next token of every sequence under way."""
        if not self._choices:
            return
        try:
            tokens = np.array([[choice.last] for choice in self._choices])  # (B, 1)
            hidden, _ = self._decoder.forward(tokens, cache=self._cache)
            self._draw(range(len(self._choices)), to_host(self.model.logits(hidden[:, -1])))  # (B, C) -> (B, V)
        except Exception as error:
            self._fail({choice.job for choice in self._choices}, _described(error))

    def _draw(self, places: range, logits: Iterable[np.ndarray]) -> None:
        """A token for each of these rows; those that end with it leave."""
        ended = [place for place, row in zip(places, logits, strict=True) if self._choices[place].draw(row)]
        for place in reversed(ended):  # from the last, which is what moves into a place that is freed
            self._leave(place)

    def _leave(self, place: int) -> None:
        self._cache.leave(place)
        self._choices[place] = self._choices[-1]
        self._choices.pop()

    def _jobs(self) -> set[Job]:
        """All that has been begun."""
        begun = {choice.job for choice in self._choices}
        return begun | {self._reading[0]} if self._reading else begun

    def _remove(self, jobs: set[Job]) -> None:
        """Free what these hold."""
        if self._reading and self._reading[0] in jobs:
            self._reading = None
        for place in reversed(range(len(self._choices))):
            if self._choices[place].job in jobs:
                self._leave(place)

    def _fail(self, jobs: set[Job], message: str) -> None:
        """These end here; the engine goes on with the others."""
        self._remove(jobs)
        for job in jobs:
            job.tell(Failure(message))


class _Choice:
    """One sequence in the batch: what it has drawn so far and what ends it."""

    def __init__(self, job: Job, number: int, context: int, tokenizer: Tokenizer) -> None:
        request = job.request
        self.job = job
        self.last = -1  # the token that was drawn last
        self._number = number
        self._drawn = 0
        self._room = context - len(request.prompt)
        self._stop_ids = tokenizer.stop_ids
        self._rng = np.random.default_rng([request.seed, number])
        self._text = TextStream(tokenizer, request.prompt, request.stop_strings)

    def draw(self, logits: np.ndarray) -> bool:
        """Draw a token from logits (V,) and tell it. Returns whether it is the last."""
        request = self.job.request
        self.last = sample(logits, request.sampling, self._rng)
        self._drawn += 1
        text, text_stopped = self._text.feed(self.last)
        reason: FinishReason | None = None
        if self.last in self._stop_ids or text_stopped:
            reason = "stop"
        elif self._drawn == request.max_tokens:
            reason = "length"
        elif self._drawn == self._room:
            reason = "context"
        if reason and not text_stopped:
            text += self._text.finish()
        top = request.top_logprobs
        logprob, alternatives = (None, ()) if top is None else _logprobs(logits, self.last, top)
        self.job.tell(Token(self._number, self.last, text, logprob, alternatives, reason))
        return reason is not None


def _logprobs(logits: np.ndarray, token: int, top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The log-probability of `token`, and the `top` likeliest tokens with theirs, of softmax(logits)."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    top = min(top, len(scores))
    likeliest = np.argpartition(scores, -top)[-top:] if top else np.array([], dtype=int)
    likeliest = likeliest[np.argsort(-scores[likeliest], kind="stable")]
    return float(scores[token]), tuple((int(i), float(scores[i])) for i in likeliest)


def _described(error: Exception) -> str:
    """What to tell of an error in a step; the log has the rest."""
    logging.getLogger(__name__).error("a step failed", exc_info=error)
    return "out of memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
