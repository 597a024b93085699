"""A linear map: y = x Wᵀ, without bias, as every matrix of Llama is used."""

from __future__ import annotations

from minillama.backend import Array


def linear(x: Array, weight: Array) -> tuple[Array, tuple]:
    """y = x Wᵀ.

    x: (..., I) float. weight: (O, I), the same dtype. Returns y (..., O) and what the backward pass needs.
    Leading axes are flattened first: one large matrix product is much faster than a stack of small ones.
    """
    O, I = weight.shape
    y = x.reshape(-1, I) @ weight.T  # (N, I) @ (I, O) -> (N, O)
    return y.reshape(*x.shape[:-1], O), (x, weight)


def linear_backward(dy: Array, saved: tuple) -> tuple[Array, Array]:
    """Gradients of `linear`: dx = dy W, dW = dyᵀ x.

    dy: (..., O). Returns dx (..., I) and dweight (O, I).
    """
    x, weight = saved
    O, I = weight.shape
    dy = dy.reshape(-1, O)
    dx = dy @ weight  # (N, O) @ (O, I) -> (N, I)
    dweight = dy.T @ x.reshape(-1, I)  # (O, N) @ (N, I) -> (O, I)
    return dx.reshape(x.shape), dweight
