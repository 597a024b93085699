"""`mpiexec -n 2 minillama pretrain`, from its first line to its last: one run, whatever the number of its ranks."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minillama.model import Llama
from tests.training.mpiexec import MPIEXEC, needs_mpi

pytestmark = needs_mpi
STEPS = 8
WORDS = ["the", "a", "cat", "dog", "hen", "sat", "ran", "saw", "on", "by", "mat", "tree", "pond", "while", "in", "rain"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred documents."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n<|endoftext|>\n".join(" ".join(rng.choices(WORDS, k=40)) + "." for _ in range(200)))
    return path


def command(ranks: int, text: Path, out: Path, steps: int, *options: str) -> list[str]:
    """A tiny run; on one rank without mpiexec."""
    start = [str(MPIEXEC), "-n", str(ranks)] if ranks > 1 else []
    size = ["--depth", "1", "--vocab-size", "300", "--seq-len", "32", "--batch-size", "6", "--micro-batch", "1"]
    often = ["--steps", str(steps), "--save-every", str(steps), "--validate-every", str(steps)]
    end = ["--threads", "1", "--device", "cpu", "--data", str(text), "--out", str(out)]
    return [*start, sys.executable, "-m", "minillama", "pretrain", *size, *often, *end, *options]


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        command(*arguments),  # type: ignore[arg-type]
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr; a process that does not end is killed, and so are its ranks."""
    try:
        _, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        pytest.fail("the ranks do not end")
    return process.returncode, errors


def log(out: Path) -> list[dict]:
    """The steps in a log, each in its place."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines() if line.endswith("}")]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    return steps


def wait_for_steps(process: subprocess.Popen[str], out: Path, count: int) -> None:
    for _ in range(1200):
        assert process.poll() is None, process.communicate()
        if (out / "log.jsonl").exists() and len((out / "log.jsonl").read_text().splitlines()) > count:
            return
        time.sleep(0.1)
    pytest.fail("no steps are made")


def test_two_ranks_make_the_run_of_one(text: Path, tmp_path: Path) -> None:
    one_rank, out = tmp_path / "one", tmp_path / "two"
    for ranks, folder in ((1, one_rank), (2, out)):
        code, errors = finish(start(ranks, text, folder, STEPS))
        assert code == 0, errors
    for name in ("loss", "grad_norm"):
        alone = [step[name] for step in log(one_rank)]
        np.testing.assert_allclose([step[name] for step in log(out)], alone, rtol=1e-5)
    assert [step["lr"] for step in log(out)] == [step["lr"] for step in log(one_rank)]
    assert len(alone) == STEPS and alone[0] != alone[-1]
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{STEPS:06}"]
    assert errors.count(f"step {STEPS} of {STEPS}") == 1
    expected = Llama.load(one_rank).params
    for name, p in Llama.load(out).params.items():
        np.testing.assert_allclose(p, expected[name], rtol=1e-4, atol=1e-5)


def test_ctrl_c_saves_once_and_one_rank_goes_on(text: Path, tmp_path: Path) -> None:
    out, done = tmp_path / "run", 0
    for ranks in (2, 1):
        process = start(ranks, text, out, 1_000_000)
        wait_for_steps(process, out, done + 3)
        os.killpg(process.pid, signal.SIGINT)
        code, errors = finish(process)
        assert code == 130, errors
        assert errors.count("interrupted after step") == 1
        assert len(log(out)) > done
        done = len(log(out))
        assert (out / "checkpoints" / f"step-{done:06}" / "trainer.json").exists()


def test_an_error_on_the_rank_that_writes_ends_both(text: Path, tmp_path: Path) -> None:
    """Where the checkpoint of an interrupt should go there is a file."""
    out = tmp_path / "run"
    process = start(2, text, out, 1_000_000)
    wait_for_steps(process, out, 3)
    (out / "checkpoints").touch()
    os.killpg(process.pid, signal.SIGINT)
    code, errors = finish(process)
    assert code == 1
    assert errors.count("minillama: ") == 1 and f"minillama: {out / 'checkpoints'}" in errors


def test_more_ranks_than_rows(text: Path, tmp_path: Path) -> None:
    code, errors = finish(start(2, text, tmp_path / "run", STEPS, "--batch-size", "1"))
    assert code == 2
    assert errors.count("minillama: ") == 1
    assert "minillama: a batch of 1 rows on 2 ranks: expected at least one row for each\n" in errors
    assert not (tmp_path / "run").exists()
