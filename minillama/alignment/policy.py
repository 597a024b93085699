"""PPO's losses (Schulman et al., arXiv:1707.06347) with hand-written gradients, and what is watched beside them.

Arrays are (B, T): B answers of up to T tokens; a mask (B, T) is true on an answer's tokens. A mean is over the valid
tokens of the whole batch, not over answers: in a minibatch taken in parts, `count` is the number in all of it.
"""

from __future__ import annotations

from minillama.alignment.masked import expect_shape, masked, masked_mean, valid_count
from minillama.backend import Array, get_array_module

LOG_RATIO_LIMIT = 20.0  # e^20 = 5e8: a policy that has moved as far gets no gradient there, and float32 no infinity


def policy_loss(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    *,
    clip: float = 0.2,
    count: float | None = None,
) -> tuple[Array, tuple]:
    """loss = 1/N Σ max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε)), with ρ = π / π_old = e^(log π − log π_old).

    The larger loss of the two: what has moved far enough in the direction of its advantage gains no more, while a step
    in the wrong direction is always undone. logprobs: (B, T) float, of the sampled tokens under the policy that is
    trained. old_logprobs: under the one that sampled them. advantages: constants. clip: ε. count: N, None for the
    valid tokens here. Returns the loss as a 0-d array; 0 where nothing is valid. Raises UsageError where shapes differ.
    """
    expect_shape(logprobs.shape, "the log-probabilities", old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    xp = get_array_module(logprobs)
    log_ratio, ratio = _ratio(logprobs, old_logprobs, mask)
    (advantages,) = masked(mask, advantages)
    free, clipped = _policy_losses(ratio, advantages, clip)
    n = valid_count(mask, ratio.dtype, count)
    # d(−A ρ) / d log π = −A ρ. Inside the range both losses are the same number; where the clipped one is larger, it
    # does not depend on ρ.
    moves = (free >= clipped) & (xp.abs(log_ratio) < LOG_RATIO_LIMIT)
    return xp.maximum(free, clipped).sum() / n, (xp.where(moves, free, 0) / n,)


def policy_loss_backward(saved: tuple, dloss: Array | float = 1.0) -> Array:
    """Gradient of `policy_loss`: dlogprobs = −A ρ / N, and 0 where the clipped loss is the larger one. Returns (B, T),
    0 where the mask is false.
    """
    (dlogprobs,) = saved
    return dlogprobs * dloss


def value_loss(
    values: Array, old_values: Array, returns: Array, mask: Array, *, clip: float = 0.2, count: float | None = None
) -> tuple[Array, tuple]:
    """loss = 1/2N Σ max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²).

    values: (B, T) float, of the value model that is trained. old_values: of the same when the answers were sampled.
    returns: constants, from `advantages.gae`. count: N, None for the valid tokens here. Returns the loss as a 0-d
    array; 0 where nothing is valid. Raises UsageError where shapes differ.
    """
    expect_shape(values.shape, "the values", old_values=old_values, returns=returns, mask=mask)
    xp = get_array_module(values)
    values, old_values, returns = masked(mask, values, old_values, returns)
    # Clipped as a whole, since V_old + (V − V_old) is V only to rounding, and the losses must be equal inside.
    error, clipped_error = values - returns, xp.clip(values, old_values - clip, old_values + clip) - returns
    free, clipped = error * error, clipped_error * clipped_error
    n = valid_count(mask, values.dtype, count)
    return 0.5 * xp.maximum(free, clipped).sum() / n, (xp.where(free >= clipped, error, 0) / n,)


def value_loss_backward(saved: tuple, dloss: Array | float = 1.0) -> Array:
    """Gradient of `value_loss`: dvalues = (V − R) / N, and 0 where the clipped error is the larger one. Returns (B, T),
    0 where the mask is false. dloss: also the place for the loss's coefficient.
    """
    (dvalues,) = saved
    return dvalues * dloss


def policy_measures(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    *,
    clip: float = 0.2,
    count: float | None = None,
) -> dict[str, Array]:
    """What tells how far the policy has moved: 0-d arrays, over valid tokens only. The arguments are `policy_loss`'s.

    clip_fraction: the share of tokens that get no gradient, since they are clipped. approx_kl: KL(π_old ‖ π) a token,
    by k3 = ρ − 1 − log ρ. ratio_mean, ratio_min, ratio_max: of ρ; infinities where nothing is valid. Before the first
    step on a batch they are exactly 0, 0 and 1; anything else means that scoring and sampling disagree.
    """
    expect_shape(logprobs.shape, "the log-probabilities", old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    xp = get_array_module(logprobs)
    log_ratio, ratio = _ratio(logprobs, old_logprobs, mask)
    free, clipped = _policy_losses(ratio, masked(mask, advantages)[0], clip)
    return {
        "clip_fraction": masked_mean((clipped > free).astype(ratio.dtype), mask, count),
        "approx_kl": masked_mean(xp.expm1(log_ratio) - log_ratio, mask, count),
        "ratio_mean": masked_mean(ratio, mask, count),
        "ratio_min": xp.where(mask, ratio, xp.inf).min(),
        "ratio_max": xp.where(mask, ratio, -xp.inf).max(),
    }


def explained_variance(values: Array, returns: Array, mask: Array) -> Array:
    """1 − Var(R − V) / Var(R) over the valid tokens: 1 for perfect values, 0 for a constant, below 0 for worse.

    values, returns: (B, T) float. Returns a 0-d array; 0 where the returns do not vary. Raises UsageError where shapes
    differ.
    """
    expect_shape(values.shape, "the values", returns=returns, mask=mask)
    xp = get_array_module(values)
    # Not Var(R) > 0, which rounding makes of equal returns.
    vary = xp.where(mask, returns, -xp.inf).max() > xp.where(mask, returns, xp.inf).min()
    values, returns = masked(mask, values, returns)
    unexplained = _variance(returns - values, mask)
    return xp.where(vary, 1 - unexplained / xp.where(vary, _variance(returns, mask), 1), 0)


def _ratio(logprobs: Array, old_logprobs: Array, mask: Array) -> tuple[Array, Array]:
    """log ρ, kept within ±LOG_RATIO_LIMIT, and ρ: (B, T), 0 and 1 where the mask is false."""
    xp = get_array_module(logprobs)
    logprobs, old_logprobs = masked(mask, logprobs, old_logprobs)
    log_ratio = xp.clip(logprobs - old_logprobs, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_ratio, xp.exp(log_ratio)


def _policy_losses(ratio: Array, advantages: Array, clip: float) -> tuple[Array, Array]:
    """−A ρ and −A clip(ρ, 1 − ε, 1 + ε), of each token."""
    xp = get_array_module(ratio)
    return -advantages * ratio, -advantages * xp.clip(ratio, 1 - clip, 1 + clip)


def _variance(x: Array, mask: Array) -> Array:
    """The population's, over the valid entries."""
    deviation = x - masked_mean(x, mask)
    return masked_mean(deviation * deviation, mask)
