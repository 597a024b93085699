"""Gradients of a batch by threads: each takes micro-batches small enough for its core's cache.

The same pieces are what gradient accumulation adds up, and a rank's share of a batch is cut like it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from minillama.backend import Array
from minillama.model import Llama
from minillama.params import Params, flatten, views
from minillama.training.adamw import CHUNK
from minillama.training.threads import Threads

Batch = dict[str, np.ndarray]  # every array's first axis is the row: a sequence, a pair, an answer


class Loss(Protocol):
    """Loss and gradients of some rows of a batch: their sum divided by `weight`, which the whole batch sums to."""

    def __call__(self, model: Llama, batch: Batch, weight: float) -> tuple[Array, Params]: ...


class Workers:
    """Threads that share a model's parameters. Each sums gradients into an array of its own.

    Which thread takes which piece is fixed and the sums are made in a fixed order: the same batch gives the same bits.
    On a GPU there is one worker, for the GPU is parallel by itself.
    """

    def __init__(self, model: Llama, threads: int | None = None) -> None:
        """Moves the parameters of `model` into one flat array. threads None: as many as this process has cores."""
        self.model = model
        self.params, self.matrices = flatten(model.params)
        self.threads = Threads(threads if model.xp is np else 1)
        self._grads = [model.xp.empty_like(self.params) for _ in range(self.threads.count)]
        shapes = {name: p.shape for name, p in model.params.items()}
        self._views = [views(grads, shapes) for grads in self._grads]

    def gradients(self, loss: Loss, batch: Batch, weight: float, micro_batch: int) -> tuple[float, Array]:
        """Loss and gradients of `batch`, `micro_batch` rows at a time.

        weight: what the loss of the whole batch is divided by. Returns the loss and the gradients (P,) in the order of
        `params`; they are overwritten by the next call.
        """
        rows = len(next(iter(batch.values())))
        pieces = [slice(start, start + micro_batch) for start in range(0, rows, micro_batch)]

        def work(worker: int) -> float:
            total = 0.0
            mine = pieces[worker :: self.threads.count]
            if not mine:
                self._grads[worker].fill(0)
            for i, piece in enumerate(mine):
                part, grads = loss(self.model, {name: x[piece] for name, x in batch.items()}, weight)
                total += float(part)
                if i == 0:
                    for name in self._views[worker].keys() - grads.keys():  # a loss need not reach every parameter
                        self._views[worker][name].fill(0)
                for name, grad in grads.items():
                    if i == 0:
                        self._views[worker][name][...] = grad
                    else:
                        self._views[worker][name] += grad
            return total

        total = sum(self.threads.each(work))
        first, *others = self._grads

        def add(part: slice) -> None:
            for start in range(part.start, part.stop, CHUNK):
                for other in others:
                    first[start : min(start + CHUNK, part.stop)] += other[start : min(start + CHUNK, part.stop)]

        self.threads.split(len(first), add)
        return total, first
