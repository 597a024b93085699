"""The losses of reward models (Llama 2, section 3.2.2): a chosen answer shall score higher than the rejected one.

By Bradley and Terry, σ(r_c − r_r) is the probability that an answer with the score r_c is preferred to one with r_r.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minillama.alignment.masked import expect_shape
from minillama.backend import Array, get_array_module
from minillama.errors import MinillamaError, UsageError

# How far apart the scores of a pair shall be at least, by the annotator's rating (Llama 2, table 27).
MARGINS = {
    "small": {
        "significantly better": 1.0,
        "better": 2 / 3,
        "slightly better": 1 / 3,
        "negligibly better or unsure": 0.0,
    },
    "large": {
        "significantly better": 3.0,
        "better": 2.0,
        "slightly better": 1.0,
        "negligibly better or unsure": 0.0,
    },
}


def margins(ratings: Sequence[str], size: str) -> np.ndarray:
    """m(rating) for each pair: (B,) float32, in the host's memory. size: 'small' or 'large', a table of MARGINS.

    Raises UsageError for another size, MinillamaError for a rating that is not in the table.
    """
    if size not in MARGINS:
        raise UsageError(f"margins: expected one of {', '.join(MARGINS)}, found {size!r}")
    for rating in ratings:
        if rating not in MARGINS[size]:
            raise MinillamaError(f"rating: expected one of {', '.join(MARGINS[size])}, found {rating!r}")
    return np.array([MARGINS[size][rating] for rating in ratings], np.float32)


def log_sigmoid(x: Array) -> Array:
    """log σ(x) = min(x, 0) − log(1 + e^−|x|), in which nothing overflows: x far below 0, −e^−x far above."""
    xp = get_array_module(x)
    return xp.minimum(x, 0) - xp.log1p(xp.exp(-xp.abs(x)))


def sigmoid(x: Array) -> Array:
    """σ(x) = 1 / (1 + e^−x), without overflow."""
    return get_array_module(x).exp(log_sigmoid(x))


def ranking_loss(
    chosen: Array, rejected: Array, margin: Array | None = None, *, count: float | None = None
) -> tuple[Array, tuple]:
    """loss = −1/N Σ log σ(r_c − r_r − m).

    chosen, rejected: (B,) float, the scores of each pair's answers. margin: (B,) float, None for 0. count: N, where
    these pairs are a part of a larger batch; None for B. Returns the loss as a 0-d array; 0 for no pairs. Raises
    UsageError where shapes differ.
    """
    expect_shape(chosen.shape, "the chosen scores", rejected=rejected, margin=margin)
    apart = chosen - rejected
    if margin is not None:
        apart = apart - margin
    return _log_sigmoid_loss(apart, count)


def ranking_loss_backward(saved: tuple, dloss: Array | float = 1.0) -> tuple[Array, Array]:
    """Gradients of `ranking_loss`: dr_c = −σ(−(r_c − r_r − m)) / N, dr_r = −dr_c. Returns both, (B,)."""
    dchosen = _log_sigmoid_loss_backward(saved, dloss)
    return dchosen, -dchosen


def safety_loss(scores: Array, safe: Array, *, count: float | None = None) -> tuple[Array, tuple]:
    """loss = −1/N Σ (log σ(r) where the answer is safe, log σ(−r) where it is not).

    The paper adds "an auxiliary safety classification loss" to the safety model's and leaves it at that. Read here: the
    score's sigmoid is the probability that an answer is safe, which fits table 28, where a score below 0 means unsafe;
    both answers of a pair count, each with its own label; the mean is over answers, and it is added to the ranking
    loss with the weight 1.

    scores: (...) float, of chosen and rejected answers alike. safe: (...) bool. count: N, where these answers are a
    part of a larger batch (of B pairs: 2B); None for their number. Returns the loss as a 0-d array. Raises UsageError
    where shapes differ.
    """
    expect_shape(scores.shape, "the scores", safe=safe)
    xp = get_array_module(scores)
    loss, saved = _log_sigmoid_loss(xp.where(safe, scores, -scores), count)
    return loss, (saved, safe)


def safety_loss_backward(saved: tuple, dloss: Array | float = 1.0) -> Array:
    """Gradient of `safety_loss`: dr = (σ(r) − 1) / N where the answer is safe, σ(r) / N where not. Returns (...)."""
    saved_loss, safe = saved
    d = _log_sigmoid_loss_backward(saved_loss, dloss)
    return get_array_module(d).where(safe, d, -d)


def accuracy(chosen: Array, rejected: Array) -> Array:
    """The share of pairs whose chosen answer has the higher score, a tie counted as wrong. (B,), (B,) -> 0-d."""
    expect_shape(chosen.shape, "the chosen scores", rejected=rejected)
    return (chosen > rejected).sum(dtype=chosen.dtype) / max(chosen.size, 1)


def _log_sigmoid_loss(x: Array, count: float | None) -> tuple[Array, tuple]:
    """−1/N Σ log σ(x)."""
    n = max(x.size, 1) if count is None else count
    return -log_sigmoid(x).sum() / n, (x, n)


def _log_sigmoid_loss_backward(saved: tuple, dloss: Array | float) -> Array:
    """dx = −σ(−x) / N."""
    x, n = saved
    return sigmoid(-x) * (-dloss / n)
