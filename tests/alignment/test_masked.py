"""Means over what is valid, and shapes that must agree."""

from __future__ import annotations

import numpy as np
import pytest

from minillama.alignment.masked import expect_shape, masked, masked_mean, valid_count
from minillama.errors import UsageError
from tests.conftest import Arrays

X = np.array([[1, 2, 4], [8, 16, 32]], np.float32)
MASK = np.array([[1, 1, 0], [1, 0, 0]], bool)


def test_the_mean_is_over_valid_entries(arrays: Arrays) -> None:
    mean = masked_mean(arrays.put(X), arrays.put(MASK))
    assert mean.dtype == np.float32
    assert arrays.get(mean) == np.float32(11 / 3)
    assert arrays.get(masked_mean(arrays.put(X), arrays.put(MASK), count=8.0)) == 11 / 8


def test_of_nothing_it_is_0() -> None:
    assert masked_mean(np.full((2, 3), np.nan), np.zeros((2, 3), bool)) == 0
    assert masked_mean(np.full((2, 3), np.nan), np.zeros((2, 3), bool), count=4.0) == 0


def test_masked_replaces_and_does_not_multiply() -> None:
    garbage = np.where(MASK, X, np.nan)
    for ours in masked(MASK, garbage, garbage):
        np.testing.assert_array_equal(ours, [[1, 2, 0], [8, 0, 0]])
    assert np.isnan(garbage * MASK).any()  # the product that would not do
    assert masked_mean(garbage, MASK) == masked_mean(X, MASK)


def test_what_a_mean_is_over() -> None:
    assert valid_count(MASK, np.float64) == 3
    assert valid_count(MASK, np.float64, 8.0) == 8
    assert valid_count(np.zeros((2, 3), bool), np.float64) == 1
    assert valid_count(MASK, np.float32).dtype == np.float32


def test_shapes() -> None:
    expect_shape((2, 3), "all", x=X, mask=MASK, nothing=None)
    with pytest.raises(UsageError, match=r"^mask: expected the shape \(2, 3\) of the numbers, found \(2, 1\)$"):
        masked_mean(X, MASK[:, :1])
