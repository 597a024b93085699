"""minillama.book: what the chapters call."""

from __future__ import annotations

import io
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest

from minillama import book, layers
from minillama.errors import MinillamaError


def test_show_source_shows_what_runs():
    shown = book.show_source(layers.rmsnorm, layers.rmsnorm_backward).data
    assert shown.count("```python") == 2
    assert "`minillama/layers/rmsnorm.py`, lines " in shown
    code = shown.split("```python\n")[1].split("```")[0]
    space = {**vars(__import__("minillama.layers.rmsnorm", fromlist=["rmsnorm"]))}
    exec(code, space)
    x, weight = np.random.default_rng(0).standard_normal((2, 3, 8)), np.ones(8)
    np.testing.assert_array_equal(space["rmsnorm"](x, weight, 1e-5)[0], layers.rmsnorm(x, weight, 1e-5)[0])


def test_show_source_without_docstrings_leaves_the_code_alone():
    with_docstring, without = (book.show_source(layers.rope, docstring=d).data for d in (True, False))
    assert '"""' in with_docstring
    assert '"""' not in without
    assert "return" in without


def test_show_source_dedents_methods():
    from minillama.model import Llama

    code = book.show_source(Llama.logits, docstring=False).data.split("```python\n")[1]
    assert code.startswith("def logits(")


def test_table_aligns_numbers_to_the_right():
    lines = book.table(["model", "loss"], [["a", "1.5"], ["b", "2,000"]]).data.splitlines()
    assert lines == ["| model | loss |", "| :--- | ---: |", "| a | 1.5 |", "| b | 2,000 |"]


def test_table_with_a_word_among_numbers_aligns_left():
    assert ":---" in book.table(["x"], [["1"], ["none"]]).data.splitlines()[1]


def test_glue_stores_a_value_for_the_text(capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(book, "display", lambda data, **keywords: shown.append((data, keywords)))
    book.glue(error="1.0e-07")
    [(data, keywords)] = shown
    assert data == {"application/papermill.record/text/plain": "'1.0e-07'"}
    assert keywords["metadata"]["scrapbook"]["name"] == "error"
    assert capsys.readouterr().out == ""


@pytest.fixture
def style(monkeypatch):
    monkeypatch.setattr(book, "set_matplotlib_formats", lambda *_, **__: None)
    with plt.rc_context():
        book.use_style()
        yield


def svg() -> str:
    fig, ax = plt.subplots()
    for k in range(6):
        ax.plot([0, 1], [k, k + 1], label=f"$k = {k}$")
    ax.set(xlabel="position", ylabel="loss (nats)")
    ax.legend()
    out = io.StringIO()
    fig.savefig(out, format="svg", metadata={"Date": None})
    plt.close(fig)
    return out.getvalue()


@pytest.mark.usefixtures("style")
def test_figures_are_drawn_in_the_named_colours_only():
    drawn = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg()))
    assert drawn <= {*book.PALETTE.values(), *book.INK.values()}
    assert len(drawn & set(book.PALETTE.values())) == 6


@pytest.mark.usefixtures("style")
def test_figures_are_the_same_on_every_build():
    assert svg() == svg()


def test_show_source_looks_through_a_decorator():
    from minillama.training.checkpoint import Checkpoints

    shown = book.show_source(Checkpoints._written).data
    assert "`minillama/training/checkpoint.py`, lines " in shown
    assert "def _written(" in shown


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder in the place of the checkout, and the working folder inside it."""
    (tmp_path / "book" / "chapters").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "book" / "chapters")
    monkeypatch.setattr(book.minillama, "__file__", str(tmp_path / "elsewhere" / "minillama" / "__init__.py"))
    return tmp_path


def write_run(folder, result):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"settings": {}, "result": result}), encoding="utf-8")
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 6.9}\n{"step": 1, "sample": "é"}\n', encoding="utf-8")


def test_find_looks_above_the_working_folder_and_then_beside_the_package(checkout):
    beside = checkout / "elsewhere" / "x.json"
    beside.parent.mkdir()
    beside.touch()
    assert book.find("x.json", "make x") == beside
    (checkout / "x.json").touch()
    assert book.find("x.json", "make x") == checkout / "x.json"


@pytest.mark.usefixtures("checkout")
def test_find_says_what_makes_a_missing_file():
    with pytest.raises(MinillamaError, match=r"^x\.json: expected what `make x` makes, found nothing$"):
        book.find("x.json", "make x")


def test_run_gives_a_run_that_has_ended_and_its_log(checkout):
    write_run(checkout / "runs" / "mini" / "base", {"step": 1})
    run = book.run()
    assert run.path == checkout / "runs" / "mini" / "base"
    assert book.read_log(run) == [{"step": 1, "loss": 6.9}, {"step": 1, "sample": "é"}]


@pytest.mark.usefixtures("checkout")
def test_run_names_make_book_where_there_is_none():
    with pytest.raises(MinillamaError, match=r"runs/mini/base/run\.json: expected what `make book` makes"):
        book.run()


def test_run_refuses_a_run_that_has_not_ended(checkout):
    write_run(checkout / "runs" / "mini" / "base", None)
    with pytest.raises(MinillamaError, match="expected a run that has ended"):
        book.run()


def test_read_log_names_a_damaged_log(checkout):
    write_run(checkout / "runs" / "mini" / "base", {"step": 1})
    run = book.run()
    run.log.write_text("{", encoding="utf-8")
    with pytest.raises(MinillamaError, match=r"log\.jsonl: cannot be read"):
        book.read_log(run)
