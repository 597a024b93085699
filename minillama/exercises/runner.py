"""Runs the checks of one learner's file in a process beside, and waits no longer than it should."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import minillama
from minillama.errors import MinillamaError
from minillama.exercises.chapter import Chapter
from minillama.exercises.examine import Verdict, waits_for

SECONDS = 3.0  # for one exercise, whose checks take milliseconds
START_SECONDS = 60.0  # for Python and NumPy to start, on a machine that is busy


def run_checks(chapter: Chapter, path: Path, seconds: float = SECONDS) -> list[Verdict]:
    """The verdict on each exercise of `chapter` in the learner's file at `path`, in order.

    Raises MinillamaError when there is no such file.
    """
    if not path.is_file():
        raise MinillamaError(f"{path}: no such file; `minillama exercises reset {chapter.code}` writes a new one")
    verdicts: dict[str, Verdict] = {}
    while left := [exercise.name for exercise in chapter.exercises if exercise.name not in verdicts]:
        found = _run_worker(chapter, path.resolve(), left, seconds)  # once more for each that had to be stopped
        if found[-1].name == "":  # the file itself cannot be read
            return [found[-1]]
        verdicts |= {verdict.name: verdict for verdict in found}
        # What is built on something that is not right yet is not held against the learner, and costs no more time.
        for exercise in chapter.exercises:
            needed = [verdicts.get(name) for name in exercise.needs]
            verdict = verdicts.get(exercise.name)
            if any(v and v.state != "solved" for v in needed) and (verdict is None or verdict.state == "failed"):
                verdicts[exercise.name] = Verdict(exercise.name, "waiting", waits_for(exercise))
    return [verdicts[exercise.name] for exercise in chapter.exercises]


def _run_worker(chapter: Chapter, path: Path, names: list[str], seconds: float) -> list[Verdict]:
    """Verdicts up to the first exercise that does not come to an end, or to the last."""
    command = [sys.executable, "-m", "minillama.exercises.worker", chapter.code, str(path), *names]
    package = Path(minillama.__file__).parents[1]  # found by the process beside from any folder
    paths = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    verdicts: list[Verdict] = []
    begun, limit = "", START_SECONDS
    try:
        while len(verdicts) < len(names):
            try:
                line = lines.get(timeout=limit)
            except queue.Empty:
                what = f"{begun} ran" if begun else "Importing the file took"
                verdicts.append(Verdict(begun, "failed", f"{what} longer than {seconds:g} seconds. An endless loop?"))
                break
            if not line:  # the process has ended by itself
                process.wait()
                reason = f"It ended Python (exit code {process.returncode})."
                verdicts.append(Verdict(begun, "failed", reason))
                break
            message = json.loads(line)
            if "verdict" in message:
                verdicts.append(Verdict(**message["verdict"]))
                if not verdicts[-1].name:
                    break
            else:
                begun, limit = message["begin"], seconds
    finally:
        process.kill()
        process.wait()
    return verdicts


def _read(stream: IO[bytes] | None, lines: queue.Queue[bytes]) -> None:
    """Hands each line on as it comes, and b"" at the end."""
    assert stream is not None
    for line in stream:
        lines.put(line)
    lines.put(b"")
