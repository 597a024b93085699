"""Ranks: real processes under mpiexec, two to four, that check themselves (ranks.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minillama.backend import cuda_problem, import_cupy
from minillama.errors import MinillamaError, UsageError
from minillama.training.distributed import SingleProcess, connected, gather, share, share_of_rows
from minillama.training.zero import Optimizer
from tests.training.mpiexec import MPIEXEC, needs_mpi

ROOT = Path(__file__).parents[2]


def run(count: int, *arguments: object, mpi: bool = True) -> subprocess.CompletedProcess[str]:
    """`count` ranks of ranks.py; without `mpi` one process."""
    start = [MPIEXEC, "-n", str(count)] if mpi else []
    return subprocess.run(
        [*start, sys.executable, "-m", "tests.training.ranks", *map(str, arguments)],
        cwd=ROOT,
        env={"OPENBLAS_NUM_THREADS": "1", **os.environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def output(*arguments: object, **options: bool) -> str:
    """What ranks print that all succeed."""
    done = run(*arguments, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# MPI; NCCL's calls, checked and answered by a stand-in (fake_nccl.py); NCCL where there are GPUs for it
KINDS = {"MPI": ["cpu"], "fake NCCL": ["cuda", "--fake-gpus", "4"], "NCCL": ["cuda"]}


def options(kind: str, count: int) -> list[str]:
    """What `ranks.py` is told; skips where there are too few GPUs."""
    if kind == "NCCL" and (problem := cuda_problem() or few_gpus(count)):
        pytest.skip(f"NCCL: {problem}")
    return KINDS[kind]


def few_gpus(count: int) -> str | None:
    found = import_cupy().cuda.runtime.getDeviceCount()
    return f"expected {count} GPUs, found {found}" if found < count else None


@needs_mpi
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_functions_equal_numpy(kind: str, count: int, tmp_path: Path) -> None:
    done = output(count, "functions", tmp_path, *options(kind, count))
    assert done.strip() == kind.removeprefix("fake ")


@needs_mpi
@pytest.mark.parametrize("count", [3])
@pytest.mark.parametrize("kind", KINDS)
def test_divided_state_gives_adamw(kind: str, count: int) -> None:
    output(count, "optimizer", 2, *options(kind, count))


def test_one_process_is_the_same_optimizer() -> None:
    output(1, "optimizer", 2, "cpu", mpi=False)


@needs_mpi
def test_resume_with_another_number_of_ranks(tmp_path: Path) -> None:
    """The sums are exact, so the bits are those of one rank that went through."""
    output(1, "resume", tmp_path / "whole.npz", 5, mpi=False)
    for count, steps in ((2, 1), (3, 2), (1, 2)):
        output(count, "resume", tmp_path / "parts.npz", steps, mpi=count > 1)
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "parts.npz") as parts:
        assert whole.files == ["params", "m", "v", "steps"] and whole["steps"] == 5
        for name in whole.files:
            np.testing.assert_array_equal(parts[name], whole[name])


@needs_mpi
def test_ranks_and_threads_give_the_losses_of_one() -> None:
    """Ten steps of one global batch; what differs is the order of float32 sums."""
    alone = np.array(json.loads(output(1, "train", 1, 8, mpi=False)))
    assert alone[0] > 4.1 and alone[-1] < 2.8  # ln 64 = 4.16 at first, and it learns
    for count, threads, micro_batch in [(1, 2, 2), (2, 1, 4), (3, 2, 1)]:
        losses = json.loads(output(count, "train", threads, micro_batch, mpi=count > 1))
        np.testing.assert_allclose(losses, alone, rtol=1e-6)


@needs_mpi
def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "4")
    output(2, "cores")


@needs_mpi
def test_an_error_on_one_rank_ends_all() -> None:
    done = run(3, "fails-alone")
    assert done.returncode == 1
    assert "minillama: the disk is full\n" in done.stderr


@needs_mpi
def test_a_rank_that_is_killed_ends_all() -> None:
    assert run(3, "is-killed").returncode != 0


@needs_mpi
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["too-many", 3], 2, "a batch of 3 rows on 4 ranks: expected at least one row for each"),
        (
            ["functions", ".", "cuda", "--fake-gpus", "3"],
            1,
            "NCCL_ERROR_INVALID_USAGE: invalid usage: expected a GPU for each of the 4 ranks on this machine, found 3",
        ),
    ],
)
def test_an_error_of_all_ranks_is_said_once(arguments: list, code: int, message: str) -> None:
    done = run(4, *arguments)
    assert done.returncode == code
    assert done.stderr.count("minillama:") == 1 and f"minillama: {message}\n" in done.stderr


@needs_mpi
def test_mpiexec_of_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")
    done = run(1, "too-many", 1, mpi=False)
    assert done.returncode == 1
    assert "mpiexec started 2 processes, and each finds itself alone: expected the mpiexec of the MPI" in done.stderr


@pytest.mark.parametrize("variable", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK"])
def test_mpi4py_is_missing(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(
        MinillamaError, match=r"^under mpiexec: .*mpi4py.*; expected mpi4py \(pip install 'minillama\[mpi"
    ):
        connected("cpu").__enter__()


def test_a_process_of_its_own() -> None:
    """Nothing is sent, nothing copied, and MPI is not looked for."""
    x = np.arange(3.0)
    with connected("cpu") as comm:
        assert isinstance(comm, SingleProcess) and (comm.rank, comm.size, comm.local_size) == (0, 1, 1)
        assert comm.all_reduce(x) is comm.reduce_scatter(x) is comm.all_gather(x) is comm.broadcast(x) is x
        comm.barrier()
        assert gather(comm, 2.5) == [2.5]
        optimizer = Optimizer(comm, x, 3)
        assert optimizer.state()["m"] is optimizer.adamw.m
    assert "mpi4py" not in sys.modules


def test_state_of_another_model() -> None:
    optimizer = Optimizer(SingleProcess(), np.zeros(3, np.float32), 3)
    state = Optimizer(SingleProcess(), np.zeros(4, np.float32), 3).state()
    with pytest.raises(MinillamaError, match=r"^optimizer state m: expected \(3,\) float32, found \(4,\) float32$"):
        optimizer.load_state(state)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [0, 1, 6, 7, 100])
def test_shares_cover_everything_evenly(length: int, size: int) -> None:
    shares = [share(length, rank, size) for rank in range(size)]
    assert np.concatenate([np.arange(length)[part] for part in shares]).tolist() == list(range(length))
    lengths = [part.stop - part.start for part in shares]
    assert max(lengths) - min(lengths) <= 1


def test_more_ranks_than_rows() -> None:
    comm = SingleProcess()
    assert share_of_rows(comm, 3) == slice(0, 3)
    with pytest.raises(UsageError, match=r"^a batch of 0 rows on 1 ranks: expected at least one row for each$"):
        share_of_rows(comm, 0)
