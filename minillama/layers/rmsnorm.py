"""RMSNorm (Zhang & Sennrich, arXiv:1910.07467): each vector divided by its root mean square, then scaled."""

from __future__ import annotations

from minillama.backend import Array, get_array_module
from minillama.layers.blocks import row_blocks


def rmsnorm(x: Array, weight: Array, eps: float) -> tuple[Array, tuple]:
    """y = x / sqrt(mean(x²) + eps) * weight, the mean over the last axis.

    x: (..., C) float. weight: (C,). Returns y (..., C).
    """
    xp = get_array_module(x)
    # A row's sum of squares as a product with itself: no (..., C) array of squares is written.
    inverse_rms = xp.einsum("...c,...c->...", x, x)[..., None]  # (..., 1)
    inverse_rms *= 1.0 / x.shape[-1]
    inverse_rms += eps
    xp.sqrt(inverse_rms, out=inverse_rms)
    xp.reciprocal(inverse_rms, out=inverse_rms)
    normed = x * inverse_rms
    return normed * weight, (normed, weight, inverse_rms)


def rmsnorm_backward(dy: Array, saved: tuple) -> tuple[Array, Array]:
    """Gradients of `rmsnorm`. With r = 1/rms, x̂ = r x and g = dy * weight:

    dx = r (g - x̂ mean(g x̂)), dweight = Σ dy x̂ over all vectors.

    dy: (..., C). Returns dx (..., C) and dweight (C,).
    """
    normed, weight, inverse_rms = saved
    xp = get_array_module(dy)
    C = dy.shape[-1]
    dx, dweight = xp.empty(dy.shape, dy.dtype), xp.zeros_like(weight)
    # (..., C) -> (N, C), and inverse_rms (..., 1) -> (N, 1)
    dy, normed, inverse_rms, dx_rows = (x.reshape(-1, x.shape[-1]) for x in (dy, normed, inverse_rms, dx))
    for block in row_blocks(xp, len(dy), C):
        d, n, g = dy[block], normed[block], dx_rows[block]
        dweight += xp.einsum("nc,nc->c", d, n)
        xp.multiply(d, weight, out=g)
        projection = xp.einsum("nc,nc->n", g, n)[:, None] * (1.0 / C)  # (n, 1)
        g -= n * projection
        g *= inverse_rms[block]
    return dx, dweight
