"""What an exercise is: a solved function, the cases that try it, the wrong answers that people give, and hints.

A source file in `sources/` builds one `Chapter` and adds its exercises in order. The solution is either the package's
own function, `chapter.exercise(...)(layers.rope)`, or stands in the source file under `@chapter.exercise(...)`.
Skeletons, tests, checks and solutions all come from there.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any, Literal, TypeVar

import numpy as np

from minillama import layers
from minillama.errors import UsageError

Grade = Literal["warm-up", "core", "stretch"]
Case = dict[str, Any]  # the name of each argument -> its value
Functions = SimpleNamespace | ModuleType  # the functions that a trial calls: the learner's, or the solutions
Function = TypeVar("Function", bound=Callable[..., Any])

# The names of the files in sources/
CHAPTERS = (
    "ch02_tokens",
    "ch04_rope",
    "ch08_llama",
    "ch10_optimizer",
    "ch11_pretraining",
    "ch13_parallel",
    "ch15_sft",
    "ch16_ghost_attention",
    "ch17_reward_models",
    "ch18_rejection_sampling",
    "ch19_ppo",
    "ch20_rounds",
    "ch21_safety",
    "ch22_measuring",
)


@dataclass(frozen=True)
class Wrong:
    """A typical wrong answer and what it gets wrong, said to the learner whose results equal its results.

    forward: of a wrong backward pass, where the mistake lies in what its forward pass saves.
    """

    function: Callable[..., Any]
    cause: str
    forward: Callable[..., Any] | None = None


@dataclass
class Exercise:
    """One function to write.

    cases(rng) yields the arguments it is tried with. trial(own, **case) calls it and returns what is compared; it is
    given where one call is not enough: a backward needs what its own forward has saved. returns names the values that
    the function gives back; 'saved' is the learner's own affair and is not compared. task says what the docstring does
    not. needs names the exercises whose functions the trial calls too. proof(own) is one more test, in the learner's
    own functions alone: it returns what is wrong, or None. replaces is the 'module:attribute' that `run --with`
    overwrites, there and wherever a module of the package has imported it; filled in for the functions of `layers`.
    adapt(function) gives what to put there where the signatures differ.
    """

    chapter: str
    number: str
    grade: Grade
    solution: Callable[..., Any]
    cases: Callable[[np.random.Generator], Iterator[Case]]
    hints: tuple[str, ...]
    returns: tuple[str, ...]
    task: str = ""
    needs: tuple[str, ...] = ()
    trial: Callable[..., Any] | None = None
    proof: Callable[[Functions], str | None] | None = None
    replaces: str | None = None
    adapt: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    wrong: list[Wrong] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.solution.__name__

    def answered(self, solutions: SimpleNamespace, wrong: Wrong) -> SimpleNamespace:
        """The solutions of the chapter, but for this exercise the wrong answer."""
        functions = {self.name: wrong.function}
        if wrong.forward is not None:
            functions[self.name.removesuffix("_backward")] = wrong.forward
        return SimpleNamespace(**{**vars(solutions), **functions})

    def run(self, own: Functions, case: Case) -> dict[str, Any]:
        """The values to compare, by name, of one case; raises what the function raises, and BadReturn."""
        result = self.trial(own, **case) if self.trial else getattr(own, self.name)(**case)
        values = unpack(result, self.returns, self.name)
        return {name: value for name, value in values.items() if name != "saved"}


class BadReturn(Exception):
    """A function gave back too few or too many values."""


def unpack(result: Any, returns: tuple[str, ...], function: str) -> dict[str, Any]:
    """The values of `result` under the names of `returns`. Raises BadReturn."""
    if result is None:
        raise BadReturn(f"{function} returned None; expected {' and '.join(returns)}. Is the return missing?")
    if len(returns) == 1:
        return {returns[0]: result}
    if not isinstance(result, tuple) or len(result) != len(returns):
        found = f"a tuple of {len(result)}" if isinstance(result, tuple) else f"one {type(result).__name__}"
        raise BadReturn(f"{function} returned {found}; expected {len(returns)} values: return {', '.join(returns)}")
    return dict(zip(returns, result, strict=True))


class Chapter:
    """The exercises of one chapter, in order. name is that of the learner's file, 'ch04_rope'."""

    def __init__(self, name: str, title: str, head: str) -> None:
        self.name = name
        self.title = title
        self.head = head  # what the learner's file says first
        self.exercises: list[Exercise] = []

    @property
    def code(self) -> str:
        """'ch04' of 'ch04_rope'."""
        return self.name.partition("_")[0]

    @property
    def solutions(self) -> SimpleNamespace:
        return SimpleNamespace(**{exercise.name: exercise.solution for exercise in self.exercises})

    def find(self, name: str) -> Exercise:
        """The exercise called `name` or numbered so ('4.3'). Raises UsageError."""
        for exercise in self.exercises:
            if name in (exercise.name, exercise.number):
                return exercise
        names = ", ".join(exercise.name for exercise in self.exercises)
        raise UsageError(f"{self.code} has no exercise {name!r}: expected one of {names}")

    def exercise(
        self,
        grade: Grade,
        *,
        cases: Callable[[np.random.Generator], Iterator[Case]],
        hints: tuple[str, ...],
        returns: tuple[str, ...],
        task: str = "",
        needs: tuple[str, ...] = (),
        trial: Callable[..., Any] | None = None,
        proof: Callable[[Functions], str | None] | None = None,
        replaces: str | None = None,
        adapt: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
    ) -> Callable[[Function], Function]:
        """Adds the decorated function as the chapter's next exercise. The first hint stands in the skeleton."""

        def add(solution: Function) -> Function:
            number = f"{int(self.code[2:])}.{len(self.exercises) + 1}"
            place = replaces
            if place is None and solution is getattr(layers, solution.__name__, None):
                place = f"minillama.layers:{solution.__name__}"
            self.exercises.append(
                Exercise(
                    chapter=self.code,
                    number=number,
                    grade=grade,
                    solution=solution,
                    cases=cases,
                    hints=hints,
                    returns=returns,
                    task=task,
                    needs=needs,
                    trial=trial,
                    proof=proof,
                    replaces=place,
                    adapt=adapt,
                )
            )
            return solution

        return add

    def wrong(self, name: str, cause: str, forward: Callable[..., Any] | None = None) -> Callable[[Function], Function]:
        """Adds the decorated function as a typical wrong answer to the exercise `name`; forward: see `Wrong`."""

        def add(function: Function) -> Function:
            self.find(name).wrong.append(Wrong(function, cause, forward))
            return function

        return add

    def edit(self, name: str, cause: str, old: str, new: str) -> None:
        """Adds a typical wrong answer to the exercise `name`: its solution, `old` in the source changed to `new`."""
        self.wrong(name, cause)(_edited(self.find(name).solution, old, new))

    def edit_saved(self, name: str, cause: str, old: str, new: str) -> None:
        """The same for a backward pass `name` that is wrong by what its forward pass saves, where `old` stands."""
        forward = self.find(name.removesuffix("_backward")).solution
        self.wrong(name, cause, _edited(forward, old, new))(self.find(name).solution)


def _edited(solution: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """The function with `old` in its source changed to `new`."""
    name = solution.__name__
    source = inspect.getsource(solution)
    source = source[source.index(f"def {name}(") :]
    assert old in source, f"the solution of {name} no longer says {old!r}"
    namespace = dict(vars(sys.modules[solution.__module__]))
    exec(compile(f"from __future__ import annotations\n{source.replace(old, new)}", f"<{name}>", "exec"), namespace)
    edited: Callable[..., Any] = namespace[name]
    return edited


def load_chapter(name: str) -> Chapter:
    """The chapter called 'ch04', '4', 'rope' or 'ch04_rope'. Raises UsageError with the known names."""
    wanted = name.lower().removesuffix(".py")
    for full in CHAPTERS:
        code, _, topic = full.partition("_")
        if wanted in (full, code, topic, code[2:], code[2:].lstrip("0")):
            chapter = import_module(f"minillama.exercises.sources.{full}").chapter
            assert isinstance(chapter, Chapter)
            return chapter
    raise UsageError(f"no exercises for chapter {name!r}: expected one of {', '.join(c[:4] for c in CHAPTERS)}")


def all_chapters() -> list[Chapter]:
    """Every chapter with exercises, in the order of the book."""
    return [load_chapter(name) for name in CHAPTERS]
