"""The worker of benchmarks/train.py for minillama: python -m benchmarks.train_minillama CONFIG STEPS

Under mpiexec every process takes its share of the rows, with a thread for each core that is left to it.
"""

from __future__ import annotations

import sys
import time

import minillama
from benchmarks.train import SETTINGS, report, tokens_of
from minillama.backend import Array
from minillama.model import Llama
from minillama.params import Params
from minillama.training.distributed import connected, share_of_rows
from minillama.training.losses import next_token_loss
from minillama.training.threads import usable_cores
from minillama.training.workers import Batch, Workers
from minillama.training.zero import Optimizer


def loss(model: Llama, batch: Batch, weight: float) -> tuple[Array, Params]:
    return next_token_loss(model, batch["tokens"], batch["targets"], count=weight)


def main() -> None:
    setting, steps = SETTINGS[sys.argv[1]], int(sys.argv[2])
    with connected("cpu") as comm:
        model = Llama.init(setting.config)
        workers = Workers(model, max(1, usable_cores() // comm.local_size))
        optimizer = Optimizer(comm, workers.params, workers.matrices, threads=workers.threads, weight_decay=0.1)
        tokens = tokens_of(setting)
        rows = share_of_rows(comm, setting.batch)
        batch = {"tokens": tokens[rows, :-1], "targets": tokens[rows, 1:]}
        seconds = []
        for _ in range(steps):
            comm.barrier()
            started = time.perf_counter()
            part, grads = workers.gradients(loss, batch, setting.batch * setting.length, setting.micro_batch)
            optimizer.step(grads, 3e-4, 1.0)
            seconds.append(time.perf_counter() - started)
        if comm.rank == 0:
            report(f"minillama {minillama.__version__}", seconds, part)


if __name__ == "__main__":
    main()
