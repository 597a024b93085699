"""From a score of each answer to an advantage of each token: KL penalty, generalized advantage estimation, whitening.

Arrays are (B, T): B answers of up to T tokens. A mask (B, T) is true on an answer's tokens, which stand side by side,
the end-of-sequence token among them, and false on everything else. Nothing here is differentiated: the losses take
advantages and returns as constants.
"""

from __future__ import annotations

import numpy as np

from minillama.alignment.masked import expect_shape, masked, masked_mean
from minillama.backend import Array, get_array_module

EPS = 1e-8  # beside a variance


def token_rewards(scores: Array, logprobs: Array, ref_logprobs: Array, mask: Array, *, beta: float) -> Array:
    """reward_t = −β (log π_t − log ref_t), and at the answer's last token the answer's score as well.

    scores: (B,) float. logprobs, ref_logprobs: (B, T) float, of the sampled tokens, under the policy that sampled them
    and under the reference. mask: (B, T) bool. beta: what a nat of KL costs. Summed over an answer, this is
    R = score − β KL (Llama 2, section 3.2.3) with the estimator k1. Returns (B, T), 0 where the mask is false. Raises
    UsageError where shapes differ.
    """
    expect_shape(logprobs.shape, "the log-probabilities", ref_logprobs=ref_logprobs, mask=mask)
    expect_shape(logprobs.shape[:1], "the answers", scores=scores)
    xp = get_array_module(logprobs)
    logprobs, ref_logprobs = masked(mask, logprobs, ref_logprobs)
    # (B, T): of the true entries counted from the right, the first.
    last = mask & (xp.cumsum(mask[:, ::-1], axis=1)[:, ::-1] == 1)
    return xp.where(last, scores[:, None], 0) - beta * (logprobs - ref_logprobs)


def kl_k1(logprobs: Array, ref_logprobs: Array, mask: Array) -> Array:
    """KL(π ‖ ref) by k1 = log π − log ref (Schulman, "Approximating KL divergence", 2020), summed over each answer.

    The mean over answers sampled from π estimates the KL of answers without bias; a single one may be negative. A mean
    that stays negative says that what was scored is not what was sampled. logprobs, ref_logprobs: (B, T) float.
    Returns (B,).
    """
    expect_shape(logprobs.shape, "the log-probabilities", ref_logprobs=ref_logprobs, mask=mask)
    logprobs, ref_logprobs = masked(mask, logprobs, ref_logprobs)
    return (logprobs - ref_logprobs).sum(axis=1)


def kl_k3(logprobs: Array, ref_logprobs: Array, mask: Array) -> Array:
    """The same by k3 = e^r − 1 − r with r = log ref − log π: never negative, and less noisy where the two are close.

    Returns (B,); infinite where e^r is.
    """
    expect_shape(logprobs.shape, "the log-probabilities", ref_logprobs=ref_logprobs, mask=mask)
    xp = get_array_module(logprobs)
    logprobs, ref_logprobs = masked(mask, logprobs, ref_logprobs)
    r = ref_logprobs - logprobs
    with np.errstate(over="ignore"):
        return (xp.expm1(r) - r).sum(axis=1)  # e^r − 1 by subtraction would lose a small r


def gae(rewards: Array, values: Array, mask: Array, *, gamma: float = 1.0, lam: float = 0.95) -> tuple[Array, Array]:
    """Generalized advantage estimation (Schulman et al., arXiv:1506.02438), from the last token backwards:

    δ_t = r_t + γ V_{t+1} − V_t, A_t = δ_t + γ λ A_{t+1}, return_t = A_t + V_t, with V and A 0 after the end.

    rewards: (B, T) float. values: (B, T) float, V_t what was expected before token t was known. mask: (B, T) bool.
    λ = 0 gives the TD error, λ = 1 the discounted rewards to come, less the value. Returns advantages and returns,
    (B, T), 0 where the mask is false. Raises UsageError where shapes differ.
    """
    expect_shape(rewards.shape, "the rewards", values=values, mask=mask)
    xp = get_array_module(rewards)
    rewards, values = masked(mask, rewards, values)  # before the recursion: else a pad's value is the end's next value
    advantages = xp.zeros_like(rewards)
    next_value = next_advantage = xp.zeros(len(rewards), rewards.dtype)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = xp.where(mask[:, t], delta + gamma * lam * next_advantage, 0)
        advantages[:, t] = next_advantage
        next_value = values[:, t]
    return advantages, advantages + values


def whiten(x: Array, mask: Array | None = None, *, shift_mean: bool = True) -> Array:
    """(x − mean) / √(variance + 1e-8) over all valid entries; without `shift_mean` the mean is put back.

    The variance is the population's (divided by N). Advantages are shifted, so that half of what was done becomes
    more likely; rewards of tokens are not, for their sign means something. x: (...) float. mask: (...) bool, None for
    all. Of a single entry nothing but the mean is known: it becomes 0, or stays. Returns (...), 0 where the mask is
    false. Raises UsageError where shapes differ.
    """
    xp = get_array_module(x)
    mask = xp.ones(x.shape, bool) if mask is None else mask
    mean = masked_mean(x, mask)
    centred = masked(mask, x)[0] - mean
    scaled = centred / xp.sqrt(masked_mean(centred * centred, mask) + EPS)
    return xp.where(mask, scaled if shift_mean else scaled + mean, 0)
