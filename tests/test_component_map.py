"""The component map is complete, adds up, and points at lines that are what it says they are."""

import difflib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import latex2mathml.converter
import pytest
import yaml
from project import ROOT

from nanochat import component_map as module
from nanochat.component_map import COMMAND, DOCUMENT, component_map, document
from nanochat.concepts.source import SymbolMoved, find, import_owner
from nanochat.config import load_config
from nanochat.errors import UserError
from nanochat.gpt import GPTConfig
from nanochat.manifest import MANIFEST, publish
from nanochat.presets import COMPONENTS, OFF, PRESETS
from nanochat.reports.components import blocks
from nanochat.runs import merged
from nanochat.schedule import count_parameters, flops_per_token

ASSIGNMENT = {
    "Token embedding", "Positional embedding", "Multi-head self-attention", "Feed-forward", "Layer normalization",
    "Residual connection", "Causal mask", "Output projection", "Loss", "Gradient update", "Metrics",
}  # fmt: skip
CONFIGS = {
    "nanochat": GPTConfig(),
    "textbook": GPTConfig.preset("textbook"),
    "tiny": GPTConfig(vocab_size=1024, n_layer=4, n_head=3, n_kv_head=3, n_embd=192, sequence_len=256),
    "grouped": GPTConfig(n_layer=2, n_head=8, n_kv_head=2, n_embd=64, vocab_size=300, sequence_len=16, bias=True),
    "nanochat, tied, learned": GPTConfig(n_layer=1, n_head=1, n_kv_head=1, n_embd=6, tied_head=True, positions="learned"),
    "textbook, rope, capped": GPTConfig.preset("textbook", n_layer=3, positions="rope", soft_cap=30.0, qk_norm=True),
    "speedrun": GPTConfig.preset("speedrun"),
    "speedrun, grouped": GPTConfig.preset("speedrun", n_layer=5, n_head=4, n_kv_head=2, n_embd=64, vocab_size=300),
    "textbook, all but windows": GPTConfig.preset(
        "textbook", n_layer=3, **{name: PRESETS["speedrun"][name] for name in OFF if name != "window_pattern"}
    ),
    "layer norms alone": GPTConfig(n_layer=2, n_head=2, n_kv_head=2, n_embd=32, norm="layer", norm_embedding=False),
}


@cache
def map_of(name: str) -> dict:
    return component_map(CONFIGS[name])


def concepts(name: str) -> dict[str, dict]:
    return {concept["concept"]: concept for concept in map_of(name)["concepts"]}


# -- complete, and it adds up --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_every_concept_of_the_assignment_is_there(preset):
    assert concepts(preset).keys() >= ASSIGNMENT
    assert {"Optimizer: Muon", "Optimizer: AdamW", "Tokenizer", "Softmax and sampling"} <= concepts(preset).keys()
    assert map_of(preset)["preset"] == preset


def test_concepts_that_a_model_has_not_are_not_in_its_map():
    assert {"QK-norm", "Soft-cap"} <= concepts("nanochat").keys()
    assert not {"QK-norm", "Soft-cap"} & concepts("textbook").keys()
    assert {"QK-norm", "Soft-cap"} <= concepts("textbook, rope, capped").keys()
    of_2026 = {
        "Smear", "QK-scale", "Attention windows", "Value embeddings", "Residual scales", "Embedding scales", "Backout",
    }  # fmt: skip
    assert of_2026 <= concepts("speedrun").keys()
    assert of_2026 - {"Attention windows"} == of_2026 & concepts("textbook, all but windows").keys()
    assert not of_2026 & (concepts("nanochat").keys() | concepts("textbook").keys())
    assert concepts("textbook")["Positional embedding"]["where"][0]["symbol"] == "nanochat.gpt.GPT.embed"
    assert concepts("nanochat")["Positional embedding"]["where"][0]["symbol"] == "nanochat.gpt.rotate"


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_and_operations_add_up(name):
    found, config = map_of(name), CONFIGS[name].as_dict()
    model = [concept for concept in found["concepts"] if concept["group"] == "model"]
    training = [concept for concept in found["concepts"] if concept["group"] == "training"]
    for group in (model, training):
        assert sum(concept["num_parameters"] for concept in group) == found["parameters"] == count_parameters(config)
        assert sum(concept["share_of_parameters"] for concept in group) == pytest.approx(1)
    assert sum(concept["flops"] for concept in model) == found["flops_per_token"] == flops_per_token(config)
    assert sum(concept["share_of_flops"] for concept in model) == pytest.approx(1)
    assert all(concept["flops"] is None for concept in training)


def test_numbers_of_d20_that_can_be_worked_out_by_hand():
    width, vocabulary, blocks_ = 1280, 65_536, 20
    nanochat = concepts("nanochat")
    assert nanochat["Token embedding"]["num_parameters"] == vocabulary * width
    assert nanochat["Multi-head self-attention"]["num_parameters"] == blocks_ * 4 * width * width
    assert nanochat["Feed-forward"]["num_parameters"] == blocks_ * 8 * width * width
    assert nanochat["Output projection"]["flops"] == 6 * vocabulary * width
    assert nanochat["Multi-head self-attention"]["flops"] == blocks_ * (6 * 4 * width * width + 12 * width * 2048)


def test_a_tied_head_has_no_parameters_of_its_own_and_is_multiplied_all_the_same():
    tied, untied = concepts("textbook")["Output projection"], concepts("nanochat")["Output projection"]
    assert tied["num_parameters"] == 0 and untied["num_parameters"] > 0
    assert tied["flops"] == untied["flops"]


def test_the_map_is_plain_json():
    assert json.loads(json.dumps(map_of("textbook"), allow_nan=False)) == map_of("textbook")


# -- it points at what is there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_every_line_holds_the_code_that_is_shown(name):
    for concept in map_of(name)["concepts"]:
        assert concept["where"]
        for place in concept["where"]:
            line = (ROOT / place["file"]).read_text().splitlines()[place["line"] - 1].strip()
            beginning = place["code"].split("...")[0]
            assert line.startswith(beginning) or beginning.startswith(line.rstrip(" ({[")), (concept["concept"], place, line)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_definition_begins_where_the_running_code_says(preset):
    """The syntax tree is read from the file: this is what says that it is the file of the code that runs."""
    for place in [place for concept in map_of(preset)["concepts"] for place in concept["where"]]:
        owner, names = import_owner(place["symbol"])
        value = owner
        for name in names:
            value = getattr(value, name)
        if place["code"].startswith(("def ", "class ")):
            value = inspect.unwrap(value)  # torch.no_grad() wraps its functions
            lines, first = inspect.getsourcelines(value)
            assert Path(inspect.getsourcefile(value)) == ROOT / place["file"]
            assert first <= place["line"] < first + len(lines)
            assert re.match(rf"(def|class) {names[-1]}\b", place["code"])


@pytest.mark.parametrize("name", CONFIGS)
def test_every_equation_becomes_mathml(name):
    for concept in map_of(name)["concepts"]:
        converted = latex2mathml.converter.convert(concept["equation"])
        assert "\\" not in converted, concept["equation"]
        assert concept["equation"].count("{") == concept["equation"].count("}")
        assert "\\\\" not in concept["equation"]  # Markdown would take one of the two away


@pytest.mark.parametrize("name", CONFIGS)
def test_what_to_change_can_be_written_into_a_configuration(name, tmp_path):
    for concept in map_of(name)["concepts"]:
        assert concept["change"] and concept["keys"] == list(concept["edits"])
        for key, value in concept["edits"].items():
            content = yaml.safe_load((ROOT / "config/tiny.yaml").read_text())
            for part in reversed(key.split(".")):
                value = {part: value}
            load_config(merged(content, merge_sizes(name, key, value)), root=ROOT)


def merge_sizes(name: str, key: str, value: dict) -> dict:
    """The sizes that a number of heads goes with."""
    config = CONFIGS[name]
    if key != "base_train.heads":
        return value
    return merged({"base_train": {"width": config.n_embd}}, value)


# -- what moves is noticed -----------------------------------------------------------------------------------------------------


def test_the_document_is_what_the_code_says_now():
    written, expected = (ROOT / DOCUMENT).read_text(), document()
    difference = "\n".join(difflib.unified_diff(written.splitlines(), expected.splitlines(), str(DOCUMENT), "the code", n=0))
    assert written == expected, f"{DOCUMENT} is not up to date:\n{difference}\nWrite it again: {COMMAND}"


CHANGES = {
    "a renamed attribute": ("gpt.py", "self.wte = ", "self.table = ", "wte"),
    "a renamed function": ("gpt.py", "def rotate(", "def turn(", "rotate"),
    "a method that went elsewhere": ("engine.py", "def choose(", "def choose_tokens(", "choose"),
    "another computation": ("gpt.py", "x = x + self.mlp(self.ln_2(x))", "x = x + self.mlp(x)", "self.mlp(self.ln_2(x))"),
    "a statement that is there twice": ("train.py", "part.backward()", "part.backward(); part.backward()", "part.backward()"),
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("copied")
    shutil.copytree(ROOT / "nanochat", folder / "nanochat", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run_in(folder: Path) -> subprocess.CompletedProcess:
    """The map of the package in `folder`, not of the installed one."""
    command = [sys.executable, "-B", "-m", "nanochat.component_map"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder)})


def test_lines_that_moved_are_found_where_they_are(copied):
    path = copied / "nanochat" / "gpt.py"
    source = path.read_text()
    here = find("nanochat.gpt.GPT.embed", code="self.wte(idx)").line
    path.write_text(source.replace('"""\n', '"""\n# one line more\n', 1))
    try:
        said = run_in(copied)
    finally:
        path.write_text(source)
    assert said.returncode == 0, said.stderr
    assert f"`gpt.py:{here + 1}`" in said.stdout


@pytest.mark.parametrize("change", CHANGES)
def test_what_vanished_was_renamed_or_doubled_is_an_error_that_names_it(copied, change):
    file, old, new, named = CHANGES[change]
    path = copied / "nanochat" / file
    source = path.read_text()
    assert source.count(old) == 1
    path.write_text(source.replace(old, new))
    try:
        said = run_in(copied)
    finally:
        path.write_text(source)
    assert said.returncode == 1
    assert "Traceback" not in said.stderr
    assert named in said.stderr


def test_pieces_of_code_are_compared_as_syntax():
    place = find("nanochat.gpt.Block.forward", code="x+self.mlp( self.ln_2(x) )")
    assert place == find("nanochat.gpt.Block.forward", code="x = x + self.mlp(self.ln_2(x))")
    assert place.file == "nanochat/gpt.py" and place.code.endswith("# (B, T, C)")


@pytest.mark.parametrize(
    ("symbol", "what", "words"),
    [
        ("nanochat.gpt.GPT.embedding", {}, "no GPT.embedding"),
        ("nanochat.gtp.GPT", {}, "nanochat has no gtp"),
        ("nowhere.at.all", {}, "no module"),
        ("nanochat.gpt", {}, "is a module"),
        ("nanochat.gpt.GPT.__init__", {"assigns": "wxe"}, "nothing assigns wxe"),
        ("nanochat.gpt.CausalSelfAttention.forward", {"assigns": "q"}, "more than one statement assigns q"),
        ("nanochat.gpt.Block.forward", {"code": "self.mlp(x)"}, r"nothing holds `self.mlp\(x\)`"),
    ],
)
def test_what_is_not_there_or_there_twice_is_an_error(symbol, what, words):
    with pytest.raises(SymbolMoved, match=words):
        find(symbol, **what)


def test_a_parameter_that_no_concept_owns_is_an_error(monkeypatch):
    own = module.owners_in_model
    monkeypatch.setattr(module, "owners_in_model", lambda *args: {**own(*args), "Feed-forward": []})
    with pytest.raises(UserError, match=r"8 parameters belong to no concept of the model.*blocks.0.mlp.c_fc.weight"):
        component_map(CONFIGS["tiny"])


def test_operations_that_do_not_add_up_are_an_error(monkeypatch):
    own = module.flops_of
    monkeypatch.setattr(module, "flops_of", lambda *args: {**own(*args), "Causal mask": 1})
    with pytest.raises(UserError, match="add up to"):
        component_map(CONFIGS["tiny"])


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"base_train.model.nrom": "layer"}, "base_train.model.nrom, which is no key"),
        ({"base_train.model.norm": "rms"}, "which it is already"),
    ],
)
def test_a_change_that_cannot_be_made_is_an_error(monkeypatch, edits, words):
    from nanochat.concepts import model
    from nanochat.concepts.concept import Concept

    wrong = Concept("Wrong", "model", "", "x", (find("nanochat.gpt.GPT"),), "", edits)
    monkeypatch.setattr(module, "MODEL", (*model.MODEL, lambda config: wrong))
    with pytest.raises(UserError, match=words):
        component_map(CONFIGS["tiny"])


# -- for people ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_the_report_shows_every_concept(name):
    text = "\n\n".join(blocks(map_of(name)))
    for concept in map_of(name)["concepts"]:
        assert f"### {concept['concept']}" in text
        assert f"$${concept['equation']}$$" in text
        for place in concept["where"]:
            assert f"`{place['file'].removeprefix('nanochat/')}:{place['line']}`" in text


def test_the_example_in_the_template_of_the_assignment_is_a_row_of_the_map():
    row = next(line for line in (ROOT / "docs/assignment-template.md").read_text().splitlines() if "*an example" in line)
    sizes = {key: value for key, value in CONFIGS["tiny"].as_dict().items() if key not in COMPONENTS}
    found = component_map(GPTConfig.preset("textbook", **sizes))
    (concept,) = (concept for concept in found["concepts"] if concept["concept"] == "Positional embedding")
    place, (parameter,) = concept["where"][0], concept["parameters"]
    symbol, file = place["symbol"].removeprefix("nanochat.gpt."), place["file"].removeprefix("nanochat/")
    shape = "({}, {})".format(*parameter["shape"])
    for cell in (f"`{symbol}`", f"`{file}:{place['line']}`", f"`wpe` {shape}", f"{parameter['number']:,}"):
        assert f"| {cell} |" in row


def test_a_report_without_a_map_says_so():
    assert blocks({}) == ["The trace holds no component map."]


@pytest.fixture
def trained(tmp_path) -> Path:
    """A published model of the tiny sizes, as far as the map reads it."""
    folder = tmp_path / "results/tiny/base_train"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS["tiny"].as_dict()))
    (folder / "model.safetensors").write_bytes(b"")
    files = ["config.json", "model.safetensors"]
    publish(folder / MANIFEST, specification={}, inputs={}, files=files, results={}, record={})
    return tmp_path


def printed_by(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "nanochat.component_map", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_preset_can_have_the_sizes_of_a_trained_model(trained):
    sizes = {key: value for key, value in CONFIGS["tiny"].as_dict().items() if key not in COMPONENTS}
    textbook = component_map(GPTConfig.preset("textbook", **sizes))
    own = printed_by(trained, "--model", "results/tiny/base_train")
    assert f"{map_of('tiny')['parameters']:,} parameters" in own and "preset `nanochat`" in own
    other = printed_by(trained, "--preset", "textbook", "--sizes-of", "results/tiny/base_train")
    assert other == "\n\n".join(blocks(textbook)) + "\n" != own
    assert "`n_layer` 4, `n_embd` 192" in other and "preset `textbook`" in other
    assert printed_by(trained, "--preset", "nanochat", "--sizes-of", "results/tiny/base_train") == own


def test_the_folder_of_a_run_is_no_model_and_the_models_inside_it_are_named(trained):
    for options in (["--model", "results/tiny"], ["--preset", "textbook", "--sizes-of", "results/tiny"]):
        command = [sys.executable, "-m", "nanochat.component_map", *options]
        said = subprocess.run(command, cwd=trained, capture_output=True, text=True)
        assert said.returncode == 1 and "Traceback" not in said.stderr
        assert "Models inside it: results/tiny/base_train" in said.stderr


@pytest.mark.parametrize("options", [["--model", "x"], ["--write-docs"], []])
def test_sizes_go_with_a_preset_alone(tmp_path, options):
    command = [sys.executable, "-m", "nanochat.component_map", *options, "--sizes-of", "y"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 2 and "--sizes-of goes with --preset" in said.stderr


@pytest.mark.parametrize(
    ("options", "words"), [(["--model", "nowhere"], "manifest.json"), (["--write-docs"], "project's folder")]
)
def test_a_command_that_cannot_work_says_why(tmp_path, options, words):
    command = [sys.executable, "-m", "nanochat.component_map", *options]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 1
    assert words in said.stderr and "Traceback" not in said.stderr
