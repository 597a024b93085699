"""Chapter 22, measuring: exercises, solutions and typical wrong answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np

from minillama.alignment import reward
from minillama.backend import Array
from minillama.errors import MinillamaError
from minillama.evaluation import statistics
from minillama.evaluation.record import MEASURE, Evaluation
from minillama.evaluation.statistics import Estimate
from minillama.exercises.chapter import Case, Chapter, Functions

chapter = Chapter(
    "ch22_measuring",
    "Measuring",
    """Chapter 22: measuring. Write the functions; the chapter says what each is for.

    minillama exercises check ch22      what is right, and the first thing that is not
    minillama exercises hint ch22       the next hint

When 22.3 and 22.4 are right, the intervals of an evaluation are yours (`make book` has made the model):

    minillama exercises run --with ch22 -- evaluate runs/mini/sft --count 40 --turns 0

n answers, or pairs of them. All intervals are of 95 %: of a hundred made so, some ninety-five hold the truth.""",
)


# --- 22.1 does it pay for length?


def correlation_cases(rng: np.random.Generator) -> Iterator[Case]:
    lengths = rng.integers(3, 40, 20)
    yield {"x": 0.1 * lengths + rng.standard_normal(20), "y": lengths}
    yield {"x": rng.standard_normal(9) + 5, "y": -rng.exponential(2, 9)}
    yield {"x": np.array([0.5, 0.5, 0.5]), "y": np.array([4, 9, 2])}  # all scores are the same
    yield {"x": np.array([1.0, 2.0, 8.0]), "y": np.array([7, 7, 7])}


@chapter.exercise(
    "warm-up",
    cases=correlation_cases,
    returns=("r",),
    replaces="minillama.alignment.ppo_trainer:_correlation",
    hints=(
        "Take the mean off both. Then it is the cosine of the angle between them: Σ xy / √(Σ x² Σ y²).",
        "np.ptp(x) is the highest less the lowest: 0 where x does not vary, and there is nothing to divide by.",
    ),
)
def correlation(x: Array, y: Array) -> float:
    """Pearson's correlation, of the rewards of answers and their lengths for example.

    x, y: (n,) numbers. Returns r from -1 to 1; 0 where one of them does not vary.
    """
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


chapter.edit(
    "correlation",
    "the means are not taken off: of positive numbers it would always be near 1.",
    "x, y = x - x.mean(), y - y.mean()",
    "pass",
)
chapter.edit(
    "correlation",
    "it is the covariance, which has a unit; divide by both deviations.",
    "float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))",
    "float((x * y).mean())",
)
chapter.edit(
    "correlation",
    "it is the slope of a line, reward a token; divide by both deviations, not by one variance.",
    "np.sqrt((x * x).sum() * (y * y).sum())",
    "(y * y).sum()",
)
chapter.edit(
    "correlation",
    "the covariance is divided by n and the deviations by n - 1, or the other way round.",
    "np.sqrt((x * x).sum() * (y * y).sum())",
    "(x.std(ddof=1) * y.std(ddof=1) * len(x))",
)
chapter.edit(
    "correlation",
    "where one of them does not vary it is 0/0; then it is 0.",
    "if np.ptp(x) == 0 or np.ptp(y) == 0:",
    "if False:",
)
chapter.edit("correlation", "the sign is lost: longer may be better or worse.", "float((x * y)", "float(abs(x * y)")


# --- 22.2 who wins


def win_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield {"ours": np.array([1.0, 0.5, 0.25, 0.75, 0.0]), "theirs": np.array([0.5, 0.5, 1.0, 0.25, 0.0])}
    yield {"ours": rng.integers(0, 4, 30) / 4, "theirs": rng.integers(0, 4, 30) / 4}


def as_win_rate(function: Callable[[Array, Array], Array]) -> Callable[..., Estimate]:
    """`record.win_rate` by a learner's `win_points`."""

    def win_rate(ours: Evaluation, theirs: Evaluation, kinds: Sequence[str] = ("helpful", "unsafe")) -> Estimate:
        points: list[float] = []
        for kind in kinds:
            a, b = (of.values(kind, MEASURE[kind]) for of in (ours, theirs))
            if len(a) != len(b):
                raise MinillamaError(f"win rate: expected as many answers of both, found {len(a)} and {len(b)}")
            points += np.asarray(function(a, b), float).tolist()
        return statistics.mean(points)

    return win_rate


@chapter.exercise(
    "warm-up",
    cases=win_cases,
    returns=("points",),
    replaces="minillama.evaluation.record:win_rate",
    adapt=as_win_rate,
    hints=(
        "Answer by answer: both are to the same request.",
        "np.where(ours == theirs, 0.5, ours > theirs).",
    ),
)
def win_points(ours: Array, theirs: Array) -> Array:
    """The points of a comparison, request by request: 1 where our answer is better, 0 where theirs is, 1/2 for a tie.

    ours, theirs: (n,) float, what the judge says of the two answers to the same n requests. Their mean is the win rate.
    Returns (n,) float.
    """
    return np.where(ours == theirs, 0.5, ours > theirs)


chapter.edit(
    "win_points",
    "a tie counts as lost: then the win rates of both models would not add up to 1.",
    "np.where(ours == theirs, 0.5, ours > theirs)",
    "(ours > theirs).astype(float)",
)
chapter.edit(
    "win_points",
    "a tie counts as won: a model would win half of its games with itself twice.",
    "np.where(ours == theirs, 0.5, ours > theirs)",
    "(ours >= theirs).astype(float)",
)
chapter.edit(
    "win_points",
    "ties are left out: many of them say that the two are alike, which a mean of the rest hides.",
    "np.where(ours == theirs, 0.5, ours > theirs)",
    "(ours > theirs)[ours != theirs].astype(float)",
)
chapter.edit("win_points", "the two have changed places: it is theirs that wins.", "ours > theirs", "ours < theirs")
chapter.edit(
    "win_points",
    "every answer is compared with those to all other requests: some are easier than others, so compare in pairs.",
    "np.where(ours == theirs, 0.5, ours > theirs)",
    "np.where(ours[:, None] == theirs, 0.5, ours[:, None] > theirs)",
)
chapter.edit(
    "win_points",
    "this is by how much ours is better; a win is a win.",
    "np.where(ours == theirs, 0.5, ours > theirs)",
    "ours - theirs",
)


# --- 22.3 of a share


def share_cases(_: np.random.Generator) -> Iterator[Case]:
    for successes, trials in ((7, 20), (0, 100), (40, 40), (1, 2), (0, 0), (33, 47), (5, 61)):
        yield {"successes": successes, "trials": trials}


def as_estimate(function: Callable[..., tuple[float, float, float]]) -> Callable[..., Estimate]:
    """What a learner returns, with the names that the package uses."""
    return lambda *args, **kwargs: Estimate(*map(float, function(*args, **kwargs)))


def bounds_solve(own: Functions) -> str | None:
    """None where both ends are as far from the share as the normal distribution at that end allows."""
    p, *ends = own.share(3, 17)
    for end in ends:
        if not math.isclose((p - end) ** 2, 1.959964**2 * end * (1 - end) / 17, rel_tol=1e-6):
            return "An end p' of the interval does not solve (p - p')² = z² p' (1 - p') / n."
    return None


chapter.exercise(
    "core",
    cases=share_cases,
    proof=bounds_solve,
    returns=("share", "low", "high"),
    replaces="minillama.evaluation.statistics:share",
    adapt=as_estimate,
    task="The ends of the interval are the two p' with (p - p')² = z² p' (1 - p') / n, z = 1.959964. Without trials all"
    " three are NaN. Returns Estimate(p, low, high), or a tuple of the three.",
    hints=(
        "It is a quadratic equation in p'. Its middle is (p + z²/2n) / (1 + z²/n).",
        "Half the width: z √(p (1 - p) / n + z²/4n²) / (1 + z²/n). Where all or none succeed it is not 0.",
        "Rounding may put an end a hair below 0 or above 1: max(0, …), min(1, …).",
    ),
)(statistics.share)


def variant_of_share(change: Callable[[float, int, float], tuple[float, float]]) -> Callable[..., Any]:
    """`share` with another interval: change(p, n, z) gives its ends."""

    def wrong(successes: int, trials: int) -> tuple[float, float, float]:
        if trials == 0:
            return math.nan, math.nan, math.nan
        p = successes / trials
        return (p, *change(p, trials, 1.959964))

    return wrong


@chapter.wrong(
    "share", "this is p ± z √(p(1-p)/n): no width where none of 100 fail, and beyond 1 elsewhere. Take Wilson's."
)
@variant_of_share
def normal_interval(p: float, n: int, z: float) -> tuple[float, float]:
    half = z * math.sqrt(p * (1 - p) / n)
    return p - half, p + half


@chapter.wrong("share", "this is p ± z √(p(1-p)/n), cut at 0 and 1: no width where none of 100 fail. Take Wilson's.")
@variant_of_share
def normal_interval_cut(p: float, n: int, z: float) -> tuple[float, float]:
    half = z * math.sqrt(p * (1 - p) / n)
    return max(0.0, p - half), min(1.0, p + half)


def wilson(p: float, n: int, z: float) -> tuple[float, float]:
    """Middle and half width."""
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    return middle, z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)


@chapter.wrong(
    "share", "the interval is laid around p; its middle is drawn towards 1/2, the more the fewer the trials."
)
@variant_of_share
def around_p(p: float, n: int, z: float) -> tuple[float, float]:
    _, half = wilson(p, n, z)
    return max(0.0, p - half), min(1.0, p + half)


@chapter.wrong("share", "z is 1 here, which is 68 %: take 1.959964.")
@variant_of_share
def of_one_deviation(p: float, n: int, z: float) -> tuple[float, float]:
    del z
    middle, half = wilson(p, n, 1.0)
    return max(0.0, middle - half), min(1.0, middle + half)


@chapter.wrong("share", "z is 1.96, which is rounded; take 1.959964, so that the digits agree with the package's.")
@variant_of_share
def of_a_rounded_z(p: float, n: int, z: float) -> tuple[float, float]:
    del z
    middle, half = wilson(p, n, 1.96)
    return max(0.0, middle - half), min(1.0, middle + half)


@chapter.wrong("share", "half of the width must be divided by 1 + z²/n too.")
@variant_of_share
def too_wide(p: float, n: int, z: float) -> tuple[float, float]:
    middle, half = wilson(p, n, z)
    half *= 1 + z * z / n
    return max(0.0, middle - half), min(1.0, middle + half)


@chapter.wrong("share", "the middle of the interval stands in the place of the share.")
def middle_for_share(successes: int, trials: int) -> tuple[float, float, float]:
    p, low, high = statistics.share(successes, trials)
    return (p if math.isnan(p) else wilson(p, trials, 1.959964)[0]), low, high


chapter.edit("share", "without any trials it divides by 0; nothing is known then, NaN.", "if trials == 0:", "if False:")


# --- 22.4 of a mean


def quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution with so many degrees of freedom."""
    return statistics._student(freedom)


def mean_cases(rng: np.random.Generator) -> Iterator[Case]:
    for n in (5, 12, 60):
        yield {"values": rng.normal(0.7, 0.3, n).tolist(), "quantile": quantile}
    yield {"values": [0.25, 0.75], "quantile": quantile}
    yield {"values": [0.5], "quantile": quantile}
    yield {"values": [], "quantile": quantile}


def as_mean(function: Callable[..., tuple[float, float, float]]) -> Callable[[Sequence[float]], Estimate]:
    """`statistics.mean` by a learner's `mean_interval`."""
    return lambda values: Estimate(*map(float, function(values, quantile)))


@chapter.exercise(
    "core",
    cases=mean_cases,
    returns=("mean", "low", "high"),
    replaces="minillama.evaluation.statistics:mean",
    adapt=as_mean,
    task="Then ask: three seeds gave three win rates. How much wider is their interval than ± 1.96 standard errors?",
    hints=(
        "The standard error of a mean is s / √n, with s the deviation of the sample: its squares divided by n - 1.",
        "n numbers around their own mean have n - 1 degrees of freedom.",
        "Of one number the deviation is not known, of none not even the mean: NaN.",
    ),
)
def mean_interval(values: Sequence[float], quantile: Callable[[int], float]) -> tuple[float, float, float]:
    """A mean and its 95 % interval, of values drawn independently.

    values: n numbers. quantile(k): Student's 97.5 % quantile for k degrees of freedom: 12.7 for 1, 4.3 for 2, 1.96 for
    many. The interval is the mean ± quantile · s / √n. Returns mean, low, high: the ends NaN for one value, all three
    NaN for none.
    """
    x = np.asarray(values, float)
    n = len(x)
    if n < 2:
        return (float(x[0]) if n else math.nan), math.nan, math.nan
    middle, half = float(x.mean()), quantile(n - 1) * float(x.std(ddof=1)) / math.sqrt(n)
    return middle, middle - half, middle + half


chapter.edit(
    "mean_interval",
    "it takes 1.96 whatever n is: of few values the deviation itself is uncertain, and Student's quantile is larger.",
    "quantile(n - 1)",
    "quantile(10**9)",
)
chapter.edit(
    "mean_interval",
    "n values have n - 1 degrees of freedom: one is spent on the mean.",
    "quantile(n - 1)",
    "quantile(n)",
)
chapter.edit(
    "mean_interval", "the deviation is divided by n; that of a sample is divided by n - 1.", "x.std(ddof=1)", "x.std()"
)
chapter.edit(
    "mean_interval",
    "this is the spread of the values, not of their mean: divide by √n.",
    " / math.sqrt(n)",
    "",
)
chapter.edit("mean_interval", "it is divided by n; the error of a mean falls with its root.", "math.sqrt(n)", "n")
chapter.edit(
    "mean_interval",
    "of one value the interval has no width, as if it were certain: nothing is known of it, NaN.",
    "(float(x[0]) if n else math.nan), math.nan, math.nan",
    "(float(x[0]),) * 3 if n else (math.nan,) * 3",
)
chapter.edit(
    "mean_interval",
    "the quantile is missing: one standard error on each side is 68 % of many, less of few.",
    "quantile(n - 1) * ",
    "",
)


# --- 22.5 by chance?


def binomial_cases(_: np.random.Generator) -> Iterator[Case]:
    for right, pairs in ((6, 10), (10, 10), (0, 5), (60, 100), (5, 10), (1300, 2400)):
        yield {"right": right, "pairs": pairs}


def all_tosses(own: Functions) -> str | None:
    """None where it is what counting all sequences of tosses gives."""
    for pairs, right in product((3, 7), (1, 3)):
        counted = sum(sum(tosses) >= right for tosses in product((0, 1), repeat=pairs))
        if not math.isclose(own.binomial_p(right, pairs), Fraction(counted, 2**pairs)):
            return f"Of all {2**pairs} sequences of {pairs} tosses, {counted} have at least {right} heads."
    return None


chapter.exercise(
    "stretch",
    cases=binomial_cases,
    proof=all_tosses,
    returns=("p",),
    replaces="minillama.alignment.reward:binomial_p",
    task="Python's integers have no end, and the quotient of two of them is rounded once: so it is exact. Returns p."
    " Then ask: which accuracy on 1,000 held-out pairs would you not take for luck?",
    hints=(
        "math.comb(n, k) of the 2ⁿ sequences of n tosses have k heads.",
        "Add them up for k = right … pairs as integers, and divide at the end: 2.0**2400 is too large for a float.",
    ),
)(reward.binomial_p)

TAIL = "range(right, pairs + 1)"
chapter.edit(
    "binomial_p",
    "it is the probability of more than so many; at least so many is what has been seen.",
    TAIL,
    "range(right + 1, pairs + 1)",
)
chapter.edit("binomial_p", "it is the probability of exactly so many, which is small for any number.", TAIL, "(right,)")
chapter.edit("binomial_p", "it is the probability of at most so many.", TAIL, "range(right + 1)")
chapter.edit("binomial_p", "the last term is missing: all of them right.", TAIL, "range(right, pairs)")
chapter.edit(
    "binomial_p",
    "it is that of either side; asked is whether the model is better than chance.",
    f"sum(math.comb(pairs, k) for k in {TAIL}) / 2**pairs",
    f"min(1.0, 2 * (sum(math.comb(pairs, k) for k in {TAIL}) / 2**pairs))",
)


@chapter.wrong("binomial_p", "it is the normal distribution's, which is near and not exact: count the sequences.")
def by_the_normal(right: int, pairs: int) -> float:
    return 0.5 * math.erfc((right - pairs / 2) / math.sqrt(pairs / 2))


@chapter.wrong(
    "binomial_p", "it is the normal distribution's, corrected by 1/2, which is near and not exact: count the sequences."
)
def by_the_corrected_normal(right: int, pairs: int) -> float:
    return 0.5 * math.erfc((right - 0.5 - pairs / 2) / math.sqrt(pairs / 2))


@chapter.wrong("binomial_p", "it overflows: keep to integers until the division, and let that be the last.")
def by_floats(right: int, pairs: int) -> float:
    return sum(float(math.comb(pairs, k)) for k in range(right, pairs + 1)) / 2.0**pairs
