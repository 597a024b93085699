"""Writes what learners get, from the chapters: skeletons, their tests, and the same files solved.

The one tool that makes `exercises/ch*.py` and `exercises/test_ch*.py`:

    minillama exercises generate exercises
"""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType

from minillama.exercises.chapter import Chapter, Exercise, all_chapters

WIDTH = 120


def files(chapter: Chapter) -> dict[str, str]:
    """File name -> text of what a learner gets for `chapter`."""
    return {f"{chapter.name}.py": skeleton(chapter), f"test_{chapter.name}.py": tests(chapter)}


def write(folder: Path) -> list[Path]:
    """Writes the files of all chapters into `folder`, over what is there; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for chapter in all_chapters():
        for name, text in files(chapter).items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
            written.append(folder / name)
    return written


def skeleton(chapter: Chapter) -> str:
    """The learner's file: signatures, docstrings and hints, and bodies that only raise NotImplementedError."""
    return _file(chapter, _unsolved)


def solved(chapter: Chapter) -> str:
    """The learner's file with every exercise solved; stands alone, as a learner's would."""
    return _file(chapter, solution_source)


def tests(chapter: Chapter) -> str:
    """A pytest file: one test an exercise, so that a report counts them."""
    lines = [
        f'"""Tests of {chapter.name}.py: run them with `pytest exercises/`."""',
        "",
        "from pathlib import Path",
        "",
        "from minillama.exercises.pytest_support import verify",
        "",
        f'FILE = Path(__file__).with_name("{chapter.name}.py")',
    ]
    for exercise in chapter.exercises:
        lines += ["", "", f"def test_{exercise.name}():", f'    verify(FILE, "{exercise.name}")']
    return "\n".join(lines) + "\n"


def solution_source(exercise: Exercise) -> str:
    """The solution as it would stand in the learner's file, after the private helpers that it calls."""
    return "\n\n\n".join([*map(_source, _helpers(exercise.solution)), _source(exercise.solution)])


def is_unwritten(function: Callable | None) -> bool:
    """Whether the body is still the skeleton's: nothing but a docstring and `raise NotImplementedError`."""
    if not isinstance(function, FunctionType):
        return function is None
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return False
    if not isinstance(node, ast.FunctionDef):
        return False
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return len(body) == 1 and isinstance(body[0], ast.Raise) and "NotImplementedError" in ast.unparse(body[0])


def _file(chapter: Chapter, render: Callable[[Exercise], str]) -> str:
    head = f'"""{chapter.head.strip()}\n"""\n\n{_imports(chapter, every=render is solution_source)}'
    parts = []
    shown: list[str] = []  # a helper that two solutions share stands once
    for exercise in chapter.exercises:
        pieces = [piece for piece in render(exercise).split("\n\n\n") if piece not in shown]
        shown += pieces
        parts.append("\n\n\n".join([_heading(exercise), *pieces]))
    return head + "\n\n" + "\n\n\n".join(parts) + "\n"


def _heading(exercise: Exercise) -> str:
    rule = f"# {exercise.number} · {exercise.grade} "
    lines = [f"{rule:-<79}"]
    if exercise.task:
        lines += textwrap.wrap(exercise.task, WIDTH, initial_indent="# ", subsequent_indent="# ")
    return "\n".join(lines)


def _unsolved(exercise: Exercise) -> str:
    source = _source(exercise.solution)
    docstring = _definition(source).body[0]
    head = "\n".join(source.splitlines()[: docstring.end_lineno])
    hint = textwrap.fill(exercise.hints[0], WIDTH, initial_indent="    # Hint: ", subsequent_indent="    # ")
    return f"{head}\n{hint}\n    raise NotImplementedError"


@cache
def _source(function: Callable) -> str:
    """The source of `function` without its decorators."""
    source = textwrap.dedent(inspect.getsource(function))
    return "\n".join(source.splitlines()[_definition(source).lineno - 1 :])


@cache
def _definition(source: str) -> ast.FunctionDef:
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef), source
    return node


def _helpers(function: Callable) -> list[Callable]:
    """The private functions of its module that `function` calls, the called before the caller."""
    helpers: list[Callable] = []
    for name in sorted(_names(_definition(_source(function)))):
        value = _module(function).__dict__.get(name)
        if name.startswith("_") and isinstance(value, FunctionType) and value is not function:
            called: list[Callable] = [*_helpers(value), value]
            helpers += [helper for helper in called if helper not in helpers]
    return helpers


def _imports(chapter: Chapter, every: bool) -> str:
    """The import statements of the learner's file: what signatures name and the modules that solutions use.

    every: also all else that the solutions import.
    """
    statements: set[tuple[str, str]] = set()
    own = {exercise.name for exercise in chapter.exercises}
    for exercise in chapter.exercises:
        for function in [exercise.solution, *_helpers(exercise.solution)]:
            node = _definition(_source(function))
            module = _module(function)
            signature = _names(node.args) | (_names(node.returns) if node.returns else set())
            for name in _names(node) - own - set(dir(builtins)):
                if name not in module.__dict__ or module.__dict__[name] in _helpers(exercise.solution):
                    continue  # a local variable, or a helper that is written out
                if every or name in signature or isinstance(module.__dict__[name], ModuleType):
                    statements.add(_import_of(name, module))
    return _sorted_imports(statements)


def _import_of(name: str, module: ModuleType) -> tuple[str, str]:
    """(from where, what) binds `name` as `module` binds it; ('', 'numpy as np') for `import numpy as np`."""
    for node in _statements(module):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    what = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
                    return (node.module or "" if isinstance(node, ast.ImportFrom) else "", what)
    return (module.__name__, name)


@cache
def _statements(module: ModuleType) -> list[ast.stmt]:
    return ast.parse(inspect.getsource(module)).body


def _sorted_imports(statements: set[tuple[str, str]]) -> str:
    plain = sorted(what for where, what in statements if not where)
    lines = [f"import {what}" for what in plain]
    for where in sorted({where for where, _ in statements if where}):
        names = ", ".join(sorted((what for other, what in statements if other == where), key=_isort_key))
        lines.append(f"from {where} import {names}")
    groups: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for line in lines:
        root = line.split()[1].split(".")[0]
        groups[0 if root in sys.stdlib_module_names else 2 if root == "minillama" else 1].append(line)
    return "\n\n".join("\n".join(group) for group in groups.values() if group)


def _isort_key(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as ruff sorts them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _module(function: Callable) -> ModuleType:
    return sys.modules[function.__module__]
