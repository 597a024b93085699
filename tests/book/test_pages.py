"""The built pages as files: nothing asked of another host, no dead link, nothing that only the sighted can read."""

from __future__ import annotations

import json
import re
from copy import copy
from urllib.parse import unquote, urlsplit

import pytest

from tests.book.built import CONTENT, HTML, PAGES, needs_book, parse

pytestmark = needs_book
REMOTE = re.compile(r"^(https?:)?//")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_nothing_from_another_host(page):
    loaded = [tag.get("src") for tag in parse(page)(["script", "img", "iframe", "source", "video", "audio"])]
    loaded += [tag.get("href") for tag in parse(page)("link")]
    assert [url for url in loaded if url and REMOTE.match(url)] == []


def test_the_style_sheets_load_nothing_from_another_host():
    remote = re.compile(r"""(?:url\(|@import)\s*["']?(?:https?:)?//[^)"']*""")
    found = {path.name: remote.findall(path.read_text(encoding="utf-8")) for path in HTML.rglob("*.css")}
    assert {name: urls for name, urls in found.items() if urls} == {}


@pytest.mark.parametrize("page", PAGES)
def test_internal_links_resolve(page):
    dead = []
    for link in parse(page)("a", href=True):
        url = urlsplit(link["href"])
        if url.scheme or url.netloc:
            continue
        target = (HTML / page).parent / unquote(url.path) if url.path else HTML / page
        if not target.is_file():
            dead.append(link["href"])
        elif url.fragment and target.suffix == ".html":
            soup = parse(target.resolve().relative_to(HTML.resolve()).as_posix())
            if not soup.find(id=unquote(url.fragment)):
                dead.append(link["href"])
    assert dead == []


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_has_alternative_text(page):
    article = parse(page).find("article") or parse(page)
    silent = [str(image)[:80] for image in article("img") if not image.get("alt", "").strip()]
    silent += [
        str(svg)[:80]
        for svg in article("svg")
        if svg.find_parent("figure") and not (svg.get("role") == "img" and svg.get("aria-label", "").strip())
    ]
    assert silent == []


@pytest.mark.parametrize("page", CONTENT)
def test_figures_are_numbered_and_follow_the_theme(page):
    for figure in parse(page)("figure"):
        assert figure.find(class_="caption-number"), f"no number: {figure.get('id')}"
        assert len(figure.find("figcaption").get_text()) > 20, f"no caption: {figure.get('id')}"
        svg = figure.find("svg")
        assert svg is not None, f"not inlined: {figure.get('id')}"
        assert "var(--fig-" in str(svg), f"colours that do not follow the theme: {figure.get('id')}"


@pytest.mark.parametrize("page", CONTENT)
def test_ids_are_unique(page):
    ids = [tag["id"] for tag in parse(page).find("article")(id=True)]
    assert sorted({i for i in ids if ids.count(i) > 1}) == []


@pytest.mark.parametrize("page", CONTENT)
def test_no_markup_is_left_over(page):
    article = copy(parse(page).find("article"))
    for block in [*article(["pre", "code", "script", "svg"]), *article(class_="math")]:
        block.extract()
    text = article.get_text()
    assert re.findall(r"\{\w+(?::\w+)?\}|:::|```|\*\*|\?\?\?", text) == []


def test_notebooks_lie_beside_their_pages():
    notebooks = sorted(path for path in HTML.rglob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        assert path.with_suffix(".html").exists()
        content = json.loads(path.read_text(encoding="utf-8"))
        code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
        run = [cell for cell in code if "skip-execution" not in cell["metadata"].get("tags", [])]
        assert run
        assert all(cell["execution_count"] for cell in run), f"cells not run: {path.name}"
        errors = [
            o for cell in code for o in cell["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"
        ]
        assert errors == []


def test_mathjax_is_there_with_its_fonts():
    mathjax = HTML / "_static" / "mathjax"
    assert (mathjax / "tex-chtml.js").is_file()
    assert list((mathjax / "output/chtml/fonts/woff-v2").glob("*.woff"))


@pytest.mark.parametrize("page", [page for page in CONTENT if page.startswith("chapters/")])
def test_numbers_begin_with_the_number_in_the_file_name(page):
    chapter = int(page.removeprefix("chapters/")[:2])
    soup = parse(page).find("article")
    assert soup.find("h1").find(class_="section-number").get_text().strip() == str(chapter)
    numbers = [tag.get_text() for tag in soup(class_=["eqno", "caption-number"])]
    assert numbers
    assert [n for n in numbers if not re.search(rf"(^|\D){chapter}\.\d+", n)] == []
