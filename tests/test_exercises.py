"""docs/transformer.md, its exercises and their solutions: every program runs, and what the text says of its output holds.

Trained weights differ between kinds of processors, and with them numbers. So the tests compare the form of what is printed with
what the document shows, its numbers where they do not depend on weights, and for each exercise the facts that its text states.
"""

import contextlib
import io
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import latex2mathml.converter
import pytest
import yaml
from project import ROOT, Project

from nanochat import classroom
from nanochat.component_map import component_map
from nanochat.concepts.source import find
from nanochat.config import load_config
from nanochat.errors import UserError
from nanochat.gpt import GPTConfig
from nanochat.runs import merged

TEXT = (ROOT / "docs/transformer.md").read_text()
SOLUTIONS = (ROOT / "docs/solutions.md").read_text()
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")
QUOTED = re.compile(r"'[^']*'")


def sections(text: str) -> dict[int, str]:
    """Number -> what stands below `## 3. ...`, its title included."""
    parts = re.split(r"(?m)^## (?=\d+\. )", text)[1:]
    return {int(part.split(".")[0]): part for part in parts}


def block(part: str, language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", part, re.DOTALL)[1]


PARTS = sections(SOLUTIONS)


# -- each solution -------------------------------------------------------------------------------------------------------------


def count_the_parameters(names, lines):
    assert names.model.num_parameters() == 2_162_688 == sum(names.parts.values())
    assert names.textbook.num_parameters() == names.by_hand


def from_text_to_ids(names, lines):
    assert names.ids[0] == names.tokenizer.bos_id
    assert names.tokenizer.bos_id not in names.ids[1:]
    assert names.tokenizer.decode(names.ids[1:]) == names.text
    pieces = [names.tokenizer.decode([i]) for i in names.ids]
    digits = [piece for piece in pieces if piece.isdigit()]
    assert "".join(digits) == "1234567" and max(map(len, digits)) <= 2
    assert len(names.tokenizer.encode("ü")) == 2


def take_the_positions_away(names, lines):
    right, later, shuffled, equal = (float(line.split()[-1]) for line in lines[:4])
    assert later == pytest.approx(right, abs=0.02)
    assert shuffled > right + 1.5 and equal > right + 1.5
    with_positions, without = (float(line.split()[-1]) for line in lines[4:])
    assert without < 1e-3 < 0.1 < with_positions


def remove_the_causal_mask(names, lines):
    honest, cheat, restored = (float(line.split()[-1]) for line in lines[2:])
    assert names.losses["without"][-1] < 0.5 * names.losses["with the mask"][-1]
    assert cheat < 0.5 * honest
    assert restored > honest + 0.5
    assert names.losses["without"][0] == pytest.approx(math.log(1024), abs=1e-3)


def what_a_head_looks_at(names, lines):
    assert names.on_previous.max() > 3 * names.evenly
    assert names.on_name.max() > 0.5 and names.on_name.argmax() >= names.on_name.size(1)  # not in the first block
    assert names.recorded[0].sum(3).min() > 0.999
    assert names.recorded[0].triu(1).abs().max() == 0
    assert names.silenced[names.answer] < names.p[names.answer]


def the_residual_stream(names, lines):
    assert len(lines) == 5
    sizes = [float(re.search(r"size +([\d.]+)", line)[1]) for line in lines]
    of_answer = [float(line.split()[-1]) for line in lines]
    assert sizes[0] == pytest.approx(1, abs=0.01) and sizes[-1] > 2 * sizes[0]
    assert of_answer[0] < 0.1 and of_answer[-1] == max(of_answer) > 0.5
    assert "Lisbon" in names.tokenizer.decode([names.answer]) or names.tokenizer.decode([names.answer]).startswith(" L")


def soft_cap_and_temperature(names, lines):
    assert names.raw.topk(10).indices.tolist() == names.capped.topk(10).indices.tolist()
    assert names.capped.abs().max() < 15
    entropies = [float(re.search(r"entropy +([\d.]+)", line)[1]) for line in lines[2:7]]
    assert entropies == sorted(entropies)
    assert entropies[0] >= 0 and entropies[-1] < math.log2(1024)


def tie_the_weights(names, lines):
    assert names.untied.num_parameters() - names.tied.num_parameters() == 1024 * 64
    difference = names.tied.wte.weight.grad - names.reading - names.saying
    assert difference.abs().max() < 1e-5 * names.tied.wte.weight.grad.abs().max()
    assert (names.saying.abs().sum(1) > 0).all()
    assert (names.reading.abs().sum(1) > 0).sum() == len(names.x.unique())


def the_cache_gives_the_same_logits(names, lines):
    assert (names.whole - names.one_by_one).abs().max() < 1e-3
    assert names.cache.k.numel() + names.cache.v.numel() == 2 * 4 * 192 * names.T


def loss_and_bits_per_byte(names, lines):
    assert names.found["loss"] == pytest.approx(float(names.loss), rel=1e-4)
    assert names.found["bpb"] == pytest.approx(float(names.bits / names.num_bytes.sum()), rel=1e-4)
    assert names.loss < 2 < math.log(1024)
    assert (names.y[:, :-1] == names.x[:, 1:]).all()


def overfit_one_batch(names, lines):
    losses = [float(line.split()[-1]) for line in lines if "step" in line]
    learning, resting = losses[:5], losses[5:]
    assert learning[0] == pytest.approx(math.log(1024), abs=1e-3)
    assert learning[-1] < 0.1
    assert len(set(resting)) == 1
    other = [float(re.search(r"other text ([\d.]+)", line)[1]) for line in lines if "other text" in line]
    assert other[0] > 5 and other[1] == pytest.approx(math.log(1024), abs=1e-3)
    assert lines[-1].endswith("0.0000")


def the_first_step_is_a_sign(names, lines):
    for line in lines[:2]:
        rate, smallest, largest = (
            float(re.search(pattern, line)[1]) for pattern in (r"rate ([\d.]+)", r"steps from ([\d.]+)", r" to ([\d.]+); all")
        )
        assert smallest == pytest.approx(rate, rel=0.01) and largest == pytest.approx(rate, rel=0.01)
        assert line.endswith("True")
    assert names.unread and lines[2].endswith("0.0000")


def what_muon_does(names, lines):
    for line in lines[2:]:
        ratio, directions, _, middle, largest = map(float, line.split(")")[1].split())
        assert ratio < 0.2 and directions < 20
        assert 0.6 < middle < 1.2 and largest < 1.35


def gelu_against_relu_squared(names, lines):
    losses = [loss for found in names.found.values() for loss in found]
    assert max(losses) < 4
    assert abs(names.mean(names.found["gelu"]) - names.mean(names.found["relu2"])) < 0.3


CHECKS = {
    1: count_the_parameters,
    2: from_text_to_ids,
    3: take_the_positions_away,
    4: remove_the_causal_mask,
    5: what_a_head_looks_at,
    6: the_residual_stream,
    7: soft_cap_and_temperature,
    8: tie_the_weights,
    9: the_cache_gives_the_same_logits,
    10: loss_and_bits_per_byte,
    11: overfit_one_batch,
    12: the_first_step_is_a_sign,
    13: what_muon_does,
    14: gelu_against_relu_squared,
}
EXACT = {1, 2}  # whose numbers depend on no weight


@pytest.mark.slow
@pytest.mark.parametrize("number", CHECKS)
def test_the_solution_prints_what_the_document_shows_and_its_text_is_true(number, tiny_run, monkeypatch):
    monkeypatch.chdir(tiny_run)
    code, shown = block(PARTS[number], "python"), block(PARTS[number], "text")
    names: dict = {"__name__": "solution"}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, f"docs/solutions.md, {number}", "exec"), names)
    printed = out.getvalue()
    if number in EXACT:
        assert printed == shown
    assert form(printed) == form(shown), f"docs/solutions.md, {number}, prints now:\n{printed}"
    CHECKS[number](SimpleNamespace(**names), printed.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 5, 6, 10])
def test_with_an_untrained_model_the_text_would_not_be_true(number, tiny_run, monkeypatch):
    """The negative control: what is said of the output is learned, and not true of any model."""
    trained = classroom.open_run

    def open_untrained(*args):
        run = trained(*args)
        run.model.init_weights(0)
        return run

    monkeypatch.chdir(tiny_run)
    monkeypatch.setattr(classroom, "open_run", open_untrained)
    names: dict = {"__name__": "solution"}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(block(PARTS[number], "python"), f"docs/solutions.md, {number}", "exec"), names)
    with pytest.raises(AssertionError):
        CHECKS[number](SimpleNamespace(**names), out.getvalue().splitlines())


@pytest.mark.slow
def test_squared_relu_sets_more_than_half_of_the_numbers_to_zero(tiny_run):
    run = classroom.open_run(tiny_run / "results/tiny")
    shares = []
    for layer in run.model.blocks:
        layer.mlp.c_proj.register_forward_pre_hook(lambda _, inputs: shares.append(float((inputs[0] == 0).float().mean())))
    classroom.loss_of(run.model, run.validation, num_rows=4)
    assert len(shares) == 4 and min(shares) > 0.5


def test_a_run_that_was_not_trained_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="make demo"):
        classroom.open_run(tmp_path / "results/tiny")


def form(text: str) -> list[str]:
    """Lines without their numbers, what stands in quotes, and the widths of columns."""
    return [re.sub(r"\s+", " ", NUMBER.sub("#", QUOTED.sub("'...'", line))).strip() for line in text.splitlines()]


def test_the_form_of_an_output_forgets_numbers_and_nothing_else():
    assert form("step   3: 0.123, 'Otto'") == form("step 12: 4.5e-07, 'is'") != form("stop 12: 4.5e-07, 'is'")


def test_every_exercise_has_a_solution_of_the_same_number_and_a_check():
    asked = {int(number) for number in re.findall(r"(?m)^(\d+)\. \*\*", TEXT.split("## Exercises")[1])}
    assert asked == PARTS.keys() == CHECKS.keys() == set(range(1, len(CHECKS) + 1))
    for number, part in PARTS.items():
        assert block(part, "python") and block(part, "text"), number


def test_the_experiment_of_the_last_solution_changes_the_activation_alone():
    change = yaml.safe_load(block(PARTS[14], "yaml"))
    content = yaml.safe_load((ROOT / "config/tiny.yaml").read_text())
    config = load_config(merged(content, change), root=ROOT)
    (name,) = set(change["runs"]) - {"tiny"}
    assert config.owner(name, "tokens/pretrain") == "tiny"
    one, other = config.specification("tiny", "base_train"), config.specification(name, "base_train")
    assert one.replace('"mlp":"relu2"', '"mlp":"gelu"') == other != one


# -- the document --------------------------------------------------------------------------------------------------------------

DOCUMENTS = ["transformer.md", "solutions.md", "assignment.md"]
SYMBOL = re.compile(r"\[`([\w.]+)`\]\(\.\./((?:\w+/)+\w+)\.py\)")
EQUATION = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$")


def prose(document: str) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"(?s)^```.*?^```", "", (ROOT / "docs" / document).read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_symbol_is_in_the_file_that_it_links_to(document):
    for symbol, file in SYMBOL.findall(prose(document)):
        place = find(f"{file.replace('/', '.')}.{symbol}")
        assert place.file == f"{file}.py", (document, symbol)


def test_the_document_points_at_the_code():
    assert len(set(SYMBOL.findall(prose("transformer.md")))) >= 30
    named = {symbol for symbol, _ in SYMBOL.findall(prose("transformer.md"))}
    for concept in component_map(GPTConfig())["concepts"]:
        symbols = {place["symbol"].split(".", 2)[2] for place in concept["where"]}
        assert symbols & named, f"transformer.md names nothing of {concept['concept']}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_equation_of_the_documents_becomes_mathml(document):
    for display, inline in EQUATION.findall(re.sub(r"`[^`\n]*`", "", prose(document))):
        assert "\\" not in latex2mathml.converter.convert(display or inline), display or inline


def test_a_key_that_the_document_names_is_a_component():
    table = TEXT.split("## Two models in one file")[1].split("## 1.")[0]
    keys = re.findall(r"\| `(\w+)` \|$", table, re.MULTILINE)
    assert {f"base_train.model.{key}" for key in keys} == {
        f"base_train.model.{key}" for key in GPTConfig().as_dict() if not key.startswith(("n_", "vocab", "sequence", "rope"))
    }


def test_the_shares_in_the_document_are_those_of_the_map():
    rows = re.findall(r"(?m)^\| ([A-Z][\w -]+) \| ([\d.]+) % \| ([\d.]+) % \|$", TEXT)
    maps = [component_map(GPTConfig.preset(name)) for name in ("nanochat", "textbook")]
    assert len(rows) >= 6
    for name, *shares in rows:
        for found, share in zip(maps, shares, strict=True):
            (concept,) = (concept for concept in found["concepts"] if concept["concept"] == name)
            assert float(share) == pytest.approx(100 * concept["share_of_parameters"], abs=0.051), name


def test_every_heading_that_the_assignment_sends_to_is_on_its_page():
    templates = ROOT / "nanochat/pages/templates"
    forward, step = ((templates / f"{name}.html").read_text() for name in ("forward", "step"))
    report = (ROOT / "nanochat/reports/report.py").read_text()
    text = (ROOT / "docs/assignment.md").read_text()
    parts = sections(text)
    headings = {2: forward, 3: step}
    for number, page in headings.items():
        named = [
            cell for row in re.findall(r"(?m)^\|[^|\n]*\|([^|\n]*)\|", parts[number]) for cell in re.findall(r'"([^"]+)"', row)
        ]
        assert len(named) >= 7
        for heading in named:
            assert f">{heading}</h2>" in page, heading
    for heading in re.findall(r'sections? "([^"]+)"(?:, "([^"]+)" and "([^"]+)")?', text):
        assert all(f'"{name}":' in report for name in heading if name), heading


def test_every_command_of_the_documents_works(tmp_path):
    """Snakemake's plan, modules have help, targets of make exist; what needs another machine aside."""
    written = [line.split("  #")[0].strip() for name in DOCUMENTS for line in fenced_lines(name)]
    modules = {line.split()[2] for line in written if line.startswith("python -m ")}
    assert modules >= {"nanochat.component_map", "nanochat.trace", "nanochat.chat"}
    for module in modules:
        done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and "usage" in done.stdout, module
    for line in written:
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        if line.startswith("snakemake "):
            assert line in {
                "snakemake --profile profiles/laptop --configfile config/classroom.yaml",  # planned below
                "snakemake results/tiny-gelu/base_eval/manifest.json --profile profiles/laptop --configfile my.yaml",
            }


def fenced_lines(document: str) -> list[str]:
    """Lines of the blocks that have no language: commands."""
    blocks = re.findall(r"(?ms)^```(\w*)\n(.*?)^```", (ROOT / "docs" / document).read_text())
    return [line for language, text in blocks if not language for line in text.splitlines()]


def test_the_experiment_of_the_last_solution_plans(tmp_path):
    project = Project(tmp_path / "project")
    content = yaml.safe_load((ROOT / "config/tiny.yaml").read_text())
    project.write(yaml.safe_dump({**content, **yaml.safe_load(block(PARTS[14], "yaml"))}))
    planned = project.run("-n", "results/tiny-gelu/base_eval/manifest.json")
    assert "results/tiny-gelu/base_train" in planned and "results/tiny/tokens" in planned
    assert "results/tiny-gelu/tokens" not in planned and "results/tiny/base_train" not in planned


# -- the classroom's configuration ---------------------------------------------------------------------------------------------


def test_the_classroom_trains_the_demo_and_beside_it_the_textbook():
    classroom, demo = load_config(ROOT / "config/classroom.yaml", root=ROOT), load_config(ROOT / "config/tiny.yaml", root=ROOT)
    assert classroom.run_names == ["tiny", "tiny-textbook"]
    for stage in ("tokenizer", "tokens/pretrain", "base_train", "mid_train", "sft", "base_eval", "chat_eval/sft"):
        assert classroom.specification("tiny", stage) == demo.specification("tiny", stage), stage
    for stage in ("tokenizer", "tokens/pretrain", "tokens/mid_train", "tokens/sft", "tokens/core"):
        assert classroom.owner("tiny-textbook", stage) == "tiny"
    assert classroom.settings("tiny").trace.beside == "tiny-textbook"
    assert classroom.settings("tiny-textbook").trace.beside == "tiny"
    fields = classroom.gpt_config("tiny-textbook")
    assert GPTConfig(**fields) == GPTConfig.preset("textbook", **{key: fields[key] for key in SIZES})


SIZES = ("vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "sequence_len")


def test_the_classroom_plans_both_runs(tmp_path):
    jobs = planned_with(tmp_path, "config/classroom.yaml")
    assert jobs["base_train"] == jobs["sft"] == 2 and jobs["tokenizer"] == 1


def planned_with(folder: Path, config: str) -> dict[str, int]:
    project = Project(folder / "project")
    text = project.run("-n", config=config)
    return {
        name: int(count) for name, count in re.findall(r"(?m)^(\w+) +(\d+)$", text.split("Job stats:")[1].split("total")[0])
    }
