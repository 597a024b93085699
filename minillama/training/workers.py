"""Gradients of a batch by threads: each takes micro-batches small enough for its core's cache.

The same pieces are what gradient accumulation adds up, and a rank's share of a batch is cut like it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from minillama.backend import Array
from minillama.model import Llama
from minillama.params import Params, accumulate, flatten
from minillama.training.threads import Threads, keep_freed_memory

Batch = dict[str, np.ndarray]  # every array's first axis is the row: a sequence, a pair, an answer


class Loss(Protocol):
    """Loss and gradients of some rows of a batch: their sum divided by `weight`, which the whole batch sums to."""

    def __call__(self, model: Llama, batch: Batch, weight: float) -> tuple[Array, Params]: ...


class Workers:
    """Threads that share a model's parameters.

    Which thread takes which piece is fixed and the sums are made in a fixed order: the same batch gives the same bits.
    On a GPU there is one worker, for the GPU is parallel by itself.
    """

    def __init__(self, model: Llama, threads: int | None = None) -> None:
        """Moves what is trained of `model` into one flat array. threads None: as many as this process has cores."""
        keep_freed_memory()
        self.model = model
        self.params, self.matrices = flatten(model.trained)
        # A parameter that is trained beside adapters is among both, and must stay one array.
        model.params.update((name, p) for name, p in model.trained.items() if name in model.params)
        self.threads = Threads(threads if model.xp is np else 1)
        self._grads = model.xp.zeros_like(self.params)

    def gradients(self, loss: Loss, batch: Batch, weight: float, micro_batch: int) -> tuple[float, Array]:
        """Loss and gradients of `batch`, `micro_batch` rows at a time.

        weight: what the loss of the whole batch is divided by. Returns the loss and the gradients (P,) in the order of
        `params`; they are overwritten by the next call.
        """
        rows = len(next(iter(batch.values())))
        pieces = [slice(start, start + micro_batch) for start in range(0, rows, micro_batch)]

        def work(worker: int) -> tuple[float, Params]:
            total, grads = 0.0, Params()
            for piece in pieces[worker :: self.threads.count]:
                part, more = loss(self.model, {name: x[piece] for name, x in batch.items()}, weight)
                total += float(part)
                accumulate(grads, more)
            return total, grads

        losses, grads = zip(*self.threads.each(work), strict=True)

        def add(part: slice) -> None:
            """The threads' gradients into one array: the elements `part` of it."""
            stop = 0
            for name, p in self.model.trained.items():
                start, stop = stop, stop + p.size
                inside = slice(max(part.start, start), min(part.stop, stop))
                if inside.start < inside.stop:
                    self._grads[inside] = 0
                    for some in grads:
                        if name in some:
                            self._grads[inside] += some[name].reshape(-1)[inside.start - start : inside.stop - start]

        self.threads.split(len(self._grads), add)
        return sum(losses), self._grads
