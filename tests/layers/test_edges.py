"""Edges of the ops that the cases do not reach; each was found by a mutant that the other tests let live."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from minillama import layers
from minillama.config import RopeScaling
from minillama.errors import UsageError
from tests.conftest import Arrays
from tests.fake_gpu import library as gpu
from tests.layers import naive
from tests.layers.cases import normal


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_attention_of_large_scores(dtype: type) -> None:
    """e^1000 is infinite in both types: the softmax takes the largest score away first."""
    q = np.array([[[[1000.0, 0]], [[1000.0, 0]]]], dtype)  # (1, 2, 1, 2)
    k, v = np.array([[[[1.0, 0]], [[3.0, 0]]]], dtype), np.array([[[[5.0, 6]], [[7.0, 8]]]], dtype)
    out, saved = layers.attention(q, k, v)
    np.testing.assert_array_equal(out[0, :, 0], [[5, 6], [7, 8]])
    assert all(np.isfinite(grad).all() for grad in layers.attention_backward(np.ones_like(out), saved))
    out, _ = layers.attention(-q, k, v)
    np.testing.assert_array_equal(out[0, :, 0], [[5, 6], [5, 6]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [-2000, 0, 2000])
def test_cross_entropy_of_large_logits(dtype: type, offset: float) -> None:
    logits = np.array([[1500, 0, -1500], [1500, 0, -1500], [0, 0, -1500]], dtype) + dtype(offset)
    for row, target, expected in ((0, 0, 0), (1, 1, 1500), (2, 1, np.log(2))):
        loss, saved = layers.cross_entropy(logits[row : row + 1], np.array([target]))
        assert float(loss) == pytest.approx(expected, rel=1e-6)
        assert np.isfinite(layers.cross_entropy_backward(saved)).all()


def test_cross_entropy_of_one_counted_token() -> None:
    logits, targets = normal(1, 3, 5), np.array([[1, 4, 2]])
    loss, saved = layers.cross_entropy(logits, targets, np.array([[False, True, False]]))
    alone, saved_alone = layers.cross_entropy(logits[:, 1:2], targets[:, 1:2])
    assert loss == alone
    np.testing.assert_array_equal(
        layers.cross_entropy_backward(saved)[:, 1:2], layers.cross_entropy_backward(saved_alone)
    )


def test_cross_entropy_backward_of_the_loss_itself() -> None:
    _, saved = layers.cross_entropy(normal(2, 5), np.array([1, 4]))
    np.testing.assert_array_equal(layers.cross_entropy_backward(saved), layers.cross_entropy_backward(saved, 1.0))
    assert layers.cross_entropy_backward(saved) is saved[0]  # the largest array of a step is not copied


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [-2000, 0, 2000])
def test_token_logprobs_of_large_logits(dtype: type, offset: float) -> None:
    logits = np.array([[1500, 0, -1500], [1500, 0, -1500], [0, 0, -1500]], dtype) + dtype(offset)
    y, saved = layers.token_logprobs(logits, np.array([0, 1, 1]), temperature=0.5)
    np.testing.assert_allclose(y, [0, -3000, -np.log(2)], rtol=1e-6)
    dlogits = layers.token_logprobs_backward(np.ones(3, dtype), saved)
    np.testing.assert_allclose(dlogits, [[0, 0, 0], [-2, 2, 0], [-1, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(layers.entropy(logits, temperature=0.5), [0, 0, np.log(2)], rtol=1e-6)


def test_masked_infinities_stay_out_of_token_logprobs() -> None:
    logits, mask = normal(1, 2, 4), np.array([[True, False]])
    expected, saved_alone = layers.token_logprobs(logits[:, :1], np.array([[1]]))
    for garbage in (np.inf, -np.inf, np.nan):
        with np.errstate(invalid="ignore"):
            y, saved = layers.token_logprobs(np.where(mask[..., None], logits, garbage), np.array([[1, -7]]), mask)
            dlogits = layers.token_logprobs_backward(np.array([[2.0, np.nan]]), saved)
        np.testing.assert_array_equal(y, [[expected[0, 0], 0]])
        np.testing.assert_array_equal(
            dlogits[0, 0], layers.token_logprobs_backward(np.array([[2.0]]), saved_alone)[0, 0]
        )
        np.testing.assert_array_equal(dlogits[0, 1], np.zeros(4))


def test_token_logprobs_backward_overwrites_when_told() -> None:
    logits, targets, dy = normal(2, 3, 7), np.array([[6, 0, 2], [2, 2, 5]]), normal(2, 3)
    before = logits.copy()
    _, saved = layers.token_logprobs(logits, targets)
    expected = layers.token_logprobs_backward(dy, saved)
    np.testing.assert_array_equal(logits, before)
    dlogits = layers.token_logprobs_backward(dy, saved, overwrite=True)
    np.testing.assert_array_equal(dlogits, expected)
    np.testing.assert_array_equal(logits, expected)  # it is where the logits were


def test_narrow_logits_are_computed_with_in_float32() -> None:
    """Half precision has 3 digits: its own sum of 1000 exponentials would be off by a percent."""
    logits, targets = normal(2, 1000).astype(np.float16), np.array([3, 999])
    exact, exact_saved = layers.token_logprobs(logits.astype(np.float64), targets)
    y, saved = layers.token_logprobs(logits, targets)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, exact, rtol=1e-6)
    dlogits = layers.token_logprobs_backward(np.ones(2, np.float32), saved)
    assert dlogits.dtype == np.float16
    expected = layers.token_logprobs_backward(np.ones(2), exact_saved)
    np.testing.assert_allclose(dlogits, expected, rtol=1e-3, atol=1e-7)
    assert layers.entropy(logits).dtype == np.float32
    np.testing.assert_allclose(layers.entropy(logits), layers.entropy(logits.astype(np.float64)), rtol=1e-6)


@pytest.mark.parametrize("cached", [1, 14, 1 << 17])
@pytest.mark.parametrize("temperature", [0.5, 1, 3])
def test_entropy(arrays: Arrays, cached: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["minillama.layers.blocks"], "CACHED", cached)
    logits = normal(2, 3, 7)
    expected = naive.entropy(logits, temperature)
    np.testing.assert_allclose(layers.entropy(logits, temperature=temperature), expected, rtol=1e-12)
    ours = layers.entropy(arrays.put(logits.astype(np.float32)), temperature=temperature)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(arrays.get(ours), expected, rtol=1e-5)
    if temperature == 1:
        np.testing.assert_array_equal(layers.entropy(logits), layers.entropy(logits, temperature=1.0))


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_is_positive(temperature: float) -> None:
    with pytest.raises(UsageError, match="temperature: expected a positive number, found"):
        layers.token_logprobs(normal(2, 5), np.array([1, 4]), temperature=temperature)
    with pytest.raises(UsageError, match="temperature: expected a positive number, found"):
        layers.entropy(normal(2, 5), temperature=temperature)


def test_embedding_of_no_tokens() -> None:
    y, saved = layers.embedding(np.zeros((1, 0), int), normal(5, 4))
    assert y.shape == (1, 0, 4)
    np.testing.assert_array_equal(layers.embedding_backward(y, saved), np.zeros((5, 4)))


def test_rope_defaults_and_smallest_head() -> None:
    np.testing.assert_array_equal(layers.rope_frequencies(8), layers.rope_frequencies(8, 10_000.0))
    # A single pair is the fastest one: NTK scaling leaves it alone.
    np.testing.assert_array_equal(layers.rope_frequencies(2, scaling=RopeScaling("ntk", 4.0)), [1.0])


def test_rotations_of_every_row_of_positions() -> None:
    positions, frequencies = np.array([[0, 1, 2, 3], [0, 0, 1, 40]]), layers.rope_frequencies(6)
    rotations = layers.rope_rotations(positions, frequencies, np.float64)
    assert rotations.shape == (2, 4, 3)
    for row, step in np.ndindex(2, 4):
        angles = positions[row, step] * frequencies
        np.testing.assert_allclose(rotations[row, step], np.cos(angles) + 1j * np.sin(angles), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    ("library", "T", "cached", "rows", "queries"),
    [
        (np, 10, 163, [(0, 2), (2, 3)], [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]),
        (np, 10, 79, [(0, 1), (1, 2), (2, 3)], [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]),  # at least one
        (np, 1, 163, [(0, 3)], [(0, 1)]),  # a single query has fewer scores, and more sequences fit
        (gpu, 10, 163, [(0, 3)], [(0, 8), (8, 10)]),  # fewer and larger launches
    ],
)
def test_blocks_of_attention(
    library: Any,
    T: int,
    cached: int,
    rows: list[tuple[int, int]],
    queries: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of each sequence and head QUERIES at a time, and of sequences as many as have CACHED scores together. Here
    a sequence has 80: 2 queries of 4 heads with 10 keys.
    """
    module = sys.modules["minillama.layers.attention"]
    monkeypatch.setattr(module, "QUERIES", 2)
    monkeypatch.setattr(module, "CACHED", cached)
    q, k = (library.asarray(normal(3, n, h, 2).astype(np.float32)) for n, h in ((T, 4), (10, 2)))
    _, (*_, blocks) = layers.attention(q, k, k)
    expected = [
        (slice(*of), slice(2 * start, 2 * stop), slice(0, 10 - T + stop)) for start, stop in queries for of in rows
    ]
    assert [block[:3] for block in blocks] == expected
