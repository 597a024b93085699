"""Outputs appear whole or not at all: written beside, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from minillama.backend import Array, to_host
from minillama.errors import MinillamaError, UsageError
from minillama.weights.checkpoint import check_finite


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A path to write to; when the block ends well it becomes `path`, else it is removed and `path` is as before."""
    if path.is_dir():
        raise UsageError(f"{path}: expected a file to write to, found a folder")
    path = path.resolve()  # behind a link, so that what it points to is replaced and not the link
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise MinillamaError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: Path, owned: Callable[[str], bool]) -> Iterator[Path]:
    """As `replaced_file`, for a folder. Files of the old folder that are not `owned`, by name, are kept.

    Raises UsageError for a folder with content but without a config.json or an adapter_config.json: it is no
    checkpoint, and not ours to replace.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: expected a folder to write to, found a file")
    known = any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
    if path.is_dir() and any(path.iterdir()) and not known:
        raise UsageError(f"{path}: expected a new folder, an empty one or a checkpoint, found something else")
    path = path.resolve()  # behind a link, so that what it points to is replaced and not the link
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        if path.is_dir():
            os.rename(path, old)
        os.rename(partial, path)
        if old.is_dir():
            for kept in [entry for entry in old.iterdir() if not owned(entry.name)]:
                os.rename(kept, path / kept.name)
            shutil.rmtree(old, ignore_errors=True)  # not before all that is to be kept has left it
    except OSError as error:
        raise MinillamaError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if old.is_dir() and not path.exists():
            os.rename(old, path)


def as_dtype(dtype: DTypeLike) -> np.dtype:
    """`np.dtype`, to which 'bfloat16' is known. Raises UsageError for what is not a type of weights."""
    import ml_dtypes  # gives numpy the name

    names = ("float32", "bfloat16", "float16", "float64")
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise UsageError(f"unknown dtype {dtype!r}: expected one of {', '.join(names)}") from None
    if found not in [np.dtype(t) for t in (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)]:
        raise UsageError(f"dtype {found.name}: expected one of {', '.join(names)}")
    return found


def host_array(path: Path, params: Mapping[str, Array], name: str, dtype: np.dtype) -> np.ndarray:
    """`params[name]` on the host, C-contiguous, as `dtype`. Raises MinillamaError where it does not fit that type."""
    value = np.ascontiguousarray(to_host(params[name]))
    if value.dtype == dtype:
        return value
    with np.errstate(over="ignore"):
        value = value.astype(dtype)
    check_finite(path, f"{name} as {dtype.name}", value)
    return value
