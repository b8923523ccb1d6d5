"""Which keys change which stage: what reruns, and what does not."""

import json
from pathlib import Path
from typing import Any

import pytest
from configurations import DOCUMENT, load

from nanochat.config import STAGES, Config
from nanochat.presets import OFF, PRESETS
from nanochat.sections import RUN_TIME_KEYS

CHAT_EVAL = {"chat_eval/mid_train", "chat_eval/sft"}
TRAINING = {"base_train", "mid_train", "sft"}
ROWS = {"tokens/pretrain", "tokens/mid_train", "tokens/sft"}

# the edit of one key, and the stages whose specification it changes
EDITS: list[tuple[str, Any, set[str]]] = [
    ("download.train_shards", 2, {"tokens/pretrain"}),
    ("download.validation_shard", 3, {"tokenizer", "tokens/pretrain"}),
    ("tokenizer.vocab_size", 300, {"tokenizer"}),
    ("tokenizer.shards", 1, {"tokenizer"}),
    ("tokenizer.max_characters", 1000, {"tokenizer"}),
    ("tokenizer.document_characters", 100, {"tokenizer"}),
    ("tokens.sequence_len", 32, ROWS),
    ("identity.name", "Ada", {"tokens/mid_train"}),
    ("identity.facts", ["I am small."], {"tokens/mid_train"}),
    ("base_train.depth", 4, {"base_train"}),
    ("base_train.width", 64, {"base_train"}),
    ("base_train.heads", 2, {"base_train"}),
    ("base_train.preset", "textbook", {"base_train"}),
    ("base_train.model", {"mlp": "gelu"}, {"base_train"}),
    ("base_train.model", {"soft_cap": None}, {"base_train"}),
    ("base_train.steps", 11, {"base_train"}),
    ("base_train.seed", 1, {"base_train"}),
    ("base_train.total_batch_tokens", 1024, {"base_train"}),
    ("base_train.matrix_lr", 0.01, TRAINING),
    ("base_train.embedding_lr", 0.1, TRAINING),
    ("base_train.grad_clip", 0.0, {"base_train"}),
    ("base_train.warmdown_ratio", 0.5, {"base_train"}),
    ("base_train.eval_every", 5, {"base_train"}),
    ("base_train.dtype", "float32", {"base_train"}),
    ("base_eval.max_per_task", 3, {"tokens/core"}),  # which base_eval reads
    ("base_eval.tasks", ["copa"], {"tokens/core"}),
    ("base_eval.sample_tokens", 3, {"base_eval"}),
    ("base_eval.samples", ["Once"], {"base_eval"}),
    ("mid_train.mixture.0.rows", 7, {"tokens/mid_train"}),
    ("mid_train.mixture.0.epochs", 2.0, {"tokens/mid_train"}),
    ("mid_train.validation.0.rows", 7, {"tokens/mid_train"}),
    ("mid_train.mask_user", True, {"tokens/mid_train"}),
    ("mid_train.seed", 1, {"tokens/mid_train", "mid_train"}),
    ("mid_train.matrix_lr", 0.01, {"mid_train"}),
    ("mid_train.epochs", 2.0, {"mid_train"}),
    ("sft.mixture.0.rows", 7, {"tokens/sft"}),
    ("sft.mask_user", False, {"tokens/sft"}),
    ("sft.seed", 1, {"tokens/sft", "sft"}),
    ("sft.epochs", 2.0, {"sft"}),
    ("sft.lr_scale", 0.5, {"sft"}),
    ("sft.total_batch_tokens", 1024, {"sft"}),
    ("sft.eval_tokens", 128, {"sft"}),
    ("chat_eval.temperature", 1.0, CHAT_EVAL),
    ("chat_eval.tasks", ["gsm8k"], CHAT_EVAL),
    ("trace.prompt", "Once", {"trace"}),
    ("trace.model", "sft", {"trace"}),
    ("trace.step_tokens", 64, {"trace"}),
    ("report.title", "Mine", {"report"}),
    ("report.cost_per_gpu_hour", 2.0, {"report"}),
]

WITHOUT_EFFECT: list[tuple[str, Any]] = [
    ("base_train.micro_batch", 2),
    ("base_train.commit_every", 3),
    ("mid_train.micro_batch", 2),
    ("sft.commit_every", 3),
    # written out, the default is the same
    ("tokenizer.document_characters", 10_000),
    ("base_train.width", 128),
    ("base_train.model", {"mlp": "relu2", "soft_cap": 15.0}),
    ("base_train.model", {"smear": False, "qk_scale": 1.0, "window_pattern": "L"}),
    ("mid_train.matrix_lr", 0.02),
    ("sft.mixture.0.epochs", 1.0),
    ("sft.mixture.0.split", "train"),
    # steps decide the horizon here
    ("base_train.tokens_per_parameter", 5.0),
]


def changed(before: Config, after: Config) -> set[str]:
    return {stage for stage in STAGES if before.specification("small", stage) != after.specification("small", stage)}


@pytest.mark.parametrize(("key", "value", "stages"), EDITS, ids=[f"{key}={value}" for key, value, _ in EDITS])
def test_a_key_changes_the_stages_whose_result_it_changes(key: str, value: Any, stages: set[str], tmp_path: Path) -> None:
    assert changed(load(tmp_path), load(tmp_path, {key: value})) == stages


@pytest.mark.parametrize(("key", "value"), WITHOUT_EFFECT, ids=[f"{key}={value}" for key, value in WITHOUT_EFFECT])
def test_a_key_that_changes_no_result_changes_no_stage(key: str, value: Any, tmp_path: Path) -> None:
    assert changed(load(tmp_path), load(tmp_path, {key: value})) == set()


def test_the_identity_counts_only_where_a_part_is_about_it(tmp_path: Path) -> None:
    mixtures = {"mid_train.mixture": [{"task": "smoltalk"}], "sft.mixture.0": {"task": "identity"}}
    before, after = load(tmp_path, mixtures), load(tmp_path, {**mixtures, "identity.name": "Ada"})
    assert changed(before, after) == {"tokens/sft"}


def test_the_order_of_keys_changes_nothing(tmp_path: Path) -> None:
    def backwards(value: Any) -> Any:
        return {key: backwards(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    before, after = load(tmp_path), load(tmp_path, {key: backwards(value) for key, value in reversed(DOCUMENT.items())})
    assert changed(before, after) == set()
    assert before.identity_hash() == after.identity_hash()


def test_what_changes_no_stage_and_no_run_time_key_changes_no_identity(tmp_path: Path) -> None:
    identity = load(tmp_path).identity_hash()
    assert [load(tmp_path, {key: value}).identity_hash() for key, value in WITHOUT_EFFECT[6:]] == [identity] * len(
        WITHOUT_EFFECT[6:]
    )


def test_the_catalogue_is_in_no_specification(tmp_path: Path) -> None:
    before = load(tmp_path)
    (tmp_path / "other.yaml").write_text((tmp_path / "sources.yaml").read_text().replace("folder: small", "folder: other"))
    after = load(tmp_path, {"catalogue": "other.yaml"})
    assert changed(before, after) == set()
    assert before.identity_hash() != after.identity_hash()


def test_every_key_that_decides_something_changes_the_identity(tmp_path: Path) -> None:
    known = {load(tmp_path).identity_hash()}
    for key, value in [(key, value) for key, value, _ in EDITS] + WITHOUT_EFFECT[:4]:
        identity = load(tmp_path, {key: value}).identity_hash()
        assert identity not in known, key
        known.add(identity)


def test_a_specification_is_canonical_json(tmp_path: Path) -> None:
    config = load(tmp_path)
    for stage in STAGES:
        text = config.specification("small", stage)
        assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def test_a_specification_leaves_out_what_inputs_tell_and_run_time_keys(tmp_path: Path) -> None:
    config = load(tmp_path)
    pretraining = json.loads(config.specification("small", "base_train"))
    assert not {"vocab_size", "sequence_len"} & set(pretraining["model"])
    for stage in TRAINING:
        assert set(config.run_time("small", stage)) == set(RUN_TIME_KEYS)
        keys = json.loads(config.specification("small", stage))
        assert not {*RUN_TIME_KEYS, "mixture", "validation", "mask_user"} & set(keys)
    assert config.run_time("small", "tokens/sft") == {}


def test_empty_rates_are_base_trains(tmp_path: Path) -> None:
    config = load(tmp_path, {"base_train.matrix_lr": 0.5, "sft.embedding_lr": 0.7})
    sft = json.loads(config.specification("small", "sft"))
    assert (sft["matrix_lr"], sft["embedding_lr"], sft["unembedding_lr"]) == (0.5, 0.7, 0.004)


def test_a_part_has_either_epochs_or_a_weight(tmp_path: Path) -> None:
    config = load(tmp_path, {"sft.mixture": [{"task": "gsm8k", "weight": 2.0}], "sft.mixture_rows": 8})
    weighted = json.loads(config.specification("small", "tokens/sft"))["mixture"][0]
    assert (weighted["weight"], weighted["epochs"]) == (2.0, None)
    plain = json.loads(config.specification("small", "tokens/mid_train"))["mixture"][0]
    assert (plain["weight"], plain["epochs"]) == (None, 1.0)


def test_the_report_is_specified_by_its_section_and_by_whose_stages_it_shows(tmp_path: Path) -> None:
    config = load(tmp_path, {"runs": {"a": {}, "b": {"base_train": "a"}}})
    keys = json.loads(config.specification("b", "report"))
    assert keys["owners"]["base_train"] == "a" and keys["owners"]["sft"] == "b"
    assert set(keys["owners"]) == set(STAGES) - {"report"}


def test_the_sizes_of_a_model_follow_from_its_depth(tmp_path: Path) -> None:
    for depth, width, heads in [
        (2, 128, 1),
        (3, 192, 2),
        (4, 256, 2),
        (7, 448, 4),
        (12, 768, 6),
        (20, 1280, 10),
        (32, 2048, 16),
    ]:
        model = load(tmp_path, {"base_train.depth": depth}).gpt_config("small")
        assert (model["n_layer"], model["n_embd"], model["n_head"], model["n_kv_head"]) == (depth, width, heads, heads)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_model_has_its_presets_components_and_what_overrides_them(preset: str, tmp_path: Path) -> None:
    model = load(tmp_path, {"base_train.preset": preset}).gpt_config("small")
    assert {name: model[name] for name in PRESETS[preset]} == PRESETS[preset]
    other = load(tmp_path, {"base_train.preset": preset, "base_train.model": {"soft_cap": None, "norm": "layer"}})
    assert (other.gpt_config("small")["soft_cap"], other.gpt_config("small")["norm"]) == (None, "layer")


def test_the_fields_of_a_model_are_those_of_gptconfig(tmp_path: Path) -> None:
    from nanochat.gpt import GPTConfig

    for preset in PRESETS:
        model = load(tmp_path, {"base_train.preset": preset}).gpt_config("small")
        assert list({**OFF, **model}.keys() ^ GPTConfig.__dataclass_fields__.keys()) == []


# -- files ---------------------------------------------------------------------------------------------------------------------


def test_stages_need_the_files_that_they_read(tmp_path: Path) -> None:
    config = load(tmp_path)
    shards = [f"stories/shard_{i:05d}" for i in range(3)]
    smoltalk = ["smoltalk/train_00000", "smoltalk/train_00001"]
    needed = {stage: config.files_needed("small", stage) for stage in STAGES}
    assert needed == {
        "tokenizer": [*shards[:2], "stories/shard_00004", "gpt2_bpe"],
        "tokens/pretrain": [*shards, "stories/shard_00004"],
        "tokens/mid_train": [*smoltalk, "words", "smoltalk/test"],
        "tokens/sft": ["gsm8k/train", "own_chats", "gsm8k/test"],
        "base_train": [],
        "tokens/core": ["eval_bundle"],
        "base_eval": [],
        "mid_train": [],
        "sft": [],
        "chat_eval/mid_train": ["arc_easy/test", "gsm8k/test", "words"],
        "chat_eval/sft": ["arc_easy/test", "gsm8k/test", "words"],
        "trace": [],
        "report": [],
    }
    assert config.all_files() == sorted({key for keys in needed.values() for key in keys})
    assert all(key in config.catalogue for key in config.all_files())


def test_a_file_of_ones_own_is_not_looked_for_in_the_catalogue(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("[]\n")
    part = {"task": "custom", "file": "chats.jsonl"}
    config = load(
        tmp_path, {"sft.mixture": [part, {**part, "rows": 3}], "sft.validation": [{"task": "identity", "split": "test"}]}
    )
    assert config.files_needed("small", "tokens/sft") == []
    assert config.local_files("small", "tokens/sft") == ["chats.jsonl"]
    assert config.local_files("small", "tokens/mid_train") == config.local_files("small", "sft") == []


@pytest.mark.parametrize("validation", [0, 1, 3, 4])
def test_training_shards_are_the_first_without_the_validation_shard(validation: int, tmp_path: Path) -> None:
    config = load(tmp_path, {"download.validation_shard": validation})
    expected = [f"stories/shard_{i:05d}" for i in range(5) if i != validation][:3]
    assert config.training_shards("small") == expected
    assert config.validation_shard("small") == f"stories/shard_{validation:05d}"
    assert config.tokenizer_shards("small") == expected[:2]
