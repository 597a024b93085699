"""SwiGLU (Shazeer, arXiv:2002.05202): silu(gate) * up, the gated activation of the feed-forward layer."""

from __future__ import annotations

import numpy as np

from minillama.backend import Array, get_array_module


def swiglu(gate: Array, up: Array) -> tuple[Array, tuple]:
    """y = gate σ(gate) up, with σ the logistic function.

    gate, up: (..., F) float. Returns y (..., F).
    """
    y = _sigmoid(gate)
    y *= gate
    y *= up
    return y, (gate, up)


def swiglu_backward(dy: Array, saved: tuple) -> tuple[Array, Array]:
    """Gradients of `swiglu`: dup = dy silu(gate), dgate = dy up σ (1 + gate (1 - σ)), with σ = σ(gate).

    dy: (..., F). Returns dgate and dup (..., F). σ is computed again: cheaper than keeping F numbers a token.
    """
    gate, up = saved
    sigma = _sigmoid(gate)
    silu = gate * sigma
    dup = dy * silu
    # σ (1 + gate (1 - σ)) = σ + silu - silu σ, built in place
    dgate = sigma + silu
    silu *= sigma
    dgate -= silu
    dgate *= up
    dgate *= dy
    return dgate, dup


def _sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x) in a new array; where e^-x overflows the result is rightly 0."""
    xp = get_array_module(x)
    y = xp.negative(x)
    with np.errstate(over="ignore"):
        xp.exp(y, out=y)
    y += 1
    return xp.reciprocal(y, out=y)
