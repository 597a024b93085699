"""What learners get is what the package and the marked sources say, and reads like a file of this repository."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minillama.exercises import skeleton
from minillama.exercises.chapter import all_chapters, load_chapter

ROOT = Path(__file__).parents[2]
CHAPTERS = [pytest.param(chapter, id=chapter.name) for chapter in all_chapters()]


def holds_work(path, chapter):
    """Whether a learner has begun: somebody who does the exercises runs `make test` too."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError:
        return True
    bodies = [node.body for node in tree.body if isinstance(node, ast.FunctionDef)]
    untouched = [len(body) == 2 and isinstance(body[1], ast.Raise) for body in bodies]
    return untouched != [True] * len(chapter.exercises)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_committed_files_are_what_is_generated(chapter):
    if "CI" not in os.environ and holds_work(ROOT / "exercises" / f"{chapter.name}.py", chapter):
        pytest.skip(f"exercises/{chapter.name}.py holds your own work")
    for name, text in skeleton.files(chapter).items():
        committed = (ROOT / "exercises" / name).read_text(encoding="utf-8")
        assert committed == text, f"exercises/{name} is not current: run `minillama exercises generate exercises`"


def test_no_other_skeletons_are_committed():
    names = {name for chapter in all_chapters() for name in skeleton.files(chapter)}
    found = {path.name for path in (ROOT / "exercises").glob("*ch*.py") if ".mine-" not in path.name}
    assert found == names


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_skeleton_has_signature_docstring_hint_and_no_body(chapter):
    source = skeleton.skeleton(chapter)
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions] == [exercise.name for exercise in chapter.exercises]
    for function, exercise in zip(functions, chapter.exercises, strict=True):
        assert len(function.body) == 2
        assert ast.get_docstring(function) == ast.get_docstring(ast.parse(_solution(exercise)).body[-1])
        assert ast.unparse(function.body[1]) == "raise NotImplementedError"
    assert source.count("    # Hint: ") == len(functions)


def _solution(exercise):
    return skeleton.solution_source(exercise)


def test_a_solution_stands_alone():
    rope = load_chapter("ch04").find("rope")
    source = skeleton.solution_source(rope)
    assert source.index("def _turn(") < source.index("def rope(")
    assert "layers." not in source


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_generated_files_are_neat(chapter, tmp_path):
    pytest.importorskip("ruff", reason="ruff is not installed")
    for text in (*skeleton.files(chapter).values(), skeleton.solved(chapter)):
        path = tmp_path / "file.py"
        path.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "ruff", "format", "--check", "--diff", "--line-length", "120", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_unwritten_is_told_from_written():
    def unwritten():
        """Docstring."""
        raise NotImplementedError

    def bare():
        raise NotImplementedError("later")

    def begun(x):
        """Docstring."""
        x = x + 1
        raise NotImplementedError

    def written(x):
        return x

    assert [skeleton.is_unwritten(f) for f in (unwritten, bare, begun, written, None)] == [
        True,
        True,
        False,
        False,
        True,
    ]
