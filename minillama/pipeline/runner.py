"""Runs stages in order, each once.

A stage is a command of `minillama` whose last file or folder is its output. Its key is a checksum of the command and of
the keys of the stages whose outputs it reads; `pipeline.json` notes which keys have been made. A stage whose key has
changed is made anew, and so is everything after it. One that was killed goes on where its command can.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minillama.bench import peak_memory
from minillama.errors import MinillamaError, UsageError
from minillama.tokenizer.atomic import write_bytes
from minillama.training.run_folder import LOCK, locked
from minillama.weights.checkpoint import read_json

RECORD = "pipeline.json"
# What makes a command write over what is there. These two write one file, whole or not at all; the others train in a
# folder, and go on there.
AGAIN = {"preferences": ("--force",), "evaluate": ()}
OVERWRITE = ("--overwrite",)


@dataclass(frozen=True)
class Made:
    """The output of a stage, or a file in it, as an argument of another stage's command."""

    stage: str
    file: str = ""


@dataclass(frozen=True)
class Stage:
    """A command of `minillama`, and where its output goes.

    name: of the output, a path below the pipeline's folder. command: what follows `minillama`; a `Made` stands for a
    path. to: the option that takes the output's path. checksum: of what it reads that no stage makes.
    """

    name: str
    command: tuple[str | Made, ...]
    to: str = "--out"
    checksum: str = ""

    def arguments(self, out: Path) -> list[str]:
        """The command with all paths, those of the pipeline's outputs below `out`."""
        said = [str(out / x.stage / x.file) if isinstance(x, Made) else x for x in self.command]
        return [*said, self.to, str(out / self.name)]

    def reads(self) -> list[str]:
        """The stages whose outputs it reads."""
        return [x.stage for x in self.command if isinstance(x, Made)]


@dataclass
class Record:
    """What is known of a pipeline's stages: name -> {"key", "made", "seconds"}. peak: bytes of memory, the most that a
    process of this pipeline has used.
    """

    path: Path
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    peak: int = 0

    @classmethod
    def load(cls, path: Path) -> Record:
        """What the file says; nothing where there is none. Raises MinillamaError where it is something else."""
        if not path.is_file():
            return cls(path)
        content = read_json(path)
        stages, peak = content.get("stages"), content.get("peak")
        if not isinstance(stages, dict) or not isinstance(peak, int):
            raise MinillamaError(f"{path}: expected the record of a pipeline, found something else")
        return cls(path, stages, peak)

    def note(self, stage: str, key: str, made: bool, seconds: float) -> None:
        """Write down how far a stage is."""
        self.peak = max(self.peak, peak_memory() or 0)
        self.stages[stage] = {"key": key, "made": made, "seconds": round(seconds, 1)}
        write_bytes(self.path, (json.dumps({"peak": self.peak, "stages": self.stages}, indent=1) + "\n").encode())

    @property
    def seconds(self) -> float:
        """Of all stages together."""
        return sum(stage["seconds"] for stage in self.stages.values())


def keys(stages: Sequence[Stage]) -> dict[str, str]:
    """The key of each stage. Raises UsageError where a stage reads what none before it makes, or two have a name."""
    found: dict[str, str] = {}
    for stage in stages:
        if stage.name in found:
            raise UsageError(f"pipeline: two stages are called {stage.name}")
        if missing := [name for name in stage.reads() if name not in found]:
            raise UsageError(f"pipeline: {stage.name} reads {missing[0]}, which no stage before it makes")
        said = [[found[x.stage], x.file] if isinstance(x, Made) else x for x in stage.command]
        found[stage.name] = hashlib.sha256(json.dumps([stage.name, *said, stage.checksum]).encode()).hexdigest()[:16]
    return found


def run(stages: Sequence[Stage], out: Path, threads: int | None = None) -> Record:
    """Make what is not there yet. threads: of every stage that trains, None for all cores.

    Raises what a stage raises; what was made stays, and the same call goes on after it. MinillamaError where another
    process runs a pipeline in `out`.
    """
    key = keys(stages)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: expected a folder to write to, found a file")
    with locked(out / LOCK):
        record = Record.load(out / RECORD)
        for number, stage in enumerate(stages, 1):
            known = record.stages.get(stage.name, {})
            if known.get("key") == key[stage.name] and known.get("made") and (out / stage.name).exists():
                continue
            arguments = stage.arguments(out)
            print(f"\n[{number}/{len(stages)}] minillama {' '.join(arguments)}", file=sys.stderr, flush=True)
            begun = known.get("key") == key[stage.name] and arguments[0] not in AGAIN
            before = known.get("seconds", 0.0) if begun else 0.0
            again = AGAIN.get(arguments[0], OVERWRITE)
            if threads is not None and arguments[0] not in AGAIN:
                arguments += ["--threads", str(threads)]
            (out / stage.name).parent.mkdir(parents=True, exist_ok=True)
            record.note(stage.name, key[stage.name], False, before)
            started = time.perf_counter()
            try:
                if not begun:
                    _command([*arguments, *again])
                else:
                    _go_on(arguments, again)
            finally:
                record.note(stage.name, key[stage.name], False, before + time.perf_counter() - started)
            record.note(stage.name, key[stage.name], True, record.stages[stage.name]["seconds"])
    return record


def _command(arguments: list[str]) -> None:
    """Run a command of `minillama` in this process. Raises what it raises, and typer.Exit where it ends with a code."""
    import typer

    from minillama.cli import app

    if code := app(arguments, standalone_mode=False):
        raise typer.Exit(code)


def _go_on(arguments: list[str], again: tuple[str, ...]) -> None:
    """The same, of a run that was begun; where it cannot be gone on with, it is begun anew."""
    try:
        _command(arguments)
    except MinillamaError as error:
        print(f"begun anew, for it cannot go on: {error}", file=sys.stderr)
        _command([*arguments, *again])
