"""Chapter 10: loss, AdamW and schedule. Write the functions; the chapter derives each formula.

    minillama exercises check ch10      what is right, and the first thing that is not
    minillama exercises hint ch10       the next hint

When 10.1 and 10.5 are right, your learning rate and your update train a model:

    minillama exercises run --with ch10 -- pretrain --out runs/mine

p parameters, g their gradient, m and v the two moments, lr the learning rate of this step, which is step 1, 2, …
"""

import math

import numpy as np

from minillama.backend import Array

# 10.1 · warm-up --------------------------------------------------------------


def learning_rate(step: int, peak: float, steps: int, warmup_steps: int, floor: float) -> float:
    """The learning rate of step 0, 1, …, steps - 1: a linear warm-up, then half a cosine down to a floor.

    lr = peak (step + 1) / (warmup_steps + 1) while step < warmup_steps. Then, with p the part of the other steps that
    is done, lr = peak (floor + (1 - floor) (1 + cos π p) / 2). After the last step it stays at floor * peak. Returns
    the rate.
    """
    # Hint: Two cases: step < warmup_steps rises in a straight line, from peak / (warmup_steps + 1).
    raise NotImplementedError


# 10.2 · warm-up --------------------------------------------------------------


def clip_by_global_norm(grads: dict[str, Array], limit: float) -> tuple[dict[str, Array], float]:
    """All gradients times one factor, so that their norm, √Σ g² over all of them together, is at most `limit`.

    grads: name -> array, left as they are. The factor is 1 where the norm is below the limit. Returns new arrays under
    the same names, and the norm before.
    """
    # Hint: Squares add up: the norm is the root of one sum, over all entries of all arrays.
    raise NotImplementedError


# 10.3 · warm-up --------------------------------------------------------------


def decayed(params: dict[str, Array]) -> dict[str, bool]:
    """Which parameters weight decay pulls to zero: matrices, the embedding among them. Vectors and scalars are not.

    params: name -> array. Returns name -> True or False.
    """
    # Hint: Look at the shape, not at the name: a matrix has two axes.
    raise NotImplementedError


# 10.4 · core -----------------------------------------------------------------


def moments(g: Array, m: Array, v: Array, step: int, betas: tuple[float, float]) -> tuple[Array, Array, Array, Array]:
    """Adam's moving averages of g and g², and both corrected for having started at zero.

    m = β₁ m + (1 - β₁) g, v = β₂ v + (1 - β₂) g², m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ), with t the step: 1 at first.
    g, m, v: arrays of one shape, left as they are. Returns m and v for the next step, and m̂ and v̂.
    """
    # Hint: A moving average keeps β of what it was and takes 1 - β of what is new.
    raise NotImplementedError


# 10.5 · core -----------------------------------------------------------------
# A vector is updated with weight_decay = 0: who calls the function sees to that.


def adamw_update(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[Array, Array, Array]:
    """One step of AdamW: p = p - lr λ p - lr m̂ / (√v̂ + ε), the moments as in 10.4 and λ the weight decay.

    p, g, m, v: arrays of one shape, left as they are. step: 1 at first. Returns the new p, m and v.
    """
    # Hint: First the moments, as in 10.4. Only their corrected versions appear in the update.
    raise NotImplementedError


# 10.6 · core -----------------------------------------------------------------


def accumulate(losses: list[float], grads: list[dict[str, Array]], counts: list[int]) -> tuple[float, dict[str, Array]]:
    """Loss and gradients of a whole batch from those of its micro-batches.

    losses[k] is the mean over the counts[k] tokens of micro-batch k that count, and grads[k] the gradients of that
    mean, name -> array. Returns the mean over all tokens that count, and its gradients, in new arrays.
    """
    # Hint: A mean times its count is a sum; sums add up; divide once, by all counted tokens.
    raise NotImplementedError


# 10.7 · stretch --------------------------------------------------------------


def largest_update(betas: tuple[float, float]) -> float:
    """The largest |m| / √v that any sequence of gradients can reach, after so many steps that corrections are over.

    Adam's step is at most lr times this number, whatever happens. betas: β₁ and β₂ with β₁² < β₂. Returns the bound.
    """
    # Hint: Let a_s = (1 - β₁) β₁ˢ and b_s = (1 - β₂) β₂ˢ be the weights of a gradient that is s steps old: m = Σ a_s
    # g_s, v = Σ b_s g_s². Which g makes m² / v largest?
    raise NotImplementedError
