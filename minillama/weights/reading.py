"""From bytes on disk to float arrays, without ever holding a second copy of the model.

Every format describes its tensors as `StoredTensor`s; `read_params` checks them against the config and the size of
the file before it allocates, then streams each one, a few rows at a time, into its final place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from minillama.config import LlamaConfig
from minillama.errors import MinillamaError
from minillama.params import empty_params
from minillama.weights.checkpoint import check_finite, check_shapes

CHUNK_VALUES = 1 << 16  # values decoded at a time: the temporaries of a dequantization stay in the cache


@dataclass(frozen=True)
class StoredTensor:
    """Where the values of a tensor lie: `nbytes` bytes from `offset` of `file`, row after row.

    decode: bytes of whole rows, as uint8 (N,) -> their values, any shape.
    """

    file: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    decode: Callable[[np.ndarray], np.ndarray]


def plain(file: Path, offset: int, shape: tuple[int, ...], kind: str) -> StoredTensor:
    """A tensor stored as 'F64', 'F32', 'F16' or 'BF16', little-endian."""
    width = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}[kind]
    decode = _decode_bfloat16 if kind == "BF16" else partial(_decode_float, dtype=f"<f{width}")
    return StoredTensor(file, offset, prod(shape) * width, shape, decode)


def _decode_float(data: np.ndarray, dtype: str) -> np.ndarray:
    return data.view(dtype)


def _decode_bfloat16(data: np.ndarray) -> np.ndarray:
    """bfloat16 is the upper half of a float32."""
    return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)


def check_extent(name: str, tensor: StoredTensor) -> None:
    """Raise MinillamaError if the file ends before the tensor does."""
    size, end = tensor.file.stat().st_size, tensor.offset + tensor.nbytes
    if end > size:
        raise MinillamaError(f"{tensor.file}: tensor {name}: expected {end} bytes in the file, found {size}")


def fill(out: np.ndarray, name: str, tensor: StoredTensor) -> None:
    """Read `tensor` into `out`, an array or view of the same shape and any float dtype; its values must be finite."""
    n_rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    rows = out.reshape(1, -1) if out.ndim == 1 else out  # (rows, columns)
    row_bytes = tensor.nbytes // n_rows
    step = max(1, CHUNK_VALUES // rows.shape[1])
    buffer = np.empty(min(step, n_rows) * row_bytes, dtype=np.uint8)
    with open(tensor.file, "rb", buffering=0) as file:
        file.seek(tensor.offset)
        for start in range(0, n_rows, step):
            target = rows[start : start + step]
            data = buffer[: len(target) * row_bytes]
            if file.readinto(data.data) != len(data):
                raise MinillamaError(f"{tensor.file}: tensor {name}: expected {tensor.nbytes} bytes, found fewer")
            with np.errstate(all="ignore"):  # a damaged scale overflows; check_finite says so in our words
                target[...] = tensor.decode(data).reshape(target.shape)
                check_finite(tensor.file, name, target)


def check_stored(
    source: Path,
    config: LlamaConfig,
    stored: Mapping[str, StoredTensor],
    name_in_file: Callable[[str], str] = str,
    ignored: Collection[str] = (),
) -> None:
    """Raise MinillamaError for missing, unexpected or misshapen tensors, and for a file that ends too soon."""
    check_shapes(source, config, {name: tensor.shape for name, tensor in stored.items()}, name_in_file, ignored)
    for name, tensor in stored.items():
        check_extent(name, tensor)


def read_params(
    source: Path,
    config: LlamaConfig,
    stored: Mapping[str, StoredTensor],
    dtype: DTypeLike,
    name_in_file: Callable[[str], str] = str,
    ignored: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """The parameters of `config` out of `stored` (name in the file -> tensor), each C-contiguous, of `dtype`.

    Raises MinillamaError, before anything is allocated, for what `check_stored` finds; while reading, for values that
    are not finite.
    """
    check_stored(source, config, stored, name_in_file, ignored)
    params = empty_params(config, dtype)
    for name, out in params.items():
        fill(out, name_in_file(name), stored[name_in_file(name)])
    return params
