"""The pages of the demo, as a reader opens them: those on the disk, and the chat with its model."""

import re

import pytest
from browser import no_sideways_scroll, plots_drawn, screenshot, visit
from chat_server import started

pytestmark = pytest.mark.slow

PROMPT = ["The", "home", "of", "Otto", "is", "in"]
PAGES = ["report/report.html", "trace/forward.html", "trace/step.html"]


@pytest.mark.parametrize(("width", "dark"), [(400, True), (1400, False)], ids=["phone", "desk"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_nobody_says_nothing_and_fits(browser, tiny_run, name, width, dark):
    with visit(browser, tiny_run / "results/tiny" / name, width=width, dark=dark) as (page, problems):
        assert page.locator("h1").count() == 1
        assert plots_drawn(page) > 0
        no_sideways_scroll(page)
        screenshot(page, f"{name.replace('/', '-').removesuffix('.html')}-{width}")
        assert problems == []


def test_the_report_leads_to_the_pages_of_the_trace(browser, tiny_run):
    with visit(browser, tiny_run / "results/tiny/report/report.html") as (page, problems):
        for name in ("forward", "step"):
            page.locator(f"a[href='../trace/{name}.html']").first.click()
            page.locator("h1").wait_for()
            assert page.url.endswith(f"/trace/{name}.html")
            page.go_back()
        assert problems == []


def test_the_trace_shows_the_prompt_of_the_configuration_token_by_token(browser, tiny_run):
    with visit(browser, tiny_run / "results/tiny/trace/forward.html") as (page, _):
        text = page.locator("main").inner_text()
    assert re.search(r"\b.{,20}?\b".join(PROMPT), text, re.DOTALL)


@pytest.mark.parametrize("width", [400, 1400])
def test_the_model_answers_in_the_browser(browser, tiny_run, width):
    with (
        started(tiny_run / "results/tiny/sft", "--temperature", "0", program="nanochat.serve") as server,
        visit(browser, server.address, width=width) as (page, problems),
    ):
        page.get_by_label("Your message").fill("Where does Otto live?")
        page.get_by_role("button", name="Send").click()
        page.locator(".figures").wait_for()  # of the whole answer
        no_sideways_scroll(page)
        screenshot(page, f"chat-{width}")
        assert "Lisbon" in page.locator(".said").inner_text()
        assert problems == []
