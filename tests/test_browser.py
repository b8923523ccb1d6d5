"""The browser that looks at our pages notices what is wrong with one; and nothing is wrong with a page that is right."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from browser import EMPTY_PLOTS, is_outside, launched, no_sideways_scroll, plots_drawn, screenshot, visit

OUTSIDE = "https://pictures.example.org/cat.png"
POLICY = (
    """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; script-src 'unsafe-inline'">"""
)


@pytest.fixture
def problems_of(browser, tmp_path):
    def look(body: str, head: str = "", then: str = "() => 0", **window):
        path = tmp_path / "page.html"
        path.write_text(
            f"<!doctype html><html lang=en><head><meta charset=utf-8><title>t</title>{head}</head><body>{body}</body>"
        )
        with visit(browser, path, **window) as (page, problems):
            page.evaluate(then)
            return problems

    return look


def test_a_page_that_is_right(problems_of):
    picture = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
    script = "<script>document.title = 'ready'; fetch(URL.createObjectURL(new Blob(['x']))); console.log('fine')</script>"
    assert problems_of(f"<p>Hello.<img src='{picture}' alt=''>{script}") == []


@pytest.mark.parametrize("script", ["console.error('no such element')", "console.warn('deprecated')"])
def test_messages_on_the_console_are_noticed(problems_of, script):
    [problem] = problems_of(f"<script>{script}</script>")
    assert problem.startswith("console ") and ("no such element" in problem or "deprecated" in problem)


def test_errors_in_scripts_are_noticed(problems_of):
    assert any("nothing_of_this_name" in problem for problem in problems_of("<script>nothing_of_this_name()</script>"))
    late = problems_of("", then="() => new Promise((done) => { Promise.reject(Error('too late')); setTimeout(done) })")
    assert any("too late" in problem for problem in late)


@pytest.mark.parametrize(
    "body",
    [
        f"<img src='{OUTSIDE}' alt=''>",
        f"<link rel=stylesheet href='{OUTSIDE}'>",
        f"<script src='{OUTSIDE}'></script>",
        f"<iframe src='{OUTSIDE}'></iframe>",
        f"<script>fetch('{OUTSIDE}').catch(() => 0)</script>",
        f"<script>new WebSocket('{OUTSIDE.replace('https', 'wss')}')</script>",
        f"<style>@font-face {{ font-family: f; src: url('{OUTSIDE}') }} p {{ font-family: f }}</style><p>Text",
    ],
    ids=["picture", "style", "script", "frame", "fetch", "socket", "font"],
)
def test_requests_that_would_leave_are_noticed_and_not_made(problems_of, body):
    assert any("pictures.example.org" in problem for problem in problems_of(body))


def test_a_request_to_a_page_of_this_machine_is_made_and_one_by_another_name_is_not(browser):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.headers["Host"], self.path))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f"<link rel=icon href='data:,'><img src='http://localhost:{port}/picture'>".encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_port
        threading.Thread(target=server.serve_forever).start()
        try:
            with visit(browser, f"http://127.0.0.1:{port}/page") as (page, problems):
                page.evaluate("() => 0")
        finally:
            server.shutdown()
    assert asked == [(f"127.0.0.1:{port}", "/page")]
    assert f"request to http://localhost:{port}/picture" in problems


@pytest.mark.parametrize(
    ("body", "directive"),
    [
        (f"<img src='{OUTSIDE}' alt=''>", "img-src"),
        ("<style>p { color: red }</style>", "style-src"),
        ("<script>try { eval('1') } catch {}</script>", "script-src"),
        ("<script>fetch('data:,x').catch(() => 0)</script>", "connect-src"),
    ],
    ids=["picture", "style", "eval", "fetch"],
)
def test_violations_of_the_policy_of_a_page_are_noticed(problems_of, body, directive):
    assert any("ontent security policy: " + directive in problem for problem in problems_of(body, POLICY))


def test_a_wide_element_is_named_and_one_in_a_box_of_its_own_is_not(browser, tmp_path):
    wide = "<div id={} style='width: 600px'>wide</div>"
    path = tmp_path / "page.html"
    path.write_text("<!doctype html><meta name=viewport content='width=device-width'>" + wide.format("stray"))
    with visit(browser, path, width=400) as (page, _), pytest.raises(AssertionError, match="stray"):
        no_sideways_scroll(page)
    path.write_text(f"<!doctype html><div style='overflow-x: auto'>{wide.format('boxed')}</div>")
    with visit(browser, path, width=400) as (page, _):
        no_sideways_scroll(page)


def test_a_plot_with_nothing_in_it_is_named(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(
        "<!doctype html><canvas id=empty></canvas><canvas id=hidden style='display: none'></canvas><canvas id=painted></canvas>"
        "<div class=js-plotly-plot id=nothing></div>"
        "<div class=js-plotly-plot id=line><svg><g class=plot><g class=trace><path d='M0 0L9 9'/></g></g></svg></div>"
        "<script>document.getElementById('painted').getContext('2d').fillRect(0, 0, 9, 9)</script>"
    )
    with visit(browser, path) as (page, problems):
        assert page.evaluate(EMPTY_PLOTS) == ["empty", "nothing"]
        page.evaluate("() => ['empty', 'nothing'].forEach((id) => document.getElementById(id).remove())")
        assert plots_drawn(page) == 3
        assert problems == []


def test_width_and_theme_reach_the_page(problems_of, browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<!doctype html><p>Text")
    media = "() => [innerWidth, matchMedia('(prefers-color-scheme: dark)').matches]"
    with visit(browser, path, width=400, dark=True) as (page, _):
        assert page.evaluate(media) == [400, True]
    with visit(browser, path) as (page, _):
        assert page.evaluate(media) == [1400, False]
        assert screenshot(page, "page").read_bytes().startswith(b"\x89PNG")
        # without any font, a browser draws nothing, and says nothing
        assert (
            page.evaluate(
                "() => { const r = document.createRange(); r.selectNode(document.querySelector('p').firstChild);"
                " return r.getBoundingClientRect().width }"
            )
            > 10
        )


def test_what_is_outside():
    assert not any(map(is_outside, ["file:///x.html", "data:,x", "blob:null/1", "http://127.0.0.1:8000/", "about:blank"]))
    assert all(map(is_outside, ["http://localhost/", "https://127.0.0.1.example.org/", "ws://example.org/", "http://[::1]/"]))


def test_a_file_of_tests_can_use_asyncio_after_one_with_a_browser(tmp_path_factory):
    """Why the browser is started for one file and not for all. In a thread: this one has its browser, and its loop."""

    def is_free() -> bool:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return True
        return False

    def before_with_and_after() -> list[bool]:
        answers = [is_free()]
        with launched(tmp_path_factory.mktemp("screenshots")):
            answers.append(is_free())
        return [*answers, is_free()]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(before_with_and_after).result(timeout=300) == [True, False, True]
