"""Batches of token windows: which tokens a step trains on, as a pure function of the step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from minillama.data.shards import TokenSplit
from minillama.errors import MinillamaError, UsageError


class Windows:
    """Windows of T + 1 tokens of a split in random order: T tokens, and the token that follows each.

    The split is taken as a ring, its last token (an EOS) followed by its first (a BOS). An epoch covers ⌊N/T⌋ windows,
    which lie side by side on it, so that no token is a target twice; the fewer than T that are left over are the first
    of the next epoch, which begins where this one ended. The order of the windows is drawn from (seed, epoch). A batch
    may run over an epoch's end.
    """

    def __init__(self, split: TokenSplit, seq_len: int, batch_size: int, seed: int = 0) -> None:
        """seq_len: T. batch_size: B. Raises UsageError; MinillamaError where the split is too short for a window."""
        if seq_len < 1 or batch_size < 1 or seed < 0:
            raise UsageError(f"seq_len {seq_len}, batch_size {batch_size}, seed {seed}: expected at least 1, 1 and 0")
        if len(split) <= seq_len:
            raise MinillamaError(
                f"sequence length {seq_len}: expected more tokens than that to train on, found {len(split)}"
            )
        self.split, self.seq_len, self.batch_size, self.seed = split, seq_len, batch_size, seed
        self.windows_per_epoch = len(split) // seq_len
        self._order = lru_cache(maxsize=2)(self._drawn_order)  # a batch may need two epochs

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every window has been seen; the last of them may run into the next epoch."""
        return -(-self.windows_per_epoch // self.batch_size)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The batch of `step` = 0, 1, …: "tokens" and "targets", both (B, T) int64."""
        first = step * self.batch_size
        rows = np.stack([self._window(index) for index in range(first, first + self.batch_size)])  # (B, T + 1)
        return {"tokens": np.ascontiguousarray(rows[:, :-1]), "targets": np.ascontiguousarray(rows[:, 1:])}

    def _window(self, index: int) -> np.ndarray:
        """The `index`-th window of the whole run, (T + 1,)."""
        epoch, place = divmod(index, self.windows_per_epoch)
        passed = epoch * self.windows_per_epoch + int(self._order(epoch)[place])  # windows before it on the ring
        start = passed * self.seq_len % len(self.split)
        window = self.split[start : start + self.seq_len + 1]
        missing = self.seq_len + 1 - len(window)
        return np.concatenate([window, self.split[:missing]]) if missing else window

    def _drawn_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.windows_per_epoch)


def in_order(split: TokenSplit, seq_len: int, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """The whole split once, in order: batches as those of `Windows`, with a "loss_mask" (B, T) bool.

    Every token but the first is a target that counts once. The mask is false on the padding (token 0) that fills the
    last window; the last batch has as many rows as are left. Raises MinillamaError for a split of fewer than 2 tokens.
    """
    if seq_len < 1 or batch_size < 1:
        raise UsageError(f"seq_len {seq_len}, batch_size {batch_size}: expected at least 1 each")
    if len(split) < 2:
        raise MinillamaError(f"validation: expected at least 2 tokens, found {len(split)}")
    return _in_order(split, seq_len, batch_size)


def _in_order(split: TokenSplit, seq_len: int, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    targets = len(split) - 1
    for start in range(0, targets, batch_size * seq_len):
        count = min(batch_size * seq_len, targets - start)  # targets of this batch
        rows = -(-count // seq_len)
        tokens, following = np.zeros((2, rows * seq_len), np.int64)
        tokens[:count] = split[start : start + count]
        following[:count] = split[start + 1 : start + 1 + count]
        counts = np.arange(rows * seq_len) < count
        yield {  # (B T) -> (B, T)
            "tokens": tokens.reshape(rows, seq_len),
            "targets": following.reshape(rows, seq_len),
            "loss_mask": counts.reshape(rows, seq_len),
        }
