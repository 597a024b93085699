"""minillama.book: what the chapters call."""

from __future__ import annotations

import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest

from minillama import book, layers


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
