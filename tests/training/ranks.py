"""What the ranks do in test_distributed.py: mpiexec -n N python -m tests.training.ranks CASE [ARGUMENT ...]

An assertion that fails on any rank ends all of them. Alone, without mpiexec, this is one rank.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import typer
from threadpoolctl import threadpool_info

from minillama.backend import Device, to_device, to_host
from minillama.cli import OneLineErrors
from minillama.config import LlamaConfig
from minillama.errors import MinillamaError
from minillama.model import Llama
from minillama.training import zero
from minillama.training.adamw import AdamW, clip_factor, global_norm
from minillama.training.distributed import Communicator, connected, gather, share, share_of_rows
from minillama.training.losses import next_token_loss
from minillama.training.schedule import CosineSchedule
from minillama.training.threads import Threads, usable_cores
from minillama.training.workers import Workers

app = typer.Typer(cls=OneLineErrors, pretty_exceptions_enable=False)
LENGTHS = 1, 2, 3, 7, 12, 1000, 100_003
P, DECAYED = 300_007, 200_001  # parameters: several pieces of AdamW's, no even shares


@app.command()
def functions(folder: Path, device: Device) -> None:
    """Each of the five against NumPy, on sums that are exact in any order."""
    with connected(device) as comm:
        if comm.rank == 0:
            print(type(comm).__name__)
        assert comm.local_size == comm.size
        for length in LENGTHS:
            for dtype in (np.float32, np.float64) if device == "cpu" else (np.float32,):
                parts = np.stack([numbers(length, seed, dtype) for seed in range(comm.size)])  # (N, P)
                mine = share(length, comm.rank, comm.size)

                def same(found: Any, expected: np.ndarray) -> None:
                    found = to_host(found)
                    assert found.dtype == expected.dtype
                    np.testing.assert_array_equal(found, expected)

                def put(x: np.ndarray) -> Any:
                    return to_device(x.copy(), device)

                x = put(parts[comm.rank])
                assert comm.all_reduce(x) is x
                same(x, parts.sum(0, dtype=dtype))
                same(comm.reduce_scatter(put(parts[comm.rank])), parts.sum(0, dtype=dtype)[mine])
                holes = np.full(length, np.nan, dtype)
                holes[mine] = parts[0][mine]
                x = put(holes)
                assert comm.all_gather(x) is x
                same(x, parts[0])
                x = put(parts[comm.rank])
                assert comm.broadcast(x) is x
                same(x, parts[0])
        assert gather(comm, comm.rank + 0.5) == [rank + 0.5 for rank in range(comm.size)]
        if device == "cuda":  # the fake GPU makes no float64, and takes it where nothing is computed
            kind = type(to_device(np.zeros(1, np.float32), device))
            wide = np.array([0.5, comm.rank])
            wide = wide.view(kind) if issubclass(kind, np.ndarray) else to_device(wide, device)
            assert to_host(comm.all_reduce(wide)).tolist() == [comm.size / 2, sum(range(comm.size))]
        if comm.rank == comm.size - 1:
            time.sleep(0.2)
            (folder / "written").touch()
        comm.barrier()
        assert (folder / "written").exists()


@app.command()
def optimizer(threads: int, device: Device) -> None:
    """Steps with the state divided against AdamW over all parameters."""
    with connected(device) as comm:
        if device == "cuda":  # the fake GPU lets no value be read back, and the norm is one
            zero.global_norm = lambda x, threads: global_norm(to_host(x), threads)
        for clip in (None, 0.5):
            start = numbers(P, seed=99)
            params = to_device(start.copy() if comm.rank == 0 else np.full(P, np.nan, np.float32), device)
            divided = zero.Optimizer(comm, params, DECAYED, threads=Threads(threads))
            assert len(divided.adamw.m) == len(start[share(P, comm.rank, comm.size)])
            whole = AdamW(start.copy(), DECAYED)
            for step in range(4):
                grads = total_gradients(step)
                norm = divided.step(to_device(part_of(grads, comm), device), 1e-2, clip)
                expected = global_norm(grads)
                np.testing.assert_allclose(norm, expected, rtol=1e-5)
                whole.step(grads, 1e-2, clip_factor(expected, clip))
                if clip is None:  # every number is computed alike, wherever it is: the same bits
                    np.testing.assert_array_equal(to_host(params), whole.params)
                else:  # the norm is summed up in other pieces
                    np.testing.assert_allclose(to_host(params), whole.params, rtol=1e-5, atol=1e-7)
        before = to_host(params), to_host(divided.adamw.m), divided.adamw.steps
        before = before[0].copy(), before[1].copy(), before[2]
        grads = numbers(P, seed=5)
        if comm.rank == comm.size - 1:
            grads[0] = np.nan  # in rank 0's share
        assert not np.isfinite(divided.step(to_device(grads, device), 1e-2, 1.0))
        np.testing.assert_array_equal(to_host(params), before[0])
        np.testing.assert_array_equal(to_host(divided.adamw.m), before[1])
        assert divided.adamw.steps == before[2]


@app.command()
def resume(file: Path, steps: int) -> None:
    """Some steps on from the state in a file, which all ranks read and rank 0 writes."""
    with connected("cpu") as comm:
        params = numbers(P, seed=99)
        optimizer = zero.Optimizer(comm, params, DECAYED)
        if file.exists():
            with np.load(file) as saved:
                params[...] = saved["params"]
                optimizer.load_state({name: saved[name] for name in ("m", "v", "steps")})
        comm.barrier()  # all have read before one writes
        for _ in range(steps):
            optimizer.step(part_of(total_gradients(optimizer.adamw.steps), comm), 1e-2, None)
        state = optimizer.state()
        assert bool(state) == (comm.rank == 0)
        if comm.rank == 0:
            np.savez(file, params=params, **state)


@app.command()
def train(threads: int, micro_batch: int) -> None:
    """Ten steps of a small Llama; rank 0 prints the losses."""
    with connected("cpu") as comm:
        model = Llama.init(LlamaConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=64), seed=1)
        workers = Workers(model, threads)
        optimizer = zero.Optimizer(comm, workers.params, workers.matrices, threads=workers.threads)
        schedule = CosineSchedule(1e-2, 10, 1)
        rng = np.random.default_rng(0)
        losses = []
        for step in range(10):
            text = (rng.integers(0, 64, (8, 1)) + 3 * np.arange(17)) % 64  # (B, T + 1): counting by three
            rows = share_of_rows(comm, len(text))
            batch = {"tokens": text[rows, :-1], "targets": text[rows, 1:]}
            loss, grads = workers.gradients(mean_loss, batch, 8 * 16, micro_batch)
            optimizer.step(grads, schedule(step), 1.0)
            losses.append(sum(gather(comm, loss)))
        if comm.rank == 0:
            print(json.dumps(losses))


@app.command()
def fails_alone() -> None:
    """The last rank fails where the others wait for it."""
    with connected("cpu") as comm:
        if comm.rank == comm.size - 1:
            raise MinillamaError("the disk is full")
        comm.barrier()


@app.command()
def cores() -> None:
    """The BLAS of all ranks together takes no more than the machine has."""
    before = [found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"]
    with connected("cpu") as comm:
        part = max(1, usable_cores() // comm.size)
        assert {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"} <= {part}
    assert before == [found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"]


@app.command()
def is_killed() -> None:
    """The last rank is gone, without a word."""
    with connected("cpu") as comm:
        if comm.rank == comm.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        comm.barrier()


@app.command()
def too_many(rows: int) -> None:
    """All ranks meet the same error."""
    with connected("cpu") as comm:
        share_of_rows(comm, rows)


def numbers(length: int, seed: int, dtype: Any = np.float32) -> np.ndarray:
    """Random multiples of 1/1024 between -1/2 and 1/2: few of them sum to the same in any order."""
    return (np.random.default_rng(seed).integers(-512, 512, length) / 1024).astype(dtype)


def total_gradients(step: int) -> np.ndarray:
    return numbers(P, seed=1000 + step)


def part_of(grads: np.ndarray, comm: Communicator) -> np.ndarray:
    """This rank's of as many random arrays as there are ranks, whose sum is `grads` exactly."""
    others = [numbers(len(grads), seed) for seed in range(comm.size - 1)]
    return others[comm.rank] if comm.rank < len(others) else grads - sum(others)


def mean_loss(model: Llama, batch: dict[str, np.ndarray], weight: float) -> Any:
    return next_token_loss(model, batch["tokens"], batch["targets"], count=weight)


if __name__ == "__main__":
    if "--fake-gpus" in sys.argv:
        from tests.training import fake_nccl

        at = sys.argv.index("--fake-gpus")
        fake_nccl.install(int(sys.argv[at + 1]))
        del sys.argv[at : at + 2]
    app()
