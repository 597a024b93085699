"""PPO's losses: their gradients on both sides of every clip, means over the whole batch, what is watched."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from minillama.alignment.policy import (
    LOG_RATIO_LIMIT,
    explained_variance,
    policy_loss,
    policy_loss_backward,
    policy_measures,
    value_loss,
    value_loss_backward,
)
from minillama.errors import UsageError
from minillama.layers import gradcheck
from tests.alignment import ladder
from tests.alignment.ladder import Loss
from tests.conftest import Arrays
from tests.layers.cases import normal


def naive_policy(
    logprobs: np.ndarray,
    old_logprobs: np.ndarray,
    advantages: np.ndarray,
    mask: np.ndarray,
    clip: float = 0.2,
    count: float | None = None,
) -> float:
    losses = []
    for at in np.ndindex(mask.shape):
        if mask[at]:
            ratio = math.exp(logprobs[at]) / math.exp(old_logprobs[at])
            kept = min(max(ratio, 1 - clip), 1 + clip)
            losses.append(-min(advantages[at] * ratio, advantages[at] * kept))
    return sum(losses) / (len(losses) if count is None else count)


def naive_value(
    values: np.ndarray,
    old_values: np.ndarray,
    returns: np.ndarray,
    mask: np.ndarray,
    clip: float = 0.2,
    count: float | None = None,
) -> float:
    losses = []
    for at in np.ndindex(mask.shape):
        if mask[at]:
            kept = old_values[at] + min(max(values[at] - old_values[at], -clip), clip)
            losses.append(0.5 * max((values[at] - returns[at]) ** 2, (kept - returns[at]) ** 2))
    return sum(losses) / (len(losses) if count is None else count)


MASK = np.arange(5) < np.array([[5], [3], [1], [4], [2], [5], [5], [1]])  # answers of unequal lengths
OLD = normal(8, 5) - 3
POLICY = {
    "logprobs": OLD + 0.3 * normal(8, 5, seed=1),
    "old_logprobs": OLD,
    "advantages": normal(8, 5, seed=2),
    "mask": MASK,
}
VALUE = {
    "values": OLD + 0.3 * normal(8, 5, seed=3),
    "old_values": OLD,
    "returns": OLD + normal(8, 5, seed=4),
    "mask": MASK,
}
LOSSES = [
    Loss("policy", policy_loss, policy_loss_backward, naive_policy, POLICY, 1),
    Loss("policy, clip", policy_loss, policy_loss_backward, naive_policy, POLICY, 1, {"clip": 0.05}),
    Loss("policy, part", policy_loss, policy_loss_backward, naive_policy, POLICY, 1, {"count": 100.0}),
    Loss("value", value_loss, value_loss_backward, naive_value, VALUE, 1),
    Loss("value, clip", value_loss, value_loss_backward, naive_value, VALUE, 1, {"clip": 0.05}),
    Loss("value, part", value_loss, value_loss_backward, naive_value, VALUE, 1, {"count": 100.0}),
]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
each_kind = pytest.mark.parametrize("loss", [LOSSES[0], LOSSES[3]], ids=lambda loss: loss.name)


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


@each_kind
def test_one_batch_of_8_equals_4_of_2(loss: Loss) -> None:
    """The mean over the tokens of the whole batch. The mean of the parts' own means would weigh short answers more."""
    ladder.adds_up_in_parts(loss, float(MASK.sum()))
    planted = [loss.forward(*(x[row : row + 2] for x in loss.inputs.values()))[0] for row in range(0, 8, 2)]
    assert abs(np.mean(planted) - loss.at()[0]) > 1e-3


@each_kind
def test_pads_and_garbage_change_nothing(loss: Loss) -> None:
    ladder.ignores_garbage(loss, MASK)


@each_kind
def test_where_nothing_is_valid_all_is_0(loss: Loss) -> None:
    ladder.is_zero_where_nothing_is_valid(loss)


@each_kind
def test_a_mask_off_by_one_is_noticed(loss: Loss) -> None:
    for planted in (MASK[:, ::-1], np.pad(MASK, [(0, 0), (1, 0)], constant_values=True)[:, :-1], np.ones_like(MASK)):
        assert abs(loss.at(mask=planted)[0] - loss.at()[0]) > 1e-3


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("ratio", [0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 3.0])
def test_the_policy_on_both_sides_of_the_clip(ratio: float, advantage: float) -> None:
    """Clipped and worse: no gradient. Clipped and better, or not clipped: −A ρ."""
    inputs = np.array([[math.log(ratio)]]), np.zeros((1, 1)), np.array([[advantage]]), np.ones((1, 1), bool)
    _, saved = policy_loss(*inputs)
    dlogprobs = policy_loss_backward(saved)[0, 0]
    done = ratio > 1.2 if advantage > 0 else ratio < 0.8
    assert dlogprobs == pytest.approx(0 if done else -advantage * ratio, rel=1e-14)
    gradcheck(
        lambda logprobs: policy_loss(logprobs, *inputs[1:]),
        lambda dy, saved: policy_loss_backward(saved, dy),
        inputs[0],
    )


@pytest.mark.parametrize("target", [2.0, 1.1, -1.1, -2.0])
@pytest.mark.parametrize("value", [-1.5, -0.21, -0.19, 0.0, 0.19, 0.21, 1.5])
def test_values_on_both_sides_of_the_clip(value: float, target: float) -> None:
    """With V_old = 0: once V has come nearer to the return by more than the clip, it gets no gradient."""
    inputs = np.array([[value]]), np.zeros((1, 1)), np.array([[target]]), np.ones((1, 1), bool)
    _, saved = value_loss(*inputs)
    dvalues = value_loss_backward(saved)[0, 0]
    clipped = min(max(value, -0.2), 0.2)
    done = abs(clipped - target) > abs(value - target)
    assert dvalues == pytest.approx(0 if done else value - target, rel=1e-14)
    gradcheck(
        lambda values: value_loss(values, *inputs[1:]), lambda dy, saved: value_loss_backward(saved, dy), inputs[0]
    )


def test_values_inside_the_clip_all_get_a_gradient() -> None:
    """V_old + clip(V − V_old) differs from V by rounding; compared with it, some tokens would be taken for clipped."""
    old, values, returns = (np.float32(scale) * normal(40, 50, seed=scale).astype(np.float32) for scale in (1, 2, 3))
    old, values = np.tanh(old) / 10, np.tanh(values) / 10  # all closer to each other than the clip
    planted = old + np.clip(values - old, np.float32(-0.2), np.float32(0.2))
    assert ((values - returns) ** 2 < (planted - returns) ** 2).any()
    _, saved = value_loss(values, old, returns, np.ones(old.shape, bool))
    np.testing.assert_allclose(value_loss_backward(saved), (values - returns) / old.size, rtol=1e-6)


def test_by_hand() -> None:
    """Ratios 1, 2 and ½ under advantages 1, 1 and −1: losses −1, −1.2 and 0.8. The rest is padding."""
    logprobs = np.log([[1, 2, 0.5, 7]])
    inputs = logprobs, np.zeros((1, 4)), np.array([[1.0, 1, -1, 5]]), np.array([[True, True, True, False]])
    loss, saved = policy_loss(*inputs)
    assert loss == pytest.approx((-1 - 1.2 + 0.8) / 3, rel=1e-14)
    np.testing.assert_allclose(policy_loss_backward(saved), [[-1 / 3, 0, 0, 0]], rtol=1e-14)
    np.testing.assert_allclose(policy_loss_backward(saved, 0.5), [[-1 / 6, 0, 0, 0]], rtol=1e-14)
    measures = policy_measures(*inputs)
    assert measures["clip_fraction"] == pytest.approx(2 / 3)
    assert measures["approx_kl"] == pytest.approx((1 - math.log(2) + -0.5 - math.log(0.5)) / 3)  # Σ ρ − 1 − log ρ
    assert measures["ratio_mean"] == pytest.approx(3.5 / 3)
    assert measures["ratio_min"] == 0.5
    assert measures["ratio_max"] == 2
    loss, saved = value_loss(np.array([[1.0, 0.1]]), np.zeros((1, 2)), np.array([[2.0, 0.0]]), np.ones((1, 2), bool))
    assert loss == pytest.approx(0.5 * (1.8**2 + 0.1**2) / 2)  # the first is clipped to 0.2
    np.testing.assert_allclose(value_loss_backward(saved), [[0, 0.05]], rtol=1e-14)


def test_before_the_first_step_the_ratio_is_exactly_1() -> None:
    """The policy is the one that sampled: ratio 1, nothing clipped, no divergence, and the gradient is −A / N."""
    inputs = POLICY | {"logprobs": OLD}
    measures = policy_measures(*inputs.values())
    assert measures["clip_fraction"] == measures["approx_kl"] == 0
    assert measures["ratio_mean"] == measures["ratio_min"] == measures["ratio_max"] == 1
    _, saved = policy_loss(*inputs.values())
    np.testing.assert_allclose(
        policy_loss_backward(saved), np.where(MASK, -POLICY["advantages"], 0) / MASK.sum(), rtol=1e-14
    )


@pytest.mark.parametrize("clip", [0.2, 0.05])
def test_measures_equal_the_loops(clip: float) -> None:
    logprobs, old, advantages, _ = POLICY.values()
    ratios = {at: math.exp(logprobs[at] - old[at]) for at in zip(*np.nonzero(MASK), strict=True)}
    clipped = [r > 1 + clip if advantages[at] > 0 else r < 1 - clip for at, r in ratios.items()]
    _, saved = policy_loss(*POLICY.values(), clip=clip)
    assert sum(clipped) == (MASK & (policy_loss_backward(saved) == 0)).sum()  # those without a gradient
    measures = policy_measures(*POLICY.values(), clip=clip)
    assert measures["clip_fraction"] == pytest.approx(np.mean(clipped))
    assert measures["approx_kl"] == pytest.approx(np.mean([r - 1 - math.log(r) for r in ratios.values()]))
    assert measures["ratio_mean"] == pytest.approx(np.mean(list(ratios.values())))
    assert measures["ratio_min"] == pytest.approx(min(ratios.values()))
    assert measures["ratio_max"] == pytest.approx(max(ratios.values()))


def test_measures_have_the_loss_defaults() -> None:
    assert policy_measures(*POLICY.values()) == policy_measures(*POLICY.values(), clip=0.2)


def test_measures_average_over_valid_tokens_only() -> None:
    """Log-probabilities filled with 1.0 where nothing is valid, and averaged over: the bug that this rules out."""
    measures = policy_measures(*POLICY.values())
    filled = {name: np.where(MASK, x, 1.0) for name, x in POLICY.items() if name != "mask"}
    assert policy_measures(*filled.values(), MASK) == measures
    planted = policy_measures(*filled.values(), np.ones_like(MASK))
    for name in ("clip_fraction", "approx_kl", "ratio_mean"):
        assert abs(planted[name] - measures[name]) > 0.01, name
    garbage = {name: np.where(MASK, x, np.nan) for name, x in POLICY.items() if name != "mask"}
    assert policy_measures(*garbage.values(), MASK) == measures


def test_measures_of_parts_add_up() -> None:
    whole = policy_measures(*POLICY.values())
    parts = [
        policy_measures(*(x[row : row + 2] for x in POLICY.values()), count=float(MASK.sum())) for row in range(0, 8, 2)
    ]
    for name in ("clip_fraction", "approx_kl", "ratio_mean"):
        assert sum(part[name] for part in parts) == pytest.approx(whole[name], rel=1e-12)
    assert min(part["ratio_min"] for part in parts) == whole["ratio_min"]
    assert max(part["ratio_max"] for part in parts) == whole["ratio_max"]


def test_measures_of_nothing() -> None:
    measures = policy_measures(*(np.full((2, 3), np.nan) for _ in range(3)), np.zeros((2, 3), bool))
    expected = {"clip_fraction": 0, "approx_kl": 0, "ratio_mean": 0, "ratio_min": math.inf, "ratio_max": -math.inf}
    assert measures == expected


def test_measures_on_every_library(arrays: Arrays) -> None:
    exact = policy_measures(*POLICY.values()) | {"explained": explained_variance(*list(VALUE.values())[1:])}
    policy, value = (
        [arrays.put(x if x.dtype == bool else x.astype(np.float32)) for x in inputs.values()]
        for inputs in (POLICY, VALUE)
    )
    ours: dict[str, Any] = policy_measures(*policy) | {"explained": explained_variance(*value[1:])}
    for name, expected in exact.items():
        assert ours[name].dtype == np.float32
        assert arrays.get(ours[name]) == pytest.approx(expected, rel=1e-4)  # small differences of numbers near 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_policy_that_has_gone_far_stays_finite(dtype: type) -> None:
    """e^1000 is infinite, and infinite times an advantage of 0 is NaN: the ratio ends at e^±20, with no gradient."""
    old = np.zeros((1, 7), dtype)
    logprobs = np.array([[1000, 1000, 1000, -1000, -1000, 19, -19]], dtype)
    advantages = np.array([[1, 0, -1, 1, -1, -1, 1]], dtype)
    mask = np.ones((1, 7), bool)
    loss, saved = policy_loss(logprobs, old, advantages, mask, count=1.0)
    least, most = math.exp(-LOG_RATIO_LIMIT), math.exp(LOG_RATIO_LIMIT)
    expected = [-1.2, 0, most, -least, 0.8, math.exp(19), -math.exp(-19)]
    assert float(loss) == pytest.approx(sum(expected), rel=1e-6)
    np.testing.assert_allclose(policy_loss_backward(saved), [[0, 0, 0, 0, 0, math.exp(19), -math.exp(-19)]], rtol=1e-5)
    measures = policy_measures(logprobs, old, advantages, mask)
    assert measures["ratio_max"] == pytest.approx(most, rel=1e-6)
    assert measures["ratio_min"] == pytest.approx(least, rel=1e-6)
    assert all(np.isfinite(x) for x in measures.values())


def test_explained_variance() -> None:
    returns, mask = VALUE["returns"], MASK
    valid = returns[mask]
    assert explained_variance(np.where(mask, returns, np.nan), np.where(mask, returns, np.inf), mask) == 1
    assert explained_variance(np.full_like(returns, 5.0), returns, mask) == pytest.approx(0, abs=1e-12)
    assert explained_variance(returns + 3, returns, mask) == pytest.approx(1, rel=1e-12)  # a constant error is free
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3, rel=1e-12)
    values = VALUE["values"]
    assert explained_variance(values, returns, mask) == pytest.approx(
        1 - np.var(valid - values[mask]) / np.var(valid), rel=1e-12
    )


def test_explained_variance_of_what_does_not_vary() -> None:
    returns = np.full((3, 5), 0.1, np.float32)
    assert np.var(returns) > 0  # by rounding
    for mask in (np.ones((3, 5), bool), MASK[:3]):
        assert explained_variance(normal(3, 5).astype(np.float32), returns, mask) == 0
    assert explained_variance(normal(3, 5), normal(3, 5), np.zeros((3, 5), bool)) == 0


def test_shapes_must_agree() -> None:
    for forward, inputs in ((policy_loss, POLICY), (policy_measures, POLICY), (value_loss, VALUE)):
        for name in list(inputs)[1:]:
            with pytest.raises(UsageError, match=rf"^{name}: expected the shape \(8, 5\) of the .*, found \(8, 1\)$"):
                forward(*(inputs | {name: inputs[name][:, :1]}).values())
    with pytest.raises(UsageError, match=r"^returns: expected the shape \(8, 5\) of the values, found \(8, 1\)$"):
        explained_variance(VALUE["values"], VALUE["returns"][:, :1], MASK)
    with pytest.raises(UsageError, match=r"^mask: expected the shape \(8, 5\) of the values, found \(8, 1\)$"):
        explained_variance(VALUE["values"], VALUE["returns"], MASK[:, :1])
