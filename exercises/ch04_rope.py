"""Chapter 4: rotary position embeddings (RoPE). Write the functions; the chapter derives each formula.

    minillama exercises check ch04      what is right, and the first thing that is not
    minillama exercises hint ch04       the next hint

When 4.1 to 4.3 are right, your RoPE can tell a story with real weights:

    minillama exercises run --with ch04 -- generate stories260k --prompt "Once upon a time"

B batch, T time, H heads, D head width: D/2 pairs of numbers, pair j of position m is turned by the angle m θ_j.
"""

import math

import numpy as np

from minillama.backend import Array
from minillama.config import RopeScaling
from minillama.layers.rope import Layout

# 4.1 · warm-up ---------------------------------------------------------------
# Leave `scaling` aside here: exercise 4.7 is about it.


def rope_frequencies(head_dim: int, theta: float = 10_000.0, scaling: RopeScaling | None = None) -> np.ndarray:
    """θ_j = theta^(-2j/D) for j = 0 … D/2 - 1, in radians per position; stretched where `scaling` says so.

    Returns (D/2,) float64.
    """
    # Hint: np.arange(0, head_dim, 2) counts 2j; a power of an array is an array.
    raise NotImplementedError


# 4.2 · warm-up ---------------------------------------------------------------


def rope_rotations(positions: np.ndarray, frequencies: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """e^{i m θ_j} for every position m and pair j.

    positions: (...,) integers. frequencies: (D/2,). dtype: of the vectors to be turned. Returns (..., D/2) complex of
    that precision. The angles are computed in float64: in float32 an angle of 8,000 radians is off by 5e-4.
    """
    # Hint: First the angles m θ_j: positions[..., None] * frequencies has shape (..., D/2). Then np.exp(1j * angles).
    raise NotImplementedError


# 4.3 · core ------------------------------------------------------------------
# As `saved`, return whatever your rope_backward will need.


def rope(x: Array, rotations: Array, layout: Layout = "interleaved") -> tuple[Array, tuple]:
    """Each pair of `x` turned by its position's angle.

    x: (B, T, H, D) float. rotations: (T, D/2) or (B, T, D/2) complex from `rope_rotations`. Pair j is
    (x[2j], x[2j+1]) in the 'interleaved' layout (Meta's checkpoints) and (x[j], x[j + D/2]) in the 'half' layout
    (Hugging Face's). Returns y (B, T, H, D).
    """
    # Hint: rotations[..., None, :] is the same for every head. With cos and sin its .real and .imag, a pair (a, b)
    # becomes (a cos - b sin, a sin + b cos).
    raise NotImplementedError


# 4.4 · core ------------------------------------------------------------------


def rope_backward(dy: Array, saved: tuple) -> Array:
    """Gradient of `rope`: a rotation's transpose is its inverse, so dy is turned back by the same angles.

    dy: (B, T, H, D). Returns dx (B, T, H, D).
    """
    # Hint: Write the turn as a matrix R: y = R x, so dx = Rᵀ dy. What is the transpose of a rotation?
    raise NotImplementedError


# 4.5 · core ------------------------------------------------------------------
# Hugging Face's checkpoints hold the rows of Wq and Wk for the half layout; minillama wants them interleaved.


def half_to_interleaved(weight: Array, head_dim: int) -> Array:
    """Rows of Wq or Wk from Hugging Face's order to Meta's: (heads * D, C) -> (heads * D, C), contiguous."""
    # Hint: Within each head of D rows, the new order is 0, D/2, 1, D/2 + 1, 2, …
    raise NotImplementedError


# 4.6 · stretch ---------------------------------------------------------------


def relative_score(q: Array, k: Array, distance: int, frequencies: Array) -> float:
    """rope(q at m) · rope(k at n), from the distance m - n alone: why RoPE is a *relative* position embedding.

    q, k: (D,) float64, not yet turned, interleaved. frequencies: (D/2,). Returns the score. Turn neither vector to an
    absolute position: multiply the pairs of q and k first, then turn the products.
    """
    # Hint: Make each vector D/2 complex numbers; q · k is then the real part of Σ q_j conj(k_j).
    raise NotImplementedError


# 4.7 · stretch ---------------------------------------------------------------
# With it, give 4.1 its `scaling`, and your RoPE runs Llama 3.1.


def scaled_frequencies(frequencies: Array, scaling: RopeScaling) -> Array:
    """RoPE's frequencies stretched to a context `scaling.factor` (s) times longer, by the rule `scaling.kind`:

    linear: θ_j / s. ntk: theta becomes theta s^(D/(D-2)), so θ_j becomes θ_j s^(-2j/(D-2)). llama3: with n_j the turns
    that pair j makes over original_max_seq_len, and g_j = (n_j - low_freq_factor) / (high_freq_factor -
    low_freq_factor) clipped to [0, 1], θ_j becomes g_j θ_j + (1 - g_j) θ_j / s.

    frequencies: (D/2,) float64, D > 2. Returns (D/2,) float64.
    """
    # Hint: linear is one division. For ntk, write theta^(-2j/D) with theta' and see what multiplies θ_j.
    raise NotImplementedError
