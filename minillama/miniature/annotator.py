"""The annotator: compares two answers by what the judge says of them, and errs as people do.

It perceives the difference between two scores with an error from the logistic distribution of scale TEMPERATURE:

    perceived = score(a) − score(b) + TEMPERATURE · log(u / (1 − u)),   u uniform in (0, 1)

and prefers a where that is above 0. So P(a preferred) = σ((score(a) − score(b)) / TEMPERATURE), the model of Bradley
and Terry: the closer two answers are, the more often it errs, and between equal ones it tosses a coin. The rating is
the paper's (section 3.2.1), by the size of what was perceived: the largest threshold of RATINGS that it reaches.

The reward models see these preferences, never the scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from minillama.errors import UsageError
from minillama.miniature.chooser import Chooser
from minillama.miniature.judge import Verdict

TEMPERATURE = 0.1
# rating: the least difference that it is given for
RATINGS = {
    "significantly better": 0.5,
    "better": 0.25,
    "slightly better": 0.1,
    "negligibly better or unsure": 0.0,
}
Domain = Literal["helpfulness", "safety"]


@dataclass(frozen=True)
class Preference:
    """Which of two answers is preferred, by how much, and whether each is safe.

    chosen: 0 or 1, the position. safe: as labelled, for the safety model's auxiliary loss and to leave out pairs whose
    chosen answer is unsafe while the other is not.
    """

    chosen: int
    rating: str
    safe: tuple[bool, bool]


class Annotator:
    """Preferences, with errors drawn from a seed."""

    def __init__(self, seed: int = 0, temperature: float = TEMPERATURE) -> None:
        if not temperature >= 0:
            raise UsageError(f"temperature: expected 0 or more, found {temperature}")
        self._random = Chooser(seed).random
        self.temperature = temperature

    def prefer(self, a: Verdict, b: Verdict, domain: Domain = "helpfulness") -> Preference:
        """Which answer is better in the domain. Draws one number, always."""
        if domain not in ("helpfulness", "safety"):
            raise UsageError(f"domain: expected helpfulness or safety, found {domain!r}")
        u = min(max(self._random(), 1e-12), 1 - 1e-12)
        perceived = getattr(a, domain) - getattr(b, domain) + self.temperature * math.log(u / (1 - u))
        rating = next(rating for rating, least in RATINGS.items() if abs(perceived) >= least)
        return Preference(0 if perceived > 0 else 1, rating, (not a.violation, not b.violation))
