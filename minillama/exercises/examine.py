"""Tries one exercise of a learner and says what happened, in words."""

from __future__ import annotations

import contextlib
import copy
import io
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from minillama import layers
from minillama.exercises.chapter import BadReturn, Case, Exercise, Functions
from minillama.exercises.compare import Difference, compare, describe
from minillama.exercises.skeleton import is_unwritten

State = Literal["solved", "failed", "unwritten", "waiting"]


@dataclass(frozen=True)
class Verdict:
    """What became of one exercise. message is empty when it is solved; printed is what the learner's code printed."""

    name: str
    state: State
    message: str = ""
    printed: str = ""


@dataclass(frozen=True)
class Raised:
    """An exception of the learner's code, as far as it can be compared."""

    kind: str
    text: str


def examine(exercise: Exercise, own: Functions, solutions: SimpleNamespace, path: Path | None = None) -> Verdict:
    """The verdict on `exercise` for the functions in `own`; `path` is the file they come from.

    Where the exercise needs another one of the learner's that is not written, it is 'waiting'.
    """
    function = getattr(own, exercise.name, None)
    if function is None:
        return _failed(exercise, f"The file has no function {exercise.name}; `reset` restores the skeleton.")
    if not callable(function):
        return _failed(exercise, f"{exercise.name} is no longer a function but {type(function).__name__}.")
    if is_unwritten(function):
        return Verdict(exercise.name, "unwritten")
    if path is not None and function in (exercise.solution, _package_s_own(exercise)):
        return _failed(exercise, f"This is minillama's own {exercise.name}; the fun is in writing yours.")
    if any(is_unwritten(getattr(own, name, None)) for name in exercise.needs):
        return Verdict(exercise.name, "waiting", waits_for(exercise))

    cases = list(exercise.cases(np.random.default_rng(0)))
    for case in cases:
        problem = _try_case(exercise, own, solutions, case, path)
        if problem is None:
            continue
        cause = problem.cause
        if not problem.dtype_only:
            cause = _known_cause(exercise, own, solutions, cases) or cause
        lines = [_call(exercise, case), problem.text]
        if cause:
            lines.append(f"Likely cause: {cause}")
        return _failed(exercise, "\n".join(lines))
    if text := _try_proof(exercise, own, path):
        return _failed(exercise, text)
    return Verdict(exercise.name, "solved")


def waits_for(exercise: Exercise) -> str:
    """Why nothing can be said about `exercise` yet."""
    return f"after {', '.join(exercise.needs)}"


def explain_exception(error: BaseException, name: str, path: Path | None) -> str:
    """Which line of the learner's file raised what. name: of the function that was called, '' for the file itself."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if path and frame.filename == str(path)]
    text = str(error).strip().splitlines()
    what = type(error).__name__ + (f": {text[0]}" if text else "")
    if isinstance(error, SyntaxError):
        return f"Line {error.lineno}: SyntaxError: {error.msg}"
    if not frames:
        return f"Calling {name} raised {what}" if name else what
    last = frames[-1]
    if isinstance(error, NotImplementedError):
        return f"Line {last.lineno} still says `{last.line}`."
    return f"Line {last.lineno}, `{last.line}`, raised {what}"


def _try_case(
    exercise: Exercise, own: Functions, solutions: SimpleNamespace, case: Case, path: Path | None
) -> Difference | None:
    """None when the case comes out right."""
    expected = exercise.run(solutions, copy.deepcopy(case))
    given = copy.deepcopy(case)
    try:
        with np.errstate(all="ignore"), _package_s_own_away(exercise, path):
            got = exercise.run(own, given)
    except BadReturn as error:
        return Difference(str(error))
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: whatever a learner's code may do
        return Difference(explain_exception(error, exercise.name, path))
    for name, value in case.items():
        if compare(name, value, given[name]):
            return Difference(f"{exercise.name} changes its input {name}; leave inputs as they are and work on a copy.")
    for name, value in expected.items():
        difference = compare(name, value, got[name])
        if difference:
            return difference
    return None


def _try_proof(exercise: Exercise, own: Functions, path: Path | None) -> str | None:
    """What the exercise's own proof finds wrong, None for nothing."""
    if exercise.proof is None:
        return None
    try:
        return exercise.proof(own)
    except AssertionError as error:  # of gradcheck
        return f"The gradient is not that of your own forward pass: {error}."
    except BaseException as error:
        return explain_exception(error, exercise.name, path)


@contextlib.contextmanager
def _package_s_own_away(exercise: Exercise, path: Path | None) -> Iterator[None]:
    """While a learner's code runs, `layers` does not have the function that the exercise asks for."""
    name, own = exercise.name, _package_s_own(exercise)
    if path is None or own is None:
        yield
        return

    def away(*args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        raise RuntimeError(f"layers.{name} is what this exercise asks for: write it without")

    setattr(layers, name, away)
    try:
        yield
    finally:
        setattr(layers, name, own)


def _package_s_own(exercise: Exercise) -> Callable[..., Any] | None:
    """The function of `layers` that the exercise asks for, None where it asks for something else."""
    return getattr(layers, exercise.name) if exercise.replaces == f"minillama.layers:{exercise.name}" else None


def _known_cause(exercise: Exercise, own: Functions, solutions: SimpleNamespace, cases: list[Case]) -> str | None:
    """The cause of the typical wrong answer that gives the learner's results in every case."""
    results = [_outcome(exercise, own, case) for case in cases]
    for wrong in exercise.wrong:
        variant = exercise.answered(solutions, wrong)
        if all(_same(result, _outcome(exercise, variant, case)) for result, case in zip(results, cases, strict=True)):
            return wrong.cause
    return None


def _outcome(exercise: Exercise, own: Functions, case: Case) -> dict[str, Any] | Raised:
    try:
        with np.errstate(all="ignore"), contextlib.redirect_stdout(io.StringIO()):  # printed once already
            return exercise.run(own, copy.deepcopy(case))
    except BaseException as error:
        return Raised(type(error).__name__, str(error))


def _same(a: dict[str, Any] | Raised, b: dict[str, Any] | Raised) -> bool:
    if isinstance(a, Raised) or isinstance(b, Raised):
        return a == b
    differences = (compare(name, b[name], a[name]) for name in b)
    return all(difference is None or difference.dtype_only for difference in differences)


def _call(exercise: Exercise, case: Case) -> str:
    """The call in words: 'rope(x, cos, sin, layout) with x float32 (2, 3, 4, 8), ...'."""
    given = ", ".join(f"{name} {describe(value)}" for name, value in case.items())
    return f"Tried {exercise.name} with {given}."


def _failed(exercise: Exercise, message: str) -> Verdict:
    return Verdict(exercise.name, "failed", message)
