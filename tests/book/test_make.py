"""`make book` trains the book's models first: goes on with it, begins it again where it must, and stops at Ctrl-C."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(os.name != "posix" or shutil.which("make") is None, reason="needs make")


STAGES = ("pretrain", "sft", "gatt")


@pytest.mark.parametrize(
    ("codes", "calls", "succeeds"),
    [
        pytest.param([0, 0, 0], ["pretrain", "sft", "gatt", "build"], True, id="trained"),
        pytest.param([2, 0, 0, 0], ["pretrain", "pretrain again", "sft", "gatt", "build"], True, id="other settings"),
        pytest.param([0, 1, 0, 0], ["pretrain", "sft", "sft again", "gatt", "build"], True, id="damaged"),
        pytest.param([0, 0, 1, 1], ["pretrain", "sft", "gatt", "gatt again"], False, id="cannot be trained"),
        pytest.param([0, 130], ["pretrain", "sft"], False, id="Ctrl-C"),
    ],
)
def test_make_book(codes, calls, succeeds, tmp_path):
    (tmp_path / "bin").mkdir()
    log = tmp_path / "calls"
    answers = " ".join(map(str, codes))
    train = f'set -- "$@" {answers}\nn=$(grep -c minillama {log})\nfor i in $(seq 1 $n); do code=$1; shift; done\n'
    scripts = {
        "python": f'#!/bin/sh\necho "$@" >> {log}\nset --\n{train}exit $code\n',
        "jupyter-book": f'#!/bin/sh\necho "$@" >> {log}\n',
    }
    for name, text in scripts.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "ready").touch()
    os.utime(tmp_path / "ready", (4e9, 4e9))  # newer than the pins
    done = subprocess.run(["make", "book", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == succeeds, done.stderr
    found = log.read_text().splitlines()
    for stage, out in zip(STAGES, ("base", "sft", "gatt"), strict=True):
        assert all(f"--out runs/mini/{out}" in line for line in found if f"minillama {stage}" in line)
    assert [_brief(line) for line in found] == calls


def _brief(line):
    stage = next((stage for stage in STAGES if f"minillama {stage} " in line), line.split()[0])
    return f"{stage} again" if line.endswith("--overwrite") else stage
