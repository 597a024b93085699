"""Intervals against values worked out by hand or taken from tables, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minillama.evaluation.statistics import Estimate, _student, mean, share


def test_student_of_two_values_by_hand() -> None:
    """1 and 3: mean 2, deviation √2, error 1, and 12.706 times that for one degree of freedom."""
    assert mean([1, 3]) == pytest.approx((2, 2 - 12.706, 2 + 12.706))


def test_student_of_five_values_by_hand() -> None:
    """1 to 5: deviation √2.5, error √0.5, 2.776 times that."""
    half = 2.776 * math.sqrt(0.5)
    assert mean([1, 2, 3, 4, 5]) == pytest.approx((3, 3 - half, 3 + half))


@pytest.mark.parametrize(
    ("freedom", "quantile"),  # of the tables in any book
    [(1, 12.706), (2, 4.303), (9, 2.262), (10, 2.228), (11, 2.201), (15, 2.131), (20, 2.086), (30, 2.042), (60, 2.000),
     (120, 1.980), (10**9, 1.960)],
)  # fmt: skip
def test_students_quantiles(freedom: int, quantile: float) -> None:
    assert _student(freedom) == pytest.approx(quantile, abs=0.004)


def test_quantiles_fall_with_the_number_of_values() -> None:
    quantiles = [_student(freedom) for freedom in range(1, 200)]
    assert quantiles == sorted(quantiles, reverse=True)


def test_few_values_have_no_interval() -> None:
    assert all(map(math.isnan, mean([])))
    only = mean([0.25])
    assert only.mean == 0.25 and math.isnan(only.low) and math.isnan(only.high)
    assert all(map(math.isnan, share(0, 0)))


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert mean([0.5] * 30) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (1, 10, 0.0179, 0.4042),
        (0, 10, 0.0, 0.2775),  # z² / (n + z²) = 3.8415 / 13.8415
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_wilson(successes: int, trials: int, low: float, high: float) -> None:
    assert share(successes, trials) == pytest.approx((successes / trials, low, high), abs=1e-4)


def test_wilsons_ends_are_where_the_score_test_turns() -> None:
    """(p̂ − p)² = z² p (1 − p) / n at both ends: the formula that the interval solves."""
    for successes, trials in ((3, 17), (40, 200), (1, 4)):
        p, low, high = share(successes, trials)
        for end in (low, high):
            assert (p - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / trials)


def test_intervals_hold_the_truth_95_times_of_100() -> None:
    """Of 2,000 samples each; a wrong factor or a forgotten root is far outside of four errors."""
    rng = np.random.default_rng(0)
    error = 4 * math.sqrt(0.95 * 0.05 / 2000)
    for n in (5, 12, 40):
        found = [mean(rng.standard_normal(n)) for _ in range(2000)]
        assert sum(e.low <= 0 <= e.high for e in found) / 2000 == pytest.approx(0.95, abs=error)
    shares = [share(int(rng.binomial(60, 0.3)), 60) for _ in range(2000)]
    assert sum(e.low <= 0.3 <= e.high for e in shares) / 2000 == pytest.approx(0.95, abs=error + 0.01)


def test_an_estimate_as_text() -> None:
    assert str(Estimate(0.12345, 0.1, 0.2)) == "0.123 [0.100, 0.200]"
