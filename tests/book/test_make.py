"""`make book` trains the book's models first, and builds nothing where that fails or is stopped."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(os.name != "posix" or shutil.which("make") is None, reason="needs make")


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        pytest.param(0, ["minillama pipeline", "build"], id="trained"),
        pytest.param(1, ["minillama pipeline"], id="cannot be trained"),
        pytest.param(130, ["minillama pipeline"], id="Ctrl-C"),
    ],
)
def test_make_book(code, calls, tmp_path):
    (tmp_path / "bin").mkdir()
    log = tmp_path / "calls"
    scripts = {
        "python": f'#!/bin/sh\necho "$@" >> {log}\nexit {code}\n',
        "jupyter-book": f'#!/bin/sh\necho "$@" >> {log}\n',
    }
    for name, text in scripts.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "ready").touch()
    os.utime(tmp_path / "ready", (4e9, 4e9))  # newer than the pins
    done = subprocess.run(["make", "book", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (code == 0), done.stderr
    found = log.read_text().splitlines()
    assert [line.removeprefix("-m ")[: len(call)] for line, call in zip(found, calls, strict=True)] == calls
    assert "--preset mini --out runs/mini" in found[0]
