"""The Sphinx extension of the book, where the built pages do not show what it does."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import nbformat
import pytest

from tests.book.built import SOURCES


@pytest.fixture(scope="module")
def extension():
    spec = importlib.util.spec_from_file_location("minillama_book", SOURCES / "_ext" / "minillama_book.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def application(tmp_path, repository=""):
    config = SimpleNamespace(minillama_repository=repository, minillama_pages_branch="gh-pages")
    return SimpleNamespace(
        outdir=str(tmp_path / "html"), srcdir=str(tmp_path), config=config, builder=SimpleNamespace()
    )


@pytest.mark.parametrize("repository", ["", "https://github.com/someone/minillama"])
def test_colab_is_offered_only_where_the_repository_is_known(extension, tmp_path, repository):
    executed = tmp_path / "jupyter_execute" / "chapters" / "04_rope.ipynb"
    executed.parent.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")]), executed)
    context = {"header_buttons": []}
    extension.offer_notebook(application(tmp_path, repository), "chapters/04_rope", "", context, object())
    assert context["ipynb_source"] == "../chapters/04_rope.ipynb"
    cells = nbformat.read(tmp_path / "html" / "chapters" / "04_rope.ipynb", as_version=4).cells
    if not repository:
        assert context["header_buttons"] == []
        assert [cell.source for cell in cells] == ["1 + 1"]
    else:
        [button] = context["header_buttons"]
        assert button["url"] == (
            "https://colab.research.google.com/github/someone/minillama/blob/gh-pages/chapters/04_rope.ipynb"
        )
        assert repository in cells[0].source


def test_a_change_of_the_package_changes_the_cache(extension, tmp_path, monkeypatch):
    package = tmp_path / "minillama"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(extension, "PACKAGE", package)
    paths = []
    for text in ("x = 1\n", "x = 2\n", "x = 1\n"):
        (package / "a.py").write_text(text)
        config = SimpleNamespace()
        extension.set_cache_path(application(tmp_path), config)
        paths.append(config.nb_execution_cache_path)
    assert paths[0] == paths[2] != paths[1]


def test_figures_are_inlined_with_their_text_and_their_colours(extension, tmp_path):
    colour = extension.PALETTE["blue"]
    (tmp_path / "wave.svg").write_text(
        f'<?xml version="1.0"?>\n<svg xmlns="x"><metadata>made</metadata><g id="a" style="fill: {colour}"/>'
        '<use href="#a" clip-path="url(#a)"/></svg>'
    )
    app = application(tmp_path)
    app.builder.images = {"wave.svg": "wave.svg"}
    context = {
        "body": '<img alt="A wave &amp; more" src="../_images/wave.svg" /><img alt="b" src="../_images/b.png" />'
    }
    extension.inline_figures(app, "", "", context, None)
    assert context["body"] == (
        '<svg role="img" aria-label="A wave &amp; more" class="figure-svg " xmlns="x">'
        f'<g id="f1-a" style="fill: var(--fig-blue, {colour})"/><use href="#f1-a" clip-path="url(#f1-a)"/></svg>'
        '<img alt="b" src="../_images/b.png" />'
    )
