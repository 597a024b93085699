"""Which array library an array belongs to. The only file that imports CuPy.

An op asks `get_array_module(x)` for the library of its own inputs, so nothing but the place where the
parameters live decides where a model runs.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Literal

import numpy as np

from minillama.errors import UsageError

Array = Any  # numpy.ndarray or cupy.ndarray: the two share the interface that the layers use
Device = Literal["cpu", "cuda"]

# Array type -> its library. CuPy enters when a CUDA device is first asked for.
_LIBRARIES: dict[type, Any] = {np.ndarray: np}


def register(array_type: type, library: Any) -> None:
    """Make `get_array_module` answer `library` for arrays of `array_type`."""
    _LIBRARIES[array_type] = library


def get_array_module(x: Array) -> Any:
    """The array library of `x`: numpy or cupy."""
    library = _LIBRARIES.get(type(x))
    if library is None:
        library = import_cupy() if type(x).__module__.split(".")[0] == "cupy" else np
    return library


def resolve_device(device: str | None) -> Device:
    """`device` checked; None gives cuda where it is usable, else cpu. Raises UsageError."""
    if device is None:
        return "cuda" if cuda_problem() is None else "cpu"
    if device not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {device!r}: expected 'cpu' or 'cuda'")
    if device == "cuda" and (problem := cuda_problem()):
        raise UsageError(f"device 'cuda' cannot be used: {problem}")
    return device  # type: ignore[return-value]  # narrowed by the test above


def cuda_problem() -> str | None:
    """Why CUDA cannot be used here, in one line; None where it can."""
    try:
        count = import_cupy().cuda.runtime.getDeviceCount()
    except ImportError:
        return "CuPy is not installed (pip install 'minillama[cuda12]' or 'minillama[cuda13]')"
    except Exception as error:  # CuPy raises its own CUDARuntimeError, which cannot be named without importing it
        return f"no working NVIDIA driver or GPU ({error})".splitlines()[0]
    return None if count else "no NVIDIA GPU was found"


def to_device(x: Array, device: Device) -> Array:
    """`x` on `device`; the same object where it is there already."""
    if device == "cuda":
        return import_cupy().asarray(x)
    return to_host(x)


def to_host(x: Array) -> np.ndarray:
    """`x` as a numpy array; from a GPU this copies and waits for it."""
    return x.get() if hasattr(x, "get") else np.asarray(x)


def device_of(x: Array) -> Device:
    """Where `x` lives."""
    return "cpu" if get_array_module(x) is np else "cuda"


def import_cupy() -> ModuleType:
    """CuPy itself, for what NumPy has no word for: streams, one GPU of several. Raises ImportError without it."""
    import cupy  # imported here, so that `import minillama` touches no device

    register(cupy.ndarray, cupy)
    return sys.modules["cupy"]


def import_nccl() -> ModuleType:
    """CuPy's NCCL; `available` is false where its library is missing."""
    from cupy.cuda import nccl

    return nccl
