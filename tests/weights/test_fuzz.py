"""Damaged files of every format: never a traceback, never a hang, never memory out of proportion (see fuzz.py)."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.weights.fuzz import damaged

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "kind", ["llama2c", "llama2c-v1", "huggingface", "huggingface-bytes", "gguf", "gguf-bytes", "meta", "peft"]
)
def test_damaged_copies(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-m", "tests.weights.fuzz", kind, "300", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    loaded, refused = map(int, result.stdout.split())
    assert loaded + refused == 300
    # Flipped bits of a weight are a model like any other; most damage to a header must be noticed.
    assert refused > 75
    assert loaded > 10


def test_damage_is_damage_and_the_same_each_time() -> None:
    data = bytes(range(256)) * 20
    first, second = ([damaged(data, random.Random(seed)) for seed in range(200)] for _ in range(2))
    assert first == second
    assert sum(copy != data for copy in first) > 190
    assert len({len(copy) for copy in first}) > 20
