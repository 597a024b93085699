"""RMSNorm (Zhang & Sennrich, arXiv:1910.07467): each vector divided by its root mean square, then scaled."""

from __future__ import annotations

from minillama.backend import Array, get_array_module


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
    y = x * inverse_rms
    y *= weight
    return y, (x, weight, inverse_rms)


def rmsnorm_backward(dy: Array, saved: tuple) -> tuple[Array, Array]:
    """Gradients of `rmsnorm`. With r = 1/rms, x̂ = r x and g = dy * weight:

    dx = r (g - x̂ mean(g x̂)), dweight = Σ dy x̂ over all vectors.

    dy: (..., C). Returns dx (..., C) and dweight (C,).
    """
    x, weight, inverse_rms = saved
    xp = get_array_module(x)
    C = x.shape[-1]
    normed = x * inverse_rms
    dweight = xp.einsum("nc,nc->c", dy.reshape(-1, C), normed.reshape(-1, C))
    dx = dy * weight
    projection = xp.einsum("...c,...c->...", dx, normed)[..., None] * (1.0 / C)  # (..., 1)
    normed *= projection
    dx -= normed
    dx *= inverse_rms
    return dx, dweight
