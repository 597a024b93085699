"""Files that are whole or absent: written beside and renamed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from minillama.errors import MinillamaError


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, whose folder is made if needed. Raises MinillamaError; then `path` is as it was."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise MinillamaError(f"{path}: cannot be written: {error.strerror}") from None
