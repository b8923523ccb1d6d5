"""The page of a recorded training step, in a real browser."""

import re

import numpy as np
import pytest
from browser import no_sideways_scroll, screenshot, visit
from small_models import SIZES, random_model, small_tokenizer
from test_trace_step import METRICS, SPECIFICATION

from nanochat.dataloader import PackedRows
from nanochat.gpt import GPT, GPTConfig
from nanochat.tracing.step import trace_step
from nanochat.tracing.step_page import placed, short, write_step_page

HOSTILE = "{{ 7 }}\x1b[2J\u202e</script><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"
LENGTH = 64
NAME = "<img src=x onerror='window.hit = 1'>/base_train"
TITLE = f"Training step of {NAME}"


def record(folder, preset: str, model=None, **changes) -> dict:
    """A trace with a step on hostile text, of a model with a hostile name."""
    tokenizer = small_tokenizer()
    ids = [tokenizer.encode(HOSTILE * 9, bos=True)[: LENGTH + 1] for _ in range(6)]
    np.save(folder / "rows.npy", np.array(ids, dtype=np.uint16))
    rows = PackedRows([folder / "rows.npy"])
    model = model or random_model(preset)
    specification = SPECIFICATION | changes
    return {"step": trace_step(model, tokenizer, rows, rows, specification, METRICS, num_tokens=LENGTH, name=NAME)}


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> dict:
    return record(tmp_path_factory.mktemp("nanochat"), "nanochat")


@pytest.fixture(scope="module")
def page_file(trace, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "step.html"
    write_step_page(file, trace, title=TITLE)
    return file


@pytest.fixture(scope="module")
def textbook_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("textbook")
    write_step_page(folder / "step.html", record(folder, "textbook"), title=TITLE)
    return folder / "step.html"


def drawn(page) -> None:
    """Every plot has its drawing, every picture its pixels."""
    plots = page.locator(".st-plot:visible")
    for number in range(plots.count()):
        plots.nth(number).locator(".main-svg").first.wait_for(state="attached")
    assert plots.count() == 8
    # a plot without a single mark is not drawn
    assert page.eval_on_selector_all(
        ".st-plot", "plots => plots.every((p) => p.querySelector('.trace path, .points path, .js-line'))"
    )
    blank = """canvases => canvases.filter((canvas) => {
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return new Set(Array.from({ length: data.length / 4 }, (_, i) => data.slice(4 * i, 4 * i + 3).join())).size < 3;
    }).length"""
    assert page.locator("canvas").count() == 6
    assert page.eval_on_selector_all("canvas", blank) == 0


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_drawn_at_every_width_in_both_themes(browser, page_file, width, dark):
    with visit(browser, page_file, width=width, dark=dark) as (page, problems):
        drawn(page)
        no_sideways_scroll(page)
        screenshot(page, f"step-{width}-{'dark' if dark else 'light'}")
        assert problems == []


def test_the_page_of_a_textbook_model_is_drawn(browser, textbook_page):
    with visit(browser, textbook_page) as (page, problems):
        drawn(page)
        assert page.locator("#adamw-choice button").count() == 0  # a tied head: one table, nothing to choose
        assert problems == []


def test_a_model_that_nothing_moves_has_a_page(browser, tmp_path):
    """Of an untrained nanochat model most gradients are zero, and rates of zero move nothing: there is little to plot."""
    untrained = GPT(GPTConfig.preset("nanochat", **SIZES)).init_weights(0)
    trace = record(tmp_path, "nanochat", untrained, matrix_lr=0.0, embedding_lr=0.0, unembedding_lr=0.0, grad_clip=0.0)
    write_step_page(tmp_path / "step.html", trace, title=TITLE)
    with visit(browser, tmp_path / "step.html") as (page, problems):
        page.locator("#schedule-plot .main-svg").first.wait_for(state="attached")
        assert "This training does not clip" in page.locator("#gradient").inner_text()
        assert problems == []


def test_text_of_the_rows_and_names_stay_text(browser, page_file):
    with visit(browser, page_file) as (page, problems):
        drawn(page)
        assert page.evaluate("window.hit") is None
        assert page.locator("img").count() == 0
        assert "<img src=x" in page.locator("h1").inner_text()
        text = page.locator("#loss-text").inner_text()
        assert "{{ 7 }}␛[2J" in text and "</script><script>window.hit" in text
        assert not {"\x1b", "\u202e"} & set(text)
        assert problems == []


def test_blocks_are_counted_from_one_as_on_the_forward_page(browser, page_file):
    assert placed("blocks.2.attn.c_q.weight", 4) == "attn.c_q, block 3 of 4 (blocks.2)"
    assert placed("wte.weight", 4) == "wte"
    with visit(browser, page_file) as (page, problems):
        drawn(page)
        ticks = page.locator("#gradient-plot .xtick").all_text_contents()
        assert "block 1" in ticks and "block 0" not in ticks
        assert page.locator("#muon-choice button").first.inner_text() == "attn.c_q, block 2 of 2 (blocks.1)"
        assert "c_q, block 2 of 2 (blocks.1): gradient" in page.locator("#muon-caption").inner_text()
        page.eval_on_selector_all(".st-listing", "listings => listings.forEach((one) => one.remove())")  # real values of `name`
        assert not re.search(r"blocks\.\d\.", page.locator("body").inner_text())
        assert problems == []


def test_tokens_can_be_walked_with_the_keyboard(browser, page_file):
    with visit(browser, page_file) as (page, problems):
        box = page.get_by_role("listbox", name="Text of the step")
        box.focus()
        before = page.locator("#loss-detail").inner_text()
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")
        assert page.locator("#loss-detail").inner_text() != before
        assert box.get_by_role("option", selected=True).count() == 1
        page.keyboard.press("Home")  # the first token is given
        assert "costs nothing" in page.locator("#loss-detail").inner_text()
        assert problems == []


def test_colours_of_the_text_follow_the_buttons(browser, page_file):
    shares = "spans => spans.map((span) => span.style.getPropertyValue('--share') + span.classList.contains('less')).join()"
    with visit(browser, page_file) as (page, problems):
        found = []
        for name in ("loss before", "loss after", "change"):
            page.get_by_role("button", name=name).click()
            found.append(page.eval_on_selector_all("#loss-text .st-t", shares))
        assert len(set(found)) == 3
        assert problems == []


def test_a_line_opens_what_it_made(browser, page_file):
    with visit(browser, page_file) as (page, problems):
        line = page.locator(".st-line[data-function=orthogonalize] button").last
        line.click()
        assert line.get_attribute("aria-expanded") == "true"
        assert page.locator(".st-more canvas").count() >= 1
        line.click()
        assert page.locator(".st-more").count() == 0
        assert problems == []


def test_every_value_of_the_code_opens(browser, page_file):
    with visit(browser, page_file, width=400) as (page, problems):
        count = page.eval_on_selector_all(".st-value button", "buttons => buttons.map((b) => b.click()).length")
        assert count > 25
        assert page.locator(".st-more").count() == count
        no_sideways_scroll(page)
        assert problems == []


def test_another_matrix_and_the_other_theme_are_drawn(browser, page_file):
    with visit(browser, page_file) as (page, problems):
        caption = page.locator("#muon-caption").inner_text()
        page.locator("#muon-choice").get_by_role("button", name="mlp.c_fc").click()
        assert page.locator("#muon-caption").inner_text() != caption
        page.locator("#theme").click()
        page.locator("#theme").click()
        drawn(page)
        assert problems == []


def test_the_page_says_its_numbers_without_a_script(trace, page_file):
    body = page_file.read_text().split('<script type="application/json"')[0]
    for number in (trace["step"]["loss"]["after"], trace["step"]["gradient"]["norm"], trace["step"]["bpb"]["bpb"]):
        assert short(number) in body
    assert body.count('class="st-line') > 100


def test_the_same_trace_makes_the_same_page(tmp_path, trace, page_file):
    write_step_page(tmp_path / "again.html", trace, title=TITLE)
    assert (tmp_path / "again.html").read_bytes() == page_file.read_bytes()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (1.0, "1"),
        (12345, "12,345"),
        (-0.01234, "−0.0123"),
        (3.14159, "3.14"),
        (1.5e-7, "1.50e−7"),
        (123.456, "123"),
    ],
)
def test_numbers_for_people(value, text):
    assert short(value) == text
