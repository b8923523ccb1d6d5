"""The chat page in a real browser, against a server whose model says what the test needs (tests/chat_server.py)."""

import json
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from browser import no_sideways_scroll, screenshot, visit
from chat_server import eventually, started, talkative_folder

PAYLOADS = [
    "<script>window.harmed = 1</script>",
    "<img src=x onerror='window.harmed = 1'>",
    "</p></li><svg onload=window.harmed=1>",
    "javascript:window.harmed=1",
    "\x1b[2J\x1b]0;harmed\x07",
    "\u202egnp.exe \u2066hidden",
    "&lt;b&gt; <|assistant_end|> ${1} {{1}}",
    "a" * 3000,
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    return {stage: talkative_folder(results, stage) for stage in ("sft", "base_train")}


@pytest.fixture(scope="module")
def server(folders):
    with started(folders["sft"], "--max-tokens", "2048") as running:
        yield running


@contextmanager
def opened(browser, address, **options):
    with visit(browser, address, **options) as (page, problems):
        page.get_by_role("heading", name="Say something").wait_for()
        yield page, problems


def ask(page, text, *, wait=True):
    page.get_by_label("Your message").fill(text)
    page.get_by_role("button", name="Send").click()
    if wait:
        finished(page)


def finished(page):
    page.get_by_role("button", name="Send").wait_for()


def until(page, expression):
    """Playwright's own wait_for_function would need eval(), which the page's policy refuses."""
    eventually(lambda: page.evaluate(expression) or page.wait_for_timeout(20))


def answers(page):
    return page.locator(".said").all_inner_texts()


def questions(page):
    return page.locator(".asked").evaluate_all("list => list.map((element) => element.lastChild.data)")


def settings_of(page):
    """What the server was asked with."""
    ask(page, "settings")
    return json.loads(answers(page)[-1])


# -- talking -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_conversation(browser, server, width, dark):
    with opened(browser, server.address, width=width, dark=dark) as (page, problems):
        screenshot(page, f"welcome-{width}-{'dark' if dark else 'light'}")
        no_sideways_scroll(page)
        ask(page, "one fine day")
        assert (questions(page), answers(page)) == (["one fine day"], ["one fine day"])
        ask(page, "calculate")
        assert page.locator(".calc").inner_text().endswith("12*4 = 48")
        ask(page, "A longer question, in two lines.\n" + "It goes on for a while, so that it is wider than a phone. " * 3)
        assert page.locator(".figures").last.inner_text().endswith(tuple("0123456789"))
        no_sideways_scroll(page)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 200) == dark
        screenshot(page, f"conversation-{width}-{'dark' if dark else 'light'}")
        page.get_by_role("button", name="Settings").click()
        no_sideways_scroll(page)
        screenshot(page, f"settings-{width}-{'dark' if dark else 'light'}")
        assert problems == []


def test_an_answer_appears_as_it_is_made_and_stops(browser, server):
    with opened(browser, server.address) as (page, problems):
        ask(page, "endless talk", wait=False)
        first = page.locator(".said")
        until(page, "document.querySelector('.said').innerText.length > 20")
        before = len(first.inner_text())
        until(page, f"document.querySelector('.said').innerText.length > {before}")
        assert page.get_by_role("button", name="Send").is_hidden()
        page.get_by_role("button", name="Stop").click()
        finished(page)
        assert page.locator(".note").inner_text() == "(stopped)"
        eventually(lambda: json.loads(page.request.get(server.address + "/health").text())["active"] == 0)
        # what was said so far belongs to the conversation
        said = answers(page)[0]
        ask(page, "prompt")
        assert f"<|assistant_start|>{said}<|assistant_end|>" in answers(page)[1]
        assert problems == []


def test_the_page_follows_a_long_answer_unless_the_reader_has_scrolled_up(browser, server):
    with opened(browser, server.address, width=400) as (page, problems):
        ask(page, "endless talk", wait=False)
        to_end = (
            "(() => { const s = document.getElementById('scroller'); return s.scrollHeight - s.scrollTop - s.clientHeight; })()"
        )
        until(page, "document.getElementById('scroller').scrollTop > 100")
        assert page.evaluate(to_end) < 60
        page.evaluate("document.getElementById('scroller').scrollTop = 0")
        length = len(answers(page)[0])
        until(page, f"document.querySelector('.said').innerText.length > {length + 50}")
        assert page.evaluate("document.getElementById('scroller').scrollTop") == 0
        page.keyboard.press("Escape")
        finished(page)
        assert problems == []


def test_regenerate_asks_again_with_another_seed(browser, server):
    with opened(browser, server.address) as (page, problems):
        first = settings_of(page)
        page.get_by_role("button", name="Regenerate").click()
        until(page, f"!document.querySelector('.said').innerText.includes('\"seed\": {first['seed']}')")
        finished(page)
        (answer,) = answers(page)
        second = json.loads(answer)
        assert second["seed"] != first["seed"]
        assert page.locator(".figures").inner_text().endswith(f"seed {second['seed']}")
        assert problems == []


def test_the_last_question_can_be_changed(browser, server):
    with opened(browser, server.address) as (page, problems):
        ask(page, "first")
        ask(page, "secnd")
        page.get_by_role("button", name="Edit question").click()
        field = page.get_by_label("Your message")
        assert field.input_value() == "secnd"
        page.keyboard.press("Escape")
        assert field.input_value() == "" and answers(page) == ["first", "secnd"]
        page.get_by_role("button", name="Edit question").click()
        field.fill("prompt")
        page.keyboard.press("Enter")
        finished(page)
        assert questions(page) == ["first", "prompt"]
        assert "secnd" not in answers(page)[1] and "first" in answers(page)[1]
        assert problems == []


def test_settings_reach_the_model(browser, server):
    with opened(browser, server.address) as (page, problems):
        assert {k: v for k, v in settings_of(page).items() if k != "seed"} == {"temperature": 0.6, "top_k": 50}
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Temperature").fill("1.25")
        page.get_by_label("Top-k").fill("7")
        page.get_by_label("Seed").fill("42")
        page.get_by_label("Longest answer").fill("60")
        page.keyboard.press("Escape")
        assert page.locator("#settings").is_hidden()
        assert settings_of(page) == {"temperature": 1.25, "top_k": 7, "seed": 42}
        ask(page, "x" * 200)
        assert "cut after 60 tokens; the settings allow more" in page.locator(".note").inner_text()
        # what is no number of its range counts as the default
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Top-k").fill("-3")
        page.get_by_label("Seed").fill("seven")
        assert settings_of(page)["top_k"] == 50
        page.get_by_role("button", name="Defaults").click()
        assert page.get_by_label("Temperature").input_value() == "0.6" and page.get_by_label("Seed").input_value() == ""
        assert problems == []


def test_an_answer_can_be_copied(browser, server):
    with opened(browser, server.address) as (page, problems):
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        ask(page, "calculate")
        page.get_by_role("button", name="Copy").click()
        page.get_by_role("button", name="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == "It is 48."
        page.evaluate("navigator.clipboard.writeText('')")
        page.evaluate(
            "() => { navigator.clipboard.writeText = () => Promise.reject(); }"
        )  # as on an address without encryption
        page.get_by_role("button", name=re.compile("Cop")).click()
        until(page, "navigator.clipboard.readText().then((text) => text === 'It is 48.')")
        assert problems == []


def test_a_new_conversation_forgets_the_old_one(browser, server):
    with opened(browser, server.address) as (page, problems):
        ask(page, "my secret")
        page.get_by_role("button", name="New").click()
        page.get_by_role("heading", name="Say something").wait_for()
        ask(page, "prompt")
        assert "secret" not in answers(page)[0]
        page.get_by_role("button", name="New").click()
        page.get_by_role("button", name="Bring the last conversation back").click()
        assert questions(page) == ["prompt"]
        assert problems == []


def test_a_conversation_outlives_a_reload_and_not_its_tab(browser, server):
    with visit(browser, server.address) as (page, problems):
        ask(page, "calculate")
        shown = answers(page)
        page.reload()
        page.locator(".said").wait_for()
        assert answers(page) == shown and questions(page) == ["calculate"]
        other = page.context.new_page()
        other.goto(server.address)
        other.get_by_role("heading", name="Say something").wait_for()
        assert problems == []


def test_without_storage_it_works_until_it_is_closed(browser, server):
    with visit(browser, "about:blank") as (page, problems):
        page.add_init_script("Object.defineProperty(window, 'sessionStorage', {get() { throw new Error('refused'); }});")
        page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new Error('refused'); }});")
        page.goto(server.address)
        ask(page, "hello")
        page.get_by_role("button", name="Theme").click()
        assert answers(page) == ["hello"]
        assert problems == []


# -- what it must never do -----------------------------------------------------------------------------------------------------


def test_whatever_is_said_is_only_text(browser, server):
    with opened(browser, server.address, width=400) as (page, problems):
        for payload in PAYLOADS:
            ask(page, payload)
        assert questions(page) == PAYLOADS
        assert len(answers(page)) == len(PAYLOADS)
        assert answers(page)[:4] == PAYLOADS[:4]
        assert "␛[2J␛]0;harmed␇" in answers(page)[4] and "\u202e" not in answers(page)[5]
        for element in (".asked", ".said"):
            tags = page.locator(element).evaluate_all(
                "list => list.flatMap((e) => [...e.querySelectorAll('*')]).map((e) => e.tagName)"
            )
            assert set(tags) <= {"SPAN"}
        assert page.evaluate("window.harmed") is None
        no_sideways_scroll(page)
        assert problems == []


def test_a_foreign_script_would_not_run(browser, server):
    # the negative control of the test above: text that became HTML
    with opened(browser, server.address) as (page, problems):
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.harmed = 1\">')")
        eventually(lambda: problems or page.wait_for_timeout(50))
        assert page.evaluate("window.harmed") is None
        assert any("script-src" in problem for problem in problems)


def test_a_stored_conversation_that_was_tampered_with_is_left_out(browser, server):
    with visit(browser, server.address) as (page, problems):
        page.get_by_role("heading", name="Say something").wait_for()
        for stored in (
            '{"model": "tiny/sft", "exchanges": [{"question": 5}]}',
            '{"model": "tiny/sft", "exchanges": 7}',
            "{",
            "null",
        ):
            page.evaluate("(text) => sessionStorage.setItem('nanochat-conversation', text)", stored)
            page.reload()
            page.get_by_role("heading", name="Say something").wait_for()
        assert problems == []


# -- without a mouse -----------------------------------------------------------------------------------------------------------


def test_everything_with_the_keyboard_alone(browser, server):
    with opened(browser, server.address) as (page, problems):
        keyboard = page.keyboard
        focused = "document.activeElement.id || document.activeElement.textContent"
        assert page.evaluate(focused) == "question"  # at once
        keyboard.type("two")
        keyboard.press("Shift+Enter")
        keyboard.type("lines")
        keyboard.press("Enter")
        finished(page)
        assert questions(page) == ["two\nlines"]
        keyboard.type("endless")
        keyboard.press("Enter")
        until(page, "document.querySelectorAll('.said')[1]?.innerText.length > 9")
        keyboard.press("Escape")
        finished(page)
        page.get_by_role("button", name="Copy").first.focus()
        keyboard.press("/")
        assert page.evaluate(focused) == "question" and page.get_by_label("Your message").input_value() == ""
        keyboard.type("/is typed where one types")
        assert page.get_by_label("Your message").input_value() == "/is typed where one types"
        reached = []
        for _ in range(20):
            keyboard.press("Tab")
            if page.evaluate("document.activeElement === document.body"):
                continue  # the browser's own buttons, then the page from its top
            reached.append(page.evaluate(focused))
            outline = page.evaluate(
                "getComputedStyle(document.activeElement).outlineStyle !== 'none' || !!document.activeElement.closest('.box')"
            )
            assert outline, f"{reached[-1]} has the focus and does not show it"
        assert {"new", "settings-button", "theme", "Copy", "Regenerate", "Edit question", "question", "send"} <= set(reached)
        assert problems == []


def test_what_a_screen_reader_hears(browser, server):
    with opened(browser, server.address) as (page, problems):
        ask(page, "hello")
        heard = page.locator("#announcer")
        assert heard.get_attribute("aria-live") == "polite" and heard.inner_text() == "hello"
        assert page.get_by_role("list", name="Conversation").get_by_role("group", name="Answer").count() == 1
        fields = "[...document.querySelectorAll('button, input, textarea')]"
        unnamed = page.evaluate(fields + ".filter((e) => !e.labels?.length && !e.textContent.trim()).length")
        assert unnamed == 0
        assert problems == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_stand_out_from_their_background(browser, server, dark):
    with opened(browser, server.address, dark=dark) as (page, problems):
        ask(page, "calculate")
        page.get_by_role("button", name="Settings").click()
        for element in (".asked", ".said", ".calc", ".calc b", ".under button", ".figures", "#keys", "#facts", "#settings p"):
            if page.locator(element).first.is_visible():
                ratio = page.evaluate(CONTRAST, element)
                assert ratio >= 4.5, f"{element}: {ratio:.1f}"
        assert problems == []


# WCAG 2's contrast of an element's text with what is painted behind it
CONTRAST = """(selector) => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const element = document.querySelector(selector);
  let behind = element;
  while (behind && numbers(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const paints = [getComputedStyle(element).color, getComputedStyle(behind ?? document.body).backgroundColor];
  const [a, b] = paints.map((colour) => light(numbers(colour)));
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


def test_nothing_moves_for_those_who_want_no_motion(browser, server):
    with opened(browser, server.address) as (page, problems):
        page.emulate_media(reduced_motion="reduce")
        animations = (
            "document.querySelector('.waiting i') && getComputedStyle(document.querySelector('.waiting i')).animationName"
        )
        page.route("**/completions", lambda route: None)  # no first word comes
        ask(page, "hello", wait=False)
        page.locator(".waiting").wait_for()
        assert page.evaluate(animations) == "none"
        page.emulate_media(reduced_motion="no-preference")
        assert page.evaluate(animations) == "breathe"
        assert problems == []


def test_the_theme_can_be_chosen_and_is_remembered(browser, server):
    with opened(browser, server.address, dark=True) as (page, problems):
        button = page.get_by_role("button", name="Theme")
        seen = []
        for _ in range(3):
            seen.append(page.evaluate("document.documentElement.dataset.theme"))
            button.click()
        assert seen == ["dark", "light", "dark"]  # as the system, light, dark
        button.click()
        page.reload()
        assert page.evaluate("document.documentElement.dataset.theme") == "light"
        assert problems == []


# -- when something is wrong ---------------------------------------------------------------------------------------------------


def console(problem):
    """The browser itself reports every answer that is an error."""
    return problem.startswith("console error: Failed to load resource")


def test_a_server_that_is_gone_and_comes_back(browser, folders):
    with started(folders["sft"], "--max-tokens", "2048") as running, visit(browser, running.address) as (page, problems):
        ask(page, "hello")
        ask(page, "endless", wait=False)
        until(page, "document.querySelectorAll('.said')[1]?.innerText.length > 9")
        running.end(signal.SIGINT)
        page.get_by_text("The answer broke off").wait_for()
        screenshot(page, "broken-off")
        ask(page, "are you there?")
        page.get_by_text("The server does not answer").wait_for()
        screenshot(page, "gone")
        again = [
            sys.executable,
            running.process.args[1],
            "{}",
            str(folders["sft"]),
            "--port",
            str(running.port),
            "--device",
            "cpu",
        ]
        process = subprocess.Popen(again, stdout=subprocess.PIPE, text=True)
        try:
            page.get_by_text("The server is there again.").wait_for()
            page.get_by_role("button", name="Try again").click()
            until(page, "document.querySelectorAll('.said')[2]?.innerText === 'are you there?'")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        assert all(map(console, problems))


def test_a_busy_server_says_so_and_is_asked_again(browser, folders):
    limits = {"active": 0, "waiting": 0}
    with started(folders["sft"], limits=limits) as running, visit(browser, running.address) as (page, problems):
        ask(page, "hello")
        page.get_by_text("The server is busy with other answers.").wait_for()
        assert questions(page) == ["hello"] and answers(page) == []
        assert page.get_by_role("button", name="Try again").is_visible()
        assert problems and all(map(console, problems))


def test_what_the_server_refuses_is_told(browser, server):
    with opened(browser, server.address) as (page, _):
        ask(page, "fail")
        page.get_by_text("The server says: the model failed (ValueError)").wait_for()
        page.get_by_role("button", name="Edit question").click()
        ask(page, "hello")
        assert questions(page) == ["hello"]
        assert page.locator("#trouble").is_hidden()


def test_a_conversation_longer_than_a_request_is_sent_from_its_end(browser, server):
    with opened(browser, server.address) as (page, problems):
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Longest answer").fill("3")
        for _ in range(4):
            ask(page, "x" * 20_000)
        assert len(answers(page)) == 4
        assert page.get_by_text("its beginning is left out").count() == 4
        assert problems == []


def test_a_key_is_taken_from_the_address_and_kept_in_the_tab(browser, folders):
    with started(folders["sft"], "--key", "auto") as running:
        address, _, key = running.address.partition("/#key=")
        assert len(key) == 32
        with visit(browser, running.address) as (page, problems):
            ask(page, "hello")
            assert answers(page) == ["hello"]
            assert key not in page.url
            page.reload()
            page.locator(".said").wait_for()
            ask(page, "again")
            assert problems == []
        with visit(browser, address) as (page, problems):
            page.get_by_text("This server wants its key").wait_for()
            screenshot(page, "key")
            assert problems and all(map(console, problems))


def test_a_base_model_says_that_it_continues(browser, folders):
    with started(folders["base_train"]) as running, visit(browser, running.address) as (page, problems):
        page.get_by_role("heading", name="Begin a text").wait_for()
        assert "continues what you write" in page.locator("#welcome-text").inner_text()
        screenshot(page, "base")
        assert problems == []
