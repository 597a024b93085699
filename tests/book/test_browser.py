"""The built book in a headless Chromium, opened as files: what a reader on a plane sees and can do."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

from tests.book.built import CONTENT, HTML, PAGES, needs_book, parse
from tests.chromium import CHROMIUM, FLAGS

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [needs_book, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found (or set CHROMIUM)")]

DESKTOP, PHONE = (1400, 1000), (390, 844)
MODES = [(DESKTOP, ("light", "dark")), (PHONE, ("dark", "light"))]  # a page is opened in one theme, then changes


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server():
    """The book served by HTTP, as on the web."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=HTML)) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.fixture
def visit(browser):
    """visit(page, size, theme) opens a page; at the end no page may have asked another host or logged an error."""
    contexts, problems = [], []

    def watch(route):
        url = urlsplit(route.request.url)
        if url.scheme in ("file", "data", "blob") or url.hostname == "127.0.0.1":
            route.continue_()
        else:
            problems.append(f"request: {route.request.url}")
            route.abort()

    def visit(page, size=DESKTOP, theme="light", base=None):
        context = browser.new_context(viewport=dict(zip(("width", "height"), size, strict=True)), color_scheme=theme)
        contexts.append(context)
        context.route("**/*", watch)
        tab = context.new_page()
        tab.set_default_timeout(10_000)
        tab.on("console", lambda m: problems.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: problems.append(f"page error: {error}"))
        tab.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        tab.goto(f"{base}/{page}" if base else (HTML / page).as_uri())
        tab.wait_for_function("!window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)")
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert problems == []


def page_with(selector: str) -> str:
    """A page that has what is tested; not to have one is a failure, since chapters have all of it."""
    found = [page for page in CONTENT if parse(page).select(selector)]
    assert found, f"no page has {selector}"
    return found[-1]


@pytest.mark.parametrize(("size", "themes"), MODES, ids=[f"{s[0]}-{t[0]}" for s, t in MODES])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_cleanly(visit, page, size, themes):
    """In either theme, at either size; who changes the system's theme meanwhile sees the page follow."""
    tab = visit(page, size, themes[0])
    check_page(tab, page, themes[0])
    tab.emulate_media(color_scheme=themes[1])
    check_page(tab, page, themes[1])


def check_page(tab, page: str, theme: str) -> None:
    """The theme that is asked for, and nothing cut off, unrendered or too wide."""
    tab.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)
    assert tab.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert tab.evaluate("document.querySelectorAll('mjx-merror').length") == 0
    written = len(parse(page).find_all(class_="math")) if page in CONTENT else 0
    assert tab.evaluate("document.querySelectorAll('article mjx-container').length") >= written
    assert tab.evaluate("document.fonts.ready.then(() => document.fonts.check('16px \"Source Serif 4\"'))")
    # Nothing in the text is cut off: what is too wide scrolls inside its own box.
    cut = tab.evaluate(
        """[...document.querySelectorAll('article p, article li, article h1, article h2, article figcaption')]
           .filter(e => e.offsetParent && e.getBoundingClientRect().right > window.innerWidth + 1)
           .filter(e => !e.closest('table, pre, .math, .sd-tab-content')).map(e => e.textContent.slice(0, 60))"""
    )
    assert cut == []


def test_dark_mode_switch_changes_page_and_figures(visit):
    tab = visit(page_with("figure svg"))
    colours = "[document.body, document.querySelector('figure svg text, figure svg path[style*=\"--fig\"]')].map(\
e => getComputedStyle(e).backgroundColor + getComputedStyle(e).fill + getComputedStyle(e).stroke)"
    seen = {}
    for _ in range(3):
        seen[tab.evaluate("document.documentElement.dataset.theme")] = tab.evaluate(colours)
        tab.locator("button.theme-switch-button:visible").first.click()
    assert set(seen) == {"light", "dark"}
    assert seen["light"][0] != seen["dark"][0]
    assert seen["light"][1] != seen["dark"][1]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["1400", "390"])
def test_the_sidebar_opens_and_closes(visit, size):
    tab = visit(CONTENT[0], size)
    link = tab.locator(".bd-sidebar-primary nav a:has-text('Notation'), dialog nav a:has-text('Notation')").first
    toggle = tab.locator("button.primary-toggle:visible").first
    before = link.is_visible()
    assert before == (size == DESKTOP)
    toggle.click()
    link.wait_for(state="hidden" if before else "visible")
    if before:
        toggle.click()
        link.wait_for(state="visible")
    link.click()
    tab.wait_for_url("**/notation.html")


def test_the_contents_of_a_page_open_on_a_phone(visit):
    tab = visit("notation.html", PHONE)
    tab.locator("button.secondary-toggle:visible").first.click()
    link = tab.locator("a:has-text('Names of parameters'):visible").first
    link.click()
    tab.wait_for_url("**/notation.html#names-of-parameters")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["1400", "390"])
@pytest.mark.parametrize("served", [False, True], ids=["file", "http"])
def test_search_finds_a_page(visit, server, size, served):
    tab = visit("index.html", size, base=server if served else None)
    tab.locator("button.search-button:visible, button.search-button-field:visible").first.click()
    field = tab.locator("input[type=search]:visible").first
    field.fill("parameters")
    field.press("Enter")
    tab.wait_for_url("**/search.html?q=parameters**")
    results = tab.locator("#search-results li a")
    results.first.wait_for()
    assert "notation.html" in " ".join(results.evaluate_all("links => links.map(link => link.href)"))
    if served:
        tab.locator("#search-results li p.context").first.wait_for()


def test_code_can_be_copied(visit):
    open_cell = "div.cell > div.cell_input div.highlight"
    tab = visit(page_with(open_cell))
    block = tab.locator(open_cell).first
    block.hover()
    block.locator("button.copybtn").click()
    block.locator("button.copybtn.success").wait_for()


def test_folded_code_unfolds(visit):
    tab = visit(page_with("details.hide"))
    fold = tab.locator("details.hide").first
    assert not fold.locator("pre").first.is_visible()
    fold.locator("summary").click()
    assert fold.locator("pre").first.is_visible()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["1400", "390"])
def test_a_solution_unfolds_and_folds(visit, size):
    tab = visit(page_with("div.solution.dropdown"), size)
    solution = tab.locator("div.solution.dropdown").first
    body = solution.locator(":scope > :not(.admonition-title)").first
    assert not body.is_visible()
    solution.locator("button.toggle-button").click()
    body.wait_for(state="visible")
    solution.locator("button.toggle-button").click()
    body.wait_for(state="hidden")


def test_a_page_can_be_downloaded_as_a_notebook(visit):
    tab = visit(page_with("a.btn-download-notebook-button"))
    button = tab.locator("a.btn-download-notebook-button").first
    assert not button.is_visible()
    tab.get_by_role("button", name="Download this page").click()
    button.wait_for(state="visible")
    path = unquote(urlsplit(button.evaluate("link => link.href")).path)
    with open(path, encoding="utf-8") as file:
        assert json.load(file)["nbformat"] == 4


def test_previous_and_next_lead_through_the_whole_book(visit):
    tab = visit("index.html")
    seen = ["index.html"]
    while tab.locator("a.right-next").count():
        tab.locator("a.right-next").click()
        tab.wait_for_load_state()
        seen.append(urlsplit(tab.url).path.split("/html/")[1])
    assert sorted(seen) == sorted(CONTENT)
