"""Fixtures that every test may use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minillama.backend import cuda_problem
from tests import fake_gpu


class Arrays:
    """One array library to run a test on: `put` brings numpy arrays to it, `get` brings results back."""

    def __init__(self, name: str, library: Any) -> None:
        self.name, self.library = name, library

    def put(self, x: Any) -> Any:
        """Arrays, and arrays in tuples, lists and dicts, on the library; anything else as it is."""
        if isinstance(x, np.ndarray):
            return self.library.asarray(x)
        if isinstance(x, dict):
            return {key: self.put(value) for key, value in x.items()}
        if isinstance(x, (tuple, list)):
            return type(x)(self.put(value) for value in x)
        return x

    def get(self, x: Any) -> np.ndarray:
        """A result as a numpy array."""
        return x.get() if hasattr(x, "get") else np.asarray(x)


@pytest.fixture(params=["numpy", "fake-gpu", "cupy"])
def arrays(request: pytest.FixtureRequest) -> Arrays:
    """The test runs once on NumPy, once under a GPU's rules, and once on a GPU where there is one."""
    if request.param == "numpy":
        return Arrays("numpy", np)
    if request.param == "fake-gpu":
        return Arrays("fake-gpu", fake_gpu.library)
    if problem := cuda_problem():
        pytest.skip(f"no GPU: {problem}")
    import cupy

    return Arrays("cupy", cupy)
