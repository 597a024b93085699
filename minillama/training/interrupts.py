"""Ctrl-C and SIGTERM: asked once, a run ends in order; asked again, at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

STDERR = 2  # written to without Python's buffers, which the signal may have interrupted
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While the block lasts, the first signal only sets `asked`; a second one ends the process with 130."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.asked:
            os.write(STDERR, b"\n")
            os._exit(130)
        os.write(STDERR, b"\nthis step, then a checkpoint; once more leaves at once\n")
        self.asked = True
