"""Several runs in one page: right differences, what differs and what is missing, for runs that share stages too."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from browser import no_sideways_scroll, screenshot, visit
from hostile import HOSTILE, Page, active_parts
from reporting import FakeRun
from test_report_page import DRAWN, data_of, poison, storable, wait_for_plots

from nanochat.accuracy import difference_interval, wilson_interval
from nanochat.errors import UserError
from nanochat.manifest import open_verified, publish
from nanochat.reports import charts
from nanochat.reports.comparison import Score, difference, find_stages, flat, is_different, write_comparison

ROOT = Path(__file__).parent.parent


@pytest.fixture
def two(tmp_path) -> tuple[FakeRun, FakeRun]:
    """`a` whole; `b` reuses everything of it but sft and its evaluation."""
    a = FakeRun(tmp_path / "results" / "a").publish_all()
    b = FakeRun(tmp_path / "results" / "b")
    b.publish_training("sft", steps=9, bpb=0.4, tokens_per_second=99.0)
    republish(b, "sft", {"seed": 43, "of": "sft", "mixture": [{"task": "x"}]}, {"start_from": a.manifests["mid_train"]})
    b.publish_chat("sft", {"arc_easy": (0.25, 60, 100), "open_questions": (0.0, 93, 100)})
    stages = {name: path if path.exists() else a.manifests[name] for name, path in b.manifests.items() if name != "trace"}
    report = b.root / "report" / "manifest.json"
    publish(report, specification={"cost_per_gpu_hour": 3.0}, inputs=stages, files=[], results={}, record={})
    return a, b


def republish(run: FakeRun, stage: str, specification: dict, inputs: dict[str, Path]) -> None:
    """The same files, made from other inputs under another specification."""
    old = open_verified(run.manifests[stage])
    publish(
        old.manifest,
        specification=specification,
        inputs=inputs,
        files=list(old.files),
        results=old.results,
        record=old.record(),
    )


def compare(*runs: FakeRun) -> str:
    path = runs[0].root.parent / "page.html"
    write_comparison(path, [run.root for run in runs])
    return path.read_text(encoding="utf-8")


def rows(html: str) -> dict[str, list[str]]:
    found = {}
    for line in re.findall(r"<tr>(.*?)</tr>", html, flags=re.S):
        cells = [" ".join(Page(cell).text.split()) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line, flags=re.S)]
        found.setdefault(cells[0], cells[1:])
    return found


# -- numbers -----------------------------------------------------------------------------------------------------------------


def test_differences_are_those_of_the_manifests(two):
    found = rows(compare(*two))
    low, high = difference_interval((0.28, wilson_interval(28, 100)), (0.60, wilson_interval(60, 100)))
    assert found["ARC-Easy, after sft"] == ["0.2800", "0.6000", "+0.3200", f"{low:+.3f} to {high:+.3f}"]
    assert found["ARC-Easy, after mid_train"][2] == "+0.0000"
    assert found["hellaswag"][:3] == ["0.5500", "0.5500", "+0.0000"]
    found = rows(compare(*two).split('<h2 id="scores">')[1])
    low, high = difference_interval((0.1357, (0.1, 0.2)), (0.1357, (0.1, 0.2)))
    assert found["ChatCORE of six, after sft"] == ["0.1357", "0.1357", "+0.0000", f"{low:+.3f} to {high:+.3f}"]


def test_time_of_all_finished_stages_is_that_of_the_report(two):
    a, b = two
    a.publish("trace", {}, record={"seconds": 1000.0})  # so that it shows
    a.report()
    reported = re.search(r"\| Time of all finished stages \| (.+?) \|", a.text).group(1)
    html = compare(a, b)
    assert rows(html)["Time of all finished stages"][0] == reported
    assert rows(html)["trace"][0] == "16 min 40 s"
    assert "trace" not in Page(html.split('<h2 id="what-differs">')[1].split("<h2")[0]).text.split()


def test_a_start_above_the_plot_is_said_below_it(two):
    drawn = data_of(Page(compare(*two)))["loss"]["variants"]
    assert "note" not in drawn["sft"], "so few steps are all shown"
    note = drawn["base_train"]["note"]
    assert note.startswith("Start above the plot: a, b at 5.94")
    assert note.endswith("Double-click to see all.")


def test_a_difference_that_leaves_out_zero_is_bold():
    first, near, far = (Score(right / 100, wilson_interval(right, 100)) for right in (28, 30, 60))
    assert difference(first, far)[0] == "**+0.3200**"
    assert difference(first, near)[0] == "+0.0200"
    assert difference(Score(0.28), Score(0.30)) == ("+0.0200", "–")
    assert difference(None, near) == ("–", "–")


def test_scores_on_other_items_are_not_subtracted(two):
    a, b = two
    b.publish_chat("sft", {"arc_easy": (0.25, 60, 100), "open_questions": (0.0, 93, 100)})
    republish(b, "chat_eval/sft", {}, {"arc_easy/test": a.manifests["tokenizer"]})
    found = rows(compare(a, b).split('<h2 id="scores">')[1])
    assert found["ARC-Easy, after sft"] == ["0.2800", "0.6000", "other items", "–"]
    assert found["open questions, after sft"][2] == "+0.0200"
    assert found["ChatCORE of six, after sft"] == ["0.1357", "0.1357", "other items", "–"]


def test_difference_interval_is_that_of_newcombe_1998():
    """His table II, example (a): 56/70 against 48/80, method 10."""
    low, high = difference_interval((48 / 80, wilson_interval(48, 80)), (56 / 70, wilson_interval(56, 70)))
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_what_was_configured_differently_is_named_and_nothing_else(two):
    html = compare(*two)
    section = html.split('<h2 id="what-differs">')[1].split("</table>")[0]
    assert rows(section).keys() == {"stage", "sft"}
    keys = re.findall(r"<tr>\n<td>sft</td>\n<td><code>(.*?)</code></td>\n<td>(.*?)</td>\n<td>(.*?)</td>", section)
    assert keys == [
        ("mixture[0].task", "not there", "<code>&quot;x&quot;</code>"),
        ("seed", "<code>42</code>", "<code>43</code>"),
    ]


def test_nested_keys_are_named_in_full():
    assert flat({"a": {"b": [1, {"c": None}]}, "d": {}}) == {"a.b[0]": "1", "a.b[1].c": "null", "d": "{}"}
    assert flat({}) == {}
    assert is_different(["1", "null"]) and is_different(["1", "2"]) and not is_different(["null", "(not there)"])


def test_shared_stages_are_found_by_their_identities_and_drawn_once(two):
    a, b = two
    assert find_stages(b.root)["base_train"] == a.manifests["base_train"]
    assert find_stages(b.root)["sft"] == b.manifests["sft"]
    charts = data_of(Page(compare(a, b)))
    names = {name: [trace["name"] for trace in chart["traces"]] for name, chart in charts["loss"]["variants"].items()}
    assert names == {"base_train": ["a, b"], "mid_train": ["a, b"], "sft": ["a", "b"]}
    tokens = charts["bpb"]["variants"]["sft"]["traces"][1]["x"]
    assert tokens == [4 * 1024, 9 * 1024]


def test_without_a_report_a_run_finds_what_it_was_made_from(two):
    a, b = two
    shutil.rmtree(b.root / "report")
    found = find_stages(b.root)
    assert found["mid_train"] == a.manifests["mid_train"]
    assert found["base_eval"] == b.manifests["base_eval"], "nothing of b was made from it"


def test_costs_are_at_each_runs_own_price(two):
    found = rows(compare(*two).split('<h2 id="time-and-cost">')[1])
    assert found["sft"] == ["1 h 00 min", "123 K", "1 h 00 min", "99", "24.00"]


def test_same_runs_give_the_same_bytes(two):
    assert compare(*two) == compare(*two)


# -- what is missing ---------------------------------------------------------------------------------------------------------


def test_an_unfinished_run_is_compared_as_far_as_it_is(two):
    a, b = two
    (b.manifests["chat_eval/sft"]).unlink()
    html = compare(a, b)
    notice = Page(html.split('<div class="panel notice">')[1].split("</div>")[0]).text
    assert "chat_eval/sft" in notice and "has not finished" in notice
    assert rows(html)["ARC-Easy, after sft"] == ["0.2800", "–", "–", "–"]
    assert rows(html)["ARC-Easy, after mid_train"][:2] == ["0.2600", "0.2600"]


def test_a_run_of_which_nothing_is_there_is_said_in_one_line(two, tmp_path):
    (tmp_path / "results" / "c").mkdir()
    html = compare(two[0], FakeRun(tmp_path / "results" / "c"))
    notice = html.split('<div class="panel notice">')[1].split("</div>")[0]
    assert notice.count("<li>") == 1 and "have not finished" in notice


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results/a"], "at least two runs"),
        (["results/a", "results/nothing"], "there is no such folder"),
        (["results/a", "results/../results/a"], "given twice"),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence(two, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        write_comparison(tmp_path / "page.html", [tmp_path / word for word in arguments])


def test_the_command_writes_the_page_and_says_what_is_missing(two, tmp_path):
    two[1].manifests["chat_eval/sft"].unlink()
    command = [sys.executable, "-m", "nanochat.compare"]
    paths = [str(run.root) for run in two]
    done = subprocess.run([*command, *paths, "-o", str(tmp_path / "x.html")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "x.html") and (tmp_path / "x.html").exists()
    assert "not finished: b: chat_eval/sft" in done.stderr
    failed = subprocess.run([*command, paths[0], "/nothing"], capture_output=True, text=True, cwd=tmp_path)
    assert failed.returncode == 1 and failed.stderr.startswith("error: /nothing: there is no such folder")
    assert not (tmp_path / "comparison.html").exists()


def test_many_runs_can_be_drawn_each_score_in_its_own_row():
    groups = {f"run {number}": {"MMLU": (0.3, None), "GSM8K": (0.1, None)} for number in range(12)}
    drawn = charts.scores_chart(["MMLU", "GSM8K"], groups, chance={"MMLU": 0.25})["traces"][1:]
    assert len(drawn) == 12 and all(abs(y - round(y)) < 0.5 for trace in drawn for y in trace["y"])
    assert len({y for trace in drawn for y in trace["y"]}) == 24
    assert len(charts.times_chart({name: {"sft": 1.0 + number} for number, name in enumerate(groups)})["traces"]) == 13


def test_signs_in_a_folders_name_that_a_terminal_would_obey_are_shown_instead(two, tmp_path):
    folder = tmp_path / "results" / "b\x1b[2J\u202e"
    two[1].root.rename(folder)
    (folder / "sft" / "manifest.json").unlink()
    assert any(line.startswith("b␛[2J\\u{202E}: sft") for line in write_comparison(tmp_path / "x.html", [two[0].root, folder]))
    assert not {"\x1b", "\u202e"} & set((tmp_path / "x.html").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "nanochat.compare", str(two[0].root), f"{folder}\x1b[2J"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1 and "there is no such folder" in done.stderr and "\x1b" not in done.stderr


# -- hostile text, and a browser ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_appears_as_text(two, hostile):
    poison(two[1], storable(hostile))
    html = compare(*two)
    assert active_parts(html) == []
    assert Page(html).tags.count("script") == 4


@pytest.mark.parametrize("width", [400, 1400])
def test_every_plot_is_drawn_and_nothing_leaves(two, browser, width):
    compare(*two)
    with visit(browser, two[0].root.parent / "page.html", width=width) as (page, problems):
        wait_for_plots(page, 6)
        found = page.evaluate(DRAWN)
        assert {plot["key"] for plot in found if plot["traces"]} == {"loss", "bpb", "chat", "core", "times", "costs"}
        no_sideways_scroll(page)
        screenshot(page, f"comparison_{width}")
        page.get_by_role("button", name="sft", exact=True).click()
        page.get_by_role("button", name="after mid_train").click()
        wait_for_plots(page, 6)
        assert problems == []
