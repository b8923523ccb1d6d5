"""The report is made from what stages published: right numbers, nothing lost when a stage is missing, nothing obeyed."""

import html
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import docutils.core
import jinja2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reporting import CONFIG, PARAMETERS, FakeRun, core_task

from nanochat.accuracy import centered_interval, wilson_interval
from nanochat.errors import UserError
from nanochat.manifest import sealed, write_json
from nanochat.reports import plots
from nanochat.reports.making import parameter_rows, preset
from nanochat.reports.report import FILES, STAGES, write_report
from nanochat.text import code, count, duration, fenced, inline, memory, percent, table

ROOT = Path(__file__).parent.parent

HOSTILE = [
    "plain ``` fence\n```\n# heading\n````\nlonger",
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "[click](javascript:alert(3)) ![x](http://tracker.example/x.png) <http://a.example>",
    "\x1b]0;new title\x07\x1b[31mred\x1b[0m\x9b2J\x00",
    "right \u202eto left\u202c, zero\u200bwidth, line\u2028separator, lone \ud800",
    "| a | b |\n|---|---|\n| *c* | _d_ | ~~e~~ $x$ & &lt; \\",
    "</details></code></pre>-->",
    "~~~\n~~~",
]


@pytest.fixture
def drawn_run(tmp_path) -> FakeRun:
    return FakeRun(tmp_path).publish_all()


@pytest.fixture
def run(drawn_run, monkeypatch) -> FakeRun:
    """The same with blank figures: to draw them takes a second."""
    for name in ("plot_losses", "plot_core", "plot_chat"):
        monkeypatch.setattr(plots, name, lambda path, *numbers: path.write_bytes(b""))
    return drawn_run


# -- reading Markdown back ---------------------------------------------------------------------------------------------------


def section(text: str, heading: str) -> str:
    return re.split(r"^## ", without_fences(text).split(f"\n## {heading}\n")[1], flags=re.M)[0]


def rows(text: str) -> dict[str, list[str]]:
    """Table rows by their first cell, unescaped."""
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    plain = [[html.unescape(re.sub(r"\\(.)", r"\1", cell)).strip() for cell in line] for line in cells]
    return {line[0]: line[1:] for line in plain}


def without_fences(text: str) -> str:
    """The text without its code blocks, found as CommonMark says: a block ends at a fence at least as long as its first."""
    kept, fence = [], None
    for line in text.split("\n"):
        mark = re.match(r"(`{3,}|~{3,})", line)
        if fence is None and mark:
            fence = mark.group(1)
        elif fence is not None and mark and mark.group(1).startswith(fence) and not line.strip("`~ "):
            fence = None
        elif fence is None:
            kept.append(line)
    assert fence is None, "a code block does not end"
    return "\n".join(kept)


def active_parts(text: str) -> list[str]:
    """What a renderer would obey rather than show, beside our own pictures and links: HTML, links, control characters."""
    found = re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]", text)
    own = r"^!\[[\w ,%:-]+\]\(\w+\.png\)$|\[(\.\./[\w./]+)\]\(\1\)"
    prose = re.sub(own, "", without_fences(text), flags=re.M)
    prose = re.sub(r"\\[\\`*_\[\]|~$]|`[^`\n]*`", "", prose)  # escaped signs, and code
    return found + re.findall(r"<|\]\(|\]:|://|www\.|`|~~|(?<![*\w])\*(?![* ])", prose.replace("**", ""))


# -- numbers -----------------------------------------------------------------------------------------------------------------


def test_numbers_in_the_report_are_those_of_the_manifests(run):
    text = run.report(cost_per_gpu_hour=2.0)
    summary = rows(section(text, "Summary"))
    base_eval, mid, sft = (run.results[name] for name in ("base_eval", "chat_eval/mid_train", "chat_eval/sft"))
    assert summary["CORE"][:3] == [f"{base_eval['core']:.4f}", "–", "–"]
    for title, name in (("ARC-Easy", "arc_easy"), ("open questions", "open_questions")):
        of_mid, of_sft = mid["tasks"][name], sft["tasks"][name]
        expected = ["–", f"{of_mid['accuracy']:.4f}", f"{of_sft['accuracy']:.4f}", f"{of_sft['baseline']:.4f}"]
        assert summary[title][:4] == expected
    assert summary["ChatCORE of five"][:3] == ["–", "–", "–"]
    assert summary["ChatCORE of six"][1:3] == ["0.1357", "0.1357"]
    assert summary["Validation bits per byte"] == ["1.2222"]

    training = rows(section(text, "Training"))
    for name in ("base_train", "mid_train", "sft"):
        of = run.results[name]
        bpb = of["validation_bpb"]
        expected = [f"{of['train_loss']:.4f}", f"{of['validation_loss']:.4f}", f"{bpb + 0.1:.4f}", f"{bpb:.4f}", f"{bpb:.4f}"]
        assert training[name] == [f"{of['steps']:,}", count(of["tokens"]), *expected]

    core = rows(section(text, "Base evaluation"))
    assert core["validation text"] == ["1.2222"]
    low, high = wilson_interval(11, 20)
    interval = f"{low:.3f} to {high:.3f}"
    low, high = centered_interval((low, high), 0.25)
    centred = f"{low:.3f} to {high:.3f}"
    assert core["hellaswag"] == ["multiple choice", "10", "20 of 100", "0.5500", interval, "0.2500", "0.4000", centred]
    assert core["winograd"][1:] == ["9 of 10", "10", "0.4000", "0.168 to 0.687", "0.5000", "-0.2000", "-0.664 to 0.375"]
    low, high = base_eval["interval"]
    assert f"CORE: **{base_eval['core']:.4f}** (95 % interval: {low:.3f} to {high:.3f})" in section(text, "Base evaluation")
    assert "20 of 100 items: a sample, drawn with a fixed seed" in section(text, "Base evaluation")
    assert "Fewer examples are shown than asked for" in section(text, "Base evaluation")

    chat = rows(section(text, "Chat evaluation"))
    low, high = wilson_interval(91, 100)
    assert chat["open questions"][:3] == ["generative", "100", "0.0000"]
    assert chat["open questions"][5:] == ["0.9100", f"{low:.3f} to {high:.3f}"]
    assert chat["ChatCORE of five"][3:] == ["–"] * 4
    assert chat["ChatCORE of six"][3:] == ["0.1357", "0.100 to 0.200"] * 2
    assert summary["ChatCORE of six, after sft"] == ["0.1357 (0.100 to 0.200)"]

    data = rows(section(text, "Data"))
    assert data["this run's"] == ["512", "3.91", "3.82"]
    assert data["GPT-2"] == ["50,257", "4.68", "4.63"]
    assert data["GPT-4 (cl100k)"] == ["100,277", "not downloaded", "not downloaded"]
    assert data["pretrain"] == ["900 documents in 3 shards", "1.00 M", "7,700", "1,234 (0.1 %)", "–", "–", "700"]
    assert data["sft"] == ["5,509 conversations", "40.0 K", "3,100", "0", "500 (1.2 %)", "10.0 K (25.0 %)", "31"]
    assert "2 documents were not UTF-8" in text
    assert data["`smoltalk`"] == ["`train`", "5,432", "`1.5`"]

    machine = rows(section(text, "Machine and time"))
    assert machine["tokenizer"] == ["–", "–", "–", "12.3 s", "–", "–", "–", "–", "–"]
    flops = 6 * (PARAMETERS - 512 * 64) + 12 * 2 * 64 * 128
    of_peak = percent(123_456 * flops / (8 * 312e12))
    assert machine["sft"] == [
        "8 × NVIDIA A100-SXM4-80GB",
        "bfloat16",
        "–",
        "1 h 00 min",
        "123 K",
        of_peak,
        "3.00 GiB",
        "1",
        "16.00",
    ]
    assert summary["Cost of the GPUs"] == ["48.00"]


def test_first_validation_names_its_steps(run):
    training = section(run.report(), "Training")
    assert (
        "`first` is the first measurement, not the start: after step 150 of `base_train`, 20 of `mid_train`, 3 of `sft`."
        in training
    )


def test_spelling_bee_is_to_be_read_against_an_answer_that_always_says_1(run):
    sentence = "an answer that always says 1 can score over a half"
    assert sentence not in run.report()
    run.publish_chat("sft", {"spelling_bee": (0.0, 60, 100)})
    text = run.report()
    assert sentence in section(text, "Chat evaluation")
    assert rows(section(text, "Chat evaluation"))["SpellingBee"][2] == "0.0000"


def test_published_card_stands_beside_and_says_what_it_is(run):
    summary = section(run.report(), "Summary")
    published = {name: cells[-3:] for name, cells in rows(summary).items()}
    assert published["CORE"] == ["0.2219", "–", "–"]
    assert published["ARC-Easy"] == ["–", "0.3561", "0.3876"]
    assert published["ChatCORE of five"] == ["–", "0.0730", "0.0884"]
    assert published["ChatCORE of six"] == ["–", "–", "–"]
    assert "published values of another model" in summary
    assert "CORE here is the mean of 3 tasks; the published one is of 22" in summary
    assert "asked with a seeded sample of their items" in summary


def test_scores_that_were_published_without_intervals_are_shown_without(run):
    new = ("num_fewshot_asked", "centered_interval")
    tasks = run.results["base_eval"]["tasks"]
    old = {name: {key: value for key, value in task.items() if key not in new} for name, task in tasks.items()}
    run.publish("base_eval", {**{k: v for k, v in run.results["base_eval"].items() if k != "interval"}, "tasks": old})
    chat = run.results["chat_eval/sft"]
    run.publish("chat_eval/sft", {**chat, "chatcore": {"five": None, "six": 0.1357}})
    text = run.report()
    core = rows(section(text, "Base evaluation"))
    assert core["winograd"][1] == "9" and core["winograd"][6:] == ["-0.2000", "-0.664 to 0.375"], "it follows from the other"
    assert f"CORE: **{run.results['base_eval']['core']:.4f}**, the mean" in text
    assert rows(section(text, "Chat evaluation"))["ChatCORE of six"][3:] == ["0.1357", "0.100 to 0.200", "0.1357", "–"]
    assert rows(section(text, "Summary"))["ChatCORE of six, after sft"] == ["0.1357"]
    assert "in the sandbox, tier `closed`" in text, "after mid_train"


def test_tasks_with_several_answers_show_pass_at_k_and_the_tier_of_the_sandbox(run):
    assert "pass@" not in run.report()
    assert section(run.text, "Chat evaluation").count("in the sandbox, tier `closed`.") == 1
    for training, low in (("mid_train", 0.05), ("sft", 0.1)):
        run.publish_chat(training, {"humaneval": (0.0, 10, 100), "gsm8k": (0.0, 20, 100)})
        results = run.results[f"chat_eval/{training}"]
        results["tasks"]["humaneval"] |= {"num_samples": 20, "pass_at": {"1": low, "10": 0.25}}
        run.publish(f"chat_eval/{training}", results, record={"sandbox": "full" if training == "sft" else "closed"})
    shown = section(run.report(), "Chat evaluation")
    assert "| HumanEval | pass@1 | 20 | 0.0500 | 0.1000 |" in shown
    assert "| HumanEval | pass@10 | 20 | 0.2500 | 0.2500 |" in shown
    assert "ran in the sandbox, tier `closed` and `full`." in shown


def test_tasks_whose_prompts_were_cut_are_named_with_how_many(run):
    assert "lost their beginning" not in run.report()
    run.results["base_eval"]["tasks"]["lambada"]["num_cropped"] = 1_234
    run.publish("base_eval", run.results["base_eval"])
    assert "longer than the model can read, and lost their beginning: lambada 1,234." in section(
        run.report(), "Base evaluation"
    )
    assert "1,234 prompts were longer" in section(run.text, "Summary")


def test_parameter_groups_add_up_to_the_model():
    textbook = {**CONFIG, "positions": "learned", "norm": "layer", "tied_head": True, "bias": True, "norm_embedding": False}
    for config in (CONFIG, textbook, {**CONFIG, "n_kv_head": 4, "bias": True}):
        *groups, total = parameter_rows(config, None)
        numbers = {name: int(number.replace(",", "")) for name, number, _ in groups}
        assert sum(numbers.values()) == int(total[1].replace(",", ""))
        assert all(number >= 0 for number in numbers.values())
    assert numbers["attention"] == 2 * 4 * 64 * 64
    assert dict((name, number) for name, number, _ in parameter_rows(textbook, None))["position embedding"] == "8,192"


def test_parameter_groups_are_those_of_the_real_model():
    gpt = pytest.importorskip("nanochat.gpt")
    for name in ("nanochat", "textbook"):
        config = gpt.GPTConfig.preset(name, vocab_size=96, n_layer=3, n_head=4, n_kv_head=2, n_embd=32, sequence_len=16)
        model = gpt.GPT(config)
        groups = {group: int(number.replace(",", "")) for group, number, _ in parameter_rows(config.as_dict(), None)}
        assert groups["all"] == model.num_parameters()
        matrices = [(key, p.numel()) for key, p in model.named_parameters() if p.dim() == 2]
        assert groups["attention"] == sum(number for key, number in matrices if ".attn." in key)
        assert groups["MLP"] == sum(number for key, number in matrices if ".mlp." in key)
        assert groups["token embedding"] == 96 * 32
        assert groups.get("norms and biases", 0) == sum(p.numel() for p in model.parameters() if p.dim() == 1)


def test_preset_is_named_with_what_differs():
    assert preset(CONFIG) == "preset nanochat"
    assert preset({**CONFIG, "mlp": "gelu", "soft_cap": None}) == "preset nanochat, with mlp gelu, soft_cap null"


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (count, 9345, "9,345"),
        (count, 9_999.6, "10,000"),
        (count, 10_000, "10.0 K"),
        (count, 1_830_000, "1.83 M"),
        (count, 999_950, "1.00 M"),
        (count, 560_988_160, "561 M"),
        (count, 11_219_763_200, "11.2 B"),
        (count, 3.92e19, "3.92e19"),
        (count, 0, "0"),
        (count, None, "–"),
        (duration, 12.3, "12.3 s"),
        (duration, 59.97, "1 min 00 s"),
        (duration, 245, "4 min 05 s"),
        (duration, 3599.7, "1 h 00 min"),
        (duration, 25_980, "7 h 13 min"),
        (duration, 180_000, "2 d 02 h"),
        (memory, 80_960_000_000, "75.4 GiB"),
        (memory, 300 * 2**20, "300 MiB"),
        (percent, 0.0001, "under 0.1 %"),
        (percent, 0, "0.0 %"),
    ],
)
def test_numbers_are_readable(function, value, text):
    assert function(value) == text


def test_interrupted_training_shows_its_segments_and_whether_it_is_exact(run):
    text = run.report()
    assert rows(section(text, "Machine and time"))["base_train"] == [
        "2 of 2", "2026-01-02 01:00:00", "2026-01-02 01:30:00", "n", "150 to 300",
    ]  # fmt: skip
    assert "not bit-identical" not in text
    run.publish_training("base_train", steps=300, bpb=1.2, segments=2, is_exact=False)
    assert section(run.report(), "Training").count("`base_train` was interrupted, and went on with something else") == 1
    assert "are not bit-identical to those of an undisturbed run" in section(run.text, "Machine and time")


def test_a_training_that_went_on_elsewhere_says_what_changed_and_from_which_step_on(run):
    moved = {
        "from_step": 120,
        "to_step": 300,
        "changed": ['versions.torch: was "2.13.0", is "2.14.0"', "world_size: was 1, is 2"],
    }
    run.publish_training("sft", steps=300, bpb=1.2, is_exact=False)
    record = run.manifests["sft"].with_name("record.json")
    content = {key: value for key, value in json.loads(record.read_text()).items() if key != "digest"}
    times = {"started": "2026-01-02T00:00:00", "finished": "2026-01-02T00:30:00"}
    content["segments"] = [{**times, "from_step": 0, "to_step": 120, "changed": []}, {**times, **moved}]
    write_json(record, sealed(content))
    assert "run: from step 120 on versions.torch: was" in (text := section(run.report(), "Training"))
    assert "world_size: was 1, is 2" in text.replace("\\", "")


def test_trainings_by_code_of_different_generations_are_told(run):
    for stage, generation in (("base_train", 1), ("mid_train", 2), ("sft", 2)):
        run.publish_training(stage, steps=3, bpb=1.2, generation=generation)
    text = section(run.report(), "Training")
    assert (
        "`mid_train` was trained by code of generation 2, from weights that `base_train` got from code of generation 1" in text
    )
    assert text.count("generation") == 2


def test_provenance_names_identities_inputs_versions_and_owners(run):
    text = run.report(owners={"base_train": "d20", "sft": "more"})
    provenance = section(text, "Provenance")
    assert rows(provenance)["base_train"][0] == "d20"
    assert "`0123456789ab+`" in provenance
    assert "tiny/shard_00000 to 00003 (4 files)" in provenance
    assert "| numpy | 2.4.6 | all |" in provenance
    block = json.loads(text.split("```json\n")[1].split("\n```")[0])
    assert block["sft"] == {"seed": 42, "of": "sft"}
    assert block["report"]["owners"] == {"base_train": "d20", "sft": "more"}


# -- what is missing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_missing_stage_is_named_and_the_rest_is_made(run, name):
    run.manifests[name].unlink()
    text = run.report()
    log = f"results/tiny/logs/{name.replace('/', '_')}.log"
    assert f"`{name}` has not finished" in text
    assert f"See `{log}`, then run the same command again." in text
    others = {"base_train": "1.2345", "sft": "0.4321", "base_eval": "hellaswag", "chat_eval/sft": "0.9100", "tokenizer": "3.91"}
    for other, number in others.items():
        assert (number in text) == (other != name), other


def test_nothing_published_still_gives_a_report(tmp_path):
    text = FakeRun(tmp_path).report()
    assert text.count("has not finished") >= len(STAGES)
    assert "No stage has finished." in text
    none = write_report(tmp_path, stages=dict.fromkeys(STAGES), specification={}, title="none")
    assert none == list(FILES)
    assert "`sft` has not finished. Look at its log" in (tmp_path / "report.md").read_text()


def test_damaged_metrics_cost_their_curve_and_are_named(run):
    path = run.root / "mid_train" / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    text = run.report()
    assert "`mid_train`: `metrics.jsonl` is left out of this report" in text
    assert "sha256 differs from its manifest" in text
    training = rows(section(text, "Training"))
    assert training["mid_train"][-3:] == ["–", "–", "0.5432"]
    assert training["sft"][-3:] == ["0.5321", "0.4321", "0.4321"]


def test_an_exchanged_manifest_is_told(run):
    other = run.manifests["mid_train"].read_bytes()
    run.manifests["sft"].write_bytes(other)
    text = run.report()
    assert f"`sft`: `{run.manifests['sft']}` and the record beside it do not belong together" in text
    assert text.count("do not belong together") == 1


def test_damaged_manifest_is_named(run):
    run.manifests["base_eval"].write_text("{")
    text = run.report()
    assert "`base_eval` cannot be read" in text
    assert "is damaged, or no manifest" in text
    assert "0.9100" in text


def test_record_that_is_gone_costs_only_its_cells(run):
    (run.root / "sft" / "record.json").unlink()
    machine = rows(section(run.report(), "Machine and time"))
    assert machine["sft"] == ["–"] * 8
    assert machine["mid_train"][3] == "1 h 00 min"


def test_complete_report_does_not_say_that_something_is_missing(run):
    text = run.report()
    assert "not complete" not in text
    assert "not finished" not in text


def test_unknown_stage_is_an_error(tmp_path):
    with pytest.raises(UserError, match="'base_trian' is unknown"):
        write_report(tmp_path, stages={"base_trian": None}, specification={}, title="x")


# -- hostile text ------------------------------------------------------------------------------------------------------------


def test_hostile_samples_appear_as_text(run):
    samples = [{"prompt": text, "text": text} for text in HOSTILE]
    run.publish("base_eval", {**run.results["base_eval"], "samples": samples})
    run.publish_chat("sft", {"arc_easy": (0.25, 28, 100)}, samples=samples)
    text = run.report()
    assert active_parts(text) == []
    assert "<script>alert(1)</script>" in text  # in a code block, letter by letter
    assert "␛]0;new title␇␛[31mred" in text
    assert "\\u{202E}to left" in text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_appear_as_text(run, hostile):
    hostile = hostile.encode("utf-8", "replace").decode()  # a manifest is UTF-8
    task = {**run.results["base_eval"]["tasks"]["winograd"], "type": hostile}
    run.publish(
        "base_eval",
        {**run.results["base_eval"], "tasks": {hostile: task}},
        record={
            "host": hostile,
            "device": hostile,
            "dtype": hostile,
            "finished": hostile,
            "code": hostile,
            "versions": {hostile: hostile},
        },
        inputs={hostile: run.manifests["tokenizer"]},
        specification={hostile: hostile, "mixture": [{"task": hostile}]},
    )
    run.publish("tokens/sft", {"train": {"parts": [{"task": hostile, hostile: hostile}]}})
    run.publish_chat("sft", {hostile: (0.25, 28, 100), "cost_$x^2$_$": (0.25, 3, 10)})
    text = run.report(title=hostile)
    assert active_parts(text) == []
    assert len(set(re.findall(r"^#{1,6} .*", without_fences(text), flags=re.M))) == 14  # the title and the sections
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        widths = {re.sub(r"\\.|`[^`\n]*`", "", line).count("|") for line in block.splitlines()}
        assert len(widths) == 1, block


def test_the_check_for_hostile_text_finds_it():
    for text in (*HOSTILE[1:5], "`", "*a*", "~~e~~"):
        assert active_parts(f"a {text} b"), text
    with pytest.raises(AssertionError, match="does not end"):
        without_fences(f"```text\n{HOSTILE[0]}\n```")


@settings(derandomize=True, database=None, deadline=None)
@given(st.text())
@example("```\n````\n`````")
@example("")
def test_text_in_a_code_block_never_ends_it(text):
    assert without_fences(f"before\n{fenced(text)}\nafter") == "before\nafter"


@settings(derandomize=True, database=None, deadline=None)
@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("`*_[]()<>&|~$\\\n:/!#"))))
@example("_a_ __b__ base_train http://a.example www.a.example")
def test_inline_text_is_one_line_without_live_signs(text):
    line = inline(text)
    assert "\n" not in line
    assert active_parts(line) == []
    row = table(["x", "y"], [[text, code(text)]]).split("\n")[-1]
    assert re.sub(r"\\.|`[^`\n]*`", "", row).count("|") == 3


def test_names_stay_readable():
    assert inline("base_train, 95 % of d20 (A100-SXM4): 1 + 1 = 2!") == "base_train, 95 % of d20 (A100-SXM4): 1 + 1 = 2!"


# -- figures -----------------------------------------------------------------------------------------------------------------


def picture(path: Path) -> tuple[int, int, np.ndarray]:
    from matplotlib.image import imread

    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return *struct.unpack(">II", data[16:24]), imread(path)


def test_figures_are_pictures_with_something_on_them(drawn_run):
    run = drawn_run
    run.report()
    for name in (name for name in FILES if name.endswith(".png")):
        width, height, pixels = picture(run.root / "report" / name)
        assert width >= 1000 and height >= 300, name
        drawn = (pixels[..., :3] < 0.9).any(axis=-1).mean()
        assert 0.01 < drawn < 0.5, (name, drawn)


def test_same_inputs_give_the_same_bytes_and_a_missing_stage_changes_its_figure_only(drawn_run):
    run = drawn_run

    def content(folder: str) -> dict[str, bytes]:
        run.report(folder)
        return {name: (run.root / folder / name).read_bytes() for name in FILES}

    complete = content("complete")
    assert content("again") == complete
    run.manifests["base_eval"].unlink()
    without = content("without")
    assert [name for name in FILES if without[name] != complete[name]] == ["report.md", "report.html", "core.png"]


def test_hostile_names_can_be_drawn(tmp_path):
    tasks = {f"{number} {text} $x^2$ $_$": core_task("schema", 0.5, 0.4, 10, 10) for number, text in enumerate(HOSTILE)}
    plots.plot_core(tmp_path / "core.png", tasks, 0.1)
    plots.plot_chat(tmp_path / "chat.png", {"mid_train": tasks, "\x1b$": tasks})
    assert picture(tmp_path / "core.png")[0] == picture(tmp_path / "chat.png")[0] > 1000


@pytest.mark.parametrize("num_rows", [0, 1, 3, 400])
def test_loss_curves_of_any_length_can_be_drawn(tmp_path, num_rows):
    rows = [{"step": i, "loss": 9 / (i + 1), "lr_scale": 1.0, "grad_norm": 1.0, "tokens": i} for i in range(num_rows)]
    rows += [{"step": num_rows, "validation_loss": 3.0, "validation_bpb": 1.0}] * bool(num_rows)
    plots.plot_losses(tmp_path / "loss.png", {"base_train": rows, "sft": None})
    assert picture(tmp_path / "loss.png")[0] > 500


def test_running_mean_is_the_mean_of_the_rows_before():
    values = np.arange(400.0) ** 2
    window = 8  # 2 % of 400
    expected = [values[max(0, i + 1 - window) : i + 1].mean() for i in range(400)]
    np.testing.assert_allclose(plots.running_mean(values), expected)


# -- the whole ---------------------------------------------------------------------------------------------------------------


def test_report_needs_no_torch_and_no_display():
    unwanted = ("torch", "tkinter", "matplotlib.pyplot")
    program = f"import sys, nanochat.reports.report, nanochat.compare; print([m for m in {unwanted} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("caption", ["workflow", "report", "text", "comparison", "loss", "core", "chat"])
def test_captions_render(caption):
    source = (ROOT / "workflow" / "report" / f"{caption}.rst").read_text()
    text = jinja2.Template(source).render(snakemake={"wildcards": {"run": "tiny"}})
    page = docutils.core.publish_string(text, writer="html", settings_overrides={"halt_level": 2, "report_level": 2})
    assert caption in ("workflow", "comparison") or b"tiny" in page
