"""Chapter 17: preferences and reward models. Write the functions; the chapter derives each formula.

    minillama exercises check ch17      what is right, and the first thing that is not
    minillama exercises hint ch17       the next hint

When 17.2 to 17.7 are right, your functions train a safety model, which has both losses (`make book` has made the model
that it begins with, and the pairs):

    minillama exercises run --with ch17 -- reward --model runs/mini/gatt --data runs/mini/v1/safety.jsonl \
        --safety-loss 1 --out runs/my-safety

B pairs, or rows of tokens; T tokens of a row; r a score, before any sigmoid; σ(x) = 1 / (1 + e^-x). Losses are in nats.
`count` is what a mean is over where these arrays are a part of a larger batch: then the parts' losses and gradients add
up to the batch's.
"""

import numpy as np

from minillama.backend import Array

# 17.1 · warm-up --------------------------------------------------------------


def accuracy(chosen: Array, rejected: Array) -> Array:
    """The share of pairs whose chosen answer has the higher score, a tie counted as wrong. (B,), (B,) -> 0-d."""
    # Hint: chosen > rejected is true where the model agrees; the mean of truth values is a share.
    raise NotImplementedError


# 17.2 · warm-up --------------------------------------------------------------
# As `saved`, return whatever your rewards_backward will need.


def rewards(values: Array, last: Array) -> tuple[Array, tuple]:
    """The score of each answer: what the scalar head says at the token that ends it.

    values: (B, T) float, what the head says at every place of a row: prompt, answer, then padding, where it may say
    anything. last: (B,) integers, the place of the token that ends the answer. Returns the scores (B,), and `saved`.
    """
    # Hint: Of row b you want values[b, last[b]]: one number out of each row, at a place of its own.
    raise NotImplementedError


# 17.3 · core -----------------------------------------------------------------


def rewards_backward(drewards: Array, saved: tuple) -> Array:
    """Gradient of `rewards`, given that of the scores, drewards (B,). Returns dvalues (B, T)."""
    # Hint: The score is one of the values. What is the gradient of all the others?
    raise NotImplementedError


# 17.4 · core -----------------------------------------------------------------
# As `saved`, return whatever your ranking_loss_backward will need. Scores may be hundreds apart.


def ranking_loss(
    chosen: Array, rejected: Array, margin: Array | None = None, *, count: float | None = None
) -> tuple[Array, tuple]:
    """loss = −1/N Σ log σ(r_c − r_r − m).

    chosen, rejected: (B,) float, the scores of each pair's answers. margin: (B,) float, None for 0. count: N, where
    these pairs are a part of a larger batch; None for B. Returns the loss as a 0-d array; 0 for no pairs. Raises
    UsageError where shapes differ.
    """
    # Hint: x = chosen - rejected, less the margin if there is one; the loss is -log σ(x), summed, over N.
    raise NotImplementedError


# 17.5 · core -----------------------------------------------------------------


def ranking_loss_backward(saved: tuple, dloss: Array | float = 1.0) -> tuple[Array, Array]:
    """Gradients of `ranking_loss`: dr_c = −σ(−(r_c − r_r − m)) / N, dr_r = −dr_c. Returns both, (B,)."""
    # Hint: The derivative of -log σ(x) is -σ(-x): nearly -1 for a pair judged wrongly, nearly 0 for one judged well.
    raise NotImplementedError


# 17.6 · core -----------------------------------------------------------------
# As `saved`, return whatever your safety_loss_backward will need.


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
    # Hint: It is a binary cross-entropy with the score as its logit: P(safe) = σ(r), P(unsafe) = 1 - σ(r) = σ(-r).
    raise NotImplementedError


# 17.7 · core -----------------------------------------------------------------


def safety_loss_backward(saved: tuple, dloss: Array | float = 1.0) -> Array:
    """Gradient of `safety_loss`: dr = (σ(r) − 1) / N where the answer is safe, σ(r) / N where not. Returns (...)."""
    # Hint: d/dr of -log σ(r) is σ(r) - 1, and of -log σ(-r) it is σ(r).
    raise NotImplementedError


# 17.8 · stretch --------------------------------------------------------------
# And ask: by which number would you divide all scores to make the error small, and does the accuracy change?


def calibration(apart: Array, bins: int) -> tuple[Array, Array, float]:
    """Whether a reward model is right as often as it says it is.

    apart: (n,) float, r_c - r_r of n pairs. Of the answer with the higher score the model says that it is the preferred
    one with the probability c = σ(|apart|), from 1/2 to 1: `bins` bins of equal width. Returns the share of pairs in
    each bin whose model is right (bins,), NaN where there are none; how many there are (bins,); and the expected
    calibration error: how far a bin's mean c and its share are apart, the mean over pairs.
    """
    # Hint: The model prefers the answer with the higher score, and is sure of it with c = σ(|apart|). It is right where
    # apart > 0.
    raise NotImplementedError
