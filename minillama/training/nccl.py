"""The five functions by NCCL, for arrays on GPUs: one GPU for each rank. MPI brings the ranks together."""

from __future__ import annotations

from minillama.backend import Array, device_of, get_array_module, import_cupy, import_nccl
from minillama.errors import MinillamaError
from minillama.training.distributed import share
from minillama.training.mpi import MPI


class NCCL:
    """All processes of `mpiexec`, each with a GPU of its own. What lies on the host still goes by MPI.

    NCCL's calls are queued on CuPy's current stream, behind the kernels that write what they send.
    """

    def __init__(self, hosts: MPI) -> None:
        """Takes a GPU of this machine for this process: to be called before anything is put on one.

        Raises MinillamaError where NCCL is missing or refuses, as where two ranks would share a GPU.
        """
        self.rank, self.size, self.local_size = hosts.rank, hosts.size, hosts.local_size
        self._hosts = hosts
        self._cuda, self._nccl = import_cupy().cuda, import_nccl()
        if not self._nccl.available:
            raise MinillamaError(
                "GPUs under mpiexec: CuPy finds no NCCL; expected libnccl.so.2 (pip install nvidia-nccl-cu12 or -cu13)"
            )
        gpus = self._cuda.runtime.getDeviceCount()
        self._cuda.Device(hosts.local_rank % gpus).use()
        unique = hosts.share_object(self._nccl.get_unique_id() if self.rank == 0 else None)
        try:
            self._comm = self._nccl.NcclCommunicator(self.size, unique, self.rank)
        except self._nccl.NcclError as error:
            raise MinillamaError(
                f"{error}: expected a GPU for each of the {self.local_size} ranks on this machine, found {gpus}"
            ) from None

    def all_reduce(self, x: Array) -> Array:
        if device_of(x) == "cpu":
            return self._hosts.all_reduce(x)
        self._comm.allReduce(x.data.ptr, x.data.ptr, x.size, self._type(x), self._nccl.NCCL_SUM, self._stream())
        return x

    def reduce_scatter(self, x: Array) -> Array:
        if device_of(x) == "cpu":
            return self._hosts.reduce_scatter(x)
        rows = self._rows(x)
        own = rows[self.rank]
        self._comm.reduceScatter(
            rows.data.ptr, own.data.ptr, own.size, self._type(x), self._nccl.NCCL_SUM, self._stream()
        )
        part = share(len(x), self.rank, self.size)
        return own[: part.stop - part.start]

    def all_gather(self, x: Array) -> Array:
        if device_of(x) == "cpu":
            return self._hosts.all_gather(x)
        rows = self._rows(x)
        own = rows[self.rank]
        self._comm.allGather(own.data.ptr, rows.data.ptr, own.size, self._type(x), self._stream())
        if rows.data.ptr != x.data.ptr:
            for rank in range(self.size):
                part = share(len(x), rank, self.size)
                x[part] = rows[rank, : part.stop - part.start]
        return x

    def broadcast(self, x: Array) -> Array:
        if device_of(x) == "cpu":
            return self._hosts.broadcast(x)
        self._comm.broadcast(x.data.ptr, x.data.ptr, x.size, self._type(x), 0, self._stream())
        return x

    def barrier(self) -> None:
        self._cuda.get_current_stream().synchronize()
        self._hosts.barrier()

    def _rows(self, x: Array) -> Array:
        """The shares of x (P,) as rows of equal length, (N, ⌈P / N⌉), for NCCL knows no other.

        Where P divides evenly they are x itself, else a copy in which a short row ends in zero.
        """
        if len(x) % self.size == 0:
            return x.reshape(self.size, -1)  # (P,) -> (N, P / N)
        rows = get_array_module(x).zeros((self.size, len(x) // self.size + 1), x.dtype)
        for rank in range(self.size):
            part = share(len(x), rank, self.size)
            rows[rank, : part.stop - part.start] = x[part]
        return rows

    def _type(self, x: Array) -> int:
        return {"float32": self._nccl.NCCL_FLOAT32, "float64": self._nccl.NCCL_FLOAT64}[x.dtype.name]

    def _stream(self) -> int:
        return self._cuda.get_current_stream().ptr
