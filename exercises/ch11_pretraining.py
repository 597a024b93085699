"""Chapter 11: pretraining, and loss by size. Write the functions; the chapter says what each is for.

    minillama exercises check ch11      what is right, and the first thing that is not
    minillama exercises hint ch11       the next hint

T tokens of a window, B windows of a batch; step, window and epoch are counted from 0. Losses are in nats.
"""

import math
from collections.abc import Sequence

import numpy as np

from minillama.backend import Array

# 11.1 · warm-up --------------------------------------------------------------


def nats_per_byte(nats: Sequence[float], sizes: Sequence[int]) -> float:
    """What a byte of a text costs: the nats of all its documents over the bytes of all of them.

    nats: of each document, summed over its tokens. sizes: the bytes of each in UTF-8. Returns nats a byte.
    """
    # Hint: What does all the text cost, and how long is all of it?
    raise NotImplementedError


# 11.2 · warm-up --------------------------------------------------------------


def perplexity(losses: Sequence[float], counts: Sequence[int]) -> float:
    """e to the power of the mean loss of a token, over all batches.

    losses: the mean loss of each batch. counts: how many tokens that was a mean of. Returns the perplexity.
    """
    # Hint: First the loss of a token over all batches: a batch with more tokens weighs more.
    raise NotImplementedError


# 11.3 · core -----------------------------------------------------------------


def window(tokens: Array, index: int, seq_len: int) -> tuple[Array, Array]:
    """The `index`-th window of a text: T tokens, and for each the token that follows it.

    tokens: (N,) integers, with N > (index + 1) T. Windows lie side by side, so that every token but the first is a
    target once. Returns inputs (T,) and targets (T,).
    """
    # Hint: Window `index` begins at index * seq_len. Cut out one token more than seq_len.
    raise NotImplementedError


# 11.4 · core -----------------------------------------------------------------
# It must give the same answer whatever was asked before: that is what lets a killed run go on exactly.


def windows_of_step(step: int, windows: int, batch_size: int, seed: int) -> Array:
    """Which windows are in the batch of a step, in order.

    In epoch e the windows come in the order np.random.default_rng([seed, e]).permutation(windows). A batch that an
    epoch's end leaves unfilled goes on with the next epoch. Returns (B,) integers.
    """
    # Hint: Count places over the whole run: the batch of `step` has the places step * batch_size and on.
    raise NotImplementedError


# 11.5 · core -----------------------------------------------------------------
# Return -1 where the run is never stopped.


def diverged_at(losses: Sequence[float], factor: float, patience: int, memory: float) -> int:
    """The step at which a run is stopped: at a loss that is not finite, or at the last of `patience` bad ones in a row.

    A loss is bad if it is above `factor` times the running mean. The mean begins with the first loss; every loss that
    is not bad enters it: mean = memory * mean + (1 - memory) * loss. Returns the step, or -1 where there is none.
    """
    # Hint: Keep two numbers: the running mean, which begins with the first loss, and the bad ones so far in a row.
    raise NotImplementedError


# 11.6 · stretch --------------------------------------------------------------


def fit_power_law(sizes: Array, losses: Array, floor: float) -> tuple[float, float]:
    """A and α of L = E + A / P^α, by least squares on logarithms.

    sizes: (n,) parameters P. losses: (n,) nats, all above `floor`, the E that no size gets below. Returns A and α, both
    positive where loss falls with size.
    """
    # Hint: Take logarithms: log(L - E) = log A - α log P is a straight line.
    raise NotImplementedError
