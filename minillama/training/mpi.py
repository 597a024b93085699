"""The five functions by MPI, for arrays on the host. Importing this file starts MPI: only under mpiexec."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from mpi4py import MPI as mpi
from mpi4py.run import set_abort_status

from minillama.errors import UsageError
from minillama.training.distributed import share


class MPI:
    """All processes of `mpiexec`. Arrays are NumPy's; its shares need not be equal."""

    def __init__(self) -> None:
        self._all = mpi.COMM_WORLD
        self.rank, self.size = self._all.rank, self._all.size
        here = self._all.Split_type(mpi.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = here.rank, here.size
        here.Free()

    @property
    def library(self) -> str:
        """The name of the MPI library."""
        return mpi.get_vendor()[0]

    def share_object(self, value: Any) -> Any:
        """Rank 0's `value`, any small object that can be pickled."""
        return self._all.bcast(value)

    def all_reduce(self, x: np.ndarray) -> np.ndarray:
        self._all.Allreduce(mpi.IN_PLACE, x)
        return x

    def reduce_scatter(self, x: np.ndarray) -> np.ndarray:
        counts, _ = self._shares(len(x))
        own = np.empty(counts[self.rank], x.dtype)  # in place, MPICH 5.0 copies uneven shares onto themselves and stops
        self._all.Reduce_scatter(x, own, counts)  # (P,) -> (P / N,)
        return own

    def all_gather(self, x: np.ndarray) -> np.ndarray:
        self._all.Allgatherv(mpi.IN_PLACE, (x, self._shares(len(x))))  # (P / N,) in its place -> (P,)
        return x

    def broadcast(self, x: np.ndarray) -> np.ndarray:
        self._all.Bcast(x)
        return x

    def barrier(self) -> None:
        waiting = self._all.Ibarrier()
        while not waiting.Test():  # rank 0 may be preparing data for minutes: MPI's own waiting would take a whole core
            time.sleep(0.001)

    def end_all_at_exit(self, error: BaseException) -> None:
        """When this process ends because of `error`, all others end at once, and `mpiexec` with its exit code."""
        set_abort_status(2 if isinstance(error, UsageError) else getattr(error, "exit_code", error))

    def _shares(self, length: int) -> tuple[list[int], list[int]]:
        """How many elements each rank's share has, and where it starts."""
        shares = [share(length, rank, self.size) for rank in range(self.size)]
        return [part.stop - part.start for part in shares], [part.start for part in shares]
