"""A linear map: y = x Wᵀ, without bias, as every matrix of Llama is used."""

from __future__ import annotations

import numpy as np

from minillama.backend import Array

FEW_ROWS = range(2, 65)  # a decoding batch


def linear(x: Array, weight: Array) -> tuple[Array, tuple]:
    """y = x Wᵀ.

    x: (..., I) float. weight: (O, I), the same dtype. Returns y (..., O) and what the backward pass needs.
    Leading axes are flattened first: one large matrix product is much faster than a stack of small ones.
    """
    O, I = weight.shape
    rows = x.reshape(-1, I)
    if len(rows) in FEW_ROWS and len(rows) * O < 1 << 19 and type(rows) is np.ndarray:
        # The BLAS of NumPy repacks its right-hand matrix. With few rows that is most of the work, and 10-25 % of it is
        # saved where the large matrix stands on the left. The result's rows are then not in one piece: to read
        # them costs more than that where the result is over 2 MB.
        y = (weight @ rows.T).T  # ((O, I) @ (I, N)).T -> (N, O)
    else:
        y = rows @ weight.T  # (N, I) @ (I, O) -> (N, O)
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
