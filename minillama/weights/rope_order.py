"""The two orders in which the rows of Wq and Wk are stored, and the way between them.

RoPE rotates pairs of a head's D dimensions. Meta's checkpoints (and minillama, llama2.c and GGUF) put the two of a
pair side by side: (0, 1), (2, 3), …: *interleaved*. Hugging Face puts them half a head apart: (0, D/2),
(1, D/2 + 1), …: *half*. Reordering the rows of Wq and Wk alike changes no attention score, since the scores are sums
over the rows of a head; taking one order for the other looks right for a few tokens and then turns to gibberish.
"""

from __future__ import annotations

from minillama.backend import Array, get_array_module


def half_to_interleaved(weight: Array, head_dim: int) -> Array:
    """Rows of Wq or Wk from Hugging Face's order to Meta's: (heads * D, C) -> (heads * D, C), contiguous."""
    # (heads * D, C) -> (heads, 2, D/2, C) -> (heads, D/2, 2, C)
    return _swap(weight, (-1, 2, head_dim // 2, weight.shape[-1]))


def interleaved_to_half(weight: Array, head_dim: int) -> Array:
    """Rows of Wq or Wk from Meta's order to Hugging Face's: (heads * D, C) -> (heads * D, C), contiguous."""
    # (heads * D, C) -> (heads, D/2, 2, C) -> (heads, 2, D/2, C)
    return _swap(weight, (-1, head_dim // 2, 2, weight.shape[-1]))


def _swap(weight: Array, shape: tuple[int, int, int, int]) -> Array:
    swapped = weight.reshape(shape).swapaxes(1, 2)
    return get_array_module(weight).ascontiguousarray(swapped).reshape(weight.shape)
