"""Folders with a learner's files, in several states."""

import pytest

from minillama.exercises import skeleton
from minillama.exercises.chapter import all_chapters, load_chapter


@pytest.fixture(scope="session")
def solutions():
    """Chapter name -> the text of its file, solved."""
    return {chapter.name: skeleton.solved(chapter) for chapter in all_chapters()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An `exercises` folder with everything unsolved, in the current folder."""
    monkeypatch.chdir(tmp_path)
    skeleton.write(tmp_path / "exercises")
    return tmp_path / "exercises"


@pytest.fixture
def solved(folder, solutions):
    """The same with everything solved."""
    for name, text in solutions.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def answer(folder, solutions):
    """answer("ch04", "rope", body): the path of a solved chapter whose function `rope` has another body."""

    def write(code, name, body):
        chapter = load_chapter(code)
        path = folder / f"{chapter.name}.py"
        lines = solutions[chapter.name].splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith(f"def {name}("))
        quotes = [i for i in range(start, len(lines)) if '"""' in lines[i]]
        first = quotes[0] if lines[quotes[0]].count('"""') == 2 else quotes[1]
        end = next((i for i in range(first + 1, len(lines)) if lines[i] and lines[i][0] != " "), len(lines))
        lines[first + 1 : end] = [f"    {line}" for line in body.splitlines()] + [""]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
