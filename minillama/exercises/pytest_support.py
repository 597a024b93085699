"""Runs the checks from pytest: one test an exercise, with the same words as `minillama exercises check`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from minillama.exercises.chapter import load_chapter
from minillama.exercises.examine import Verdict
from minillama.exercises.report import explain
from minillama.exercises.runner import run_checks


def verify(path: Path, name: str) -> None:
    """Fails, with an explanation and no traceback, unless the exercise `name` in the file at `path` is solved."""
    chapter = load_chapter(path.stem)
    verdicts = _verdicts(path, path.stat().st_mtime_ns)
    verdict = next((v for v in verdicts if v.name in (name, "")), None)
    assert verdict is not None
    if verdict.state == "unwritten":
        pytest.fail(f"{name} is not written yet", pytrace=False)
    if verdict.state == "waiting":
        pytest.fail(f"{name} is tried {verdict.message}, which is not right yet", pytrace=False)
    if not verdict.name:
        pytest.fail(verdict.message, pytrace=False)
    if verdict.state == "failed":
        pytest.fail(explain(chapter.find(name), verdict, path), pytrace=False)


@lru_cache(maxsize=64)
def _verdicts(path: Path, changed: int) -> tuple[Verdict, ...]:
    """One run for all tests of a file; `changed` makes it run again for a file that has changed."""
    del changed
    return tuple(run_checks(load_chapter(path.stem), path))
