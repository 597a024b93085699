"""Checkpoints of a run: folders `step-000123`, each whole or absent, with all that is needed to go on to the bit.

Each is a Hugging Face folder, which `minillama generate` and transformers open, with two files more:
`optimizer.safetensors` (AdamW's m and v, float32, in the order of the flat parameters) and `trainer.json` (the step,
the settings of the run, its running statistics). `SHA256SUMS` is written last and covers them all; `sha256sum -c` reads
it too. Random numbers need no place: batches and samples are pure functions of the seed and the step.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from minillama import weights
from minillama.errors import MinillamaError
from minillama.weights import Checkpoint
from minillama.weights.checkpoint import one_line, read_json

OPTIMIZER, TRAINER, SUMS = "optimizer.safetensors", "trainer.json", "SHA256SUMS"


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds. optimizer: m, v and steps. trainer: what `Checkpoints.save` was given."""

    path: Path
    model: Checkpoint
    optimizer: dict[str, np.ndarray]
    trainer: dict[str, Any]


class Checkpoints:
    """The checkpoints in a folder: the newest few, and the best one."""

    def __init__(self, folder: Path, keep_last: int = 3) -> None:
        self.folder, self.keep_last = folder, keep_last

    def path(self, step: int) -> Path:
        """Where the checkpoint after `step` steps is, or would be."""
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, in ascending order, damaged or not."""
        names = [entry.name for entry in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d{6,}", name))

    def save(self, step: int, model: Checkpoint, optimizer: Mapping[str, np.ndarray], trainer: dict[str, Any]) -> Path:
        """Write the checkpoint after `step` steps. When this returns no power cut takes it any more.

        Raises MinillamaError where it cannot be written, as on a full disk; older ones are then as they were.
        """
        path = self.path(step)
        with self._written(step) as partial:
            weights.save(model, partial, to="huggingface")
            _save_arrays(partial / OPTIMIZER, optimizer)
            (partial / TRAINER).write_text(json.dumps(trainer, indent=1) + "\n", encoding="utf-8")
            names = sorted(file.name for file in partial.iterdir())
            sums = "".join(f"{_sha256(partial / name)}  {name}\n" for name in names)
            (partial / SUMS).write_text(sums, encoding="utf-8")
        return path

    @contextmanager
    def _written(self, step: int) -> Iterator[Path]:
        """A folder to fill, which becomes that of `step` when the block ends well."""
        path = self.path(step)
        partial = path.with_name(f".{path.name}.partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            yield partial
            sync_folder(partial)
            if path.exists():
                shutil.rmtree(path)  # a damaged one, for a whole one is not written twice
            os.rename(partial, path)
            sync(self.folder)
        except (OSError, MinillamaError) as error:
            problem = str(error).replace(partial.name, path.name)
            if isinstance(error, OSError):
                problem = f"{path}: cannot be written ({error.strerror or error})"
            before = [known for known in self.steps() if known < step]
            safe = f"the run is safe up to {self.path(before[-1])}" if before else "there is no checkpoint before it"
            raise MinillamaError(f"{problem}; {safe}") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def prune(self, step: int, best: int | None) -> None:
        """Remove all but the `keep_last` newest up to `step` and that of the step `best`."""
        past = [known for known in self.steps() if known <= step]
        kept = {*past[-self.keep_last :], best}
        for known in self.steps():  # a later one is damaged, or the run would not be here
            if known not in kept:
                shutil.rmtree(self.path(known), ignore_errors=True)

    def load(self, step: int, dtype: DTypeLike = np.float32) -> Saved:
        """The checkpoint after `step` steps. Raises MinillamaError where it is damaged."""
        path = self.path(step)
        _check_sums(path)
        model = weights.load(path, dtype, merge=False)
        return Saved(path, model, _load_arrays(path / OPTIMIZER), read_json(path / TRAINER))

    def newest(self, dtype: DTypeLike = np.float32) -> tuple[Saved | None, list[str]]:
        """The newest checkpoint that is whole, and what is wrong with those after it, a line each.

        None where there is no checkpoint. Raises MinillamaError where there are some, all of them damaged.
        """
        problems: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self.load(step, dtype), problems
            except MinillamaError as error:
                problems.append(str(error))
        if problems:
            raise MinillamaError(f"{problems[0]}; no other checkpoint is whole (--overwrite begins again)")
        return None, []


def sync(path: Path) -> None:
    """A file's content, or a folder's list of names, is on the disk when this returns."""
    if path.is_dir():
        if os.name != "posix":  # Windows opens no folder
            return
        descriptor = os.open(path, os.O_RDONLY)
    else:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """A folder and the files in it are on the disk when this returns."""
    for entry in path.iterdir():
        sync(entry)
    sync(path)


def _save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(arrays), path)
    except SafetensorError as error:
        raise MinillamaError(f"{path}: cannot be written ({one_line(error)})") from None


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise MinillamaError(f"{path}: expected a safetensors file, found a broken one ({one_line(error)})") from None


def _check_sums(path: Path) -> None:
    """Raise MinillamaError for a file that is missing or not as it was written."""
    try:
        lines = (path / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        for name in _needed(sums):
            if _sha256(path / name) != sums.get(name):
                raise MinillamaError(f"{path / name}: expected the file that was saved, found another: damaged")
    except OSError as error:
        raise MinillamaError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from None
    except ValueError:
        raise MinillamaError(f"{path / SUMS}: expected checksums and names, found something else: damaged") from None


def _needed(sums: Collection[str]) -> list[str]:
    """The files to check: all that are listed, and those that must be, so that a list cut short is noticed."""
    config = "adapter_config.json" if "adapter_config.json" in sums else "config.json"
    return sorted({*sums, config, OPTIMIZER, TRAINER})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
