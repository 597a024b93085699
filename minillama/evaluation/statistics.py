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
    """Of values drawn independently, by Student's distribution up to ten of them and the normal one beyond; NaN for
    none, no interval for one.
    """
    x = np.asarray(values, float)
    if len(x) < 2:
        only = float(x[0]) if len(x) else math.nan
        return Estimate(only, math.nan, math.nan)
    factor = _T[len(x) - 2] if len(x) - 2 < len(_T) else _Z
    half = factor * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Estimate(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)


def share(successes: int, trials: int) -> Estimate:
    """Of successes among trials, by Wilson's score interval (1927), which stays between 0 and 1."""
    if trials == 0:
        return Estimate(math.nan, math.nan, math.nan)
    p, z2 = successes / trials, _Z**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))
