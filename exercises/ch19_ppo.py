"""Chapter 19: PPO. Write the functions; the chapter derives each formula.

    minillama exercises check ch19      what is right, and the first thing that is not
    minillama exercises hint ch19       the next hint

When 19.3 to 19.9 are right, your functions train a chat model on what a reward model says of its answers (`make book`
has made both; here five iterations):

    minillama exercises run --with ch19 -- ppo --model runs/mini/v5/reject --reward runs/mini/v5/reward \
        --iterations 5 --out runs/my-ppo

B answers of up to T tokens. `mask` (B, T) is true on an answer's tokens, which stand side by side, the end token among
them. Before them is the prompt, after them padding: there the arrays may hold anything, even NaN, and NaN · 0 is NaN.
`count` is what a mean is over where these rows are a part of a larger minibatch.
"""

import numpy as np

from minillama.backend import Array

# 19.1 · warm-up --------------------------------------------------------------


def kl_k1(logprobs: Array, ref_logprobs: Array, mask: Array) -> Array:
    """KL(π ‖ ref) by k1 = log π − log ref (Schulman, "Approximating KL divergence", 2020), summed over each answer.

    The mean over answers sampled from π estimates the KL of answers without bias; a single one may be negative. A mean
    that stays negative says that what was scored is not what was sampled. logprobs, ref_logprobs: (B, T) float.
    Returns (B,).
    """
    # Hint: log π - log ref of every token of the answer, and the sum of an answer's: that is the log of a quotient of
    # probabilities of whole answers.
    raise NotImplementedError


# 19.2 · warm-up --------------------------------------------------------------


def explained_variance(values: Array, returns: Array, mask: Array) -> Array:
    """1 − Var(R − V) / Var(R) over the valid tokens: 1 for perfect values, 0 for a constant, below 0 for worse.

    values, returns: (B, T) float. Returns a 0-d array; 0 where the returns do not vary. Raises UsageError where shapes
    differ.
    """
    # Hint: Two variances over the tokens where the mask is true: of what is left, R - V, and of R.
    raise NotImplementedError


# 19.3 · core -----------------------------------------------------------------


def token_rewards(scores: Array, logprobs: Array, ref_logprobs: Array, mask: Array, *, beta: float) -> Array:
    """reward_t = −β (log π_t − log ref_t), and at the answer's last token the answer's score as well.

    scores: (B,) float. logprobs, ref_logprobs: (B, T) float, of the sampled tokens, under the policy that sampled them
    and under the reference. mask: (B, T) bool. beta: what a nat of KL costs. Summed over an answer, this is
    R = score − β KL (Llama 2, section 3.2.3) with the estimator k1. Returns (B, T), 0 where the mask is false. Raises
    UsageError where shapes differ.
    """
    # Hint: Two parts: -β (log π - log ref) at every token of the answer, and the score at one token of it.
    raise NotImplementedError


# 19.4 · core -----------------------------------------------------------------


def gae(rewards: Array, values: Array, mask: Array, *, gamma: float = 1.0, lam: float = 0.95) -> tuple[Array, Array]:
    """Generalized advantage estimation (Schulman et al., arXiv:1506.02438), from the last token backwards:

    δ_t = r_t + γ V_{t+1} − V_t, A_t = δ_t + γ λ A_{t+1}, return_t = A_t + V_t, with V and A 0 after the end.

    rewards: (B, T) float. values: (B, T) float, V_t what was expected before token t was known. mask: (B, T) bool.
    λ = 0 gives the TD error, λ = 1 the discounted rewards to come, less the value. Returns advantages and returns,
    (B, T), 0 where the mask is false. Raises UsageError where shapes differ.
    """
    # Hint: Set rewards and values to 0 where the mask is false, before anything else: the value after the end is 0.
    raise NotImplementedError


# 19.5 · core -----------------------------------------------------------------


def whiten(x: Array, mask: Array | None = None, *, shift_mean: bool = True) -> Array:
    """(x − mean) / √(variance + 1e-8) over all valid entries; without `shift_mean` the mean is put back.

    The variance is the population's (divided by N). Advantages are shifted, so that half of what was done becomes
    more likely; rewards of tokens are not, for their sign means something. x: (...) float. mask: (...) bool, None for
    all. Of a single entry nothing but the mean is known: it becomes 0, or stays. Returns (...), 0 where the mask is
    false. Raises UsageError where shapes differ.
    """
    # Hint: Mean and variance are those of the entries where the mask is true, of all rows together.
    raise NotImplementedError


# 19.6 · core -----------------------------------------------------------------
# As `saved`, return whatever your policy_loss_backward will need.


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
    # Hint: ρ = exp(log π - log π_old), with the difference set to 0 where the mask is false.
    raise NotImplementedError


# 19.7 · core -----------------------------------------------------------------


def policy_loss_backward(saved: tuple, dloss: Array | float = 1.0) -> Array:
    """Gradient of `policy_loss`: dlogprobs = −A ρ / N, and 0 where the clipped loss is the larger one. Returns (B, T),
    0 where the mask is false.
    """
    # Hint: dρ / dlog π = ρ, so d(-A ρ) / dlog π = -A ρ; the clipped loss depends on ρ only inside the range.
    raise NotImplementedError


# 19.8 · core -----------------------------------------------------------------
# As `saved`, return whatever your value_loss_backward will need.


def value_loss(
    values: Array, old_values: Array, returns: Array, mask: Array, *, clip: float = 0.2, count: float | None = None
) -> tuple[Array, tuple]:
    """loss = 1/2N Σ max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²).

    values: (B, T) float, of the value model that is trained. old_values: of the same when the answers were sampled.
    returns: constants, from `advantages.gae`. count: N, None for the valid tokens here. Returns the loss as a 0-d
    array; 0 where nothing is valid. Raises UsageError where shapes differ.
    """
    # Hint: Two squared errors a token: of V, and of V kept within ε of what it was, clip(V, V_old - ε, V_old + ε).
    raise NotImplementedError


# 19.9 · core -----------------------------------------------------------------


def value_loss_backward(saved: tuple, dloss: Array | float = 1.0) -> Array:
    """Gradient of `value_loss`: dvalues = (V − R) / N, and 0 where the clipped error is the larger one. Returns (B, T),
    0 where the mask is false. dloss: also the place for the loss's coefficient.
    """
    # Hint: d/dV of (V - R)² / 2 is V - R. The clipped error does not depend on V where V is out of range.
    raise NotImplementedError


# 19.10 · stretch -------------------------------------------------------------
# Then ask: why is the mean of e^r - 1 over samples of π zero, and what does that do for the noise?


def kl_k3(logprobs: Array, ref_logprobs: Array, mask: Array) -> Array:
    """The same by k3 = e^r − 1 − r with r = log ref − log π: never negative, and less noisy where the two are close.

    Returns (B,); infinite where e^r is.
    """
    # Hint: r = log ref - log π of each token. Under π the mean of e^r is Σ π · ref/π = 1: e^r - 1 adds nothing to it.
    raise NotImplementedError
