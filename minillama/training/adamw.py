"""AdamW (Loshchilov & Hutter, arXiv:1711.05101) over one flat array of parameters, and clipping by the global norm.

All of a model's parameters lie in one array (`params.flatten`), so that an update is a loop over pieces of it: a piece
stays in the cache while a dozen operations go over it in place. Matrices come first and are decayed; vectors (the
norms' weights) come last and are not.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from minillama.backend import Array, get_array_module
from minillama.errors import UsageError
from minillama.training.threads import ONE_THREAD, Threads

CHUNK = 1 << 17  # elements at a time: few enough for a cache, enough that threads seldom wait for the interpreter


class AdamW:
    """Decoupled weight decay and two moments. With g the gradient of step t = 1, 2, …:

    m = β₁ m + (1-β₁) g, v = β₂ v + (1-β₂) g², p = p - lr λ p - lr (m / (1-β₁ᵗ)) / (√(v / (1-β₂ᵗ)) + ε).

    The defaults are the paper's (section 2.2).
    """

    def __init__(
        self,
        params: Array,
        decayed: int,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-5,
        weight_decay: float = 0.1,
    ) -> None:
        """params: (P,) float, changed in place by `step`. decayed: how many of them, from the first, are decayed."""
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise UsageError(f"AdamW betas {betas}: expected numbers from 0 to below 1")
        if not eps > 0 or not weight_decay >= 0:
            raise UsageError(f"AdamW eps {eps}, weight decay {weight_decay}: expected eps > 0, weight decay ≥ 0")
        xp = get_array_module(params)
        self.params, self.decayed = params, decayed
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.m, self.v = xp.zeros_like(params), xp.zeros_like(params)
        self.steps = 0

    def step(self, grads: Array, lr: float, scale: float = 1.0, threads: Threads = ONE_THREAD) -> None:
        """Update every parameter once. grads: (P,), taken times `scale` (the clip factor) and left as they are."""
        self.steps += 1
        beta1, beta2 = self.betas
        rate = lr / (1 - beta1**self.steps)
        root = 1 / math.sqrt(1 - beta2**self.steps)
        xp = get_array_module(self.params)

        def update(part: slice) -> None:
            bounds = _chunks(self.params, part, self.decayed)
            gradient, step = (xp.empty(max(map(_length, bounds), default=0), self.params.dtype) for _ in range(2))
            for piece in bounds:
                p, m, v = self.params[piece], self.m[piece], self.v[piece]
                g, s = gradient[: len(p)], step[: len(p)]
                xp.multiply(grads[piece], scale, out=g)
                if piece.start < self.decayed:
                    p *= 1 - lr * self.weight_decay
                m *= beta1
                xp.multiply(g, 1 - beta1, out=s)
                m += s
                v *= beta2
                g *= g
                g *= 1 - beta2
                v += g
                xp.sqrt(v, out=s)
                s *= root
                s += self.eps
                xp.divide(m, s, out=s)
                s *= rate
                p -= s

        threads.split(len(self.params), update)


def global_norm(grads: Array, threads: Threads = ONE_THREAD) -> float:
    """√Σ g² over all gradients (P,), the sum of the pieces in float64. NaN or infinite where a gradient is."""

    def squares(part: slice) -> float:
        with np.errstate(over="ignore", invalid="ignore"):  # here, since it holds for one thread
            return sum(float(grads[piece] @ grads[piece]) for piece in _chunks(grads, part, 0))

    return math.sqrt(sum(threads.split(len(grads), squares)))


def clip_factor(norm: float, limit: float | None) -> float:
    """What gradients of this global norm are multiplied by, so that it is at most `limit`; None: 1, no limit.

    As PyTorch has it, with 1e-6 beside the norm (Pascanu et al., arXiv:1211.5063).
    """
    return 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))


def _chunks(array: Array, part: slice, edge: int) -> list[slice]:
    """Pieces of `part` of at most CHUNK elements, none across `edge`; on a GPU as few as can be."""
    size = CHUNK if get_array_module(array) is np else max(1, len(array))
    edge = min(max(edge, part.start), part.stop)
    bounds = [*range(part.start, edge, size), *range(edge, part.stop, size), part.stop]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def _length(piece: slice) -> int:
    return piece.stop - piece.start
