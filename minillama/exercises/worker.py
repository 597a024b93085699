"""The process in which a learner's code runs: `python -m minillama.exercises.worker ch04 FILE EXERCISE...`.

Writes one JSON object a line: {"begin": name} before an exercise, {"verdict": {...}} after it. A process of its own,
since the code may loop forever, exit, or print.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from minillama.exercises.chapter import load_chapter
from minillama.exercises.examine import Verdict, examine, explain_exception

PRINTED = 2000  # characters of what the learner prints that are kept


class Printed(io.StringIO):
    """What the learner's code prints, its beginning."""

    def write(self, text: str) -> int:
        super().write(text[: max(0, PRINTED - self.tell())])
        return len(text)


def load_file(path: Path) -> ModuleType:
    """The learner's file as a module of its own; raises whatever its code raises."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def main(code: str, file: str, names: list[str]) -> None:
    """Examines the exercises `names` of chapter `code` in `file`."""
    path = Path(file)
    chapter = load_chapter(code)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stream:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what goes around sys.stdout does not reach the reader

        def say(message: dict[str, Any]) -> None:
            print(json.dumps(message), file=stream, flush=True)

        say({"begin": ""})
        printed = Printed()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                module = load_file(path)
            except BaseException as error:
                message = f"{path.name} cannot be imported. {explain_exception(error, '', path)}"
                say({"verdict": asdict(Verdict("", "failed", message, printed.getvalue()))})
                return
        for name in names:
            say({"begin": name})
            printed = Printed()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                verdict = examine(chapter.find(name), module, chapter.solutions, path)
            say({"verdict": asdict(replace(verdict, printed=printed.getvalue()))})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
