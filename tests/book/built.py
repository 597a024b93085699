"""The built book, where there is one: what the tests of its pages and of its behaviour share."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

SOURCES = Path(__file__).parents[2] / "book"
HTML = SOURCES / "_build" / "html"
PAGES = sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html") if "_static" not in path.parts)
CONTENT = [page for page in PAGES if page not in ("genindex.html", "search.html")]

needs_book = pytest.mark.skipif(not PAGES, reason="the book is not built (make book)")


@cache
def parse(page: str) -> BeautifulSoup:
    return BeautifulSoup((HTML / page).read_text(encoding="utf-8"), "html.parser")
