"""Learning rates over a run: linear warm-up, then half a cosine down to a floor (Llama 2, section 2.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minillama.errors import UsageError


@dataclass(frozen=True)
class CosineSchedule:
    """The learning rate of each of `steps` steps, counted from 0.

    peak: the highest rate, reached in step `warmup_steps`. floor: what is left at the end, as a part of the peak; the
    paper's is 0.1. A floor of 1 is a constant rate after the warm-up.
    """

    peak: float
    steps: int
    warmup_steps: int = 0
    floor: float = 0.1

    def __post_init__(self) -> None:
        if not (self.peak > 0 and math.isfinite(self.peak)):
            raise UsageError(f"learning rate {self.peak}: expected a positive number")
        if not 0 <= self.floor <= 1:
            raise UsageError(f"learning rate floor {self.floor}: expected a part of the peak, 0 to 1")
        if not 0 <= self.warmup_steps <= self.steps:
            raise UsageError(f"{self.warmup_steps} warm-up steps: expected between 0 and the {self.steps} steps in all")

    def __call__(self, step: int) -> float:
        """lr = peak (step + 1) / (warmup + 1) while warming up, then peak (floor + (1 - floor) (1 + cos π p) / 2) with
        p = (step - warmup) / (steps - warmup).
        """
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        return self.peak * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2)
