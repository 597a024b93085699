"""Prefix caching: what is kept of a text serves longer and other texts as if they were read anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from minillama.generate import Sampling, generate
from minillama.model import KVCache, Llama
from minillama.prefix import Prefix, common, resumed
from tests.conftest import Arrays
from tests.test_model import TINY, lively, tokens


def read(model: Llama, text: Sequence[int], prefix: Prefix | None = None) -> Prefix:
    """A prefix that holds `text`, read without any other."""
    prefix = prefix or Prefix(TINY)
    cache = KVCache(TINY, 1, len(text), like=model.params["norm.weight"])
    model.forward(np.array([text]), cache=cache)
    prefix.keep(cache, 0, list(text))
    return prefix


@pytest.mark.parametrize(
    ("a", "b", "n"), [([], [], 0), ([1], [], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 3, 3], 1), ([1], [2], 0)]
)
def test_what_two_texts_have_in_common(a: list[int], b: list[int], n: int) -> None:
    assert common(a, b) == common(b, a) == n


def test_the_last_token_is_always_read() -> None:
    prefix = Prefix(TINY)
    prefix.tokens = [1, 2, 3]
    assert [prefix.known(prompt) for prompt in ([1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 9, 3, 4])] == [0, 1, 2, 3, 1]


def test_its_size_is_that_of_its_arrays() -> None:
    model = lively(TINY)
    prefix = read(model, [1, 2])
    assert prefix._keys.nbytes + prefix._values.nbytes == Prefix.nbytes(TINY, model.dtype)


@pytest.mark.parametrize("shares", [(5, 9, 2), (0, 0, 0), (11, 0, 4), (11, 8, 5)], ids=str)
def test_a_batch_goes_on_where_its_prefixes_end(shares: tuple[int, ...], arrays: Arrays) -> None:
    """Rows that know more and less of their prompts, and one that knows another text from there on."""
    model = lively(TINY)
    there = Llama(TINY, arrays.put(model.params))
    prompts = [tokens(n, seed=n).tolist() for n in (12, 9, 6)]
    prefixes = [read(there, [*p[:n], 30, 7]) if n else Prefix(TINY) for p, n in zip(prompts, shares, strict=True)]
    cache = resumed(there, prompts, prefixes, 14)
    news = max(len(p) - min(n, len(p) - 1) for p, n in zip(prompts, shares, strict=True))
    assert cache.used == 12 - news
    padded = np.array([[0] * (12 - len(p)) + p for p in prompts])
    hidden, _ = there.forward(padded[:, cache.used :], cache=cache)
    for row, prompt in zip(arrays.get(hidden), prompts, strict=True):
        alone, _ = model.forward(np.array([prompt]))
        np.testing.assert_allclose(row[-1], alone[0, -1], rtol=0, atol=1e-5)


def test_memory_that_was_never_written_is_never_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(TINY)
    prompts = [tokens(n, seed=n).tolist() for n in (12, 3)]
    prefixes = [read(model, prompts[0][:9]), Prefix(TINY)]
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full(shape, np.nan, dtype))
    cache = resumed(model, prompts, prefixes, 13)
    assert cache.used == 9
    hidden, _ = model.forward(np.array([prompts[0], [0] * 9 + prompts[1]])[:, 9:], cache=cache)
    assert np.isfinite(hidden).all()


def test_a_prefix_grows_with_its_text() -> None:
    """What it holds already is not copied again; what stood where it goes on otherwise is written over."""
    model = lively(TINY)
    first, second = tokens(9, seed=1).tolist(), tokens(9, seed=2).tolist()
    prefix = read(model, first)
    for own in (prefix._keys, prefix._values):
        own[:, :, 3] = 5
    read(model, first[:4] + second, prefix)
    assert prefix.tokens == first[:4] + second
    anew = read(model, first[:4] + second)
    for own, other in ((prefix._keys, anew._keys), (prefix._values, anew._values)):
        np.testing.assert_array_equal(own[:, :, 3], 5)
        np.testing.assert_allclose(own[:, :, 4:13], other[:, :, 4:13], rtol=0, atol=1e-5)


def forwards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what models read from here on."""
    shapes: list[tuple[int, ...]] = []
    forward = Llama.forward

    def spy(self: Llama, tokens: np.ndarray, **options: object) -> object:
        shapes.append(tokens.shape)
        return forward(self, tokens, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Llama, "forward", spy)
    return shapes


def test_generation_reads_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over three turns, in which a row sits out one and a row says something else than it was told."""
    model = lively(TINY, np.float64)
    texts = [tokens(n, seed=n).tolist() for n in (7, 4, 5)]
    prefixes = [Prefix(TINY) for _ in texts]
    bold, news = Sampling(1.0), 7
    for turn, rows in enumerate([(0, 1, 2), (2, 0), (0, 1, 2)]):
        prompts = [texts[row] for row in rows]
        plan = {"max_new_tokens": 5, "sampling": bold, "seed": turn, "stop_ids": {3, 4, 5, 6, 7, 8}, "logprobs": True}
        anew = generate(model, prompts, **plan)
        with monkeypatch.context() as patch:
            shapes = forwards(patch)
            found = generate(model, prompts, **plan, prefixes=[prefixes[row] for row in rows])
        assert [row.tokens for row in found] == [row.tokens for row in anew]
        for row, other in zip(found, anew, strict=True):
            np.testing.assert_allclose(row.logprobs, other.logprobs)
        assert shapes[0] == (len(rows), news)
        news = 3  # the last sampled token and the two after it
        for row, completion in zip(rows, found, strict=True):
            assert prefixes[row].tokens == texts[row] + completion.tokens[:-1]
            answer = [*completion.tokens]
            if turn == 1 and row == 0:
                answer[0] += 1 if answer[0] < 30 else -1
                news = len(answer) + 2
            texts[row] = [*texts[row], *answer, 1, 2]
