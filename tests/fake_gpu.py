"""A GPU of the imagination: NumPy that fails where CuPy on a real GPU would fail, or would wait for it.

Array code that runs on it neither mixes host and device arrays, nor reads a value back (which on a GPU stops until all
work is done), nor falls into float64, nor calls a function that CuPy lacks (checked where CuPy is installed).
"""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np

from minillama import backend


class FakeGpuError(AssertionError):
    """What the code under test did would fail or stall on a GPU."""


class DeviceArray(np.ndarray):
    """An array that lives on the imagined GPU."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple = (), **kwargs: Any) -> Any:
        for x in (*inputs, *out):
            _refuse_host(x, ufunc.__name__)
        raw_out = {"out": tuple(map(_raw, out))} if out else {}
        result = getattr(ufunc, method)(*map(_raw, inputs), **raw_out, **kwargs)
        return out[0] if out else _wrap(result)

    def __array_function__(self, func: Any, types: Any, args: tuple, kwargs: dict) -> Any:
        raise FakeGpuError(f"numpy.{func.__name__} was called on a device array: use its own array library")

    def __getitem__(self, index: Any) -> Any:
        return _wrap(_raw(self)[_index(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        _refuse_host(value, "assignment")
        _raw(self)[_index(index)] = _raw(value)

    def get(self) -> np.ndarray:
        """The copy on the host, asked for by name (`backend.to_host`)."""
        return _raw(self).copy()

    @property
    def data(self) -> SimpleNamespace:  # type: ignore[override]
        """Its place in memory as CuPy gives it: `x.data.ptr`."""
        return SimpleNamespace(ptr=self.ctypes.data)

    def _waits(self, *_: Any, **__: Any) -> Any:
        raise FakeGpuError("a value was read back from the device")

    __float__ = __int__ = __bool__ = __index__ = __complex__ = __iter__ = item = tolist = nonzero = _waits  # type: ignore[assignment]


class _Library:
    """numpy under CuPy's rules."""

    def __init__(self) -> None:
        self._cupy: Any = None
        if importlib.util.find_spec("cupy"):
            import cupy

            self._cupy = cupy

    def __getattr__(self, name: str) -> Any:
        if self._cupy is not None and not hasattr(self._cupy, name):
            raise FakeGpuError(f"cupy has no {name}")
        found = getattr(np, name)
        if isinstance(found, (type, np.ufunc)) or not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            # asarray and array are the way in: they, and no other function, take what lives on the host.
            if name not in ("asarray", "array"):
                for x in (*args, *kwargs.values()):
                    _refuse_host(x, name)
            result = found(*map(_raw, args), **{key: _raw(x) for key, x in kwargs.items()})
            return tuple(map(_wrap, result)) if isinstance(result, tuple) else _wrap(result)

        return call


def _raw(x: Any) -> Any:
    if isinstance(x, (tuple, list)):
        return type(x)(map(_raw, x))
    return x.view(np.ndarray) if isinstance(x, DeviceArray) else x


def _wrap(x: Any) -> Any:
    if isinstance(x, (np.ndarray, np.generic)):
        if x.dtype in (np.float64, np.complex128):
            raise FakeGpuError(f"the result is {x.dtype}: something made it wider than float32")
        return np.asarray(x).view(DeviceArray)
    return x


def _refuse_host(x: Any, where: str) -> None:
    if isinstance(x, (tuple, list)):
        for part in x:
            _refuse_host(part, where)
    if isinstance(x, np.ndarray) and not isinstance(x, DeviceArray):
        raise FakeGpuError(f"{where}: an array of the host {x.shape} met one of the device")
    if isinstance(x, np.float64):
        raise FakeGpuError(f"{where}: a numpy float64 scalar makes the result float64; use a Python float")


def _index(index: Any) -> Any:
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        _refuse_host(part, "indexing")
        if isinstance(part, DeviceArray) and part.dtype == bool:
            raise FakeGpuError("indexing with a mask: its number of true values is read back from the device")
    return tuple(map(_raw, parts)) if isinstance(index, tuple) else _raw(index)


library = _Library()
backend.register(DeviceArray, library)
