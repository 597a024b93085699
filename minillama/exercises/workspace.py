"""The learner's folder: where it is, new skeletons with the old work kept beside, and the hints shown so far.

What is solved is kept nowhere: it is found by running the checks.
"""

from __future__ import annotations

import json
import os
from itertools import count
from pathlib import Path

import minillama
from minillama.errors import UsageError
from minillama.exercises import skeleton
from minillama.exercises.chapter import CHAPTERS, Chapter

HINTS = ".hints.json"  # {"ch04.rope": 1}: how many hints were shown


def find_folder(given: Path | None = None) -> Path:
    """The folder with the learner's files: the given one, else `exercises` here, in a folder above, or in the clone.

    Raises UsageError when there is none.
    """
    if given is not None:
        return given
    here = Path.cwd()
    clone = Path(minillama.__file__).parents[1]
    for folder in [here, *(parent / "exercises" for parent in (here, *here.parents, clone))]:
        if any((folder / f"{name}.py").is_file() for name in CHAPTERS):
            return folder
    raise UsageError("no exercises here; `minillama exercises reset --folder exercises` writes them into a new folder")


def learner_file(folder: Path, chapter: Chapter) -> Path:
    """The file in which the learner writes."""
    return folder / f"{chapter.name}.py"


def reset(folder: Path, chapter: Chapter) -> Path | None:
    """Writes the chapter's skeleton and test anew; returns where a changed file of the learner's is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    path = learner_file(folder, chapter)
    fresh = skeleton.files(chapter)
    kept = None
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != fresh[path.name]:
        names = (folder / f"{chapter.name}.mine-{number}.py" for number in count(1))
        kept = next(name for name in names if not name.exists())
        path.replace(kept)
    for name, text in fresh.items():
        _write(folder / name, text)
    return kept


def hints_shown(folder: Path, chapter: Chapter, name: str) -> int:
    """How many hints of the exercise `name` were shown; the first one stands in the skeleton."""
    shown = _read_hints(folder).get(f"{chapter.code}.{name}", 1)
    return shown if isinstance(shown, int) else 1


def note_hints(folder: Path, chapter: Chapter, name: str, shown: int) -> None:
    """Keeps that `shown` hints of the exercise `name` were shown."""
    _write(folder / HINTS, json.dumps(_read_hints(folder) | {f"{chapter.code}.{name}": shown}, indent=1) + "\n")


def _read_hints(folder: Path) -> dict[str, object]:
    try:
        hints = json.loads((folder / HINTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a lost count only shows a hint once more
    return hints if isinstance(hints, dict) else {}


def _write(path: Path, text: str) -> None:
    """Written beside and renamed, so that an interruption leaves the old file whole."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8", newline="\n")
    os.replace(beside, path)
