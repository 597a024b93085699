"""Parameters and gradients: flat dicts, name -> array, the arrays of a model side by side in one buffer.

One buffer is more than tidiness: it is backed by large memory pages, which a pass over all weights reads about an
eighth faster, and neighbours that multiply the same input can be multiplied as one matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import DTypeLike

from minillama.backend import Array, get_array_module
from minillama.config import LlamaConfig
from minillama.errors import MinillamaError

Params = dict[str, Array]


def empty_params(config: LlamaConfig, dtype: DTypeLike) -> dict[str, np.ndarray]:
    """Uninitialised parameters of `config` on the host, consecutive in one buffer in the order of the forward pass."""
    shapes = config.param_shapes()
    buffer = np.empty(sum(map(prod, shapes.values())), dtype)
    return views(buffer, shapes)


def side_by_side(*matrices: Array) -> np.ndarray | None:
    """The matrices (O_i, I) as one (Σ O_i, I), without a copy; None where they are not consecutive in one buffer."""
    first = matrices[0]
    for now, after in pairwise(matrices):
        if type(now) is not np.ndarray or now.base is None or now.base is not after.base:
            return None
        if byte_bounds(now)[1] != byte_bounds(after)[0] or now.shape[1] != after.shape[1]:
            return None
    rows = sum(len(matrix) for matrix in matrices)
    return np.lib.stride_tricks.as_strided(first, (rows, first.shape[1]))


def flatten(params: Params) -> tuple[Array, int]:
    """Move all parameters into one flat array, in place: each value of `params` becomes a view into it.

    Matrices come first, then vectors, each in the dict's order; afterwards the dict is in that order too. Returns the
    array (P,) and how many of its elements belong to matrices. All must have one dtype and device.
    """
    names = [*(n for n in params if params[n].ndim > 1), *(n for n in params if params[n].ndim <= 1)]
    xp = get_array_module(params[names[0]])
    flat = xp.concatenate([params[name].reshape(-1) for name in names])
    ordered = {name: params[name] for name in names}
    params.clear()
    params.update(views(flat, {name: p.shape for name, p in ordered.items()}))
    return flat, sum(p.size for p in params.values() if p.ndim > 1)


def views(flat: Array, shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """Consecutive pieces of a flat array, by name and shape."""
    params, start = {}, 0
    for name, shape in shapes.items():
        params[name] = flat[start : start + prod(shape)].reshape(shape)
        start += prod(shape)
    return params


def check_shapes(config: LlamaConfig, params: Mapping[str, Array]) -> None:
    """Raise MinillamaError with the first parameter that is missing, unexpected or of the wrong shape."""
    shapes = config.param_shapes()
    if missing := [name for name in shapes if name not in params]:
        raise MinillamaError(f"missing parameter {missing[0]} ({len(missing)} of {len(shapes)} missing)")
    if unexpected := [name for name in params if name not in shapes]:
        raise MinillamaError(f"unexpected parameter {unexpected[0]} ({len(unexpected)} in all)")
    for name, shape in shapes.items():
        if tuple(params[name].shape) != shape:
            raise MinillamaError(f"parameter {name}: expected shape {shape}, found {tuple(params[name].shape)}")


def accumulate(grads: Params, more: Params) -> Params:
    """Add `more` into `grads`, in place where a name is in both. Returns `grads`."""
    for name, grad in more.items():
        if name in grads:
            grads[name] += grad
        else:
            grads[name] = grad
    return grads
