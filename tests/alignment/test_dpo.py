"""Direct preference optimization: the loss, its gradient for the policy, the reward that it implies."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minillama.alignment.dpo import dpo_loss, dpo_loss_backward, implicit_reward
from minillama.errors import UsageError
from tests.alignment import ladder
from tests.alignment.ladder import Loss
from tests.conftest import Arrays
from tests.layers.cases import normal


def naive_dpo(
    chosen: np.ndarray,
    rejected: np.ndarray,
    ref_chosen: np.ndarray,
    ref_rejected: np.ndarray,
    beta: float = 0.1,
    count: float | None = None,
) -> float:
    """Equation 7 of the paper, with probabilities for log-probabilities."""
    total = 0.0
    for b in range(len(chosen)):
        won = beta * math.log(math.exp(chosen[b]) / math.exp(ref_chosen[b]))
        lost = beta * math.log(math.exp(rejected[b]) / math.exp(ref_rejected[b]))
        total -= math.log(1 / (1 + math.exp(lost - won)))
    return total / (len(chosen) if count is None else count)


NAMES = ("chosen", "rejected", "ref_chosen", "ref_rejected")
PAIRS = {name: 3 * normal(8, seed=i) - 9 for i, name in enumerate(NAMES)}
LOSSES = [
    Loss("dpo", dpo_loss, dpo_loss_backward, naive_dpo, PAIRS, 2),
    Loss("dpo, beta", dpo_loss, dpo_loss_backward, naive_dpo, PAIRS, 2, {"beta": 0.7}),
    Loss("dpo, part", dpo_loss, dpo_loss_backward, naive_dpo, PAIRS, 2, {"count": 32.0}),
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


@pytest.mark.parametrize("loss", LOSSES[:2], ids=lambda loss: loss.name)
def test_one_batch_of_8_equals_4_of_2(loss: Loss) -> None:
    ladder.adds_up_in_parts(loss, 8.0)


def test_before_the_first_step_the_loss_is_log_2() -> None:
    """The policy is the reference: nothing is preferred yet, and every pair pulls with β/2."""
    same = (PAIRS["chosen"], PAIRS["rejected"])
    loss, saved = dpo_loss(*same, *same)
    assert loss == pytest.approx(math.log(2), rel=1e-15)
    dchosen, drejected = dpo_loss_backward(saved)
    np.testing.assert_allclose(dchosen, np.full(8, -0.1 / 2 / 8), rtol=1e-15)
    np.testing.assert_array_equal(drejected, -dchosen)


def test_by_hand() -> None:
    """β 0.5, log ratios log 9 and 0: the pair is apart by log 3, σ = 3/4."""
    one = np.array([0.0])
    loss, saved = dpo_loss(one + math.log(9) - 20, one - 7, one - 20, one - 7, beta=0.5)
    assert loss == pytest.approx(math.log(4 / 3), rel=1e-14)
    np.testing.assert_allclose(dpo_loss_backward(saved), [[-0.5 / 4], [0.5 / 4]], rtol=1e-14)


def test_planted_bugs_change_the_loss() -> None:
    """Policy and reference exchanged, chosen and rejected exchanged, one reference for both answers."""
    chosen, rejected, ref_chosen, ref_rejected = PAIRS.values()
    right = dpo_loss(*PAIRS.values())[0]
    for planted in (
        (ref_chosen, ref_rejected, chosen, rejected),
        (rejected, chosen, ref_rejected, ref_chosen),
        (chosen, rejected, ref_chosen, ref_chosen),
    ):
        assert abs(dpo_loss(*planted)[0] - right) > 0.01


def test_implicit_reward() -> None:
    np.testing.assert_allclose(
        implicit_reward(np.array([-3.0, -5.0]), np.array([-4.0, -4.0]), beta=0.2), [0.2, -0.2], rtol=1e-15
    )


def test_what_cannot_be() -> None:
    chosen, rejected, ref_chosen, ref_rejected = PAIRS.values()
    with pytest.raises(UsageError, match=r"rejected: expected the shape \(8,\) of the chosen .*, found \(8, 1\)"):
        dpo_loss(chosen, rejected[:, None], ref_chosen, ref_rejected[:, None])
    with pytest.raises(UsageError, match=r"ref_logprobs: expected the shape \(8,\) of the policy's .*, found \(8, 1\)"):
        dpo_loss(chosen, rejected, ref_chosen, ref_rejected[:, None])
    for beta in (0.0, -0.1, math.nan):
        with pytest.raises(UsageError, match="DPO beta: expected a positive number, found"):
            dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
