"""Two rewards into one: which of them counts, the logit, whitening."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from minillama.alignment.combine import BOUND, combine, combined_reward, logit
from minillama.alignment.ranking import sigmoid
from minillama.errors import UsageError
from tests.conftest import Arrays

# R_s, R_h, is the prompt tagged as one of safety?, R_c, why
TABLE = [
    (0.90, 0.30, True, 0.90, "tagged: safety counts, however safe"),
    (0.10, 0.80, True, 0.10, "tagged and unsafe"),
    (0.10, 0.80, False, 0.10, "unsafe, whatever was asked"),
    (0.00, 1.00, False, 0.00, "as unsafe as can be"),
    (0.1499, 0.80, False, 0.1499, "just under the threshold"),
    (0.15, 0.80, False, 0.80, "at the threshold: not under it"),
    (0.1501, 0.80, False, 0.80, "just over it"),
    (0.90, 0.30, False, 0.30, "safe: helpfulness counts"),
    (0.90, 0.05, False, 0.05, "unhelpful: no threshold for that"),
    (0.16, 0.15, True, 0.16, "tagged, over the threshold"),
]


def picks_as_the_table_says(function: Any) -> None:
    for safety, helpfulness, tagged, expected, why in TABLE:
        found = function(np.array([safety]), np.array([helpfulness]), np.array([tagged]))
        assert found[0] == expected, why


def test_the_table_of_cases() -> None:
    picks_as_the_table_says(combine)
    safety, helpfulness, tagged, expected, _ = zip(*TABLE, strict=True)
    np.testing.assert_array_equal(combine(*map(np.array, (safety, helpfulness, tagged))), expected)


@pytest.mark.parametrize(
    "planted",
    [
        lambda s, h, tagged: combine(h, s, tagged),
        lambda s, h, tagged: combine(s, h, ~tagged),
        lambda s, h, tagged: np.where(tagged & (s < 0.15), s, h),
        lambda s, h, tagged: np.where(tagged | (s <= 0.15), s, h),
        lambda s, h, tagged: np.where(tagged | (h < 0.15), s, h),
        lambda s, h, tagged: np.where(tagged | (logit(s) < 0.15), s, h),  # the threshold on the wrong scale
        lambda s, h, tagged: np.minimum(s, h),
    ],
    ids=["exchanged", "tags exchanged", "and", "≤", "helpfulness asked", "of the logit", "minimum"],
)
def test_planted_bugs_are_noticed(planted: Any) -> None:
    with pytest.raises(AssertionError):
        picks_as_the_table_says(planted)


def test_logit_is_the_inverse_of_the_sigmoid() -> None:
    scores = np.linspace(-9, 9, 37)
    np.testing.assert_allclose(logit(sigmoid(scores)), scores, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(logit(np.array([0.5, 0.75, 0.25])), [0, math.log(3), -math.log(3)], rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logit_stays_within_its_bound(dtype: type) -> None:
    edge = math.log((1 - BOUND) / BOUND)
    assert edge == pytest.approx(9.21, abs=0.001)
    found = logit(np.array([0, BOUND / 2, BOUND, 1 - BOUND, 1 - BOUND / 2, 1], dtype))
    np.testing.assert_allclose(found, edge * np.array([-1, -1, -1, 1, 1, 1]), rtol=1e-4)
    assert found.dtype == dtype


def test_combined_reward_by_hand() -> None:
    """Scores 0 and 2 count: the mean is 1, the deviation 1."""
    safety, helpfulness = np.array([0.0, 3.0]), np.array([5.0, 2.0])
    np.testing.assert_allclose(combined_reward(safety, helpfulness, np.array([True, False])), [-1, 1], rtol=1e-7)


def test_combined_reward_takes_scores_and_applies_the_sigmoid() -> None:
    """σ(−2) = 0.12 is under the threshold and σ(−1) = 0.27 is not, though both scores are."""
    safety, helpfulness = np.array([-2.0, -1.0, 0.0]), np.array([1.0, 3.0, 0.0])
    picked = np.array([-2.0, 3.0, 0.0])
    expected = (picked - picked.mean()) / picked.std()
    np.testing.assert_allclose(combined_reward(safety, helpfulness, np.zeros(3, bool)), expected, rtol=1e-7)


def test_scores_of_any_size_give_finite_rewards() -> None:
    huge = np.array([1e4, -1e4, 50, -50, 0, 1], np.float32)
    reward = combined_reward(huge, huge[::-1].copy(), np.array([True] * 6))
    assert np.isfinite(reward).all()
    assert reward.mean() == pytest.approx(0, abs=1e-6) and reward.std() == pytest.approx(1, rel=1e-5)
    np.testing.assert_array_equal(combined_reward(huge[:1], huge[:1], np.array([True])), [0])


def test_float32_on_every_library(arrays: Arrays) -> None:
    safety, helpfulness = np.linspace(-4, 4, 9), np.linspace(2, -3, 9) ** 2
    tagged = np.arange(9) % 3 == 0
    exact = combined_reward(safety, helpfulness, tagged)
    ours = combined_reward(*(arrays.put(x.astype(np.float32)) for x in (safety, helpfulness)), arrays.put(tagged))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(arrays.get(ours), exact, rtol=1e-4, atol=1e-5)


def test_shapes_must_agree() -> None:
    three = np.full(3, 0.5)
    with pytest.raises(UsageError, match=r"^helpfulness: expected the shape \(3,\) of the safety scores, found"):
        combine(three, three[:, None], np.zeros(3, bool))
    with pytest.raises(UsageError, match=r"^safety_prompt: expected the shape \(3,\) of the safety scores, found"):
        combine(three, three, np.zeros((3, 1), bool))
