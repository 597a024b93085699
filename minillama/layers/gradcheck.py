"""Is a backward pass right? Compare it with central differences of the forward pass, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def gradcheck(
    forward: Callable[..., tuple[Any, Any]],
    backward: Callable[[Any, Any], Any],
    *inputs: Any,
    tolerance: float = 1e-6,
    step: float = 1e-5,
    seed: int = 0,
) -> float:
    """Check `backward` against (L(x + h) - L(x - h)) / 2h for every element of every float64 input.

    forward: called with the inputs, returns (y, saved). backward: called with (dy, saved), returns the gradients of the
    float64 inputs in order, as one array or a tuple. L = Σ dy y for a dy drawn with `seed`. Inputs of other types
    (tokens, masks, numbers) are held fixed. tolerance: of the largest error of an input's gradient, relative to the
    largest entry of that gradient. Returns the largest relative error; raises AssertionError with the worst element.
    """
    y, saved = forward(*inputs)
    dy = np.random.default_rng(seed).standard_normal(np.shape(y))
    grads = backward(dy, saved)
    grads = grads if isinstance(grads, tuple) else (grads,)
    checked = [i for i, x in enumerate(inputs) if isinstance(x, np.ndarray) and x.dtype == np.float64]
    if len(checked) != len(grads):
        raise AssertionError(f"backward returned {len(grads)} gradients for {len(checked)} float64 inputs")
    worst = 0.0
    for i, grad in zip(checked, grads, strict=True):
        if grad.shape != inputs[i].shape:
            raise AssertionError(f"input {i}: gradient has shape {grad.shape}, the input {inputs[i].shape}")
        expected = _central_differences(forward, inputs, i, dy, step)
        scale = max(
            float(np.abs(expected).max(initial=0)), float(np.abs(grad).max(initial=0)), 1e-6
        )  # exact zeros stay zeros
        error = np.abs(grad - expected) / scale
        at = np.unravel_index(np.argmax(error), error.shape) if error.size else ()
        if error.size and not error[at] <= tolerance:  # `not <=` so that NaN fails
            raise AssertionError(
                f"input {i}, element {tuple(map(int, at))}: backward gives {grad[at]:.9g}, "
                f"central differences {expected[at]:.9g} (relative error {error[at]:.1e} > {tolerance:.0e})"
            )
        worst = max(worst, float(error.max(initial=0)))
    return worst


def _central_differences(forward: Callable, inputs: tuple, i: int, dy: np.ndarray, step: float) -> np.ndarray:
    """dL/dx of input i, one element at a time."""
    inputs = tuple(x.copy() if j == i else x for j, x in enumerate(inputs))
    x = inputs[i]
    grad = np.empty_like(x)
    for at in np.ndindex(x.shape):
        value = x[at]
        h = step * max(1.0, abs(value))
        x[at] = value + h
        above = forward(*inputs)[0]
        x[at] = value - h
        below = forward(*inputs)[0]
        x[at] = value
        # The difference is taken before the sum: the parts of L that do not move would drown it in rounding.
        grad[at] = np.sum(dy * (above - below)) / (2 * h)
    return grad
