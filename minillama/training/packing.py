"""Dialogues of many lengths as rows of one length: packed side by side, one a row, or simply one after the other.

A dialogue of n tokens takes n - 1 places: at each stands a token, and beside it the one that follows, its target.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from minillama.chat import Dialogue
from minillama.errors import UsageError
from minillama.training.workers import Batch

# packed: several a row, none of which sees the others. concatenated: as the paper's, where each sees what stands before
# it in the row. none: one a row.
Packing = Literal["packed", "concatenated", "none"]
PACKINGS: tuple[Packing, ...] = ("packed", "concatenated", "none")


def check_packing(packing: str) -> None:
    """Raise UsageError for a packing that there is not."""
    if packing not in PACKINGS:
        raise UsageError(f"packing {packing!r}: expected one of {', '.join(PACKINGS)}")


def pack(lengths: Sequence[int], order: Iterable[int], size: int) -> list[list[int]]:
    """Rows of at most `size` places: each dialogue, in the given order, goes into the first of the open rows that has
    room for it, or opens a new one (first fit; the 32 rows opened last are tried).

    lengths: places that each dialogue takes, from 1 to `size`. Returns the dialogues of each row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for i in order:
        row = next((r for r in range(max(0, len(rows) - 32), len(rows)) if room[r] >= lengths[i]), None)
        if row is None:
            rows.append([])
            room.append(size)
            row = len(rows) - 1
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows


def as_batch(
    dialogues: Sequence[Dialogue], rows: Sequence[Sequence[int]], size: int, packing: Packing = "packed"
) -> Batch:
    """Rows of `size` places as arrays (B, size): "tokens", "targets", "loss_mask", and "starts" (see `Llama.forward`).

    Padding is token 0, of which no target counts, each a text of its own; after the last dialogue it changes nothing.
    """
    check_packing(packing)
    shape = (len(rows), size)
    batch: Batch = {name: np.zeros(shape, np.int64) for name in ("tokens", "targets")}
    batch["loss_mask"] = np.zeros(shape, bool)
    batch["starts"] = np.tile(np.arange(size), (len(rows), 1))
    for row, those in enumerate(rows):
        start = 0
        for i in those:
            tokens, mask = dialogues[i].tokens, dialogues[i].loss_mask
            at = row, slice(start, start + len(tokens) - 1)
            batch["tokens"][at], batch["targets"][at] = tokens[:-1], tokens[1:]
            batch["loss_mask"][at] = mask[1:]
            batch["starts"][at] = 0 if packing == "concatenated" else start
            start += len(tokens) - 1
    return batch


class PackedDialogues:
    """Batches of dialogues over some epochs, each a pure function of the step.

    Every epoch has its own order and packing, drawn from (seed, epoch), and its rows make whole batches: the last is
    filled up with rows of which nothing counts. Without packing, rows are as long as the longest of their batch.
    """

    def __init__(
        self,
        dialogues: Sequence[Dialogue],
        size: int,
        batch_size: int,
        epochs: int = 1,
        seed: int = 0,
        packing: Packing = "packed",
    ) -> None:
        """size: places of a row; every dialogue must fit. batch_size: rows of a batch. Raises UsageError."""
        if size < 1 or batch_size < 1 or epochs < 1:
            raise UsageError(f"size {size}, batch size {batch_size}, epochs {epochs}: expected at least 1 each")
        lengths = [len(dialogue.tokens) - 1 for dialogue in dialogues]
        if not lengths:
            raise UsageError("no dialogues to learn from: expected at least one")
        if not 1 <= min(lengths) <= max(lengths) <= size:
            wrong = min(lengths) if min(lengths) < 1 else max(lengths)
            raise UsageError(f"a dialogue of {wrong + 1} tokens: expected 2 to {size + 1}")
        self.dialogues, self.size, self.batch_size, self.packing = dialogues, size, batch_size, packing
        self.rows: list[list[int]] = []
        for epoch in range(epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(dialogues)).tolist()
            self.rows += [[i] for i in order] if packing == "none" else pack(lengths, order, size)
            self.rows += [[]] * (-len(self.rows) % batch_size)
        self.steps = len(self.rows) // batch_size

    def batch(self, step: int) -> Batch:
        """The batch of `step` = 0 … steps - 1."""
        rows = self.rows[step * self.batch_size : (step + 1) * self.batch_size]
        size = self.size
        if self.packing == "none":
            size = max(len(self.dialogues[i].tokens) - 1 for row in rows for i in row)
        return as_batch(self.dialogues, rows, size, self.packing)
