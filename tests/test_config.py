"""Wrong configurations are refused in words; right ones load; the shipped ones are right."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from configurations import CATALOGUE, DOCUMENT, REPOSITORY, edited, load

from nanochat.config import FROZEN, STAGES, Config, freeze, load_config
from nanochat.errors import UserError
from nanochat.sections import AUTO, OptimizerParts

PART = {"task": "smoltalk"}

# what is edited, and the words that the message must have in it
WRONG = {
    "misspelt key": ({"base_train.depht": 3}, ["base_train.depht is unknown", "Did you mean base_train.depth?"]),
    "misspelt section": ({"bsae_train": {}}, ["bsae_train is unknown", "Did you mean base_train?"]),
    "key of another section": ({"base_train.vocab_size": 512}, ["base_train.vocab_size is unknown", "tokenizer.vocab_size"]),
    "key outside its section": ({"depth": 4}, ["depth is unknown", "base_train.depth"]),
    "misspelt key of a part": ({"sft.mixture.0.taks": "mmlu"}, ["sft.mixture[0].taks is unknown", "sft.mixture[0].task?"]),
    "misspelt component": ({"base_train.model": {"norms": "rms"}}, ["base_train.model.norms", "base_train.model.norm?"]),
    "misspelt value": (
        {"base_train.preset": "nanocaht"},
        ["base_train.preset", "nanochat, textbook, speedrun", "Did you mean nanochat?"],
    ),
    "misspelt task": ({"sft.mixture.0.task": "gms8k"}, ["sft.mixture[0].task", "Did you mean gsm8k?"]),
    "unknown scored task": ({"chat_eval.tasks": ["arc_esay"]}, ["chat_eval.tasks[0]", "Did you mean arc_easy?"]),
    "3e-4": ({"base_train.matrix_lr": "3e-4"}, ["base_train.matrix_lr", "YAML reads 3e-4 as text; write 3.0e-4"]),
    "1.5e6": ({"base_train.tokens_per_parameter": "1.5e6"}, ["write 1.5e+6"]),
    "1e6 tokens": ({"base_train.total_batch_tokens": "1e6"}, ["base_train.total_batch_tokens", "Write 1_000_000"]),
    "fraction for a whole number": ({"base_train.depth": 2.5}, ["base_train.depth is 2.5; a whole number is expected"]),
    "1.0e+6 for a whole number": ({"base_train.steps": 1e6}, ["base_train.steps", "Write 1_000_000"]),
    "text for a number": ({"base_train.depth": "two"}, ["base_train.depth is the text 'two'; a whole number"]),
    "quoted number": ({"base_train.depth": "2"}, ["base_train.depth", "without quotes"]),
    "yes for a number": ({"base_train.grad_clip": True}, ["base_train.grad_clip is true; a number is expected"]),
    "number for yes": ({"sft.mask_user": 1}, ["sft.mask_user is 1; true or false is expected"]),
    "number for text": ({"identity.name": 7}, ["identity.name is 7; text is expected"]),
    "infinite": ({"base_train.grad_clip": float("inf")}, ["base_train.grad_clip", "finite"]),
    "empty where a value is needed": ({"base_train.depth": None}, ["base_train.depth is empty"]),
    "a list for a section": ({"tokens": [64]}, ["tokens is a list; a mapping"]),
    "a number for a list": ({"sft.mixture": 3}, ["sft.mixture is 3; a list is expected"]),
    "below the range": ({"tokenizer.vocab_size": 264}, ["tokenizer.vocab_size is 264; it must be at least 265"]),
    "above the range": ({"tokenizer.vocab_size": 70_000}, ["tokenizer.vocab_size is 70_000", "at most 65_536"]),
    "not above zero": ({"base_train.tokens_per_parameter": 0.0}, ["base_train.tokens_per_parameter", "more than 0"]),
    "a ratio above 1": ({"sft.warmdown_ratio": 1.5}, ["sft.warmdown_ratio is 1.5; it must be at most 1"]),
    "another word than auto": ({"base_train.total_batch_tokens": "atuo"}, ["base_train.total_batch_tokens", "'atuo'", "whole"]),
    "the number that stands for auto": ({"base_train.matrix_lr": -1.0}, ["base_train.matrix_lr is -1.0", "at least 0"]),
    "auto where there is no dial": ({"sft.matrix_lr": "auto"}, ["sft.matrix_lr is the text 'auto'; a number"]),
    "a decay by the dial in sft": (
        {"sft.optimizer": {"matrix_decay": "auto"}},
        ["sft.optimizer.matrix_decay is auto", "number"],
    ),
    "misspelt part": ({"base_train.optimizer": {"cautios": True}}, ["base_train.optimizer.cautios", "optimizer.cautious?"]),
    "half a momentum": ({"base_train.optimizer": {"momentum": [0.9]}}, ["base_train.optimizer.momentum", "at least 3"]),
    "a momentum of 1": ({"base_train.optimizer": {"momentum": [0.9, 1.0, 9.0]}}, ["optimizer.momentum is a momentum from 0"]),
    "two decays": (
        {"base_train.optimizer": {"groups": "speedrun"}, "base_train.weight_decay": 0.1},
        ["base_train.weight_decay is 0.1", "decays of their own"],
    ),
    "a horizon shorter than a step": (
        {"base_train.steps": ..., "base_train.counted_parameters": "scaling", "base_train.total_batch_tokens": 2**30},
        ["fewer than one batch", "lower base_train.total_batch_tokens"],
    ),
    "a window of another letter": ({"base_train.model": {"window_pattern": "SSM"}}, ["base_train.model.window_pattern"]),
    "no mixture": ({"mid_train.mixture": ...}, ["mid_train.mixture is missing"]),
    "an empty mixture": ({"mid_train.mixture": []}, ["mid_train.mixture is empty"]),
    "no validation part": ({"sft.validation": []}, ["sft.validation is empty; at least 1"]),
    "a part without a task": ({"sft.mixture.0": {"rows": 3}}, ["sft.mixture[0].task is missing"]),
    "rows that do not divide": ({"sft.total_batch_tokens": 500}, ["sft.total_batch_tokens", "64", "Try 448"]),
    "a micro-batch that does not divide": ({"base_train.micro_batch": 3}, ["base_train.micro_batch is 3", "8 rows"]),
    "an evaluation below a row": ({"base_train.eval_tokens": 10}, ["base_train.eval_tokens is 10", "64"]),
    "warm-up and warm-down overlap": ({"base_train.warmup_ratio": 0.9}, ["base_train.warmup_ratio", "more than 1"]),
    "heads that do not divide": ({"base_train.heads": 3}, ["base_train.heads is 3", "128", "base_train.heads: 4"]),
    "a depth whose heads do not divide": ({"base_train.depth": 5}, ["base_train.heads is 3 for a width of 320", "heads: 4"]),
    "an odd width": ({"base_train.width": 33}, ["base_train.width is 33", "even"]),
    "weight and epochs": ({"sft.mixture.0.weight": 1.0, "sft.mixture.0.epochs": 2.0}, ["sft.mixture[0]", "one of them"]),
    "weights without rows": (
        {"sft.mixture": [{"task": "gsm8k", "weight": 1.0}]},
        ["sft.mixture_rows is missing", "weights"],
    ),
    "rows without weights": ({"sft.mixture_rows": 100}, ["sft.mixture_rows needs weights"]),
    "some weights": (
        {"sft.mixture": [{"task": "gsm8k", "weight": 1.0}, PART], "sft.mixture_rows": 9},
        ["sft.mixture[1] has no weight"],
    ),
    "a weight in the validation": ({"sft.validation.0.weight": 1.0}, ["sft.validation[0].weight"]),
    "an unknown split": ({"sft.mixture.0": {"task": "mmlu"}}, ["sft.mixture[0].split is train", "auxiliary_train and test"]),
    "custom from nowhere": ({"sft.mixture.0": {"task": "custom"}}, ["sft.mixture[0]", "file", "source"]),
    "custom from two places": (
        {"sft.mixture.0": {"task": "custom", "file": "a.jsonl", "source": "own_chats"}},
        ["sft.mixture[0]", "not both"],
    ),
    "a file that is not there": ({"sft.mixture.0": {"task": "custom", "file": "a.jsonl"}}, ["a.jsonl", "no such file"]),
    "a source that is not there": (
        {"sft.mixture.0": {"task": "custom", "source": "own_chat"}},
        ["sft.mixture[0].source", "sources.yaml has no own_chat", "Did you mean own_chats?"],
    ),
    "a file for gsm8k": ({"sft.mixture.0.file": "a.jsonl"}, ["sft.mixture[0].file", "custom only"]),
    "a task that the catalogue lacks": (
        {"sft.mixture.0": {"task": "arc_easy"}},
        ["sft.mixture[0]", "sources.yaml has no arc_easy/train", "Did you mean arc_easy/test?"],
    ),
    "a scored task that the catalogue lacks": (
        {"chat_eval.tasks": ["humaneval"]},
        ["chat_eval.tasks", "has no humaneval/test. It has smoltalk/test"],
    ),
    "a task scored twice": ({"chat_eval.tasks": ["gsm8k", "gsm8k"]}, ["chat_eval.tasks names gsm8k twice"]),
    "no prompt": ({"trace.prompt": ""}, ["trace.prompt says nothing"]),
    "a prompt of spaces": ({"trace.prompt": " \n"}, ["trace.prompt says nothing"]),
    "a trace of an evaluation": ({"trace.model": "chat_eval"}, ["trace.model", "base_train, mid_train, sft"]),
    "a step too short": ({"trace.step_tokens": 8}, ["trace.step_tokens is 8; it must be at least 16"]),
    "a step too long": ({"trace.step_tokens": 5000}, ["trace.step_tokens is 5000; it must be at most 4096"]),
    "too many shards": ({"download.train_shards": 5}, ["download.train_shards is 5", "5 shards", "at most 4"]),
    "a validation shard beyond the last": ({"download.validation_shard": 5}, ["download.validation_shard is 5", "shard 4"]),
    "an unknown data set": ({"download.pretraining": "storeis"}, ["download.pretraining is storeis", "Did you mean stories?"]),
    "more tokenizer shards than shards": ({"tokenizer.shards": 4}, ["tokenizer.shards is 4", "download.train_shards (3)"]),
    "no such catalogue": ({"catalogue": "nowhere.yaml"}, ["nowhere.yaml: there is no such file"]),
    "a number for the catalogue": ({"catalogue": 3}, ["catalogue is 3; the path"]),
    "no runs": ({"runs": ...}, ["runs is missing", "at least one run"]),
    "empty runs": ({"runs": {}}, ["runs is empty"]),
    "runs as a list": ({"runs": ["small"]}, ["runs is a list"]),
    "a run name with a slash": ({"runs": {"a/b": {}}}, ["runs.a/b is no name for a run"]),
    "a run name of 65 letters": ({"runs": {"a" * 65: {}}}, ["is no name for a run"]),
    "a run with a stage's name": ({"runs": {"sft": {}}}, ["runs.sft", "name of a stage"]),
    "runs that differ in case": ({"runs": {"d20": {}, "D20": {}}}, ["runs.D20 and runs.d20", "same folder"]),
    "a run that is a number": ({"runs": {"small": 3}}, ["runs.small is 3; a mapping"]),
    "a run called by a number": ({"runs": {20: {}}}, ["the key 20 in runs is not text", "quotes"]),
    "an unknown section in a run": ({"runs.small.stf": {}}, ["runs.small.stf is unknown", "runs.small.sft?"]),
    "a catalogue in a run": ({"runs.small.catalogue": "x.yaml"}, ["runs.small.catalogue", "top level"]),
    "a misspelt key in a run": ({"runs.small.sft": {"epocs": 2.0}}, ["runs.small.sft.epocs", "runs.small.sft.epochs?"]),
    "a number for an override": ({"runs.small.sft": 2}, ["runs.small.sft is 2; either overrides"]),
    "an unknown reused run": ({"runs.small.sft": "smal", "runs.other": {}}, ["runs.small.sft reuses smal", "not in runs"]),
    "a nearly known reused run": ({"runs.next": {"sft": "smal"}}, ["Did you mean small?"]),
    "its own run reused": ({"runs.small.sft": "small"}, ["runs.small.sft names its own run"]),
    "an identity reused": ({"runs.next": {"identity": "small"}}, ["runs.next.identity", "not a stage that can be reused"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_configuration_is_refused_in_words(name: str, tmp_path: Path) -> None:
    edits, words = WRONG[name]
    with pytest.raises(UserError) as caught:
        load(tmp_path, edits)
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert not [word for word in words if word not in message], message
    assert len(message) < 600, "more than a screen"


def test_the_configuration_that_the_tests_break_is_right(tmp_path: Path) -> None:
    assert load(tmp_path).run_names == ["small"]


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    edits = {"base_train.depht": 3, "sft.epochs": 0.0, "bsae_eval": {}, "runs.other": {"sft": "nobody"}, "catalogue": "no.yaml"}
    with pytest.raises(UserError) as caught:
        load(tmp_path, edits)
    lines = str(caught.value).splitlines()
    assert lines[0] == "my.yaml: 5 problems"
    assert len(lines) == 6


def test_a_problem_in_a_default_of_several_runs_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, {"base_train.depht": 3, "runs": {"a": {}, "b": {}, "c": {"sft": "b"}}})
    assert str(caught.value) == "my.yaml: base_train.depht is unknown. Did you mean base_train.depth?"


BROKEN_FILES = {
    "empty": ("", ["is empty"]),
    "only comments": ("# nothing\n", ["is empty"]),
    "a list": ("- runs\n", ["holds a list"]),
    "a repeated key": ("runs: {a: {}}\nsft:\n  seed: 1\n  seed: 2\n", ["line 4", "seed", "twice, in line 3"]),
    "a repeated section": ("runs: {a: {}}\nsft: {}\nsft: {}\n", ["line 3", "sft is there twice"]),
    "a tab": ("runs:\n  a:\n\tsft: {}\n", ["line 3", "tab"]),
    "an open bracket": ("runs: {a: {}\nsft: {}\n", ["line 2", "not YAML"]),
    "a missing space": ("runs:\n  a: {}\ntokens\n  seed: 1\n", ["line", "not YAML"]),
    "two documents": ("runs: {a: {}}\n---\nruns: {b: {}}\n", ["line 2", "not YAML"]),
    "a list as a key": ("runs: {a: {}}\n? [a, b]\n: 3\n", ["line 2", "not YAML"]),
    "a Python object": ("runs: !!python/object/apply:os.getcwd []\n", ["line 1", "not YAML"]),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    text, words = BROKEN_FILES[name]
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert not [word for word in words if word not in message], message


def test_a_repeated_key_is_found_though_the_file_was_read_by_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "repeated.yaml"
    path.write_text(yaml.safe_dump(DOCUMENT) + "sft: {}\n")
    with pytest.raises(UserError, match="the key sft is there twice"):
        load_config(DOCUMENT, source=str(path), root=tmp_path)


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    for path in (tmp_path / "binary.yaml", tmp_path, tmp_path / "nowhere.yaml"):
        with pytest.raises(UserError, match=str(path)):
            load_config(path)


def test_a_file_and_its_mapping_give_the_same_configuration(tmp_path: Path) -> None:
    (tmp_path / "sources.yaml").write_text(CATALOGUE)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(DOCUMENT))
    from_file = load_config(tmp_path / "my.yaml", root=tmp_path)
    assert from_file.identity_hash() == load_config(edited({}), root=tmp_path).identity_hash()


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("config/*.yaml")), ids=lambda path: path.name)
def test_every_shipped_file_names_a_schema_in_its_first_line(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.split("=", 1)[1]).is_file()


@pytest.mark.parametrize("name", ["config", "small", "tiny", "speedrun"])
def test_the_shipped_configurations_are_right(name: str) -> None:
    if name == "tiny" and not (REPOSITORY / "config/tiny_sources.yaml").exists():
        pytest.skip("config/tiny_sources.yaml is not there")
    config = load_config(REPOSITORY / f"config/{name}.yaml", root=REPOSITORY)
    assert config.run_names == [{"config": "d20"}.get(name, name)]
    assert config.all_files()


def test_the_small_configuration_fits_a_folder_of_local_files() -> None:
    document = yaml.safe_load((REPOSITORY / "config/small.yaml").read_text())
    config = load_config({**document, "catalogue": "config/local_sources.yaml"}, root=REPOSITORY)
    assert config.catalogue.folder == "local"


def test_the_reference_run_is_d20() -> None:
    config = load_config(REPOSITORY / "config/config.yaml", root=REPOSITORY)
    model = config.gpt_config("d20")
    sizes = {"vocab_size": 65_536, "n_layer": 20, "n_head": 10, "n_kv_head": 10, "n_embd": 1280, "sequence_len": 2048}
    assert {key: model[key] for key in sizes} == sizes
    assert config.training_shards("d20") == [f"fineweb-edu/shard_{i:05d}" for i in range(239)]
    assert config.validation_shard("d20") == "fineweb-edu/shard_00239"


def specified(config: Config, stage: str) -> dict[str, Any]:
    return json.loads(config.specification(config.run_names[0], stage))


def test_the_speedrun_is_d24_with_numbers_in_the_places_of_auto() -> None:
    config = load_config(REPOSITORY / "config/speedrun.yaml", root=REPOSITORY)
    model, base = config.gpt_config("speedrun"), specified(config, "base_train")
    assert (model["n_layer"], model["n_embd"], model["n_head"], model["vocab_size"]) == (24, 1536, 12, 32_768)
    assert model["window_pattern"] == "SSSL" and model["value_embedding"] and model["smear"]
    assert (base["total_batch_tokens"], base["steps"]) == (2**20, 5568)
    rates = {name: base[name] for name in ("matrix_lr", "embedding_lr", "unembedding_lr")}
    assert rates == pytest.approx({"matrix_lr": 0.02 * 2**0.5, "embedding_lr": 0.3 * 2**0.5, "unembedding_lr": 0.008 * 2**0.5})
    assert base["optimizer"]["matrix_decay"] == pytest.approx(0.28 * 2**0.5 * 110_100_912 / 729_810_624, rel=1e-4)
    assert AUTO not in [*base.values(), *base["optimizer"].values()]


def test_tuning_takes_the_parts_of_the_pretraining_but_its_decay_and_its_dial(tmp_path: Path) -> None:
    edits = {"base_train.optimizer": {"orthogonalizer": "polar_express", "matrix_decay": "auto", "scalar_lr": "auto"}}
    edits |= {"base_train.matrix_lr": "auto", "base_train.preset": "speedrun", "sft.optimizer": {"renormalize": True}}
    edits |= {"mid_train.embedding_lr": 0.7}
    config = load(tmp_path, edits)
    assert specified(config, "base_train")["matrix_lr"] == 0.01  # 512 tokens a step: the lower end of the dial
    assert specified(config, "base_train")["optimizer"] == {
        "orthogonalizer": "polar_express", "matrix_decay": pytest.approx(0.28, abs=0.28), "scalar_lr": 0.25,
    }  # fmt: skip
    mid_train, sft = specified(config, "mid_train"), specified(config, "sft")
    assert (mid_train["matrix_lr"], mid_train["embedding_lr"], sft["matrix_lr"], sft["embedding_lr"]) == (0.02, 0.7, 0.02, 0.2)
    assert mid_train["optimizer"] == {"orthogonalizer": "polar_express"}
    assert sft["optimizer"] == {"orthogonalizer": "polar_express", "renormalize": True}


def test_parts_as_they_were_are_in_no_specification(tmp_path: Path) -> None:
    """So that what was trained before there were any is not trained again."""
    written_out = {"optimizer": OptimizerParts().model_dump(), "counted_parameters": "all", "total_batch_tokens": 512}
    before, after = load(tmp_path), load(tmp_path, {f"base_train.{key}": value for key, value in written_out.items()})
    for stage in ("base_train", "mid_train", "sft"):
        assert "optimizer" not in specified(after, stage) and "counted_parameters" not in specified(after, stage)
        assert after.specification("small", stage) == before.specification("small", stage)


@pytest.mark.parametrize("key", OptimizerParts.model_fields)
def test_a_part_changes_the_trainings_that_it_is_part_of(tmp_path: Path, key: str) -> None:
    other = {
        "orthogonalizer": "polar_express", "momentum": [0.85, 0.97, 400.0], "final_momentum": 0.9, "matrix_decay": 0.1,
        "matrix_decay_schedule": "cosine", "groups": "speedrun", "scalar_lr": 0.1, "comm_dtype": "bfloat16",
    }.get(key, True)  # fmt: skip
    before, after = load(tmp_path), load(tmp_path, {"base_train.optimizer": {key: other}})
    changed = {stage for stage in STAGES if before.specification("small", stage) != after.specification("small", stage)}
    assert changed == ({"base_train"} if key == "matrix_decay" else {"base_train", "mid_train", "sft"})


def test_the_parts_have_one_set_of_defaults() -> None:
    from nanochat.optimizer import Parts
    from nanochat.schedule import MUON_MOMENTUM

    assert asdict(Parts()) | {"momentum": list(MUON_MOMENTUM)} == OptimizerParts().model_dump()


def test_a_run_that_reuses_a_training_has_its_numbers(tmp_path: Path) -> None:
    auto = {"base_train.total_batch_tokens": "auto", "base_train.matrix_lr": "auto", "runs.more": {"base_train": "small"}}
    config = load(tmp_path, auto)
    assert config.settings("more").base_train == config.settings("small").base_train
    assert (
        config.settings("more").base_train.total_batch_tokens
        == json.loads(config.specification("small", "base_train"))["total_batch_tokens"]
    )


def test_the_command_prints_runs_and_refuses_in_words(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = (sys.executable, "-m", "nanochat.config", *arguments)
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    good = run("config/config.yaml")
    assert good.returncode == 0 and "560,988,160 parameters" in good.stdout
    (tmp_path / "wrong.yaml").write_text("runs: {a: {}}\nbase_train: {depht: 3}\n")
    wrong = run(str(tmp_path / "wrong.yaml"))
    assert wrong.returncode == 1 and wrong.stdout == ""
    assert "Did you mean base_train.depth?" in wrong.stderr and "Traceback" not in wrong.stderr


def test_checking_a_configuration_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from nanochat.config import FROZEN, freeze, load_config; load_config('config/config.yaml')\n"
        "print([name for name in ('torch', 'numpy', 'pyarrow', 'requests') if name in sys.modules])"
    )
    done = subprocess.run((sys.executable, "-c", code), cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_job_that_reads_an_edited_configuration_stops(monkeypatch):
    monkeypatch.setenv(FROZEN, "")
    submitted = load_config(REPOSITORY / "config" / "tiny.yaml", root=REPOSITORY)
    freeze(submitted, "tiny.yaml", is_driver=True)
    freeze(submitted, "tiny.yaml", is_driver=False)
    content = yaml.safe_load((REPOSITORY / "config" / "tiny.yaml").read_text())
    content["sft"]["seed"] = 7
    with pytest.raises(UserError, match="was edited after this job was submitted"):
        freeze(load_config(content, root=REPOSITORY), "tiny.yaml", is_driver=False)
