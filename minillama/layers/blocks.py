"""Rows a few at a time, so that what an op does to them one after another happens in a core's cache.

An op that goes over its array ten times reads memory ten times if the array is large, and once if it is taken in
pieces. On a GPU, where an op of many pieces would be many launches, everything is one piece.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CACHED = 1 << 17  # numbers of one array at a time: fewer, and threads wait more for the interpreter than for memory


def row_blocks(xp: Any, rows: int, width: int) -> list[slice]:
    """Slices that cover `rows` rows of `width` numbers, each of about CACHED numbers and at least one row."""
    size = max(1, CACHED // max(1, width)) if xp is np else max(1, rows)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
