"""A few threads that share arrays. NumPy's functions and the BLAS release Python's lock while they work."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")


class Threads:
    """`count` threads, the caller's own among them in effect: it waits. One thread is no thread: plain calls.

    While they work the BLAS keeps to one thread for each: two cores that work on data of their own meet once, two that
    share every matrix product meet thousands of times.
    """

    def __init__(self, count: int | None = None) -> None:
        """count None: as many as this process has cores."""
        self.count = usable_cores() if count is None else count
        self._pool = ThreadPoolExecutor(self.count) if self.count > 1 else None

    def each(self, function: Callable[[int], T]) -> list[T]:
        """[function(0), …, function(count - 1)], side by side."""
        if self._pool is None:
            return [function(0)]
        with threadpool_limits(1, "blas"):
            return list(self._pool.map(function, range(self.count)))

    def split(self, length: int, function: Callable[[slice], T]) -> list[T]:
        """`function` of `count` consecutive slices that cover 0 … length, side by side."""
        bounds = [length * i // self.count for i in range(self.count + 1)]
        return self.each(lambda i: function(slice(bounds[i], bounds[i + 1])))


ONE_THREAD = Threads(1)


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let this process keep the memory of arrays that are freed, for the next ones.

    The C library of Linux gives large blocks back, and the system hands them out again one zeroed page after the
    other: a tenth of a training step. Elsewhere nothing is done.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl has not
        if mallopt is not None:
            M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
            mallopt(M_ARENA_MAX, 1)  # what one thread frees another can take
            mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest that it accepts
            mallopt(M_TRIM_THRESHOLD, 1 << 30)
            mallopt(M_TOP_PAD, 64 << 20)
