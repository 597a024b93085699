"""Rotary position embeddings (Su et al., arXiv:2104.09864): position m turns pair j by the angle m θ_j.

Two numbers of a head are one complex number; to turn it is to multiply it by e^{i m θ_j}. A rotation table holds
these factors, and turning back, which is all the backward pass does, is multiplying by the conjugate.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from minillama.backend import Array, get_array_module
from minillama.config import RopeScaling

Layout = Literal["interleaved", "half"]


def rope_frequencies(head_dim: int, theta: float = 10_000.0, scaling: RopeScaling | None = None) -> np.ndarray:
    """θ_j = theta^(-2j/D) for j = 0 … D/2 - 1, in radians per position; stretched where `scaling` says so.

    Returns (D/2,) float64.
    """
    if scaling is not None and scaling.kind == "ntk" and head_dim > 2:
        # The slowest pair is slowed by exactly `factor`, the fastest not at all.
        theta = theta * scaling.factor ** (head_dim / (head_dim - 2))
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling is not None and scaling.kind == "linear":
        frequencies = frequencies / scaling.factor
    if scaling is not None and scaling.kind == "llama3":
        # Turns made over the original context: many (fast pairs) keep their frequency, few (slow pairs) are divided.
        turns = scaling.original_max_seq_len * frequencies / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequencies = keep * frequencies + (1 - keep) * frequencies / scaling.factor
    return frequencies


def rope_rotations(positions: np.ndarray, frequencies: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """e^{i m θ_j} for every position m and pair j.

    positions: (...,) integers. frequencies: (D/2,). dtype: of the vectors to be turned. Returns (..., D/2) complex of
    that precision. The angles are computed in float64: in float32 an angle of 8,000 radians is off by 5e-4.
    """
    angles = np.asarray(positions, np.float64)[..., None] * frequencies  # (..., 1) * (D/2,) -> (..., D/2)
    return np.exp(1j * angles).astype(np.result_type(dtype, np.complex64))


def rope(x: Array, rotations: Array, layout: Layout = "interleaved") -> tuple[Array, tuple]:
    """Each pair of `x` turned by its position's angle.

    x: (B, T, H, D) float. rotations: (T, D/2) or (B, T, D/2) complex from `rope_rotations`. Pair j is
    (x[2j], x[2j+1]) in the 'interleaved' layout (Meta's checkpoints) and (x[j], x[j + D/2]) in the 'half' layout
    (Hugging Face's). Returns y (B, T, H, D).
    """
    return _turn(x, rotations, layout), (rotations, layout)


def rope_backward(dy: Array, saved: tuple) -> Array:
    """Gradient of `rope`: a rotation's transpose is its inverse, so dy is turned back by the same angles.

    dy: (B, T, H, D). Returns dx (B, T, H, D).
    """
    rotations, layout = saved
    return _turn(dy, rotations.conj(), layout)


def _turn(x: Array, rotations: Array, layout: Layout) -> Array:
    xp = get_array_module(x)
    rotations = rotations[..., None, :]  # (..., T, D/2) -> (..., T, 1, D/2): the same for every head
    if layout == "interleaved":
        pairs = xp.ascontiguousarray(x).view(rotations.dtype)  # (B, T, H, D) float -> (B, T, H, D/2) complex
        return (pairs * rotations).view(x.dtype)
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = rotations.real, rotations.imag
    return xp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
