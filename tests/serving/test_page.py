"""The chat page in a headless Chromium: what someone sees who talks with a model."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minillama.serving.app import Service
from tests.chromium import CHROMIUM, FLAGS
from tests.serving.conftest import tiny_service, wait_until

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found (or set CHROMIUM)")

DESKTOP, PHONE = (1400, 900), (390, 844)
Visit = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, live: Callable[[Service], str]) -> Iterator[Visit]:
    """visit(service, size) serves it and opens its page; the page may log no error and ask no other host."""
    contexts, problems = [], []

    def visit(service: Service, size: tuple[int, int] = DESKTOP, theme: str = "light") -> Any:
        url = live(service)
        context = browser.new_context(viewport=dict(zip(("width", "height"), size, strict=True)), color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: problems.append(f"page error: {error}"))
        page.on("request", lambda r: problems.append(r.url) if not r.url.startswith((url, "data:")) else None)
        page.goto(url)
        page.locator("#name", has_text="tiny").wait_for()
        page.locator("#send:enabled").wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not problems


def ask(page: Any, text: str) -> None:
    page.locator("#message").fill(text)
    page.locator("#message").press("Enter")


def answered(page: Any) -> str:
    """The last answer, once it is complete."""
    page.locator(".again").wait_for()
    return page.locator(".assistant .said").last.text_content()


def choose(page: Any, **settings: object) -> None:
    page.locator("#options").click()
    for name, value in settings.items():
        page.locator(f"#{name}").fill(str(value))
    page.locator("#options").click()


def test_a_conversation(visit: Visit) -> None:
    page = visit(tiny_service())
    choose(page, temperature=0, system="Be brief.")
    sent: list[dict[str, Any]] = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    ask(page, "hello")
    first = answered(page)
    assert len(first) > 5
    foot = page.locator(".foot").inner_text()
    assert re.match(r"24 tokens · \d+ tokens/s · \d+ of 256 in the context · cut at the longest answer", foot)
    ask(page, "hell")
    answered(page)
    assert [m["role"] for m in sent[1]["messages"]] == ["system", "user", "assistant", "user"]
    assert [m["content"] for m in sent[1]["messages"]] == ["Be brief.", "hello", first, "hell"]

    page.locator("#anew").click()
    assert page.locator("article").count() == 0
    ask(page, "hello")
    assert answered(page) == first


def test_text_comes_as_it_is_written_and_stop_ends_it(visit: Visit) -> None:
    service = tiny_service(context=4096)
    model = service.engine.model
    forward = model.forward

    def at_a_human_pace(*args: Any, **options: Any) -> Any:
        time.sleep(0.02)
        return forward(*args, **options)

    model.forward = at_a_human_pace  # thousands of tokens a second would keep the browser from the click
    page = visit(service)
    choose(page, temperature=0, max_tokens=4000)  # greedy: it never draws the end
    ask(page, "hello")
    page.locator(".writing").wait_for()
    wait_until(lambda: len(page.locator(".assistant .said").text_content()) > 20)
    assert page.locator("#send").inner_text() == "Stop"
    page.locator("#send").click()
    text = answered(page)
    assert "stopped" in page.locator(".foot").inner_text()
    wait_until(lambda: service.engine.load == (0, 0))
    assert page.locator(".assistant .said").text_content() == text
    assert page.locator("#send").inner_text() == "Send"


def test_regenerate(visit: Visit) -> None:
    page = visit(tiny_service())
    choose(page, temperature=1.5)
    ask(page, "hello")
    first = answered(page)
    page.locator(".again").click()
    page.locator(".writing").wait_for(state="detached")
    assert answered(page) != first
    assert page.locator("article").count() == 2


def test_probabilities_of_tokens(visit: Visit) -> None:
    page = visit(tiny_service())
    choose(page, temperature=0, max_tokens=12)
    ask(page, "hello")
    text = answered(page)
    page.locator("#probabilities").click()
    assert page.locator("#legend").is_visible()
    assert page.locator(".assistant .token").count() == 12
    page.locator(".assistant .token").nth(3).hover()
    rows = page.locator("#card tr")
    assert rows.count() == 6
    shares = [float(row.split()[-2].replace("<", "")) for row in rows.all_inner_texts()]
    assert shares == sorted(shares, reverse=True) and sum(shares) <= 100.5
    assert page.locator("#card tr.chosen").count() >= 1
    page.locator("#message").hover()
    assert page.locator("#card").is_hidden()
    page.locator("#probabilities").click()
    assert page.locator(".assistant .said").text_content() == text


def test_markup_stays_text(visit: Visit) -> None:
    page = visit(tiny_service())
    ask(page, "<img src=x onerror=alert(1)><b>bold</b>")
    answered(page)
    assert page.locator(".user .said").text_content() == "<img src=x onerror=alert(1)><b>bold</b>"
    assert page.locator("#talk img, #talk b").count() == 0


def test_a_long_conversation_goes_on_without_its_beginning(visit: Visit) -> None:
    page = visit(tiny_service())
    for _ in range(5):
        ask(page, "hello there, how are you today?")
        answered(page)
    assert "longer than the model's context" in page.locator(".notice").last.inner_text()
    assert page.locator(".error").count() == 0


def test_errors_are_shown_and_the_page_goes_on(visit: Visit) -> None:
    page = visit(tiny_service())
    ask(page, "x" * 400)
    assert "leaves no room in the context of 256" in page.locator(".error").inner_text()
    ask(page, "hello")
    assert answered(page)
    assert page.locator("article").count() == 2  # the question that got no answer has gone


def test_a_base_model_completes(visit: Visit) -> None:
    page = visit(tiny_service(template=None))
    page.locator("#options").click()
    assert page.locator("#system").is_hidden()
    ask(page, "hello")
    assert answered(page)
    page.locator("#probabilities").click()
    assert page.locator(".assistant .token").count() == 24


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_phone(visit: Visit, theme: str) -> None:
    page = visit(tiny_service(), PHONE, theme)
    ask(page, "hello" * 30)
    answered(page)
    page.locator("#probabilities").click()
    page.locator("#options").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    page.locator(".assistant .token").last.click()
    card = page.locator("#card").bounding_box()
    assert 0 <= card["x"] and card["x"] + card["width"] <= PHONE[0]
    assert 0 <= card["y"] and card["y"] + card["height"] <= PHONE[1]
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
    assert dark == (theme == "dark")
