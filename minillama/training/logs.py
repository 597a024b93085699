"""What a run says while it goes on: to the terminal, to `log.jsonl`, and to TensorBoard."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

from tqdm import tqdm

from minillama.errors import MinillamaError, UsageError
from minillama.weights.writing import replaced_file

SILENCE = 30.0  # seconds between two lines where there is no terminal
SAMPLE_WIDTH = 160  # characters of a sample that the terminal shows; log.jsonl has it all

Record = dict[str, Any]  # "step", and what there is to say of it


class Log:
    """Takes the records of a run in the order of their steps; this one forgets them.

    A record is of a step ("loss", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds"), of a validation
    ("validation": names and numbers) or of a sample ("sample": a text). `step` counts the updates done.
    """

    def write(self, record: Record) -> None:
        """Take down a record."""

    def say(self, line: str) -> None:
        """A notice for the user."""

    def sync(self) -> None:
        """All that was written is on the disk when this returns."""

    def close(self) -> None:
        """There will be nothing more."""


class Logs(Log):
    """Several logs as one."""

    def __init__(self, *logs: Log) -> None:
        self.logs = logs

    def write(self, record: Record) -> None:
        for log in self.logs:
            log.write(record)

    def say(self, line: str) -> None:
        for log in self.logs:
            log.say(line)

    def sync(self) -> None:
        for log in self.logs:
            log.sync()

    def close(self) -> None:
        for log in self.logs:
            log.close()


class JsonLines(Log):
    """`log.jsonl`: a JSON object a record. What an earlier part of the run wrote after the step that it is resumed
    at is dropped, so that every step is there once.
    """

    def __init__(self, path: Path, step: int) -> None:
        """step: how many steps have been done. Raises MinillamaError where the file cannot be written."""
        self._path = path
        if path.exists():
            kept = [line for line in _lines(path) if _step(line) <= step]
            with replaced_file(path) as partial:
                partial.write_bytes(b"".join(kept))
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._problem(error) from None

    def write(self, record: Record) -> None:
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._problem(error) from None

    def sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._problem(error) from None

    def close(self) -> None:
        with suppress(OSError):  # what could not be written was reported then
            self._file.close()

    def _problem(self, error: OSError) -> MinillamaError:
        return MinillamaError(f"{self._path}: cannot be written ({error.strerror or error})")


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise MinillamaError(f"{path}: cannot be read ({error.strerror or error})") from None


def _step(line: bytes) -> float:
    """The step that a line is of; infinite for half a line, which a kill leaves."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Terminal(Log):
    """Progress on stderr: a bar on a terminal, else a line now and then."""

    def __init__(self, steps: int, step: int) -> None:
        """steps: of the whole run. step: how many of them are done."""
        self._steps = steps
        self._bar = tqdm(
            total=steps,
            initial=step,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}% |{bar}| step {n}/{total} [{elapsed}<{remaining}{postfix}]",
            leave=False,
        )
        self._spoken = 0.0  # when there was a line

    def write(self, record: Record) -> None:
        if "loss" in record:
            self._show_step(record)
        elif "validation" in record:
            numbers = ", ".join(f"{name.replace('_', ' ')} {x:.4f}" for name, x in record["validation"].items())
            self.say(f"step {record['step']}: validation {numbers}")
        elif "sample" in record:
            self.say(f"step {record['step']}: {shorten(record['sample'], SAMPLE_WIDTH, placeholder=' …')}")

    def say(self, line: str) -> None:
        if self._bar.disable:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()

    def _show_step(self, record: Record) -> None:
        told = self._told(record)
        if not self._bar.disable:
            self._bar.set_postfix_str(told, refresh=False)
            self._bar.update(record["step"] - self._bar.n)
        elif time.monotonic() - self._spoken >= SILENCE or record["step"] == self._steps:
            self._spoken = time.monotonic()
            self.say(f"step {record['step']} of {self._steps}: {told}")

    def _told(self, record: Record) -> str:
        """What is shown of a step."""
        return f"loss {record['loss']:.4f} · {record['tokens_per_second']:,.0f} tokens/s"


class TensorBoard(Log):
    """Event files for TensorBoard: the numbers of every record as scalars."""

    def __init__(self, folder: Path, step: int) -> None:
        """step: how many steps have been done; what TensorBoard knows of later ones it forgets."""
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise UsageError("--tensorboard: not installed (pip install 'minillama[tensorboard]')") from None
        self._events, self._summaries = event_pb2, summary_pb2
        self._writer = EventFileWriter(str(folder))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(event_pb2.Event(session_log=start, step=step + 1, wall_time=time.time()))

    def write(self, record: Record) -> None:
        numbers = {name: x for name, x in record.items() if isinstance(x, (int, float)) and name != "step"}
        numbers = {f"train/{name}": x for name, x in numbers.items()}
        numbers |= {f"validation/{name}": x for name, x in record.get("validation", {}).items()}
        values = [self._summaries.Summary.Value(tag=name, simple_value=x) for name, x in numbers.items()]
        if values:
            summary = self._summaries.Summary(value=values)
            event = self._events.Event(summary=summary, step=record["step"], wall_time=time.time())
            self._writer.add_event(event)

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
