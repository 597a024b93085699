"""Means and shares with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_Z = 1.959964  # of the normal distribution
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's, for 1, 2, … degrees of freedom


class Estimate(NamedTuple):
    """A mean, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean(values: Sequence[float]) -> Estimate:
    """Of values drawn independently, by Student's distribution; NaN for none, no interval for one."""
    x = np.asarray(values, float)
    if len(x) < 2:
        only = float(x[0]) if len(x) else math.nan
        return Estimate(only, math.nan, math.nan)
    half = _student(len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Estimate(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)


def _student(freedom: int) -> float:
    """The 97.5 % quantile for so many degrees of freedom, to two places: beyond the table from the normal one by the
    first terms of its series in 1 / freedom (Abramowitz and Stegun, 26.7.5).
    """
    if freedom <= len(_T):
        return _T[freedom - 1]
    return _Z + (_Z**3 + _Z) / (4 * freedom) + (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * freedom**2)


def share(successes: int, trials: int) -> Estimate:
    """Of successes among trials, by Wilson's score interval (1927), which stays between 0 and 1."""
    if trials == 0:
        return Estimate(math.nan, math.nan, math.nan)
    p, z2 = successes / trials, _Z**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))
