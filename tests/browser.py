"""Pages looked at by a real browser: Debian's Chromium, headless, driven by Playwright.

    def test_report_page(browser, tmp_path):            # `browser` is a fixture of tests/conftest.py
        with visit(browser, tmp_path / "page.html", width=400, dark=True) as (page, problems):
            page.get_by_role("button", name="Theme").click()
            no_sideways_scroll(page)
            assert problems == []

`problems` is the list of what a reader never sees: messages on the console, errors in scripts, violations of the page's own
content security policy, and every request that would leave this machine. Such a request is recorded and never made: the
router stops it, and behind it Chromium resolves no name but 127.0.0.1's. Look at `problems` after the last call of `page`.

The browser is started once for a test file. Not once for all of them: as long as it runs, Playwright holds this thread's
asyncio loop, and a later file could use no asyncio.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from conftest import skip_or_fail
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright

ARGUMENTS = (
    "--no-sandbox",  # Chromium's own sandbox cannot start as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
TIMEOUT_MS = 30_000
LOCAL_SCHEMES = ("file", "data", "blob", "about")

# heard before any script of the page runs; the console hears of a violation too, but not of every kind
REPORT_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`content security policy: ${event.effectiveDirective} refused ${event.blockedURI || "inline"}`), true);
"""

STICKING_OUT = """() => {
  const scrolls = (element) => element && element !== document.documentElement && element !== document.body &&
    (getComputedStyle(element).overflowX !== "visible" || scrolls(element.parentElement));
  return [...document.body.querySelectorAll("*")]
    .filter((element) => element.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .filter((element) => !scrolls(element.parentElement))
    .map((element) => element.outerHTML.slice(0, 120));
}"""

# the plots and pictures that have a place on the page and nothing in it
EMPTY_PLOTS = """() => {
  const marks = ".plot .trace, .plot .point, .plot image, .plot .hm";
  const isDrawn = (plot) => [...plot.querySelectorAll(marks)].some((mark) => mark.getClientRects().length);
  const isPainted = (canvas) => {
    if (!canvas.width || !canvas.height) return false;
    // read from a copy: Chromium warns of a canvas that is read again and again
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    return copy.getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value !== 0);
  };
  return [...document.querySelectorAll(".js-plotly-plot, canvas")]
    .filter((plot) => plot.checkVisibility() && !plot.parentElement.closest(".js-plotly-plot"))
    .filter((plot) => plot.tagName === "CANVAS" ? !isPainted(plot) : !isDrawn(plot))
    .map((plot) => plot.closest("[id]")?.id || plot.outerHTML.slice(0, 120));
}"""


@contextmanager
def launched(screenshots: Path) -> Iterator[Browser]:
    """A headless Chromium with an empty profile, which is deleted afterwards; screenshots go to the folder."""
    program = shutil.which("chromium")
    if program is None:
        skip_or_fail("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*ARGUMENTS], timeout=2 * TIMEOUT_MS)
        browser.screenshots = screenshots  # type: ignore[attr-defined]
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visit(browser: Browser, address: str | Path, *, width: int = 1400, height: int = 900, dark: bool = False):
    """Open a file or an address in a window of its own; yields the page and the list of problems, which grows."""
    theme = "dark" if dark else "light"
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, service_workers="block", locale="en-GB"
    )
    problems = Problems()
    try:
        context.set_default_timeout(TIMEOUT_MS)
        watch(context, problems)
        page = context.new_page()
        watch_page(context, page, problems)
        page.goto(address.resolve().as_uri() if isinstance(address, Path) else address)
        yield page, problems
        problems.wait()
    finally:
        problems.wait = nothing
        context.close()


class Problems(list[str]):
    """Whoever looks at it waits until it has heard of all that has happened: the browser tells of some things later."""

    def __init__(self) -> None:
        super().__init__()
        self.wait: Callable[[], None] = nothing

    def __eq__(self, other: object) -> bool:
        self.wait()
        return super().__eq__(other)

    def __iter__(self) -> Iterator[str]:
        self.wait()
        return super().__iter__()

    def __len__(self) -> int:
        self.wait()
        return super().__len__()


def nothing() -> None:
    """There is nothing to wait for."""


def watch(context: BrowserContext, problems: Problems) -> None:
    """Note everything that is wrong in this window, as it happens, and stop every request that would leave."""

    def note_message(message):
        if message.type in ("error", "warning", "assert"):
            problems.append(f"console {message.type}: {message.text}")

    def stop(route: Route):
        route.abort("blockedbyclient")

    def note_request(request):
        if is_outside(request.url):
            problems.append(f"request to {request.url}")

    def note_socket(route):
        problems.append(f"request to {route.url}")
        route.close()

    context.add_init_script(REPORT_VIOLATIONS)
    context.route(is_outside, stop)
    context.route_web_socket(is_outside, note_socket)
    context.on("request", note_request)
    context.on("console", note_message)
    context.on("weberror", lambda event: problems.append(f"error in a script: {event.error}"))


def watch_page(context: BrowserContext, page: Page, problems: Problems) -> None:
    """Note the requests of a page before the router has seen them, which is later by an unknown while."""

    def note(event: dict):
        if is_outside(event["request"]["url"]):
            problems.append(f"request to {event['request']['url']}")

    def wait() -> None:
        if not page.is_closed():
            session.send("Runtime.evaluate", {"expression": "0"})  # answered after all that has happened

    session = context.new_cdp_session(page)
    session.on("Network.requestWillBeSent", note)
    session.send("Network.enable")
    page.on("crash", lambda _: problems.append("the page crashed"))
    problems.wait = wait


def is_outside(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme not in LOCAL_SCHEMES and parts.hostname != "127.0.0.1"


def no_sideways_scroll(page: Page) -> None:
    """The page is no wider than its window; wide tables and code scroll in boxes of their own."""
    width, window = page.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= window, f"{width} pixels in a window of {window}: {page.evaluate(STICKING_OUT)}"


def plots_drawn(page: Page) -> int:
    """Scroll to the end of the page, wait until every plot and picture has something in it, and return their number."""
    height = page.evaluate("() => document.documentElement.scrollHeight")
    for top in [*range(0, height, 600), height]:  # some are drawn when they come into view
        page.evaluate("(top) => { scrollTo(0, top); return new Promise(requestAnimationFrame) }", top)
    for _ in range(TIMEOUT_MS // 100):
        if not (empty := page.evaluate(EMPTY_PLOTS)):
            break
        page.wait_for_timeout(100)
    assert not empty, f"nothing is drawn in {empty}"
    return page.locator(".js-plotly-plot, canvas").count()


def screenshot(page: Page, name: str, *, full: bool = True) -> Path:
    """A picture of the whole page, or of the window, for people: NAME.png in a folder of the test run."""
    assert re.fullmatch(r"[\w.-]+", name), name
    path = page.context.browser.screenshots / f"{name}.png"  # type: ignore[union-attr]
    page.evaluate("() => document.fonts.ready")
    page.screenshot(path=path, full_page=full, animations="disabled")
    return path
