"""Arrays with a mask: what is not valid may hold anything, NaN too, and changes nothing.

A product with 0 would not do, since NaN · 0 is NaN: invalid numbers are replaced before anything is computed of them.
"""

from __future__ import annotations

from minillama.backend import Array, get_array_module
from minillama.errors import UsageError


def expect_shape(shape: tuple[int, ...], of: str, **arrays: Array | None) -> None:
    """Raise UsageError where an array has another shape; `of` says whose shape it is.

    Without this, (B,) beside (B, 1) would broadcast to (B, B) and be averaged as if nothing had happened.
    """
    for name, x in arrays.items():
        if x is not None and x.shape != shape:
            raise UsageError(f"{name}: expected the shape {shape} of {of}, found {x.shape}")


def masked(mask: Array, *arrays: Array) -> list[Array]:
    """Each array with 0 where the mask is false."""
    xp = get_array_module(mask)
    return [xp.where(mask, x, 0) for x in arrays]


def valid_count(mask: Array, dtype: type, count: float | None = None) -> Array | float:
    """What a mean is over: `count` where it is given, else the true entries of the mask, 1 if there are none."""
    xp = get_array_module(mask)
    return xp.maximum(mask.sum(dtype=dtype), 1) if count is None else count


def masked_mean(x: Array, mask: Array, count: float | None = None) -> Array:
    """1/N Σ x over the entries where the mask is true; N is their number, or `count`. 0 where nothing is valid.

    x: (...) float. mask: (...) bool. Returns a 0-d array.
    """
    expect_shape(x.shape, "the numbers", mask=mask)
    return masked(mask, x)[0].sum() / valid_count(mask, x.dtype, count)
