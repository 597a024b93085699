"""Exercises: the learner writes the package's functions again, checks them, and runs real weights with them.

In a notebook: `from minillama.exercises import check; check("ch04")`.
"""

from __future__ import annotations

from pathlib import Path


def check(name: str, folder: str | Path | None = None) -> None:
    """Check the learner's file of one chapter and print the report: the last cell of each chapter of the book.

    name: 'ch04'. folder: where the file is, None for `exercises` here, in a folder above, or in the clone. Raises
    UsageError for an unknown chapter.
    """
    from minillama.exercises.chapter import load_chapter
    from minillama.exercises.report import report
    from minillama.exercises.runner import run_checks
    from minillama.exercises.workspace import find_folder, learner_file

    chapter = load_chapter(name)
    path = learner_file(find_folder(Path(folder) if folder else None), chapter)
    print(report(chapter, path, run_checks(chapter, path)))


__all__ = ["check"]
