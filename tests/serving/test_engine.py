"""The engine: what it writes is what `generate` writes, whoever else is there; requests come, go, fail and wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from minillama.config import LlamaConfig
from minillama.errors import UsageError
from minillama.generate import GREEDY, Completion, Sampling, generate
from minillama.model import Llama
from minillama.serving import engine as engine_module
from minillama.serving.engine import Busy, Engine, Failure, Job, Request, Token
from tests.conftest import Arrays
from tests.test_generate import Letters, choosing
from tests.test_model import TINY, lively, tokens

BOLD = Sampling(temperature=1.0)


class Ends(Letters):
    """`Letters` with stop tokens."""

    def __init__(self, stop_ids: tuple[int, ...] = ()) -> None:
        super().__init__(dict.fromkeys(stop_ids, b""))
        self.stop_ids = frozenset(stop_ids)


@contextmanager
def running(model: Llama, tokenizer: Ends | None = None, **limits: int) -> Iterator[Engine]:
    engine = Engine(model, tokenizer or Ends(), **limits)  # type: ignore[arg-type]
    yield engine
    engine.close()


class Answer:
    """What came of a request."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self.events: queue.Queue[Token | Failure] = queue.Queue()
        self.job: Job = engine.submit(request, self.events.put)
        self._n = request.n

    def next(self) -> Token | Failure:
        return self.events.get(timeout=30)

    def all(self) -> list[Completion]:
        """The choices, once they are complete."""
        choices = [Completion([], [], "", "length") for _ in range(self._n)]
        open_choices = self._n
        while open_choices:
            event = self.next()
            assert isinstance(event, Token), event
            choice = choices[event.choice]
            choice.tokens.append(event.token)
            choice.text += event.text
            if event.finish_reason:
                choice.finish_reason = event.finish_reason
                open_choices -= 1
        return choices


def prompt(n: int) -> list[int]:
    return tokens(n, seed=n).tolist()


def as_alone(model: Llama, request: Request) -> list[Completion]:
    """What `generate` makes of a request."""
    return generate(
        model,
        [request.prompt] * request.n,
        max_new_tokens=request.max_tokens,
        sampling=request.sampling,
        seed=request.seed,
        stop_ids=(),
        tokenizer=Ends(),  # type: ignore[arg-type]
    )


def mixed_requests(count: int, limit: int) -> list[Request]:
    """Prompts and answers of many lengths, one choice and several, greedy and bold."""
    rng = np.random.default_rng(0)
    return [
        Request(
            prompt(int(rng.integers(1, limit // 2))),
            GREEDY if i % 3 == 0 else BOLD,
            seed=i,
            max_tokens=int(rng.integers(1, limit // 2)),
            n=1 + i % 3,
        )
        for i in range(count)
    ]


WINDOWED = replace(TINY, sliding_window=5)
LONG = replace(TINY, max_seq_len=400)


@pytest.mark.parametrize("config", [TINY, WINDOWED, LONG], ids=["plain", "window", "memory grows"])
def test_answers_are_those_of_generate_whatever_else_is_in_the_batch(config: LlamaConfig) -> None:
    """More requests than rows, so that they come and go between each other's tokens."""
    model = lively(config)
    requests = mixed_requests(14, config.max_seq_len)
    with running(model, rows=4) as engine:
        answers = [Answer(engine, request) for request in requests]
        assert [answer.all() for answer in answers] == [as_alone(model, request) for request in requests]
        assert engine.load == (0, 0)


def test_on_every_library(arrays: Arrays) -> None:
    requests = mixed_requests(5, TINY.max_seq_len)
    with running(Llama(TINY, arrays.put(lively(TINY).params)), rows=3) as engine:
        answers = [Answer(engine, request) for request in requests]
        assert [answer.all() for answer in answers] == [as_alone(lively(TINY), request) for request in requests]


def test_a_long_prompt_is_read_in_parts_while_the_others_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "SHARED", 4)
    model = lively(LONG)
    writing = Request(prompt(3), GREEDY, 0, max_tokens=200)
    reading = Request(prompt(150), GREEDY, 0, max_tokens=5)
    order: list[str] = []
    done = threading.Semaphore(0)

    def listener(name: str):
        def listen(event: Token | Failure) -> None:
            order.append(name)
            if isinstance(event, Failure) or event.finish_reason:
                done.release()
            elif len(order) == 1:
                engine.submit(reading, listener("reader"))

        return listen

    with running(model) as engine:
        engine.submit(writing, listener("writer"))
        assert done.acquire(timeout=60) and done.acquire(timeout=60)
    assert order.index("reader") >= 150 // 4
    assert order.count("writer") == 200 and order.count("reader") == 5


def test_what_was_read_before_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(LONG)
    read: list[int] = []
    forward = model.forward

    def counting(batch: np.ndarray, **more: object):
        read.append(batch.size)
        return forward(batch, **more)  # type: ignore[arg-type]

    system, questions = prompt(100), [prompt(n) for n in (7, 9, 11)]
    requests = [Request(system + question, GREEDY, 0, max_tokens=1) for question in questions]
    alone = [as_alone(model, request) for request in requests]
    monkeypatch.setattr(model, "forward", counting)
    with running(model) as engine:
        for request, expected in zip([*requests, requests[0]], [*alone, alone[0]], strict=True):
            assert Answer(engine, request).all() == expected
        assert read[0] == 107 and read[1] <= 9 and read[2] <= 11 and read[3] == 1
        assert Answer(engine, Request(prompt(350), GREEDY, 0, max_tokens=1)).all()  # too long to be kept beside those
        assert Answer(engine, requests[1]).all() == alone[1]
        assert read[5] > 100


def test_what_ends_a_choice() -> None:
    model = choosing(list(range(12)))
    with running(model, Ends((10,))) as engine:
        by_token = Answer(engine, Request([5], GREEDY, 0))
        by_text = Answer(engine, Request([0], GREEDY, 0, stop_strings=("efg",)))
        by_length = Answer(engine, Request([0], GREEDY, 0, max_tokens=2))
        assert by_token.all() == [Completion([6, 7, 8, 9, 10], [], "ghij", "stop")]
        assert by_text.all() == [Completion([1, 2, 3, 4, 5, 6], [], "bcd", "stop")]
        assert by_length.all() == [Completion([1, 2], [], "bc", "length")]
    with running(lively(TINY)) as engine:
        (by_context,) = Answer(engine, Request(prompt(9), GREEDY, 0)).all()
        assert len(by_context.tokens) == TINY.max_seq_len - 9
        assert by_context.finish_reason == "context"


def test_logprobs_are_of_the_logits() -> None:
    model = lively(TINY)
    with running(model) as engine:
        answer = Answer(engine, Request(prompt(7), replace(BOLD, temperature=2.0), 3, max_tokens=6, top_logprobs=4))
        told = [answer.next() for _ in range(6)]
    text = prompt(7)
    for token in told:
        assert isinstance(token, Token)
        logits = model.logits(model.forward(np.array([text]))[0][0, -1]).astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum())
        assert token.logprob == pytest.approx(expected[token.token], abs=1e-5)
        assert [i for i, _ in token.alternatives] == np.argsort(-expected)[:4].tolist()
        assert [p for _, p in token.alternatives] == pytest.approx(np.sort(expected)[::-1][:4], abs=1e-5)
        text.append(token.token)


def test_who_leaves_frees_the_rows_for_who_waits() -> None:
    model = lively(replace(TINY, max_seq_len=100_000))
    with running(model, rows=2) as engine:
        endless = Answer(engine, Request(prompt(3), GREEDY, 0, n=2))
        waiting = Answer(engine, Request(prompt(4), GREEDY, 0, max_tokens=3))
        gone = Answer(engine, Request(prompt(5), GREEDY, 0, max_tokens=3))
        gone.job.cancel()
        assert isinstance(endless.next(), Token)
        endless.job.cancel()
        endless.job.cancel()
        assert waiting.all() == as_alone(model, Request(prompt(4), GREEDY, 0, max_tokens=3))
        assert gone.events.empty()


def test_a_listener_that_breaks_is_one_that_has_gone() -> None:
    model = lively(replace(TINY, max_seq_len=100_000))

    def broken(_: Token | Failure) -> None:
        raise RuntimeError("Event loop is closed")

    with running(model, rows=1) as engine:
        engine.submit(Request(prompt(3), GREEDY, 0), broken)
        assert len(Answer(engine, Request(prompt(4), GREEDY, 0, max_tokens=3)).all()[0].tokens) == 3


def test_a_step_that_fails_ends_what_it_computed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(TINY)
    forward = model.forward
    good = Request(prompt(5), BOLD, 1, max_tokens=8)

    def failing(batch: np.ndarray, **more: object):
        if batch.shape[1] > len(good.prompt):
            raise MemoryError
        if len(batch) == 3:
            raise ValueError("three is a crowd")
        return forward(batch, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "forward", failing)
    with running(model, rows=3) as engine:
        first = Answer(engine, good)
        assert Answer(engine, Request(prompt(11), GREEDY, 0)).next() == Failure("out of memory")
        assert first.all() == as_alone(lively(TINY), good)
        crowd = Answer(engine, replace(good, n=3))
        events = [crowd.next() for _ in range(4)]
        assert events[3] == Failure("ValueError: three is a crowd")
        assert Answer(engine, replace(good, n=2)).all() == as_alone(lively(TINY), replace(good, n=2))


def test_limits_of_requests() -> None:
    model = lively(replace(TINY, max_seq_len=1000))
    with running(model, rows=2, queue=1) as engine:
        for bad, message in (
            (Request([], GREEDY, 0), "prompt has 0 tokens"),
            (Request([1] * 1000, GREEDY, 0), "prompt has 1000 tokens: expected 1 to 999"),
            (Request([1], GREEDY, 0, n=3), "n 3: expected 1 to 2"),
            (Request([1], GREEDY, 0, max_tokens=0), "max_tokens 0"),
        ):
            with pytest.raises(UsageError, match=message):
                Answer(engine, bad)
        busy = Answer(engine, Request(prompt(3), GREEDY, 0, n=2))
        assert isinstance(busy.next(), Token)
        Answer(engine, Request(prompt(4), GREEDY, 0))
        with pytest.raises(Busy, match="1 requests are waiting"):
            Answer(engine, Request(prompt(4), GREEDY, 0))


def test_closing_tells_those_who_wait() -> None:
    with running(lively(replace(TINY, max_seq_len=100_000)), rows=1) as engine:
        written = Answer(engine, Request(prompt(3), GREEDY, 0))
        waiting = Answer(engine, Request(prompt(4), GREEDY, 0))
        assert isinstance(written.next(), Token)
    assert waiting.next() == Failure("the server is shutting down")
    while isinstance(event := written.next(), Token):
        pass
    assert event == Failure("the server is shutting down")
    with pytest.raises(Busy, match="shutting down"):
        Answer(engine, Request([1], GREEDY, 0))
