"""Chapter 22: measuring. Write the functions; the chapter says what each is for.

    minillama exercises check ch22      what is right, and the first thing that is not
    minillama exercises hint ch22       the next hint

When 22.3 and 22.4 are right, the intervals of an evaluation are yours (`make book` has made the model):

    minillama exercises run --with ch22 -- evaluate runs/mini/sft --count 40 --turns 0

n answers, or pairs of them. All intervals are of 95 %: of a hundred made so, some ninety-five hold the truth.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from minillama.backend import Array
from minillama.evaluation.statistics import Estimate

# 22.1 · warm-up --------------------------------------------------------------


def correlation(x: Array, y: Array) -> float:
    """Pearson's correlation, of the rewards of answers and their lengths for example.

    x, y: (n,) numbers. Returns r from -1 to 1; 0 where one of them does not vary.
    """
    # Hint: Take the mean off both. Then it is the cosine of the angle between them: Σ xy / √(Σ x² Σ y²).
    raise NotImplementedError


# 22.2 · warm-up --------------------------------------------------------------


def win_points(ours: Array, theirs: Array) -> Array:
    """The points of a comparison, request by request: 1 where our answer is better, 0 where theirs is, 1/2 for a tie.

    ours, theirs: (n,) float, what the judge says of the two answers to the same n requests. Their mean is the win rate.
    Returns (n,) float.
    """
    # Hint: Answer by answer: both are to the same request.
    raise NotImplementedError


# 22.3 · core -----------------------------------------------------------------
# The ends of the interval are the two p' with (p - p')² = z² p' (1 - p') / n, z = 1.959964. Without trials all three
# are NaN. Returns Estimate(p, low, high), or a tuple of the three.


def share(successes: int, trials: int) -> Estimate:
    """Of successes among trials, by Wilson's score interval (1927), which stays between 0 and 1."""
    # Hint: It is a quadratic equation in p'. Its middle is (p + z²/2n) / (1 + z²/n).
    raise NotImplementedError


# 22.4 · core -----------------------------------------------------------------
# Then ask: three seeds gave three win rates. How much wider is their interval than ± 1.96 standard errors?


def mean_interval(values: Sequence[float], quantile: Callable[[int], float]) -> tuple[float, float, float]:
    """A mean and its 95 % interval, of values drawn independently.

    values: n numbers. quantile(k): Student's 97.5 % quantile for k degrees of freedom: 12.7 for 1, 4.3 for 2, 1.96 for
    many. The interval is the mean ± quantile · s / √n. Returns mean, low, high: the ends NaN for one value, all three
    NaN for none.
    """
    # Hint: The standard error of a mean is s / √n, with s the deviation of the sample: its squares divided by n - 1.
    raise NotImplementedError


# 22.5 · stretch --------------------------------------------------------------
# Python's integers have no end, and the quotient of two of them is rounded once: so it is exact. Returns p. Then ask:
# which accuracy on 1,000 held-out pairs would you not take for luck?


def binomial_p(right: int, pairs: int) -> float:
    """P(at least so many right of so many pairs) by tossing coins: Σ_{k ≥ right} (n over k) / 2ⁿ, exact."""
    # Hint: math.comb(n, k) of the 2ⁿ sequences of n tosses have k heads.
    raise NotImplementedError
