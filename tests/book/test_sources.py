"""The book's sources: what can be said of them without building."""

from __future__ import annotations

import re

import pytest
import yaml

from minillama import book
from tests.book.built import SOURCES

CHAPTERS = sorted((SOURCES / "chapters").glob("*.md"))
TEXT = {
    path: path.read_text(encoding="utf-8") for path in [*SOURCES.glob("*.md"), *CHAPTERS] if path.name != "STYLE.md"
}
CSS = (SOURCES / "_static" / "book.css").read_text(encoding="utf-8")


def test_every_page_is_in_the_table_of_contents_and_nothing_else():
    toc = yaml.safe_load((SOURCES / "_toc.yml").read_text(encoding="utf-8"))
    listed = [toc["root"], *(page["file"] for part in toc["parts"] for page in part["chapters"])]
    assert sorted(listed) == sorted(path.relative_to(SOURCES).with_suffix("").as_posix() for path in TEXT)


def test_the_road_map_links_exactly_the_chapters_that_exist():
    rows = re.findall(r"^\| *(\d+) \| (.*?) \| (.*?) *\|$", TEXT[SOURCES / "index.md"], re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 24))
    written = {int(path.name[:2]): path.stem for path in CHAPTERS}
    for number, title, state in rows:
        stem = written.get(int(number))
        assert (f"chapters/{stem}" in title) == (stem is not None), f"chapter {number}: {title}"
        assert (state == "planned") == (stem is None), f"chapter {number}: {state}"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_its_ten_parts(path):
    text = TEXT[path]
    for sign in (
        ":class: chapter",  # what you learn, need, how long it takes
        "alt:",  # the idea in a picture
        "```{math}\n:label:",  # the formula, numbered
        "book.show_source(",  # the package's own source
        "assert ",  # the proof that both agree
        ":class: bug",  # what goes wrong
        "{solution",  # exercises with solutions
        f"!minillama exercises check ch{path.name[:2]}",  # the check
        ":class: summary",  # the summary
        "{cite",  # further reading
    ):
        assert sign in text, f"{path.name} lacks {sign!r}"


@pytest.mark.parametrize("path", TEXT, ids=lambda path: path.stem)
def test_citations_are_in_the_bibliography(path):
    keys = re.findall(r"^@\w+\{(\w+),", (SOURCES / "references.bib").read_text(encoding="utf-8"), re.MULTILINE)
    cited = {key.strip() for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", TEXT[path]) for key in keys.split(",")}
    assert cited - set(keys) == set()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_figures_use_the_colours_that_the_page_can_change(path):
    literal = re.findall(r"""color\w*=["'](?!none)[^"']*["']|["']C\d["']|#[0-9a-fA-F]{6}""", TEXT[path])
    assert literal == []


def variables(theme: str) -> dict[str, str]:
    return dict(
        re.findall(r"--([\w-]+): (#[0-9a-f]{6});", re.search(rf'data-theme="{theme}"\] \{{(.*?)\}}', CSS, re.DOTALL)[1])
    )


def contrast(a: str, b: str) -> float:
    """WCAG 2.2's ratio of relative luminances."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_read(theme):
    colours = variables(theme)
    page = colours["pst-color-background"]
    assert contrast(colours["pst-color-text-base"], page) >= 7
    for name in ("text-muted", "link", "link-hover", "inline-code"):
        assert contrast(colours[f"pst-color-{name}"], page) >= 4.5, name
    for name in [*book.PALETTE, "ink"]:
        assert contrast(colours[f"fig-{name}"], page) >= (7 if name == "ink" else 3), name


def test_the_bare_notebook_can_be_read_on_white_and_on_black():
    for name, colour in book.PALETTE.items():
        assert contrast(colour, "#ffffff") >= 3, name
    for page in ("#ffffff", "#1e1e1e"):
        assert contrast(book.INK["ink"], page) >= 3
