"""The folder of a run: `run.json` says what run it is, `log.jsonl` what happened, `checkpoints/` lets it go on.

The same command again goes on with a run that has not ended, and finds one that has. When it ends, the folder itself is
a checkpoint: `minillama generate FOLDER`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minillama import weights
from minillama.errors import MinillamaError, UsageError
from minillama.training.checkpoint import sync, sync_folder
from minillama.weights import Checkpoint
from minillama.weights.checkpoint import read_json
from minillama.weights.writing import replaced_file

LOCK = ".lock"
Settings = dict[str, Any]  # what a run's numbers depend on, as JSON holds it


class RunFolder:
    """The names in a run's folder, and its `run.json`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.record, self.log = self.path / "run.json", self.path / "log.jsonl"
        self.checkpoints, self.data, self.tensorboard = (
            self.path / name for name in ("checkpoints", "data", "tensorboard")
        )

    @contextmanager
    def begun(self, settings: Settings, overwrite: bool = False) -> Iterator[None]:
        """Begin the run, or find the one to go on with; for as long as the block lasts no other process can.

        overwrite: remove the run that is there; one that has made no step gives way without it. Raises UsageError where
        the folder holds a run of other settings, or something that is no run; MinillamaError where another process is
        at it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path}: expected a folder to write to, found a file")
        if not self.exists() and self.path.is_dir() and not all(map(self._ours, self.path.iterdir())):
            raise UsageError(f"{self.path}: expected a new folder, an empty one or a run's, found something else")
        settings = json.loads(json.dumps(settings))  # as it is read again
        if self.exists() and not overwrite:
            found = read_json(self.record).get("settings")
            overwrite = found != settings and not self.log.exists()
            if not overwrite:
                check_settings(self.record, found, settings)
        with locked(self.path / LOCK):
            self._sweep()
            if overwrite:
                self._clear()
            if not self.exists():
                self._write(settings, None)
            yield

    def exists(self) -> bool:
        """Whether there is a run, ended or not."""
        return self.record.is_file()

    def result(self) -> dict[str, Any] | None:
        """What the run came to, once it has ended."""
        return read_json(self.record).get("result")

    def finish(self, settings: Settings, model: Checkpoint, result: dict[str, Any]) -> None:
        """Make the folder itself the checkpoint of the trained model, and note that the run has ended."""
        partial = self.path / ".final"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            weights.save(model, partial, to="huggingface")
            sync_folder(partial)
            for file in sorted(partial.iterdir()):
                os.replace(file, self.path / file.name)
            sync(self.path)
        except OSError as error:
            raise MinillamaError(f"{self.path}: cannot be written ({error.strerror or error})") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._write(settings, result)

    def _ours(self, entry: Path) -> bool:
        """Whether a file can be there before `run.json` is: a kill has kept it from being finished."""
        return entry.name == LOCK or entry.name.startswith(f".{self.record.name}.")

    def _sweep(self) -> None:
        """Remove what a kill has left half-written."""
        for pattern in (".*.partial", ".final", "tokenizer.model.*.part"):
            for left in [*self.path.glob(pattern), *self.checkpoints.glob(pattern)]:
                _remove(left)

    def _write(self, settings: Settings, result: dict[str, Any] | None) -> None:
        with replaced_file(self.record) as partial:
            partial.write_text(json.dumps({"settings": settings, "result": result}, indent=1) + "\n", encoding="utf-8")
            sync(partial)
        sync(self.path)

    def _clear(self) -> None:
        """Remove everything, `run.json` last: a kill on the way leaves what can be overwritten again."""
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry == self.record):
            if entry.name != LOCK:
                _remove(entry)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which the system lets go of when the process ends, however it does.

    Raises MinillamaError where another process holds it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise MinillamaError(f"{path.parent}: cannot be written ({error.strerror or error})") from None
    with file:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MinillamaError(f"{path.parent}: another process is training here") from None
        yield


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def check_settings(place: Path, found: Any, expected: Settings) -> None:
    """Raise UsageError with what differs, where `found` in the file `place` are not the `expected` settings."""
    there, here = _flat(found), _flat(json.loads(json.dumps(expected)))
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if names:
        shown = ", ".join(f"{name} {_brief(there.get(name))}, not {_brief(here.get(name))}" for name in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UsageError(
            f"{place}: a run of other settings: {shown}{more}; expected the same command, another --out, "
            "or --overwrite to begin again"
        )


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    """Nested dicts as one, the names joined with dots."""
    if not isinstance(tree, dict):
        return {path: tree}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{path}.{name}" if path else name)
    return flat


def _brief(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
