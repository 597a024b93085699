"""The two orders of Wq's and Wk's rows, and that the change of order changes no attention."""

from __future__ import annotations

import numpy as np
import pytest

from minillama import layers
from minillama.weights.rope_order import half_to_interleaved, interleaved_to_half


def test_rows_of_one_head() -> None:
    half = np.arange(6.0)[:, None]  # a head of width 6: pairs (0, 3), (1, 4), (2, 5)
    assert half_to_interleaved(half, 6)[:, 0].tolist() == [0, 3, 1, 4, 2, 5]
    interleaved = np.arange(6.0)[:, None]  # pairs (0, 1), (2, 3), (4, 5)
    assert interleaved_to_half(interleaved, 6)[:, 0].tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (3, 6), (4, 8), (9, 64)])
def test_round_trip(heads: int, head_dim: int) -> None:
    weight = np.random.default_rng(0).standard_normal((heads * head_dim, 5))
    assert np.array_equal(half_to_interleaved(interleaved_to_half(weight, head_dim), head_dim), weight)
    assert np.array_equal(interleaved_to_half(half_to_interleaved(weight, head_dim), head_dim), weight)
    assert half_to_interleaved(weight, head_dim).flags.c_contiguous


def test_heads_stay_apart() -> None:
    weight = np.repeat(np.arange(3.0), 8)[:, None]  # every row of head h says h
    assert np.array_equal(half_to_interleaved(weight, 8), weight)


def test_attention_scores_are_the_same_in_both_orders() -> None:
    """Scores of rotated q and k: interleaved rows with the interleaved rotation, half rows with the half one."""
    rng = np.random.default_rng(1)
    T, C, H, K, D = 7, 12, 4, 2, 6
    x, wq, wk = (rng.standard_normal(shape) for shape in [(1, T, C), (H * D, C), (K * D, C)])
    rotations = layers.rope_rotations(np.arange(T), layers.rope_frequencies(D), np.float64)

    def scores(wq: np.ndarray, wk: np.ndarray, layout: str) -> np.ndarray:
        q = layers.rope((x @ wq.T).reshape(1, T, H, D), rotations, layout)[0]  # (B, T, C) -> (B, T, H, D)
        k = layers.rope((x @ wk.T).reshape(1, T, K, D), rotations, layout)[0]
        return np.einsum("bthd,bskd->bhkts", q, k)

    expected = scores(wq, wk, "interleaved")
    half = scores(interleaved_to_half(wq, D), interleaved_to_half(wk, D), "half")
    assert np.abs(half - expected).max() < 1e-12
    # Without the change of order they differ: this test can fail.
    assert np.abs(scores(wq, wk, "half") - expected).max() > 0.1
