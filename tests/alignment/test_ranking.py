"""The losses of reward models: margins by rating, the ranking loss, the safety loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from minillama.alignment.ranking import (
    MARGINS,
    accuracy,
    log_sigmoid,
    margins,
    ranking_loss,
    ranking_loss_backward,
    safety_loss,
    safety_loss_backward,
    sigmoid,
)
from minillama.errors import MinillamaError, UsageError
from minillama.miniature.annotator import RATINGS
from tests.alignment import ladder
from tests.alignment.ladder import Loss
from tests.conftest import Arrays
from tests.layers.cases import normal


def naive_ranking(
    chosen: np.ndarray, rejected: np.ndarray, margin: np.ndarray | None = None, count: float | None = None
) -> float:
    total = 0.0
    for b in range(len(chosen)):
        m = 0 if margin is None else margin[b]
        total -= math.log(1 / (1 + math.exp(-(chosen[b] - rejected[b] - m))))
    return total / (len(chosen) if count is None else count)


def naive_safety(scores: np.ndarray, safe: np.ndarray, count: float | None = None) -> float:
    total = 0.0
    for at in np.ndindex(scores.shape):
        p = 1 / (1 + math.exp(-scores[at]))
        total -= math.log(p if safe[at] else 1 - p)
    return total / (scores.size if count is None else count)


CHOSEN, REJECTED = normal(8), normal(8, seed=1)
MARGIN = np.array([1, 2 / 3, 1 / 3, 0, 3, 2, 1, 0])
SAFE = np.array([1, 1, 0, 1, 0, 0, 1, 0], bool)
PAIRS = {"chosen": CHOSEN, "rejected": REJECTED}
LOSSES = [
    Loss("ranking", ranking_loss, ranking_loss_backward, naive_ranking, PAIRS, 2),
    Loss("ranking, margin", ranking_loss, ranking_loss_backward, naive_ranking, PAIRS | {"margin": MARGIN}, 2),
    Loss("ranking, part", ranking_loss, ranking_loss_backward, naive_ranking, PAIRS, 2, {"count": 32.0}),
    Loss("safety", safety_loss, safety_loss_backward, naive_safety, {"scores": CHOSEN, "safe": SAFE}, 1),
    Loss(
        "safety, part",
        safety_loss,
        safety_loss_backward,
        naive_safety,
        {"scores": CHOSEN, "safe": SAFE},
        1,
        {"count": 3},
    ),
    Loss(
        "safety, both answers",
        safety_loss,
        safety_loss_backward,
        naive_safety,
        {"scores": normal(2, 4), "safe": SAFE.reshape(2, 4)},
        1,
    ),
]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)


@each_loss
def test_equals_the_loops(loss: Loss) -> None:
    ladder.equals_the_loops(loss)


@each_loss
def test_backward_equals_central_differences(loss: Loss) -> None:
    ladder.equals_central_differences(loss)


@each_loss
def test_a_planted_bug_is_caught(loss: Loss) -> None:
    ladder.notices_a_planted_bug(loss)


@each_loss
def test_float32_on_every_library(loss: Loss, arrays: Arrays) -> None:
    ladder.is_float32_on_every_library(loss, arrays)


@pytest.mark.parametrize("loss", [LOSSES[0], LOSSES[1], LOSSES[3]], ids=lambda loss: loss.name)
def test_one_batch_of_8_equals_4_of_2(loss: Loss) -> None:
    ladder.adds_up_in_parts(loss, 8.0)


def test_margins_by_rating_are_the_papers() -> None:
    """Table 27 of the paper."""
    ratings = ["significantly better", "better", "slightly better", "negligibly better or unsure", "better"]
    small, large = margins(ratings, "small"), margins(ratings, "large")
    assert small.dtype == large.dtype == np.float32
    np.testing.assert_allclose(small, [1, 2 / 3, 1 / 3, 0, 2 / 3], rtol=1e-7)
    np.testing.assert_array_equal(large, [3, 2, 1, 0, 2])


@pytest.mark.parametrize("size", MARGINS)
def test_margins_know_the_ratings_that_annotators_give(size: str) -> None:
    assert list(MARGINS[size]) == list(RATINGS)


def test_margins_refuse_what_they_do_not_know() -> None:
    with pytest.raises(MinillamaError, match=r"rating: expected one of significantly better, better, .*, found 'best'"):
        margins(["better", "best"], "small")
    with pytest.raises(UsageError, match="margins: expected one of small, large, found 'medium'"):
        margins([], "medium")


def test_the_loss_by_hand() -> None:
    """A pair that is apart by its margin costs log 2; one that is apart by log 3 more, log 4/3."""
    loss, saved = ranking_loss(np.array([2.0, 1 + math.log(3)]), np.array([1.0, 0.0]), np.array([1.0, 1.0]))
    assert loss == pytest.approx((math.log(2) + math.log(4 / 3)) / 2, rel=1e-15)
    dchosen, drejected = ranking_loss_backward(saved)
    np.testing.assert_allclose(dchosen, [-1 / 4, -1 / 8], rtol=1e-15)
    np.testing.assert_allclose(drejected, [1 / 4, 1 / 8], rtol=1e-15)


def test_a_margin_demands_more() -> None:
    free, with_margin = ranking_loss(CHOSEN, REJECTED)[0], ranking_loss(CHOSEN, REJECTED, np.ones(8))[0]
    planted = ranking_loss(CHOSEN, REJECTED, -np.ones(8))[0]  # a margin added where it should be taken away
    assert planted < free < with_margin


def test_shapes_must_agree() -> None:
    """(B,) beside (B, 1) broadcasts to (B, B): a loss of all answers against all others, and no error."""
    column = REJECTED[:, None]
    assert (CHOSEN - column).shape == (8, 8)  # what would have happened
    for inputs in ((CHOSEN, column), (CHOSEN, REJECTED, MARGIN[:, None]), (CHOSEN, REJECTED, MARGIN[:4])):
        with pytest.raises(
            UsageError, match=r"(rejected|margin): expected the shape \(8,\) of the chosen scores, found"
        ):
            ranking_loss(*inputs)
    with pytest.raises(UsageError, match=r"safe: expected the shape \(8,\) of the scores, found \(8, 1\)"):
        safety_loss(CHOSEN, SAFE[:, None])
    with pytest.raises(UsageError, match=r"rejected: expected the shape \(8,\) of the chosen scores, found \(8, 1\)"):
        accuracy(CHOSEN, column)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_apart_scores(dtype: type) -> None:
    """No overflow, no log of 0, no warning: the loss of a pair that is wrong by 1000 is 1000."""
    far = np.array([1000, -1000, 200, 0], dtype)
    np.testing.assert_allclose(log_sigmoid(far), [0, -1000, 0, -math.log(2)], rtol=1e-6, atol=1e-80)
    np.testing.assert_allclose(sigmoid(far), [1, 0, 1, 0.5], rtol=1e-6)
    assert log_sigmoid(np.array([50.0], dtype))[0] == pytest.approx(-math.exp(-50), rel=1e-6)  # not 0
    loss, saved = ranking_loss(far, np.zeros(4, dtype), count=1.0)
    assert loss == pytest.approx(1000 + math.log(2), rel=1e-6)
    np.testing.assert_allclose(ranking_loss_backward(saved)[0], [0, -1, 0, -0.5], rtol=1e-6, atol=1e-80)


def test_the_safety_loss_by_hand() -> None:
    loss, saved = safety_loss(np.array([math.log(3), math.log(3)]), np.array([True, False]))  # p(safe) = 3/4
    assert loss == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, rel=1e-15)
    np.testing.assert_allclose(safety_loss_backward(saved), [-1 / 8, 3 / 8], rtol=1e-15)


def test_no_pairs_cost_nothing() -> None:
    loss, saved = ranking_loss(np.zeros(0), np.zeros(0))
    assert loss == 0
    assert all(grad.shape == (0,) for grad in ranking_loss_backward(saved))
    assert accuracy(np.zeros(0), np.zeros(0)) == 0


def test_a_single_pair() -> None:
    one = np.array([math.log(3)]), np.array([0.0])
    loss, saved = ranking_loss(*one)
    assert loss == pytest.approx(math.log(4 / 3), rel=1e-14)
    np.testing.assert_allclose(ranking_loss_backward(saved)[0], [-1 / 4], rtol=1e-14)
    assert accuracy(*one) == 1


def test_accuracy_counts_a_tie_as_wrong(arrays: Arrays) -> None:
    """Scores that are all the same, as when the end of every answer is taken for padding, show as 0."""
    chosen, rejected = np.array([1, 0, 2, 5], np.float32), np.array([0, 1, 2, 1], np.float32)

    def measured(*scores: Any) -> np.ndarray:
        return arrays.get(accuracy(*map(arrays.put, scores)))

    assert measured(chosen, rejected) == 0.5
    assert measured(chosen, chosen) == 0
