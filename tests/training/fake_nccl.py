"""A stand-in for CuPy with NCCL: the arrays are those of the fake GPU, and what NCCL would send goes by MPI.

Its communicator takes what CuPy 14's `NcclCommunicator` takes (addresses, counts, numbers of types, operations and
streams, all of them int), reads and writes at those addresses, and refuses what NCCL forbids.
"""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
from mpi4py import MPI

from tests import fake_gpu

FLOAT32, FLOAT64, SUM = 7, 8, 0  # NCCL's own numbers
STREAM = 4711
UNIQUE_ID = tuple(range(-64, 64))  # 128 signed bytes


class NcclError(RuntimeError):
    """Raised where ranks share a GPU."""


class NcclCommunicator:
    def __init__(self, ndev: int, commId: tuple, rank: int) -> None:
        world = MPI.COMM_WORLD
        assert (ndev, commId, rank) == (world.size, UNIQUE_ID, world.rank)
        if len(set(world.allgather(Device.used))) < world.size:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: invalid usage")
        self._world = world

    def allReduce(self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int) -> None:
        assert sendbuf == recvbuf and op == SUM
        self._world.Allreduce(MPI.IN_PLACE, memory(recvbuf, count, datatype, stream))

    def reduceScatter(self, sendbuf: int, recvbuf: int, recvcount: int, datatype: int, op: int, stream: int) -> None:
        sent = memory(sendbuf, recvcount * self._world.size, datatype, stream)
        received = memory(recvbuf, recvcount, datatype, stream)
        assert op == SUM and self._in_place(received, sent)
        self._world.Reduce_scatter_block(sent.copy(), received)

    def allGather(self, sendbuf: int, recvbuf: int, count: int, datatype: int, stream: int) -> None:
        sent = memory(sendbuf, count, datatype, stream)
        received = memory(recvbuf, count * self._world.size, datatype, stream)
        assert self._in_place(sent, received)
        self._world.Allgather(sent.copy(), received)

    def broadcast(self, sendbuff: int, recvbuff: int, count: int, datatype: int, root: int, stream: int) -> None:
        assert sendbuff == recvbuff
        self._world.Bcast(memory(recvbuff, count, datatype, stream), root)

    def _in_place(self, part: np.ndarray, whole: np.ndarray) -> bool:
        """NCCL works in place only where the part is this rank's piece of the whole, to the byte."""
        return part.ctypes.data == whole.ctypes.data + self._world.rank * part.nbytes


def memory(address: int, count: int, datatype: int, stream: int) -> np.ndarray:
    """What lies at an address."""
    assert all(type(x) is int for x in (address, count, datatype, stream))
    assert stream == STREAM
    number = {FLOAT32: ctypes.c_float, FLOAT64: ctypes.c_double}[datatype]
    return np.ctypeslib.as_array((number * count).from_address(address))


class Device:
    used = 0

    def __init__(self, device: int) -> None:
        self.device = device

    def use(self) -> None:
        Device.used = self.device


class Stream:
    ptr = STREAM

    def synchronize(self) -> None:
        pass


def install(gpus: int) -> None:
    """Make `import cupy` give the stand-in, with so many GPUs."""
    cupy, cuda, nccl = (cast(Any, ModuleType(name)) for name in ("cupy", "cupy.cuda", "cupy.cuda.nccl"))
    nccl.available = True
    nccl.get_unique_id = lambda: UNIQUE_ID
    nccl.NcclCommunicator, nccl.NcclError = NcclCommunicator, NcclError
    nccl.NCCL_FLOAT32, nccl.NCCL_FLOAT64, nccl.NCCL_SUM = FLOAT32, FLOAT64, SUM
    cuda.nccl, cuda.Device, cuda.get_current_stream = nccl, Device, Stream
    cuda.runtime = SimpleNamespace(getDeviceCount=lambda: gpus)
    cupy.cuda, cupy.ndarray, cupy.__getattr__ = cuda, fake_gpu.DeviceArray, fake_gpu.library.__getattr__
    sys.modules |= {module.__name__: module for module in (cupy, cuda, nccl)}
