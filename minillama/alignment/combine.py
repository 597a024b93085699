"""Llama 2's reward for PPO: of two reward models, the one that matters for the answer (section 3.2.3)."""

from __future__ import annotations

from minillama.alignment.advantages import whiten
from minillama.alignment.masked import expect_shape
from minillama.alignment.ranking import sigmoid
from minillama.backend import Array, get_array_module

SAFE_ENOUGH = 0.15  # the safety score under which safety is what counts; on the sigmoid scale
# The logit is taken of numbers from BOUND to 1 − BOUND, so it is ±9.2 at most. Near 1, float32 has steps of 6e-8: in
# the logit 0.0006 at the bound, ever more closer to 1, and of 1 itself the logit is infinite.
BOUND = 1e-4


def combine(safety: Array, helpfulness: Array, safety_prompt: Array) -> Array:
    """R_c = R_s where the prompt is tagged as one of safety or R_s < 0.15, else R_h.

    safety, helpfulness: (B,) float in (0, 1), the sigmoids of the two models' scores. safety_prompt: (B,) bool.
    Returns (B,), of the same scale. Raises UsageError where shapes differ.
    """
    expect_shape(safety.shape, "the safety scores", helpfulness=helpfulness, safety_prompt=safety_prompt)
    xp = get_array_module(safety)
    return xp.where(safety_prompt | (safety < SAFE_ENOUGH), safety, helpfulness)


def logit(p: Array) -> Array:
    """log(p / (1 − p)), the inverse of the sigmoid, of p moved to at least BOUND and at most 1 − BOUND."""
    xp = get_array_module(p)
    p = xp.clip(p, BOUND, 1 - BOUND)
    return xp.log(p) - xp.log1p(-p)


def combined_reward(safety_scores: Array, helpfulness_scores: Array, safety_prompt: Array) -> Array:
    """R̃_c = WHITEN(LOGIT(R_c)): mean 0 and deviation 1 over the batch, so that one β fits any scores.

    safety_scores, helpfulness_scores: (B,) float, as the models give them, before any sigmoid. safety_prompt: (B,)
    bool. Returns (B,). It takes the whole batch: a part of it would have another mean.
    """
    return whiten(logit(combine(sigmoid(safety_scores), sigmoid(helpfulness_scores), safety_prompt)))
