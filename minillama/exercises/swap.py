"""Puts a learner's functions in the place of the package's, so that real weights run through them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from minillama import backend
from minillama.errors import MinillamaError
from minillama.exercises.chapter import BadReturn, Chapter, Exercise, unpack
from minillama.exercises.examine import explain_exception
from minillama.exercises.skeleton import is_unwritten
from minillama.exercises.worker import load_file
from minillama.exercises.workspace import learner_file


@contextmanager
def swapped(folder: Path, chapters: list[Chapter]) -> Iterator[tuple[list[str], list[str]]]:
    """While it is open, the package runs the learner's functions; gives their names, and those not written yet.

    Raises MinillamaError when a file cannot be read or none of its functions is written.
    """
    # Learners write for NumPy: while their code runs, the model stays on the CPU.
    replacements: dict[tuple[Any, str], Any] = {(backend, "cuda_problem"): lambda: "exercises run on the CPU"}
    yours: list[str] = []
    unwritten: list[str] = []
    for chapter in chapters:
        path = learner_file(folder, chapter).resolve()  # as tracebacks name it
        module = _load(path)
        usable = [exercise for exercise in chapter.exercises if exercise.replaces]
        written = {exercise.name for exercise in usable if not is_unwritten(getattr(module, exercise.name, None))}
        if not written:
            raise MinillamaError(
                f"nothing to run in {path.name} yet: write {usable[0].name} first ({usable[0].number}), or ask for a"
                f" hint: minillama exercises hint {chapter.code}"
            )
        unwritten += [exercise.name for exercise in usable if exercise.name not in written]
        for exercise in usable:
            function = _replacement(exercise, module, written, path)
            if function is not None:
                yours += [exercise.name] if exercise.name in written else []
                assert exercise.replaces is not None
                replacements[_place(exercise.replaces)] = exercise.adapt(function) if exercise.adapt else function
    exchanged = [(place, getattr(*place), function) for place, function in replacements.items()]
    try:
        for place, original, function in exchanged:
            _exchange(place, original, function)
        yield yours, unwritten
    finally:
        for place, original, function in exchanged:
            _exchange(place, function, original)


def _exchange(place: tuple[Any, str], old: Any, new: Any) -> None:
    """Put `new` in its place, and into every module of the package that has imported `old` from there."""
    setattr(*place, new)
    if isinstance(place[0], ModuleType):
        for module in [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "minillama"]:
            for name in [name for name, value in vars(module).items() if value is old]:
                setattr(module, name, new)


def _replacement(exercise: Exercise, module: ModuleType, written: set[str], path: Path) -> Callable[..., Any] | None:
    """What to run in the place of the package's function; None leaves it.

    A backward pass goes with its forward pass, whose `saved` it reads: neither is mixed with the package's other.
    """
    forward = exercise.name.removesuffix("_backward")
    if forward not in written:
        return None
    if exercise.name in written:
        return _guarded(getattr(module, exercise.name), exercise, path)
    return _missing(exercise, path)


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        raise MinillamaError(f"{path}: no such file; `minillama exercises reset {path.stem[:4]}` writes a new one")
    try:
        return load_file(path)
    except Exception as error:
        raise MinillamaError(f"{path.name} cannot be imported. {explain_exception(error, '', path)}") from error


def _place(replaces: str) -> tuple[Any, str]:
    """The object and attribute of 'minillama.model:Llama.forward'."""
    module, _, dotted = replaces.partition(":")
    owner: Any = import_module(module)
    *parents, attribute = dotted.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, attribute


def _guarded(function: Callable[..., Any], exercise: Exercise, path: Path) -> Callable[..., Any]:
    """`function`, its exceptions and missing results told in one line."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            result = function(*args, **kwargs)
            unpack(result, exercise.returns, exercise.name)
        except MinillamaError:
            raise
        except BadReturn as error:
            raise MinillamaError(f"{path.name}: {error}") from error
        except Exception as error:
            text = explain_exception(error, exercise.name, path)
            raise MinillamaError(f"{path.name}, your {exercise.name}: {text}") from error
        return result

    return call


def _missing(exercise: Exercise, path: Path) -> Callable[..., Any]:
    """In the place of a backward pass that is not written, where the learner's forward pass stands already."""

    def call(*args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        raise MinillamaError(
            f"{path.name}: training needs {exercise.name} ({exercise.number}), which is not written yet"
        )

    return call
