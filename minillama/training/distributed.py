"""Several processes, ranks, that train one model: the five functions by which they speak to each other.

Every rank holds all parameters and runs its share of the batch's rows. The optimizer (`zero.py`) is what speaks; the
training loop only sums a loss now and then. Without mpiexec there is one rank and nothing to say.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from minillama.backend import Array, Device
from minillama.errors import MinillamaError, UsageError
from minillama.training.threads import usable_cores

if TYPE_CHECKING:
    from minillama.training.mpi import MPI


class Communicator(Protocol):
    """What one rank says to all the others; every rank must make the same calls in the same order.

    Arrays are 1-D, contiguous, float32 or float64, of the same length on all ranks; each function works in place and
    returns its result. `share` says which elements belong to a rank.
    """

    rank: int  # this process, 0 … size - 1; only rank 0 writes files and speaks to the user
    size: int
    local_size: int  # how many of them are on this machine and share its cores

    def all_reduce(self, x: Array) -> Array:
        """The sum of all ranks' `x`, for every rank."""
        ...

    def reduce_scatter(self, x: Array) -> Array:
        """This rank's share of the sum of all ranks' `x`. What is left in `x` itself is of no use."""
        ...

    def all_gather(self, x: Array) -> Array:
        """`x` with every rank's share in its place; each rank comes with its own share filled in."""
        ...

    def broadcast(self, x: Array) -> Array:
        """Rank 0's `x`, for every rank."""
        ...

    def barrier(self) -> None:
        """Waits until all ranks have come here."""
        ...


class SingleProcess:
    """One rank: a sum over it, or a share of it, is the array that came in."""

    rank, size, local_size = 0, 1, 1

    def all_reduce(self, x: Array) -> Array:
        return x

    def reduce_scatter(self, x: Array) -> Array:
        return x

    def all_gather(self, x: Array) -> Array:
        return x

    def broadcast(self, x: Array) -> Array:
        return x

    def barrier(self) -> None:
        pass


def share(length: int, rank: int, size: int) -> slice:
    """Which of `length` elements belong to `rank`: consecutive, and as many as any other rank's or one more."""
    return slice(length * rank // size, length * (rank + 1) // size)


def share_of_rows(comm: Communicator, rows: int) -> slice:
    """Which rows of a batch this rank runs. Raises UsageError where there are more ranks than rows."""
    if rows < comm.size:
        raise UsageError(f"a batch of {rows} rows on {comm.size} ranks: expected at least one row for each")
    return share(rows, comm.rank, comm.size)


def gather(comm: Communicator, value: float) -> list[float]:
    """Every rank's `value`, by rank. All ranks get the same bits, so what they decide by them is the same too."""
    values = np.zeros(comm.size)
    values[comm.rank] = value
    return comm.all_gather(values).tolist()  # element r is rank r's share


@contextmanager
def connected(device: Device) -> Iterator[Communicator]:
    """The communicator of this process, for the time that the ranks work together: MPI between processes that mpiexec
    started, NCCL between their GPUs, otherwise this process alone. If one rank fails, all end.

    device "cuda": takes this rank's GPU, so it comes before anything is put on one. Raises MinillamaError where MPI or
    NCCL cannot be used.

    An exception that leaves the block is raised on; when this process then ends, so do the other ranks, which may wait
    for it where no exception can reach them. Before that rank 0 has two seconds to say what all ranks may have met,
    so that it is said once. Meanwhile the BLAS of each rank keeps to its part of the machine's cores: more threads than
    cores, which wait for each other in every product, would be many times slower.
    """
    started = _ranks_started()
    hosts = None if started is None else _start_mpi(started)
    if hosts is None or hosts.size == 1:
        yield SingleProcess()
        return
    try:
        with threadpool_limits(max(1, usable_cores() // hosts.local_size), "blas"):
            if device == "cpu":
                yield hosts
            else:
                from minillama.training.nccl import NCCL

                yield NCCL(hosts)
    except BaseException as error:
        hosts.end_all_at_exit(error)
        if hosts.rank > 0:
            time.sleep(2)
        raise


def _start_mpi(started: int) -> MPI:
    """MPI, which must find the processes that mpiexec has started."""
    try:
        from minillama.training.mpi import MPI
    except (ImportError, RuntimeError) as error:  # mpi4py is missing, or finds no MPI library
        raise MinillamaError(f"under mpiexec: {error}; expected mpi4py (pip install 'minillama[mpi]')") from None
    hosts = MPI()
    if hosts.size < started:
        raise MinillamaError(
            f"mpiexec started {started} processes, and each finds itself alone: expected the mpiexec of "
            f"the MPI library that mpi4py uses ({hosts.library})"
        )
    return hosts


def _ranks_started() -> int | None:
    """How many processes mpiexec has started, as far as it says so (else 1); None where it has not started this one.

    The variables are those of MPICH, Intel MPI and Microsoft MPI (PMI_…), of Open MPI, and of Slurm's srun (PMIX_…).
    """
    for size in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        if os.environ.get(size, "").isdecimal():
            return int(os.environ[size])
    return 1 if "PMI_RANK" in os.environ or "PMIX_RANK" in os.environ else None
