"""The imagined GPU must catch what it is there to catch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.fake_gpu import DeviceArray, FakeGpuError
from tests.fake_gpu import library as xp

x = xp.ones((4, 8), dtype=np.float32)

FAILS: dict[str, Callable[[], Any]] = {
    "float of a sum": lambda: float(x.sum()),
    "branch on a value": lambda: 1 if (x > 0).any() else 0,
    "item": lambda: x[0, 0].item(),
    "loop over an array": lambda: list(x),
    "index with a mask": lambda: x[x > 0],
    "host array in arithmetic": lambda: x * np.ones(8, np.float32),
    "host array in a function": lambda: xp.where(x > 0, np.ones(8, np.float32), x),
    "host array as an index": lambda: x[np.array([0, 1])],
    "host array assigned": lambda: x.__setitem__(0, np.ones(8, np.float32)),
    "host array as out": lambda: np.add(x, x, out=np.ones((4, 8), np.float32)),
    "numpy function": lambda: np.concatenate([x, x]),
    "numpy float64 scalar": lambda: x / np.sqrt(48),
    "float64 array": lambda: xp.asarray(np.arange(8.0)),
    "complex128": lambda: x * 1j * xp.exp(xp.asarray(np.complex128(1j))),
}


@pytest.mark.parametrize("name", FAILS)
def test_caught(name: str) -> None:
    with pytest.raises(FakeGpuError):
        FAILS[name]()


def test_what_a_gpu_can_do() -> None:
    results = [
        x @ x.T,
        x.sum(axis=-1),
        x[0, 0],
        x / math.sqrt(48),
        xp.where(x > 0, x, 0),
        x[xp.arange(2)],
        xp.concatenate([x, x]),
        xp.einsum("ij,ij->i", x, x),
        x.view(np.complex64) * xp.exp(xp.asarray(np.complex64(1j))),
    ]
    assert all(isinstance(result, DeviceArray) for result in results)
    assert isinstance(x.get(), np.ndarray) and not isinstance(x.get(), DeviceArray)
