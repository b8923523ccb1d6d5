"""The page of a traced forward pass in a real browser, and the program that writes it for any prompt."""

import base64
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from browser import no_sideways_scroll, screenshot, visit
from small_models import random_model, small_tokenizer

from nanochat.checkpoint import save_model
from nanochat.manifest import publish
from nanochat.trace import main, own_folder, share, title_of
from nanochat.tracing.differences import differences
from nanochat.tracing.forward import trace_forward
from nanochat.tracing.forward_page import coloured, paired, where_seen, write_forward_page

PROMPT = "the tale of 12 é"
HOSTILE = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>\x1b[31m \u202e & half \ud83d"
DARK = [False, True]


@pytest.fixture(scope="module")
def trace():
    tokenizer, this, that = small_tokenizer(), random_model(), random_model("textbook")
    return {
        "forward": trace_forward(this, tokenizer, PROMPT, name="tiny", is_chat=False),
        "beside": trace_forward(that, tokenizer, PROMPT, name="textbook, untrained", is_chat=False, is_trained=False),
        "differences": differences(this.config.as_dict(), that.config.as_dict()),
    }


@pytest.fixture(scope="module")
def path(trace, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "forward.html"
    write_forward_page(path, trace, title="Forward pass of tiny")
    return path


@pytest.fixture(scope="module")
def single(trace, tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "forward.html"
    write_forward_page(path, {**trace, "beside": None, "differences": []}, title="Forward pass of tiny")
    return path


def step_number(page) -> int:
    return int(page.locator(".fw-count").first.inner_text().split("/")[0])


def shown_line(page) -> tuple[str, int]:
    """The file and the line that are highlighted."""
    return tuple(page.evaluate("() => { const line = document.querySelector('.ln.now'); "
                               "return [line.parentElement.dataset.file, Number(line.dataset.line)]; }"))  # fmt: skip


# -- what a reader sees ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("dark", DARK)
def test_the_page_opens_without_a_problem_and_fits(browser, path, width, dark):
    with visit(browser, path, width=width, dark=dark) as (page, problems):
        page.locator("#fw-lens table").first.wait_for()
        no_sideways_scroll(page)
        assert page.locator("h1").inner_text() == "Forward pass of tiny"
        assert page.locator("#fw-residual svg .fw-mean-line").count() == 2
        screenshot(page, f"forward-{width}-{'dark' if dark else 'light'}")
        assert problems == []


@pytest.mark.parametrize("dark", DARK)
def test_every_picture_is_drawn(browser, path, dark):
    uniform = """() => [...document.querySelectorAll("canvas")].filter((canvas) => {
      const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
      copy.drawImage(canvas, 0, 0);
      const data = copy.getImageData(0, 0, canvas.width, canvas.height).data;
      return canvas.width * canvas.height > 1 && data.every((value, i) => value === data[i % 4]);
    }).map((canvas) => canvas.getAttribute("aria-label"))"""
    with visit(browser, f"{path.as_uri()}#step-20", dark=dark) as (page, problems):
        assert page.locator("canvas").count() > 8
        assert page.evaluate(uniform) == []
        page.get_by_role("button", name="Theme").click()
        assert page.evaluate(uniform) == []
        assert problems == []


def test_the_code_shown_is_the_file(browser, path, trace):
    with visit(browser, path) as (page, _):
        for name, lines in trace["forward"]["sources"].items():
            shown = page.evaluate(
                "(name) => [...document.querySelector(`.fw-file[data-file='${name}']`).querySelectorAll('.ln')]"
                ".map((line) => line.querySelector('code').textContent)",
                name,
            )
            assert shown == lines


def test_colours_lose_no_character(trace):
    for lines in trace["forward"]["sources"].values():
        assert ["".join(text for _, text in segments) for segments in coloured(lines)] == list(lines)


def test_all_steps_show_their_line_and_their_values(browser, path, trace):
    forward, beside = trace["forward"], trace["beside"]
    pairs = paired(forward["steps"], beside["steps"])
    with visit(browser, path) as (page, problems):
        for number, (this, that) in enumerate(pairs):
            steps = [model["steps"][i] for model, i in ((forward, this), (beside, that)) if i is not None]
            assert step_number(page) == number + 1
            assert shown_line(page) == (steps[0]["file"], steps[0]["line"])
            text = page.locator("#fw-values").inner_text()
            assert steps[0]["function"] in text
            assert ("does not run this line" in text) == (None in (this, that))
            for value in steps[0]["values"]:
                assert value["name"].replace("return", "returned") in text
                if "shape" in value:
                    assert all(str(size) in text for size in value["shape"])
            page.keyboard.press("ArrowRight") if number else page.get_by_role("button", name="Next").click()
        assert page.get_by_role("button", name="Next").is_disabled()
        assert problems == []


def test_the_page_says_whose_lines_its_steps_are(browser, path, trace):
    numbers = [len(trace[model]["steps"]) for model in ("forward", "beside")]
    with visit(browser, path) as (page, _):
        count = page.locator(".fw-count").first.inner_text().split("/")[1].strip()
        text = page.locator("#lines").inner_text()
        assert f"{count} steps, of both models: {numbers[0]} lines of tiny and {numbers[1]} of textbook, untrained;" in text
        assert "while the code below is on the screen" in text


def test_ways_to_go(browser, path, trace):
    with visit(browser, f"{path.as_uri()}#step-30") as (page, problems):
        assert step_number(page) == 30
        page.get_by_role("button", name="Back").click()
        assert step_number(page) == 29
        page.get_by_label("Function").select_option("naive_attention")
        page.get_by_role("combobox", name="Block").select_option("1")
        line = shown_line(page)
        assert "block 2 of 2" in page.locator("#fw-values").inner_text()
        page.keyboard.press("[")
        assert shown_line(page) == line and "block 1 of 2" in page.locator("#fw-values").inner_text()
        page.keyboard.press("]")
        assert "block 2 of 2" in page.locator("#fw-values").inner_text()
        page.wait_for_function(f"() => location.hash === '#step-{step_number(page)}'")
        page.get_by_role("slider", name="Step").fill("0")
        assert step_number(page) == 1
        assert problems == []


def test_over_stays_in_the_function_or_leaves_it(browser, path):
    with visit(browser, path) as (page, _):
        page.get_by_label("Function").select_option("Block.forward")
        page.locator("h1").click()  # the arrow keys belong to a selection as long as it has the focus
        page.locator("#fw-stage").scroll_into_view_if_needed()
        before = step_number(page)
        page.keyboard.press("Shift+ArrowRight")
        assert page.locator(".fw-path b").inner_text() == "Block.forward"
        assert step_number(page) > before + 3


def test_play_goes_on_by_itself_and_stops(browser, path):
    with visit(browser, path) as (page, problems):
        page.get_by_role("button", name="Play").click()
        page.wait_for_function("() => document.querySelector('.fw-count').textContent.startsWith('3 ')")
        page.get_by_role("button", name="Pause").click()
        assert page.get_by_role("button", name="Play").get_attribute("aria-pressed") == "false"
        assert problems == []


def test_a_click_on_a_line_goes_there(browser, path):
    with visit(browser, path) as (page, _):
        page.get_by_role("group", name="Source file").get_by_role("button", name="gpt.py").click()
        line = page.locator("#file-gpt .ln", has_text="weights = scores.softmax")
        line.click()
        assert page.locator(".ln.now").inner_text().strip() == line.inner_text().strip()
        assert "naive_attention" in page.locator(".fw-path").inner_text()


def test_differences_lead_to_the_lines_where_the_models_part(browser, path, trace):
    with visit(browser, path) as (page, problems):
        for difference in trace["differences"]:
            row = page.locator("#fw-differences tr", has_text=difference["title"]).first
            assert difference["explanation"].split("`")[0].strip()[:40] in row.inner_text()
        page.locator("#fw-differences tr", has_text="Soft cap").get_by_role("link").first.click()
        page.locator(".fw-difference", has_text="Soft cap of the logits").wait_for()
        assert "self.config.soft_cap is not None" in page.locator(".ln.now").inner_text()
        assert "yes" in page.locator(".ln.now .fw-made").inner_text()
        assert problems == []


def test_a_line_that_one_model_does_not_run_says_which_component_decides(browser, path):
    with visit(browser, path) as (page, _):
        page.get_by_label("Function").select_option("rotate")
        absent = page.locator("#fw-values .fw-column", has_text="textbook, untrained")
        assert absent.locator(".fw-absent").inner_text() == "does not run this line: the two differ in positions."


def test_one_model_can_be_shown_alone(browser, path):
    with visit(browser, path) as (page, _):
        views = page.get_by_role("group", name="Models shown")
        views.get_by_role("button", name="textbook").click()
        assert page.locator("#fw-values .fw-column").count() == 1
        seen = set()
        while page.get_by_role("button", name="Next").is_enabled():
            page.get_by_role("button", name="Next").click()
            seen.add(page.locator(".fw-path b").inner_text())
        assert "LayerNorm.forward" in seen and "rotate" not in seen and "RMSNorm.forward" not in seen


def test_a_phone_begins_with_one_model(browser, path):
    with visit(browser, path, width=400) as (page, _):
        pressed = page.get_by_role("group", name="Models shown").locator("[aria-pressed=true]")
        assert pressed.inner_text() == "tiny"


def test_a_trace_of_one_model_needs_no_other(browser, single):
    with visit(browser, single) as (page, problems):
        assert page.locator("#differences").count() == 0
        assert page.locator("#fw-values .fw-column").count() == 1
        for _ in range(40):
            page.keyboard.press("ArrowRight") if step_number(page) > 1 else page.get_by_role("button", name="Next").click()
        assert step_number(page) == 41
        assert problems == []


def test_attention_is_told_under_the_pointer_and_by_the_keyboard(browser, single, trace):
    forward = trace["forward"]
    T = len(forward["tokens"])
    levels = np.frombuffer(base64.b64decode(forward["attention"][0]["weights"]), np.uint8).reshape(4, -1)
    weight = (levels[0][T * (T - 1) // 2 + T - 2] / 255) ** 2  # of the last token on the one before it
    with visit(browser, single) as (page, problems):
        box = page.locator(".fw-matrix canvas")
        box.scroll_into_view_if_needed()
        size = box.bounding_box()["width"] / T
        box.hover(position={"x": size * (T - 1.5), "y": size * (T - 0.5)})
        readout = page.locator("#fw-attention .fw-readout")
        text = readout.inner_text().replace("\xa0", " ")
        told = float(re.search(r"([\d.]+) % of its attention", text)[1])
        assert told == pytest.approx(100 * weight, abs=0.51)
        label = page.locator(".fw-heads button").first.locator(".fw-last").inner_text().replace("\xa0", " ")
        best = max(range(T), key=lambda column: levels[0][T * (T - 1) // 2 + column])
        assert label.startswith(f"last token: {forward['tokens'][best]['text'].replace(' ', '·')} ")
        largest = 100 * (levels[0][T * (T - 1) // 2 + best] / 255) ** 2
        assert float(label.split()[-2]) == pytest.approx(largest, abs=0.51)
        page.locator(".fw-matrix").focus()
        page.keyboard.press("ArrowUp")
        assert forward["tokens"][T - 2]["text"].strip() in readout.inner_text()
        box.hover(position={"x": size * (T - 0.5), "y": size * 0.5})
        assert "may not see" in readout.inner_text()
        page.get_by_role("button", name="head 3").click()
        assert page.locator(".fw-large h4").inner_text() == "Head 3 of block 1"
        page.get_by_role("slider", name="Block").fill("1")
        assert page.locator(".fw-large h4").inner_text() == "Head 3 of block 2"
        assert problems == []


def test_the_table_after_each_block_ends_with_what_the_model_says(browser, single, trace):
    forward = trace["forward"]
    token, _ = forward["lens"][-1]["top"][0]
    word = forward["vocabulary"][str(token)].replace(" ", "·")
    with visit(browser, single) as (page, _):
        rows = page.locator(".fw-lens tbody tr")
        assert rows.count() == 3
        assert rows.last.locator(".fw-token").first.inner_text() == word
        assert page.locator("#fw-next .fw-ranking .fw-token").first.inner_text() == word


def test_the_residual_plot_tells_each_half_of_a_block(browser, single):
    with visit(browser, single) as (page, _):
        chart = page.locator("#fw-residual svg")
        chart.scroll_into_view_if_needed()
        assert chart.locator(".fw-added").count() == 4
        chart.hover(position={"x": chart.bounding_box()["width"] * 0.95, "y": 100})
        assert "After the MLP of block 2" in page.locator("#fw-residual .fw-readout").inner_text()


# -- foreign text ------------------------------------------------------------------------------------------------------------


def test_hostile_prompts_and_names_are_text(browser, tmp_path):
    tokenizer, model = small_tokenizer(), random_model(sequence_len=512)
    forward = trace_forward(model, tokenizer, HOSTILE, name="<b>name</b>\x1b[2J", is_chat=True)
    path = tmp_path / "forward.html"
    write_forward_page(
        path, {"forward": forward, "beside": forward, "differences": []}, title="<script>window.hurt = 1</script>"
    )
    with visit(browser, path) as (page, problems):
        assert page.locator("h1").inner_text() == "<script>window.hurt = 1</script>"
        assert page.evaluate("() => window.hurt") is None
        assert page.locator("img").count() == 0
        page.get_by_label("Function").select_option("clean_text")
        text = page.evaluate("() => document.body.innerText")
        assert "␛[2J" in text and "window.hurt = 1" in page.locator("#fw-values").inner_text()
        assert not re.search("[\x1b\u202e\ud800-\udfff]", path.read_text())
        assert problems == []


def test_a_page_of_d20s_form_stays_small(tmp_path):
    """20 blocks, 10 heads, 32 tokens; no picture is larger for being of a wider model, once it is wide."""
    model = random_model(n_layer=20, n_head=10, n_kv_head=10, n_embd=320)
    forward = trace_forward(model, small_tokenizer(), "0123456789" * 3 + "0", name="deep", is_chat=False)
    assert len(forward["tokens"]) == 32
    write_forward_page(tmp_path / "forward.html", {"forward": forward, "beside": None, "differences": []}, title="deep")
    assert (tmp_path / "forward.html").stat().st_size < 2_300_000


# -- two models, one sequence of steps ----------------------------------------------------------------------------------------


def test_pairs_hold_every_step_of_both_once_and_in_order(trace):
    these, those = trace["forward"]["steps"], trace["beside"]["steps"]
    pairs = paired(these, those)
    assert [this for this, _ in pairs if this is not None] == list(range(len(these)))
    assert [that for _, that in pairs if that is not None] == list(range(len(those)))
    for this, that in pairs:
        if this is not None and that is not None:
            assert [these[this][key] for key in ("line", "module")] == [those[that][key] for key in ("line", "module")]
    both = sum(None not in pair for pair in pairs)
    assert both > 0.7 * len(those), "most lines are run by both"


def test_a_difference_is_seen_where_its_line_runs_in_either_model(trace):
    models = [trace["forward"], trace["beside"]]
    pairs = paired(*(model["steps"] for model in models))
    numbers = where_seen({"places": [{"function": "GPT.embed", "code": "self.wpe(positions)"}]}, pairs, models)
    assert [pairs[number][0] for number in numbers] == [None]
    assert where_seen({"places": [{"function": "GPT.embed", "code": "no such code"}]}, pairs, models) == []


def test_the_same_trace_gives_the_same_bytes(trace, path, tmp_path):
    write_forward_page(tmp_path / "again.html", json.loads(json.dumps(trace)), title="Forward pass of tiny")
    assert (tmp_path / "again.html").read_bytes() == path.read_bytes()


# -- the program -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder like results/tiny: a base model, a chat model made from it, and a textbook run beside it."""
    folder = tmp_path_factory.mktemp("results")
    publish_model(folder / "tiny/base_train", random_model())
    publish_model(folder / "tiny/sft", random_model(seed=1), start_from=folder / "tiny/base_train/manifest.json")
    publish_model(folder / "book/base_train", random_model("textbook"))
    return folder


def publish_model(folder, model, **inputs):
    files = save_model(folder, model, small_tokenizer())
    publish(folder / "manifest.json", specification={}, inputs=inputs, files=files, results={}, record={})


def test_the_program_writes_page_and_numbers_and_prints_a_table(models, tmp_path, capsys):
    assert main([str(models / "tiny/base_train"), "-p", PROMPT, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert PROMPT in printed and "block 2" in printed and "bits" in printed
    assert printed.rstrip().endswith(str(tmp_path / "out/forward.html"))
    trace = json.loads((tmp_path / "out/trace.json").read_text())
    assert trace["forward"]["name"] == "tiny/base_train"
    assert (trace["beside"]["name"], trace["beside"]["is_trained"]) == ("textbook", False)
    assert (tmp_path / "out/forward.html").stat().st_size > 100_000


def test_the_program_sets_another_model_beside_or_none(models, tmp_path):
    folder, out = str(models / "tiny/base_train"), str(tmp_path)
    assert main([folder, "-p", PROMPT, "-o", out, "--beside", str(models / "book/base_train")]) == 0
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["beside"]["name"] == "book/base_train" and trace["beside"]["is_trained"]
    assert "positions" in [entry["component"] for entry in trace["differences"]]
    assert main([folder, "-p", PROMPT, "-o", out, "--beside", "none"]) == 0
    assert json.loads((tmp_path / "trace.json").read_text())["beside"] is None


def test_the_program_asks_a_chat_model_in_a_conversation(models):
    assert main([str(models / "tiny/sft"), "-p", "where?", "--beside", "none"]) == 0
    trace = json.loads((models / "tiny/traces/sft/where/trace.json").read_text())
    assert trace["forward"]["tokens"][1]["text"] == "<|user_start|>"
    assert trace["forward"]["is_chat"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny/base_train", "-p", " "], "the prompt is empty: give a text to follow through the model"),
        (["tiny/base_train", "-p", "é" * 100], "has 201 tokens, and at most 128 can be shown"),
        (["tiny/nothing", "-p", "x"], "no model here"),
        (["tiny", "-p", "x"], "Models inside it: tiny/base_train, tiny/sft"),
        (["tiny/base_train", "-p", "x", "--beside", "nowhere"], "nowhere: no model here"),
        (["tiny/base_train", "-p", "x", "-o", "tiny/base_train/config.json"], "File exists. -o names another"),
    ],
)
def test_wrong_input_is_told_in_a_sentence(models, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(models)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_an_empty_prompt_is_refused_before_anything_is_read(tmp_path, capsys):
    assert main([str(tmp_path / "nothing"), "-p", "\n "]) == 1
    assert "the prompt is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("The home of Otto is in", "the-home-of-otto-is-in"),
        ("../../x/é\n", "x-é"),
        ("?!", "prompt"),
        ("word " * 40, "word-" * 9 + "wor"),
    ],
)
def test_the_folder_of_a_prompt_is_named_after_it(tmp_path, prompt, name):
    assert own_folder(tmp_path / "tiny/sft", prompt) == tmp_path / "tiny/traces/sft" / name


def test_no_prompt_writes_over_the_page_of_another(tmp_path):
    model, names = tmp_path / "base_train", []
    for prompt in ("an end", "An end?", "an\tend", "an end", "An end?"):
        folder = own_folder(model, prompt)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trace.json").write_text(json.dumps({"forward": {"prompt": prompt.replace("\t", "␉")}}))
        names.append(folder.name)
    assert names == ["an-end", "an-end-2", "an-end-3", "an-end", "an-end-2"]


def test_the_page_of_the_program_names_its_prompt(models, browser, tmp_path):
    prompt = "<i>the</i> & tale"
    assert main([str(models / "tiny/base_train"), "-p", prompt, "-o", str(tmp_path), "--beside", "none"]) == 0
    with visit(browser, tmp_path / "forward.html") as (page, problems):
        assert page.locator("h1").inner_text() == page.title() == f"“{prompt}”: forward pass of tiny/base_train"
        assert problems == []
    assert title_of({"prompt": "a" * 500, "name": "tiny"}) == "“" + "a" * 79 + "…”: forward pass of tiny"


@pytest.mark.parametrize(
    ("chance", "text"), [(1.0, "100 %"), (0.936, "94 %"), (0.0123, "1.2 %"), (0.0004, "< 0.1 %"), (0, "< 0.1 %")]
)
def test_the_terminal_writes_chances_as_the_page_does(chance, text):
    assert share(chance) == text


def test_escapes_in_a_prompt_do_not_reach_the_terminal(models, tmp_path, capsys):
    assert main([str(models / "tiny/base_train"), "-p", "a\x1b[31m\u202eb", "-o", str(tmp_path), "--beside", "none"]) == 0
    assert not re.search("[\x1b\u202e]", capsys.readouterr().out)


def test_the_program_runs_as_a_module(models, tmp_path):
    command = [sys.executable, "-m", "nanochat.trace", str(models / "tiny/base_train"), "-p", PROMPT, "-o", str(tmp_path)]
    done = subprocess.run([*command, "--beside", "none"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "forward.html" in done.stdout


def test_a_model_with_another_vocabulary_does_not_stand_beside(models, tmp_path, capsys):
    publish_model(tmp_path / "large/base_train", random_model(vocab_size=310))
    arguments = ["-p", PROMPT, "-o", str(tmp_path), "--beside", str(tmp_path / "large/base_train")]
    assert main([str(models / "tiny/base_train"), *arguments]) == 1
    assert "large/base_train has a vocabulary of 310 tokens" in capsys.readouterr().err
