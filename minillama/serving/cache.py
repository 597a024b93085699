"""A KV cache whose rows come and go: what lets requests join a running batch, and leave it."""

from __future__ import annotations

from typing import Any

import numpy as np

from minillama.backend import Array, get_array_module
from minillama.config import LlamaConfig
from minillama.model import KVCache

FIRST_SLOTS = 64  # how many positions there is memory for at first; doubled whenever a row needs more


class RowCache(KVCache):
    """Keys and values of up to `rows` sequences of unequal lengths, each extended by one token at a time.

    Position t of a row stands in slot t, and what lies after its end is masked. The rows in use are always the first
    ones, so that they are a view: a row that leaves hands its place to the last. A sliding window is part of the mask
    here, since rows end at different slots: the model that decodes over this cache must have none of its own.

    lengths: (rows,) int, how many tokens each row holds; 0 for those not in use.
    """

    def __init__(self, config: LlamaConfig, rows: int, like: Array) -> None:
        """like: an array of the type and on the device to use. The memory grows with the longest row."""
        super().__init__(config, rows, 0, like)
        self.length = config.max_seq_len
        self.lengths = np.zeros(rows, dtype=np.int64)
        self.active = 0
        self._window = config.sliding_window

    def join(self, prompt: KVCache) -> int:
        """Copy the one sequence of `prompt` into a row of its own. Returns its place."""
        place, n = self.active, prompt.used
        self._reserve(n + 1)
        self.keys[:, place, :, :n] = prompt.keys[:, 0, :, :n]
        self.values[:, place, :, :n] = prompt.values[:, 0, :, :n]
        self.lengths[place] = n
        self.active += 1
        self.used = int(self.lengths.max())
        return place

    def leave(self, place: int) -> None:
        """Free a row. The last one in use takes its place."""
        last = self.active - 1
        if place != last:
            n = self.lengths[last]
            self.keys[:, place, :, :n] = self.keys[:, last, :, :n]
            self.values[:, place, :, :n] = self.values[:, last, :, :n]
        self.lengths[place], self.lengths[last] = self.lengths[last], 0
        self.active = last
        self.used = int(self.lengths.max())

    def extend(self, T: int) -> tuple[Any, Array | None]:
        """Take the next slot of every row in use. Returns their positions (B, 1) and the mask (B, S) of what each sees.

        T must be 1: prompts are read in a cache of their own, and join.
        """
        assert T == 1
        xp = get_array_module(self.keys)
        positions = self.lengths[: self.active, None].copy()  # (B, 1)
        self.lengths[: self.active] += 1
        self.used = int(self.lengths.max())
        self._reserve(self.used)
        slots = np.arange(self.used)
        seen = slots <= positions  # (B, S)
        if self._window is not None:
            seen &= slots > positions - self._window
        return xp.asarray(positions), None if seen.all() else xp.asarray(seen)

    def store(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Put k and v (B, 1, K, D) into the slots just taken; all of the layer's so far (B, S, K, D), as views."""
        xp = get_array_module(k)
        rows, slots = xp.arange(self.active), xp.asarray(self.lengths[: self.active] - 1)
        keys, values = self.keys[layer, : self.active], self.values[layer, : self.active]  # (B, K, S, D)
        keys[rows, :, slots] = k[:, 0]
        values[rows, :, slots] = v[:, 0]
        return keys[:, :, : self.used].swapaxes(1, 2), values[:, :, : self.used].swapaxes(1, 2)

    def clear(self) -> None:
        """Free all rows."""
        self.lengths[:] = 0
        self.active = self.used = 0

    def _reserve(self, slots: int) -> None:
        """Have memory for so many positions of each row."""
        there = self.keys.shape[3]
        if slots <= there:
            return
        xp = get_array_module(self.keys)
        more = min(max(2 * there, slots, FIRST_SLOTS), self.length)
        shape = (*self.keys.shape[:3], more, self.keys.shape[4])  # (L, B, K, S, D)
        # Zeros: masked slots count as 0 · value, and what happens to lie in memory may be no number.
        keys, values = xp.zeros(shape, self.keys.dtype), xp.zeros(shape, self.keys.dtype)
        for row, n in enumerate(self.lengths[: self.active].tolist()):
            n = min(n, there)
            keys[:, row, :, :n], values[:, row, :, :n] = self.keys[:, row, :, :n], self.values[:, row, :, :n]
        self.keys, self.values = keys, values
