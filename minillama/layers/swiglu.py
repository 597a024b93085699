"""SwiGLU (Shazeer, arXiv:2002.05202): silu(gate) * up, the gated activation of the feed-forward layer."""

from __future__ import annotations

import numpy as np

from minillama.backend import Array, get_array_module
from minillama.layers.blocks import row_blocks


def swiglu(gate: Array, up: Array) -> tuple[Array, tuple]:
    """y = gate σ(gate) up, with σ(x) = 1 / (1 + e^-x) the logistic function.

    gate, up: (..., F) float. Returns y (..., F).
    """
    xp = get_array_module(gate)
    F = gate.shape[-1]
    sigma, y = xp.empty(gate.shape, gate.dtype), xp.empty(gate.shape, gate.dtype)
    rows = [x.reshape(-1, F) for x in (gate, up, sigma, y)]  # (..., F) -> (N, F)
    with np.errstate(over="ignore"):  # where e^-x overflows, σ is rightly 0
        for block in row_blocks(xp, len(rows[0]), F):
            g, u, s, out = (x[block] for x in rows)
            xp.negative(g, out=s)
            xp.exp(s, out=s)
            s += 1
            xp.reciprocal(s, out=s)
            xp.multiply(g, s, out=out)
            out *= u
    return y, (gate, up, sigma)


def swiglu_backward(dy: Array, saved: tuple) -> tuple[Array, Array]:
    """Gradients of `swiglu`: dup = dy silu(gate), dgate = dy up σ (1 + gate (1 - σ)), with σ = σ(gate).

    dy: (..., F). Returns dgate and dup (..., F).
    """
    gate, up, sigma = saved
    xp = get_array_module(gate)
    F = gate.shape[-1]
    dgate, dup = xp.empty(gate.shape, gate.dtype), xp.empty(gate.shape, gate.dtype)
    rows = [x.reshape(-1, F) for x in (dy, gate, up, sigma, dgate, dup)]  # (..., F) -> (N, F)
    for block in row_blocks(xp, len(rows[0]), F):
        d, g, u, s, dg, du = (x[block] for x in rows)
        silu = g * s
        xp.multiply(d, silu, out=du)
        xp.subtract(1, s, out=dg)
        dg *= silu
        dg += s  # σ (1 + gate (1 - σ)) = silu (1 - σ) + σ
        dg *= u
        dg *= d
    return dgate, dup
