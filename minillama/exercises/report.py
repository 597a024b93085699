"""What a learner reads: the report of a check, and the table of progress."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from rich import box
from rich.table import Table

from minillama.exercises.chapter import Chapter, Exercise
from minillama.exercises.examine import Verdict

WIDTH = 80
MARKS = {"solved": "✓", "failed": "✗", "unwritten": "·", "waiting": "·"}
PLAIN_MARKS = {"solved": "+", "failed": "x", "unwritten": ".", "waiting": "."}  # for terminals without Unicode


def report(chapter: Chapter, path: Path, verdicts: list[Verdict], about: Exercise | None = None) -> str:
    """The chapter's exercises, each with its mark, the first failure explained, and what to do next.

    about: explain this exercise in the place of the first failure.
    """
    if not verdicts[0].name:  # the file cannot be read
        return f"{chapter.code} · {chapter.title}\n\n{wrap(verdicts[0].message)}"
    solved = sum(verdict.state == "solved" for verdict in verdicts)
    lines = [f"{chapter.code} · {chapter.title}: {solved} of {len(verdicts)} solved", ""]
    for exercise, verdict in zip(chapter.exercises, verdicts, strict=True):
        note = {"unwritten": "not written yet", "waiting": verdict.message}.get(verdict.state, "")
        lines.append(f"  {mark(verdict)} {exercise.number:<5}{exercise.grade:<9}{exercise.name:<24}{note}".rstrip())
    pairs = list(zip(chapter.exercises, verdicts, strict=True))
    lines += ["", _next(chapter, path, [pair for pair in pairs if about in (None, pair[0])])]
    return "\n".join(lines)


def explain(exercise: Exercise, verdict: Verdict, path: Path) -> str:
    """One failure in words, and what the learner's code printed on the way."""
    lines = [f"{exercise.number} {exercise.name} is not right yet ({path.name}, line {_line_of(path, exercise)}).", ""]
    lines += [wrap(line) for line in verdict.message.splitlines()]
    if verdict.printed.strip():
        lines += ["", "Your code printed:", textwrap.indent(_beginning(verdict.printed), "  ")]
    return "\n".join(lines)


def status_table(results: list[tuple[Chapter, list[Verdict]]]) -> Table:
    """Progress by chapter and grade; fits 80 columns."""
    table = Table(caption_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("chapter", "", "warm-up", "core", "stretch", "solved"):
        table.add_column(
            heading, justify="right" if heading in ("warm-up", "core", "stretch") else "left", no_wrap=True
        )
    total = done = 0
    for chapter, verdicts in results:
        states = {verdict.name: verdict.state for verdict in verdicts}
        cells = []
        for grade in ("warm-up", "core", "stretch"):
            of_grade = [states.get(exercise.name) for exercise in chapter.exercises if exercise.grade == grade]
            cells.append(f"{of_grade.count('solved')}/{len(of_grade)}" if of_grade else "")
        solved, count = list(states.values()).count("solved"), len(chapter.exercises)
        done, total = done + solved, total + count
        bar = ("█" if unicode_output() else "#") * round(8 * solved / count)
        empty = ("░" if unicode_output() else "-") * (8 - len(bar))
        table.add_row(chapter.code, chapter.title, *cells, f"{bar}{empty} {solved}/{count}")
    unreadable = [verdicts[0].message for _, verdicts in results if not verdicts[0].name]
    table.caption = "\n".join([f"{done} of {total} exercises solved", *unreadable])
    return table


def mark(verdict: Verdict) -> str:
    """One character for the state."""
    return (MARKS if unicode_output() else PLAIN_MARKS)[verdict.state]


def unicode_output() -> bool:
    """Whether standard output can show the marks."""
    try:
        "✓█".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def wrap(text: str) -> str:
    """At most 80 columns."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _next(chapter: Chapter, path: Path, pairs: list[tuple[Exercise, Verdict]]) -> str:
    """The first failure explained; without one, what to write next."""
    for exercise, verdict in pairs:
        if verdict.state == "failed":
            hint = f"A hint: minillama exercises hint {chapter.code} {exercise.name}"
            return f"{explain(exercise, verdict, path)}\n\n{hint}"
    for exercise, verdict in pairs:
        if verdict.state != "solved":
            return f"Next: {exercise.number} {exercise.name}, {path.name} line {_line_of(path, exercise)}."
    if len(pairs) == 1:
        return f"{pairs[0][0].number} {pairs[0][0].name} is solved."
    runs = "exercises run" in chapter.head
    return "All solved." + (f" The head of {path.name} says how your code runs a real model." if runs else "")


def _line_of(path: Path, exercise: Exercise) -> int:
    """Where the function is defined in the learner's file."""
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.startswith(f"def {exercise.name}("):
            return number
    return 1


def _beginning(printed: str, lines: int = 10) -> str:
    text = printed.strip("\n").splitlines()
    return "\n".join(text[:lines] + (["..."] if len(text) > lines else []))
