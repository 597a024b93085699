"""Rewards of tokens, KL estimators, advantages and returns, whitening: by hand, by loops, and with bugs planted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minillama.alignment.advantages import gae, kl_k1, kl_k3, token_rewards, whiten
from minillama.errors import UsageError
from tests.conftest import Arrays
from tests.layers.cases import normal

LENGTHS = np.array([[5], [3], [1], [4]])
MASK = np.arange(5) < LENGTHS  # answers padded on the right
LEFT = np.arange(5) >= 5 - LENGTHS  # and on the left
SCORES, LOGPROBS, REF = normal(4), normal(4, 5) - 3, normal(4, 5, seed=1) - 3
REWARDS, VALUES = normal(4, 5, seed=2), normal(4, 5, seed=3)


def _narrow(*arrays: np.ndarray) -> list[np.ndarray]:
    return [x.astype(np.float32) if x.dtype == np.float64 else x for x in arrays]


# Rewards of tokens


def naive_token_rewards(
    scores: np.ndarray, logprobs: np.ndarray, ref_logprobs: np.ndarray, mask: np.ndarray, beta: float
) -> np.ndarray:
    rewards = np.zeros(mask.shape)
    for b in range(len(mask)):
        answer = [t for t in range(mask.shape[1]) if mask[b, t]]
        for t in answer:
            rewards[b, t] = -beta * (logprobs[b, t] - ref_logprobs[b, t])
        rewards[b, answer[-1]] += scores[b]
    return rewards


def rewards_are_right(function: Callable[..., Any], mask: np.ndarray) -> None:
    inputs = SCORES, LOGPROBS, REF, mask
    np.testing.assert_allclose(function(*inputs, beta=0.3), naive_token_rewards(*inputs, 0.3), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("mask", [MASK, LEFT], ids=["padded on the right", "padded on the left"])
def test_token_rewards_equal_the_loops(mask: np.ndarray) -> None:
    rewards_are_right(token_rewards, mask)


def test_token_rewards_by_hand() -> None:
    rewards = token_rewards(
        np.array([5.0]), np.array([[-1.0, -2.0, 9.0]]), np.array([[-3.0, -1.0, 0.0]]), MASK[1:2, 1:4], beta=0.5
    )
    np.testing.assert_allclose(rewards, [[-1, 0.5 + 5, 0]], rtol=1e-15)


def test_an_answers_rewards_add_up_to_score_less_kl() -> None:
    rewards = token_rewards(SCORES, LOGPROBS, REF, MASK, beta=0.3)
    np.testing.assert_allclose(rewards.sum(axis=1), SCORES - 0.3 * kl_k1(LOGPROBS, REF, MASK), rtol=1e-13)


def _score_on_the_first_pad(
    scores: np.ndarray, logprobs: np.ndarray, ref: np.ndarray, mask: np.ndarray, *, beta: float
) -> np.ndarray:
    rewards = token_rewards(0 * scores, logprobs, ref, mask, beta=beta)
    rewards[np.arange(len(mask)), np.minimum(mask.sum(axis=1), mask.shape[1] - 1)] += scores
    return rewards


@pytest.mark.parametrize(
    "planted",
    [
        _score_on_the_first_pad,
        lambda s, logprobs, ref, mask, beta: token_rewards(s, ref, logprobs, mask, beta=beta),  # the KL's sign
        lambda s, logprobs, ref, mask, beta: token_rewards(s, logprobs, ref, np.ones_like(mask), beta=beta),
        lambda s, logprobs, ref, mask, beta: token_rewards(s, logprobs, ref, np.roll(mask, 1, axis=1), beta=beta),
        lambda s, *rest, beta: token_rewards(0 * s, *rest, beta=beta) + s[:, None],  # a score at every token
    ],
    ids=["score on the first pad", "KL sign", "PAD scored as last token", "mask off by one", "score everywhere"],
)
def test_planted_bugs_in_rewards_are_noticed(planted: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError):
        rewards_are_right(planted, MASK)


def test_garbage_changes_no_reward() -> None:
    expected = token_rewards(SCORES, LOGPROBS, REF, MASK, beta=0.3)
    for garbage in (np.inf, -np.inf, np.nan):
        spoilt = [np.where(MASK, x, garbage) for x in (LOGPROBS, REF)]
        np.testing.assert_array_equal(token_rewards(SCORES, *spoilt, MASK, beta=0.3), expected)
    # An answer of nothing, its score NaN: all 0.
    nothing = np.array([[False, False, False]])
    rewards = token_rewards(np.array([np.nan]), *(np.full((1, 3), np.nan) for _ in range(2)), nothing, beta=0.3)
    np.testing.assert_array_equal(rewards, [[0, 0, 0]])


# KL


def naive_kl(logprobs: np.ndarray, ref_logprobs: np.ndarray, mask: np.ndarray, k: int) -> np.ndarray:
    total = np.zeros(len(mask))
    for b, t in np.ndindex(mask.shape):
        if mask[b, t]:
            ratio = math.exp(ref_logprobs[b, t]) / math.exp(logprobs[b, t])
            total[b] += -math.log(ratio) if k == 1 else ratio - 1 - math.log(ratio)
    return total


@pytest.mark.parametrize(("function", "k"), [(kl_k1, 1), (kl_k3, 3)])
def test_kl_equals_the_loops(function: Callable[..., Any], k: int) -> None:
    np.testing.assert_allclose(function(LOGPROBS, REF, MASK), naive_kl(LOGPROBS, REF, MASK, k), rtol=1e-12)
    for garbage in (np.inf, -np.inf, np.nan):
        spoilt = [np.where(MASK, x, garbage) for x in (LOGPROBS, REF)]
        np.testing.assert_array_equal(function(*spoilt, MASK), function(LOGPROBS, REF, MASK))


def expectation_is_the_kl(function: Callable[..., Any]) -> None:
    """Σ p(x) k(x) over all outcomes x is KL(p ‖ q) = Σ p log(p / q)."""
    p, q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.1, 0.2, 0.3, 0.4])
    each = function(np.log(p)[:, None], np.log(q)[:, None], np.ones((4, 1), bool))  # four answers of a token
    assert p @ each == pytest.approx(p @ np.log(p / q), rel=1e-12)


@pytest.mark.parametrize("function", [kl_k1, kl_k3])
def test_kl_estimators_are_unbiased(function: Callable[..., Any]) -> None:
    expectation_is_the_kl(function)
    with pytest.raises(AssertionError):  # the sign, or the direction
        expectation_is_the_kl(lambda logprobs, ref, mask: function(ref, logprobs, mask))


@pytest.mark.parametrize("function", [kl_k1, kl_k3])
def test_kl_at_step_0_is_0(function: Callable[..., Any]) -> None:
    """The policy is the reference."""
    np.testing.assert_array_equal(function(LOGPROBS, LOGPROBS.copy(), MASK), np.zeros(4))


def test_k1_may_be_negative_and_k3_is_not() -> None:
    assert (kl_k1(LOGPROBS, REF, MASK) < 0).any()
    assert (kl_k3(LOGPROBS, REF, MASK) > 0).all()


def test_k3_of_a_small_difference_is_not_lost() -> None:
    """e^r − 1 − r for r = 1e-8 is 5e-17, less than a subtraction from e^r leaves."""
    one = np.ones((1, 1), bool)
    assert math.exp(1e-8) - 1 - 1e-8 != pytest.approx(5e-17, rel=0.1, abs=0)
    assert kl_k3(np.array([[0.0]]), np.array([[1e-8]]), one)[0] == pytest.approx(5e-17, rel=1e-6, abs=0)


def test_k3_of_a_large_difference_is_infinite() -> None:
    one = np.ones((1, 1), bool)
    assert kl_k3(np.array([[-2000.0]]), np.array([[0.0]]), one)[0] == math.inf
    assert kl_k3(np.array([[0.0]]), np.array([[-2000.0]]), one)[0] == 1999


# Advantages


def naive_gae(
    rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, gamma: float = 1.0, lam: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """A_t = Σ_k (γλ)^k δ_{t+k}, term by term, over the tokens of the answer alone."""
    advantages, returns = np.zeros(mask.shape), np.zeros(mask.shape)
    for b in range(len(mask)):
        answer = [t for t in range(mask.shape[1]) if mask[b, t]]
        r, v = [rewards[b, t] for t in answer], [*(values[b, t] for t in answer), 0]
        for i, t in enumerate(answer):
            deltas = [r[j] + gamma * v[j + 1] - v[j] for j in range(i, len(answer))]
            advantages[b, t] = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas))
            returns[b, t] = advantages[b, t] + v[i]
    return advantages, returns


def equals_the_loops(function: Callable[..., Any], mask: np.ndarray, **fixed: float) -> None:
    for ours, expected in zip(
        function(REWARDS, VALUES, mask, **fixed), naive_gae(REWARDS, VALUES, mask, **fixed), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mask", [MASK, LEFT], ids=["padded on the right", "padded on the left"])
@pytest.mark.parametrize("fixed", [{}, {"gamma": 0.9}, {"lam": 0.5}, {"gamma": 0.9, "lam": 0.3}])
def test_gae_equals_the_loops(mask: np.ndarray, fixed: dict[str, float]) -> None:
    equals_the_loops(gae, mask, **fixed)


# By hand, γ = λ = ½. First answer: δ = 2 − 1 = 1, then 0 + ½ − 2 = −1.5, then 1 + 1 − 4 = −2;
# A = 1, −1.5 + ¼ = −1.25, −2 − 1.25/4 = −2.3125. Second, of two tokens: δ = 3 − 2 = 1, then 0 + 1 − 1 = 0; A = 1, ¼.
HAND_REWARDS = np.array([[1.0, 0, 2], [0, 3, 7]])
HAND_VALUES = np.array([[4.0, 2, 1], [1, 2, 100]])
HAND_MASK = np.array([[1, 1, 1], [1, 1, 0]], bool)
HAND_ADVANTAGES = [[-2.3125, -1.25, 1], [0.25, 1, 0]]
HAND_RETURNS = [[1.6875, 0.75, 2], [1.25, 3, 0]]


def agrees_with_the_hand(function: Callable[..., Any]) -> None:
    advantages, returns = function(HAND_REWARDS, HAND_VALUES, HAND_MASK, gamma=0.5, lam=0.5)
    np.testing.assert_array_equal(advantages, HAND_ADVANTAGES)
    np.testing.assert_array_equal(returns, HAND_RETURNS)


def test_gae_by_hand() -> None:
    agrees_with_the_hand(gae)


def _values_of_pads_used(rewards: Any, values: Any, mask: Any, **fixed: float) -> tuple:
    """Masked only afterwards, as if the first pad's value were worth something."""
    full = gae(np.where(mask, rewards, 0), values, np.ones_like(mask), **fixed)
    return tuple(np.where(mask, x, 0) for x in full)


def _whitened_before_the_return(rewards: Any, values: Any, mask: Any, **fixed: float) -> tuple:
    advantages, _ = gae(rewards, values, mask, **fixed)
    return advantages, np.where(mask, whiten(advantages, mask) + values, 0)


@pytest.mark.parametrize(
    "planted",
    [
        _values_of_pads_used,
        _whitened_before_the_return,
        lambda rewards, values, mask, **fixed: gae(rewards, values, np.roll(mask, -1, axis=1), **fixed),
        lambda rewards, values, mask, **fixed: gae(rewards, values, np.ones_like(mask), **fixed),
        lambda rewards, values, mask, **fixed: gae(rewards, np.roll(values, 1, axis=1), mask, **fixed),
        lambda rewards, values, mask, gamma, lam: gae(rewards, values, mask, gamma=lam * gamma, lam=1.0),
        lambda rewards, values, mask, **fixed: gae(rewards[:, ::-1], values[:, ::-1], mask[:, ::-1], **fixed),
    ],
    ids=[
        "values of pads used",
        "whitened before the return",
        "mask off by one",
        "no mask",
        "values off by one",
        "gamma for lambda",
        "forwards",
    ],
)
def test_planted_bugs_in_gae_are_noticed(planted: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError):
        agrees_with_the_hand(planted)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_lambda_0_is_the_td_error(gamma: float) -> None:
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma=gamma, lam=0.0)
    next_values = np.where(np.roll(MASK, -1, axis=1) & (np.arange(5) < 4), np.roll(VALUES, -1, axis=1), 0)
    expected = np.where(MASK, REWARDS + gamma * next_values - VALUES, 0)
    np.testing.assert_allclose(advantages, expected, rtol=1e-13)
    np.testing.assert_allclose(returns, np.where(MASK, expected + VALUES, 0), rtol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_lambda_1_is_return_less_value(gamma: float) -> None:
    """The return is then the sum of the rewards to come, and the values of later tokens cancel."""
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma=gamma, lam=1.0)
    for b, t in zip(*np.nonzero(MASK), strict=True):
        to_come = sum(gamma ** (s - t) * REWARDS[b, s] for s in range(t, LENGTHS[b, 0]))
        assert returns[b, t] == pytest.approx(to_come, rel=1e-11)
        assert advantages[b, t] == pytest.approx(to_come - VALUES[b, t], rel=1e-11)


def test_pads_and_garbage_change_no_advantage() -> None:
    expected = gae(REWARDS, VALUES, MASK)
    for garbage in (1e30, np.inf, -np.inf, np.nan):
        spoilt = [np.where(MASK, x, garbage) for x in (REWARDS, VALUES)]
        for ours, right in zip(gae(*spoilt, MASK), expected, strict=True):
            np.testing.assert_array_equal(ours, right)
    for before, after in ((0, 3), (3, 0)):
        pad = [(0, 0), (before, after)]
        longer = [np.pad(x, pad, constant_values=np.nan) for x in (REWARDS, VALUES)]
        for ours, right in zip(gae(*longer, np.pad(MASK, pad)), expected, strict=True):
            np.testing.assert_array_equal(ours, np.pad(right, pad))


def test_gae_of_nothing_is_0() -> None:
    for ours in gae(np.full((2, 3), np.nan), np.full((2, 3), np.nan), np.zeros((2, 3), bool)):
        np.testing.assert_array_equal(ours, np.zeros((2, 3)))
    for ours in gae(np.zeros((2, 0)), np.zeros((2, 0)), np.zeros((2, 0), bool)):
        assert ours.shape == (2, 0)


# Whitening


def test_whiten_takes_the_populations_variance() -> None:
    x = np.array([[1.0, 3, 99], [5, -99, 99]])
    mask = np.array([[1, 1, 0], [1, 0, 0]], bool)
    root = math.sqrt(8 / 3 + 1e-8)  # of 1, 3 and 5 the mean is 3 and the variance 8/3; by N − 1 it would be 4
    np.testing.assert_allclose(whiten(x, mask), [[-2 / root, 0, 0], [2 / root, 0, 0]], rtol=1e-14)
    np.testing.assert_allclose(
        whiten(x, mask, shift_mean=False), [[3 - 2 / root, 3, 0], [3 + 2 / root, 0, 0]], rtol=1e-14
    )
    assert whiten(x[0, :2])[1] == pytest.approx(1, rel=1e-7)  # without a mask, all
    planted = x[mask].std(ddof=1)
    assert abs(2 / planted - 2 / root) > 0.1


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitened_numbers_have_deviation_1(shift_mean: bool) -> None:
    x, mask = 7 * normal(4, 5) + 3, MASK
    white = whiten(x, mask, shift_mean=shift_mean)
    assert white[mask].std() == pytest.approx(1, rel=1e-8)
    assert white[mask].mean() == pytest.approx(0 if shift_mean else x[mask].mean(), abs=1e-14)
    assert not white[~mask].any()


def test_whiten_ignores_garbage() -> None:
    x = normal(4, 5)
    for garbage in (np.inf, -np.inf, np.nan):
        np.testing.assert_array_equal(whiten(np.where(MASK, x, garbage), MASK), whiten(x, MASK))


def test_whiten_of_fewer_than_two() -> None:
    """Of one number nothing but the mean is known, of none nothing: 0, or the number itself, and never NaN."""
    x = np.array([[np.nan, 4.0, np.nan]])
    one, none = np.array([[False, True, False]]), np.zeros((1, 3), bool)
    np.testing.assert_array_equal(whiten(x, one), [[0, 0, 0]])
    np.testing.assert_array_equal(whiten(x, one, shift_mean=False), [[0, 4, 0]])
    for shift_mean in (True, False):
        np.testing.assert_array_equal(whiten(x, none, shift_mean=shift_mean), [[0, 0, 0]])


def test_whiten_of_equal_numbers_is_0() -> None:
    assert np.abs(whiten(np.full((3, 5), 0.1, np.float32))).max() < 1e-3


# All of them


def test_float32_on_every_library(arrays: Arrays) -> None:
    def results(*inputs: Any) -> list[Any]:
        scores, logprobs, ref, rewards, values, mask = inputs
        return [
            token_rewards(scores, logprobs, ref, mask, beta=0.3),
            kl_k1(logprobs, ref, mask),
            kl_k3(logprobs, ref, mask),
            *gae(rewards, values, mask),
            whiten(rewards, mask),
            whiten(rewards, mask, shift_mean=False),
            whiten(scores),
        ]

    inputs = SCORES, LOGPROBS, REF, REWARDS, VALUES, MASK
    for ours, expected in zip(results(*map(arrays.put, _narrow(*inputs))), results(*inputs), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(arrays.get(ours), expected, rtol=1e-5, atol=1e-6)


def test_inputs_are_left_alone() -> None:
    inputs = SCORES, LOGPROBS, REF, REWARDS, VALUES, MASK
    before = [x.copy() for x in inputs]
    token_rewards(SCORES, LOGPROBS, REF, MASK, beta=0.3)
    gae(REWARDS, VALUES, MASK)
    whiten(REWARDS, MASK)
    for x, copy in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(x, copy)


def test_shapes_must_agree() -> None:
    narrow = MASK[:, :1]
    for name, call in {
        "scores": lambda: token_rewards(SCORES[:, None], LOGPROBS, REF, MASK, beta=1.0),
        "ref_logprobs": lambda: token_rewards(SCORES, LOGPROBS, REF[:, :1], MASK, beta=1.0),
        "values": lambda: gae(REWARDS, VALUES[:, :1], MASK),
    }.items():
        with pytest.raises(UsageError, match=rf"^{name}: expected the shape .* found \(4, 1\)$"):
            call()
    for call in (
        lambda: token_rewards(SCORES, LOGPROBS, REF, narrow, beta=1.0),
        lambda: kl_k1(LOGPROBS, REF, narrow),
        lambda: kl_k3(LOGPROBS, REF, narrow),
        lambda: gae(REWARDS, VALUES, narrow),
        lambda: whiten(REWARDS, narrow),
    ):
        with pytest.raises(UsageError, match=r"^mask: expected the shape \(4, 5\) of .*, found \(4, 1\)$"):
            call()
    for function in (kl_k1, kl_k3):
        with pytest.raises(UsageError, match=r"^ref_logprobs: expected the shape \(4, 5\) of .*, found \(4, 1\)$"):
            function(LOGPROBS, REF[:, :1], MASK)
