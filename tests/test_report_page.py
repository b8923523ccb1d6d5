"""The report as a page: the same sections as report.md, plots that are drawn, and foreign text that stays text."""

import json
import re

import pytest
from browser import no_sideways_scroll, screenshot, visit
from hostile import HOSTILE, Page, active_parts
from reporting import FakeRun, core_task

from nanochat.component_map import component_map
from nanochat.gpt import GPTConfig
from nanochat.reports import charts, plots
from nanochat.text import visible

DRAWN = """() => [...document.querySelectorAll(".plot")].map((plot) => ({
  key: plot.dataset.plot,
  traces: plot.querySelectorAll("svg.main-svg .scatterlayer .trace, svg.main-svg .barlayer .trace").length,
  empty: plot.querySelector(".plot-empty")?.textContent ?? null,
}))"""


@pytest.fixture
def run(tmp_path, monkeypatch) -> FakeRun:
    for name in ("plot_losses", "plot_core", "plot_chat"):
        monkeypatch.setattr(plots, name, lambda path, *numbers: path.write_bytes(b""))
    return FakeRun(tmp_path).publish_all()


def headings(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, flags=re.M)


def wait_for_plots(page, number: int) -> None:
    """Until so many are drawn. (Not `wait_for_function`, which evaluates strings: the page's policy forbids that.)"""
    for _ in range(100):
        if sum(plot["traces"] > 0 for plot in page.evaluate(DRAWN)) >= number:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{number} plots expected: {page.evaluate(DRAWN)}")


def data_of(page: Page) -> dict:
    [data] = [content for kind, content in page.scripts if kind == "application/json"]
    return json.loads(data)


# -- one document, two renderings --------------------------------------------------------------------------------------------


def test_page_and_text_have_the_same_sections_and_numbers(run):
    run.report(cost_per_gpu_hour=2.0)
    page = Page(run.page)
    sections = re.findall(r'<h2 id="([^"]+)">([^<]+)</h2>', run.page)
    assert [title for _, title in sections] == headings(run.text)
    contents = re.findall(r'<li><a href="#([^"]+)">([^<]+)</a></li>', run.page)
    assert contents == sections
    cells = {cell.strip() for line in run.text.splitlines() if line.startswith("| ") for cell in line.strip("| ").split(" | ")}
    numbers = {cell for cell in cells if re.fullmatch(r"[\d,.]+", cell)}
    assert len(numbers) > 60
    assert not {number for number in numbers if number not in page.text}
    assert active_parts(run.page) == []


def test_headline_numbers_stand_first(run):
    run.report(cost_per_gpu_hour=2.0)
    before = Page(run.page.split('<div class="scroll">')[0]).text
    for number in ("0.1357", "1.2222", "48.00", "GPT-2 (1.5 B) on 22 tasks: 0.2565", "published d20 on 22 tasks: 0.2219"):
        assert number in before, number


def test_same_inputs_give_the_same_page(run):
    run.report("once")
    first = run.page
    run.report("twice")
    assert run.page == first


def test_details_specification_and_provenance_are_folded(run):
    run.publish_trace(components={"nanochat": component_map(GPTConfig())})
    run.report()
    folded = re.findall(r'<h2 id="([^"]+)">[^<]+</h2>\n<details class="folded">', run.page)
    assert folded == ["components-one-by-one", "provenance", "specification"]


def test_links_lead_to_the_pages_of_the_trace(run):
    run.report()
    assert run.page.count('<a href="../trace/forward.html">') == 1
    assert run.page.count('<a href="../trace/step.html">') == 1
    assert "[../trace/forward.html](../trace/forward.html)" in run.text
    for address in re.findall(r'<a href="([^"#]+)"', run.page.split("</article>")[0]):
        assert (run.root / "report" / address).resolve().exists(), address


def test_a_run_without_trace_says_so_where_it_would_stand(run):
    run.manifests["trace"].unlink()
    run.report()
    for section in ("Components", "Forward pass", "Training step"):
        assert "`trace` has not finished" in run.text.split(f"## {section}\n")[1].split("\n## ")[0], section
    assert "../trace/" not in run.page


def test_what_is_missing_is_said_first(run):
    run.manifests["sft"].unlink()
    run.report()
    notice = run.page.split('<div class="panel notice">')[1].split("<section")[0]
    assert "This report is not complete." in notice and "sft" in Page(notice).text
    assert run.page.index("panel notice") < run.page.index("<h2")


# -- plots -------------------------------------------------------------------------------------------------------------------


def test_plots_hold_the_numbers_of_the_manifests(run):
    run.report(cost_per_gpu_hour=2.0)
    found = data_of(Page(run.page))
    loss = {trace["name"]: trace for trace in found["loss"]["variants"]["base_train"]["traces"]}
    assert loss["training, each step"]["x"][:2] == [0, 1] and len(loss["training, each step"]["x"]) == 300
    assert loss["validation"]["y"] == [pytest.approx(1.3345 * 3), pytest.approx(1.2345 * 3)]
    assert found["bpb"]["variants"]["sft"]["traces"][0]["y"][-1] == 0.4321
    assert found["speed"]["variants"]["mid_train"]["traces"][0]["y"][:2] == [120_000, 120_100]
    accuracy = {trace["name"]: trace for trace in found["core"]["traces"]}["accuracy"]
    tasks = run.results["base_eval"]["tasks"]
    assert dict(zip([c[0] for c in accuracy["customdata"]], accuracy["x"], strict=True)) == {
        name: pytest.approx(task["accuracy"]) for name, task in tasks.items()
    }
    low = [x - minus for x, minus in zip(accuracy["x"], accuracy["error_x"]["arrayminus"], strict=True)]
    assert low == [pytest.approx(tasks[c[0]]["interval"][0], abs=1e-4) for c in accuracy["customdata"]]
    bars = found["centred"]["traces"][0]
    high = [x + plus for x, plus in zip(bars["x"], bars["error_x"]["array"], strict=True)]
    assert high == [pytest.approx(tasks[c[0]]["centered_interval"][1], abs=1e-4) for c in bars["customdata"]]
    headlines = Page(run.page.split('<h2 id="summary">')[1].split("<h2")[0]).text
    low, high = run.results["base_eval"]["interval"]
    assert f"95 %: {low:.3f} to {high:.3f} · GPT-2" in headlines and "after sft · 95 %: 0.100 to 0.200" in headlines
    lines = [trace["name"] for trace in found["centred"]["traces"][1:]]
    assert lines == [
        f"CORE: {run.results['base_eval']['core']:.4f}",
        "GPT-2 (1.5 B) on 22 tasks: 0.2565",
        "published d20 on 22 tasks: 0.2219",
    ]
    chat = [trace["name"] for trace in found["chat"]["traces"]]
    assert chat == ["chance", "after mid_train", "after sft", "published d20, MID", "published d20, SFT"]
    costs = {trace["name"]: trace["x"] for trace in found["costs"]["traces"]}
    assert costs["actual"] == [16, 16, 16] and costs["predicted"] == []


def test_a_long_curve_is_thinned_without_losing_its_ends_and_peaks():
    rows = [{"step": i, "loss": 3.0, "grad_norm": 100.0 if i == 7777 else 1.0} for i in range(21_400)]
    found = charts.training_charts(rows, [])
    x, norms = found["norm"]["traces"][0]["x"], found["norm"]["traces"][0]["y"]
    assert len(x) <= charts.MAX_POINTS and x[-1] == 21_399 and max(norms) == 100
    assert set(found["loss"]["traces"][1]["y"]) == {3}


def test_what_lies_above_a_plot_is_said_below_it():
    rows = [{"step": i, "loss": 6.93 if i == 0 else 2.5 + 0.001 * i, "grad_norm": 0.5 + 0.001 * i} for i in range(100)]
    for step, norm in ((1, 1.2), (3, 1.84)):
        rows[step]["grad_norm"] = norm
    found = charts.training_charts(rows, [], grad_clip=1.0)
    assert found["loss"]["note"] == "Starts at 6.93, above the plot; double-click to see all."
    norm = "Highest 1.84 at step 3, above the plot (double-click to see all); clipped at 1 in 2 of 100 steps."
    assert found["norm"]["note"] == norm
    assert found["norm"]["layout"]["yaxis"]["range"][1] < 1 and len(found["norm"]["traces"]) == 1, (
        "the limit is out of sight too"
    )
    assert "clipped" not in charts.training_charts(rows, [])["norm"]["note"]


def test_the_limit_of_the_gradient_is_drawn_where_it_is_in_sight():
    rows = [{"step": i, "loss": 3.0, "grad_norm": 0.5 + i % 3} for i in range(30)]
    found = charts.training_charts(rows, [], grad_clip=2.0)
    limit = found["norm"]["traces"][1]
    assert (limit["name"], limit["x"], limit["y"]) == ("limit 2", [0, 29], [2, 2])
    assert found["norm"]["note"] == "Highest 2.5 at step 2; clipped at 2 in 10 of 30 steps."
    assert "note" not in found["loss"], "all of it is in sight"
    assert len(charts.training_charts(rows, [], grad_clip=3.0)["norm"]["traces"]) == 1
    assert charts.training_charts([{"step": 0, "loss": 1.0, "grad_norm": float("nan")}], [], grad_clip=1.0)["norm"] is None


def test_the_note_below_a_plot_is_that_of_the_chosen_training(run, browser):
    run.report()
    with visit(browser, run.root / "report" / "report.html") as (page, problems):
        wait_for_plots(page, 9)
        box = page.locator(".plot-box", has=page.locator("[data-plot=loss]"))
        assert "Starts at 5.94, above the plot" in box.locator(".plot-note").inner_text()
        page.get_by_role("button", name="sft", exact=True).click()
        assert box.locator(".plot-note").count() == 0
        page.get_by_role("button", name="base_train", exact=True).click()
        assert box.locator(".plot-note").count() == 1
        assert problems == []


def test_core_on_the_usual_22_tasks_needs_no_such_words(run):
    tasks = {f"task {number}": core_task("schema", 0.5, 0.6, 10, 10) for number in range(22)}
    run.publish("base_eval", {"core": 0.2, "tasks": tasks})
    run.report()
    lines = [trace["name"] for trace in data_of(Page(run.page))["centred"]["traces"][1:]]
    assert lines == ["CORE: 0.2000", "GPT-2 (1.5 B): 0.2565", "published d20: 0.2219"]


def test_numbers_that_are_none_become_gaps():
    assert charts.numbers([1.0, float("nan"), float("inf"), 1 / 3, None]) == [1, None, None, 0.333333, None]


def test_a_predicted_time_stands_beside_the_actual_one():
    times = {"predicted": {"sft": 50.0, "tokenizer": None}, "actual": {"sft": 60.0, "tokenizer": 2.0}}
    drawn = {trace["name"]: trace for trace in charts.times_chart(times, hollow_first=True)["traces"]}
    assert drawn["predicted"]["customdata"] == [["sft", "50.0 s"]]
    assert drawn["actual"]["customdata"] == [["tokenizer", "2.0 s"], ["sft", "1 min 00 s"]]
    assert drawn["difference"]["x"] == [2, 2, None, 50, 60, None]
    assert charts.times_chart({"actual": {"sft": None}}) is None


# -- hostile text ------------------------------------------------------------------------------------------------------------


def poison(run: FakeRun, hostile: str) -> None:
    """Hostile text in every place of a run that can hold it."""
    task = core_task(hostile, 0.5, 0.4, 10, 10)
    samples = [{"prompt": hostile, "text": hostile}]
    record = {"host": hostile, "device": hostile, "dtype": hostile, "code": hostile, "versions": {hostile: hostile}}
    run.publish(
        "base_eval",
        {"core": 0.1, "tasks": {hostile: task, "b": task}, "samples": samples},
        record={**record, "finished": hostile},
        inputs={hostile: run.root / "base_eval" / "samples.json"},
        files={"samples.json": samples},
        specification={hostile: hostile, "mixture": [{"task": hostile}]},
    )
    run.publish("tokens/sft", {"train": {"parts": [{"task": hostile, hostile: hostile}]}})
    run.publish_chat("sft", {hostile: (0.25, 28, 100)}, samples=samples)


def storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_appears_as_text(run, hostile):
    poison(run, hostile)
    run.report(title=hostile)
    assert active_parts(run.page) == []
    text = Page(run.page).text
    shown = re.sub(r"\s+", " ", visible(hostile, keep="\n\t")).strip()
    assert text.count(shown) >= 12  # title twice, sample, tasks, host, device, versions, ...
    assert Page(run.page).tags.count("script") == 4  # base.js, data, Plotly, report.js
    assert "img" not in Page(run.page).tags


def test_a_hostile_prompt_of_the_trace_appears_as_text(run):
    """A real trace of a small random model, whose prompt is everything at once."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from small_models import random_model, small_tokenizer

    from nanochat.tracing.forward import trace_forward

    prompt = "".join(storable(hostile) for hostile in HOSTILE[:3])
    model = random_model(sequence_len=256)
    forward = trace_forward(model, small_tokenizer(), prompt, name=HOSTILE[1], is_chat=False)
    run.publish_trace(forward=forward, components={"nanochat": component_map(model.config)})
    run.report()
    assert active_parts(run.page) == []
    page = Page(run.page)
    assert prompt[:20] in page.text and HOSTILE[1] in page.text
    assert "Multi-head self-attention" in page.text and "math" in page.tags
    assert page.tags.count("script") == 4


def test_hostile_errors_appear_as_text(run):
    """A damaged file's message names the file; a manifest that cannot be read is quoted."""
    run.manifests["sft"].write_text(json.dumps({"format": "<script>hacked=1</script>"}))
    run.report()
    assert active_parts(run.page) == []
    assert "has format <script>hacked=1</script>" in Page(run.page).text


# -- in a browser ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
def test_every_plot_is_drawn_and_nothing_leaves(run, browser, width, dark):
    run.report(cost_per_gpu_hour=2.0)
    with visit(browser, run.root / "report" / "report.html", width=width, dark=dark) as (page, problems):
        wait_for_plots(page, 10)
        found = page.evaluate(DRAWN)
        assert {plot["key"]: plot["empty"] for plot in found if not plot["traces"]} == {}
        assert len(found) == 10
        no_sideways_scroll(page)
        screenshot(page, f"report_{width}{'_dark' if dark else ''}")
        page.get_by_role("button", name="sft", exact=True).click()
        wait_for_plots(page, 10)
        assert [plot["traces"] for plot in page.evaluate(DRAWN)] == [plot["traces"] for plot in found]
        no_sideways_scroll(page)
        assert problems == []


def test_a_page_of_an_unfinished_run_shows_what_there_is(run, browser):
    for name in ("mid_train", "sft", "base_eval", "chat_eval/mid_train", "chat_eval/sft", "trace"):
        run.manifests[name].unlink()
    run.report()
    with visit(browser, run.root / "report" / "report.html") as (page, problems):
        page.wait_for_selector("[data-plot=loss] svg.main-svg")
        found = {plot["key"]: plot for plot in page.evaluate(DRAWN)}
        assert found["loss"]["traces"] and found["times"]["traces"]
        assert found.keys() == {"loss", "bpb", "lr", "norm", "speed", "times"}
        page.get_by_role("button", name="sft", exact=True).click()
        page.wait_for_selector("[data-plot=loss] .plot-empty")
        assert problems == []


def test_a_page_of_nothing_opens(tmp_path, browser):
    run = FakeRun(tmp_path)
    run.report()
    assert len(run.page) < 200_000, "no Plotly where there is nothing to draw"
    with visit(browser, run.root / "report" / "report.html", width=400) as (page, problems):
        assert not any(plot["traces"] for plot in page.evaluate(DRAWN))
        no_sideways_scroll(page)
        assert problems == []


def test_hostile_text_is_obeyed_by_no_browser(run, browser):
    everything = storable("\n".join(HOSTILE))
    poison(run, everything)
    run.report(title=everything)
    with visit(browser, run.root / "report" / "report.html") as (page, problems):
        wait_for_plots(page, 8)
        page.locator("details.folded").evaluate_all("all => all.forEach((box) => { box.open = true; })")
        assert page.evaluate("typeof hacked") == "undefined"
        assert page.locator("img, iframe, form, base, object, embed").count() == 0
        assert page.locator(".plot a, .plot b, .plot sup").count() == 0
        page.locator("[data-plot=core] .point").first.hover(force=True)
        no_sideways_scroll(page)
        assert problems == []


def test_everything_is_reached_with_the_keyboard(run, browser):
    run.report()
    with visit(browser, run.root / "report" / "report.html", width=400) as (page, problems):
        wait_for_plots(page, 9)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.evaluate("location.hash") == "#content"
        page.reload()
        wait_for_plots(page, 9)
        wanted = page.evaluate(
            """() => [...document.querySelectorAll("button, a[href], summary, [tabindex='0']")]
            .filter((element) => element.checkVisibility()).map((element) => (element.dataset.wanted = "1")).length"""
        )
        for _ in range(3 * wanted):
            page.keyboard.press("Tab")
            if not page.evaluate("(delete document.activeElement.dataset.wanted, document.activeElement !== document.body)"):
                break
        left = page.evaluate("[...document.querySelectorAll('[data-wanted]')].map((element) => element.outerHTML.slice(0, 90))")
        assert left == []
        scrolling = page.evaluate(
            """() => [...document.querySelectorAll(".scroll")].filter((box) => box.checkVisibility())
            .filter((box) => box.scrollWidth > box.clientWidth + 1).map((box) => box.tabIndex)"""
        )
        assert scrolling and set(scrolling) == {0}
        assert problems == []


def test_contents_show_where_the_reader_is(run, browser):
    run.report()
    with visit(browser, run.root / "report" / "report.html") as (page, problems):
        wait_for_plots(page, 9)
        page.get_by_role("link", name="Chat evaluation").click()
        page.locator(".toc [aria-current]", has_text="Chat evaluation").wait_for()
        page.goto(page.url.split("#")[0] + "#provenance-inputs")
        page.get_by_text("Show specification").click()
        assert page.get_by_text("Every key that decided what came out").is_visible()
        assert problems == []
