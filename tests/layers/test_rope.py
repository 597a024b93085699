"""What is particular to RoPE: layouts, relative positions, frequency scaling."""

from __future__ import annotations

import numpy as np
import pytest

from minillama.config import RopeScaling
from minillama.layers import rope, rope_frequencies, rope_rotations
from tests.layers.cases import normal

D = 16


def turn(x: np.ndarray, position: int, layout: str = "interleaved") -> np.ndarray:
    """One head vector (D,) at one position."""
    rotations = rope_rotations(np.array([position]), rope_frequencies(x.size), np.float64)
    return rope(x.reshape(1, 1, 1, -1), rotations, layout)[0].reshape(-1)


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_scores_depend_on_the_distance_alone(layout: str) -> None:
    q, k = normal(D), normal(D, seed=1)
    scores = [turn(q, m + 7, layout) @ turn(k, m, layout) for m in (0, 1, 100, 5000)]
    np.testing.assert_allclose(scores, scores[0], rtol=1e-11)
    assert abs(turn(q, 8, layout) @ turn(k, 0, layout) - scores[0]) > 1e-3


def test_the_two_layouts_are_one_permutation_apart() -> None:
    x = normal(D)
    to_half = np.r_[0:D:2, 1:D:2]
    np.testing.assert_allclose(turn(x[to_half], 5, "half"), turn(x, 5, "interleaved")[to_half], rtol=1e-14)
    assert not np.allclose(turn(x, 5, "half"), turn(x, 5, "interleaved"))


def test_position_zero_and_length() -> None:
    x = normal(D)
    np.testing.assert_array_equal(turn(x, 0), x)
    np.testing.assert_allclose(np.linalg.norm(turn(x, 1234)), np.linalg.norm(x), rtol=1e-14)


def test_frequencies() -> None:
    np.testing.assert_allclose(rope_frequencies(8, 10_000.0), [1, 0.1, 0.01, 0.001], rtol=1e-14)
    linear = rope_frequencies(8, 10_000.0, RopeScaling("linear", 4.0))
    np.testing.assert_allclose(linear, [0.25, 0.025, 0.0025, 0.00025], rtol=1e-14)


def test_ntk_stretches_the_slowest_pair_by_the_factor_and_leaves_the_fastest() -> None:
    plain, ntk = rope_frequencies(8), rope_frequencies(8, scaling=RopeScaling("ntk", 4.0))
    ratio = plain / ntk
    np.testing.assert_allclose(ratio[[0, -1]], [1, 4], rtol=1e-13)
    assert np.all(np.diff(ratio) > 0)


def test_llama3_scaling_by_wavelength() -> None:
    """Wavelengths under 8192/4 stay, over 8192/1 are divided by 8, between them a blend (Llama 3.1's numbers)."""
    plain = rope_frequencies(128, 500_000.0)
    scaled = rope_frequencies(128, 500_000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 8192))
    wavelength = 2 * np.pi / plain
    fast, slow = wavelength < 2048, wavelength > 8192
    assert fast.any() and slow.any() and (~fast & ~slow).any()
    np.testing.assert_array_equal(scaled[fast], plain[fast])
    np.testing.assert_allclose(scaled[slow], plain[slow] / 8, rtol=1e-15)
    between = (plain / scaled)[~fast & ~slow]
    assert np.all((1 < between) & (between < 8)) and np.all(np.diff(between) > 0)


def test_angles_are_exact_far_from_the_start() -> None:
    """float32 rotations at position 100,000 are rounded once; float32 angles would be off by far more."""
    frequencies = rope_frequencies(D)
    rotations = rope_rotations(np.array([100_000]), frequencies)
    assert rotations.dtype == np.complex64
    np.testing.assert_allclose(rotations[0], np.exp(1j * 100_000 * frequencies), rtol=0, atol=1e-7)
