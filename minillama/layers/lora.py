"""A linear map that is frozen, alone or with a trained map of low rank beside it (LoRA; Hu et al., arXiv:2106.09685).

A full step of training makes three products of a matrix's size: the output, the gradient of the input, that of the
weight. With a frozen weight the third is never made.
"""

from __future__ import annotations

from minillama.backend import Array
from minillama.layers.linear import linear


def lora_linear(x: Array, weight: Array, a: Array, b: Array, scale: float) -> tuple[Array, tuple]:
    """y = x Wᵀ + scale (x Aᵀ) Bᵀ, which is x (W + scale B A)ᵀ without the (O, I) matrix B A.

    x: (..., I) float. weight: W (O, I), frozen. a: A (R, I), b: B (O, R), trained; all of one dtype. Returns y (..., O)
    and what the backward pass needs. Hu et al., equation 3.
    """
    y, _ = linear(x, weight)  # (..., I) -> (..., O)
    low, _ = linear(x, a)  # (..., I) -> (..., R)
    low *= scale
    y += linear(low, b)[0]  # (..., R) -> (..., O)
    return y, (x, weight, a, b, scale, low)


def lora_linear_backward(dy: Array, saved: tuple) -> tuple[Array, Array, Array]:
    """Gradients of `lora_linear`: with u = scale x Aᵀ and du = scale dy B, dx = dy W + du A, dA = duᵀ x, dB = dyᵀ u.

    dy: (..., O). Returns dx (..., I), da (R, I) and db (O, R); W is frozen and has none.
    """
    x, weight, a, b, scale, low = saved
    (O, R), I = b.shape, a.shape[1]
    dy, x_rows = dy.reshape(-1, O), x.reshape(-1, I)
    db = dy.T @ low.reshape(-1, R)  # (O, N) @ (N, R) -> (O, R)
    dlow = dy @ b  # (N, O) @ (O, R) -> (N, R)
    dlow *= scale
    da = dlow.T @ x_rows  # (R, N) @ (N, I) -> (R, I)
    dx = dy @ weight  # (N, O) @ (O, I) -> (N, I)
    dx += dlow @ a  # (N, R) @ (R, I) -> (N, I)
    return dx.reshape(x.shape), da, db


def frozen_linear(x: Array, weight: Array) -> tuple[Array, Array]:
    """y = x Wᵀ, as `linear`, of a weight that is not trained: nothing of x needs to be kept.

    x: (..., I) float. weight: (O, I). Returns y (..., O) and what the backward pass needs.
    """
    return linear(x, weight)[0], weight


def frozen_linear_backward(dy: Array, saved: Array) -> Array:
    """Gradient of `frozen_linear`: dx = dy W. dy: (..., O). Returns dx (..., I)."""
    O, I = saved.shape
    dx = dy.reshape(-1, O) @ saved  # (N, O) @ (O, I) -> (N, I)
    return dx.reshape(*dy.shape[:-1], I)
