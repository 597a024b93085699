"""The frozen references of make_adamw.py, as the tests read them, and AdamW by loops, with bugs to plant."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parents[1] / "fixtures"

Arrays = dict[str, np.ndarray]


def frozen(file: str) -> dict[str, dict[str, Any]]:
    """A reference file: case -> 'path/of/array' -> array, what was JSON as what it was."""
    cases: dict[str, dict[str, Any]] = {}
    with np.load(FIXTURES / file) as arrays:
        for key in arrays.files:
            case, _, name = key.partition("/")
            value = arrays[key]
            cases.setdefault(case, {})[name] = json.loads(str(value)) if value.dtype.kind == "U" else value
    return cases


def below(case: dict[str, Any], group: str) -> Arrays:
    """The arrays 'group/name', by name."""
    return {key.removeprefix(f"{group}/"): value for key, value in case.items() if key.startswith(f"{group}/")}


def matrices_first(arrays: Arrays) -> list[str]:
    """The names in the order of `params.flatten`."""
    return sorted(arrays, key=lambda name: arrays[name].ndim <= 1)


@dataclass(frozen=True)
class Bugs:
    """What people get wrong in AdamW, each of them off."""

    no_correction: bool = False  # the moments are used as they are
    one_correction: bool = False  # only the first moment is corrected
    late_correction: bool = False  # steps are counted from 0: corrected as one step before
    coupled_decay: bool = False  # L2: the decay is added to the gradient
    decay_after: bool = False  # what is decayed is the parameter after its update
    decay_without_rate: bool = False  # the decay is not multiplied by the learning rate
    eps_in_root: bool = False
    vectors_decayed: bool = False
    square_of_mean: bool = False  # v averages m², not g²
    factor_is_limit: bool = False  # the clip factor is not divided by the norm
    clip_each: bool = False  # each tensor is clipped by itself
    clip_up: bool = False  # short gradients are made longer


def naive_adamw(
    params: Arrays, grads: list[Arrays], lrs: list[float], settings: dict[str, Any], bugs: Bugs = Bugs()
) -> Iterator[tuple[float, Arrays]]:
    """The norm of the gradient, and the parameters after the step, of each step: number by number."""
    (beta1, beta2), eps, decay, limit = (settings[name] for name in ("betas", "eps", "weight_decay", "limit"))
    p: dict[tuple, float] = {
        (name, at): float(array[at]) for name, array in params.items() for at in np.ndindex(array.shape)
    }
    m, v = dict.fromkeys(p, 0.0), dict.fromkeys(p, 0.0)
    for t, (grad, lr) in enumerate(zip(grads, lrs, strict=True), start=1):
        g = {(name, at): float(grad[name][at]) for name, at in p}
        norm = math.sqrt(sum(x * x for x in g.values()))
        for name, at in p:
            key = (name, at)
            length = norm if not bugs.clip_each else math.sqrt(sum(x * x for (n, _), x in g.items() if n == name))
            factor = 1.0 if limit is None else limit / (length + 1e-6)
            if not bugs.clip_up:
                factor = min(1.0, factor)
            if bugs.factor_is_limit and limit is not None and norm > limit:
                factor = limit
            x = g[key] * factor
            decays = params[name].ndim > 1 or bugs.vectors_decayed
            shrink = (1.0 if bugs.decay_without_rate else lr) * decay * decays
            if bugs.coupled_decay:
                x += decay * decays * p[key]
            elif not bugs.decay_after:
                p[key] -= shrink * p[key]
            m[key] = beta1 * m[key] + (1 - beta1) * x
            v[key] = beta2 * v[key] + (1 - beta2) * (m[key] if bugs.square_of_mean else x) ** 2
            after = t - 1 if bugs.late_correction and t > 1 else t
            first = m[key] / (1 if bugs.no_correction else 1 - beta1**after)
            second = v[key] / (1 if bugs.no_correction or bugs.one_correction else 1 - beta2**after)
            root = math.sqrt(second + eps) if bugs.eps_in_root else math.sqrt(second) + eps
            p[key] -= lr * first / root
            if bugs.decay_after:
                p[key] -= shrink * p[key]
        yield (
            norm,
            {
                name: np.array([p[name, at] for at in np.ndindex(a.shape)]).reshape(a.shape)
                for name, a in params.items()
            },
        )
