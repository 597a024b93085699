"""Rows in blocks: each row once, in order, and as many at a time as fit."""

from __future__ import annotations

import numpy as np
import pytest

from minillama.layers.blocks import CACHED, row_blocks
from tests.fake_gpu import library as gpu


@pytest.mark.parametrize(
    ("rows", "width", "sizes"),
    [
        (0, 8, []),
        (1, 8, [1]),
        (5, CACHED // 2, [2, 2, 1]),
        (4, CACHED // 2, [2, 2]),
        (3, CACHED // 2 + 1, [1, 1, 1]),
        (2, 10 * CACHED, [1, 1]),  # a row is not cut
        (CACHED + 1, 1, [CACHED, 1]),
        (CACHED + 1, 0, [CACHED, 1]),  # of no width, as rows of an empty array
    ],
)
def test_blocks_on_a_cpu(rows: int, width: int, sizes: list[int]) -> None:
    blocks = row_blocks(np, rows, width)
    assert [len(range(rows)[block]) for block in blocks] == sizes
    assert [i for block in blocks for i in range(rows)[block]] == list(range(rows))


@pytest.mark.parametrize(("rows", "blocks"), [(0, []), (1, [slice(0, 1)]), (4 * CACHED, [slice(0, 4 * CACHED)])])
def test_a_gpu_takes_all_rows_at_once(rows: int, blocks: list[slice]) -> None:
    assert row_blocks(gpu, rows, CACHED) == blocks
