"""Runs that override and reuse: who owns which stage, and what cannot be."""

from pathlib import Path
from typing import Any

import pytest
from configurations import load

from nanochat.config import Config
from nanochat.errors import UserError
from nanochat.runs import STAGES

UP_TO_BASE = {"tokenizer", "tokens/pretrain", "base_train"}
UP_TO_MID = UP_TO_BASE | {"mid_train", "tokens/mid_train"}


def load_runs(tmp_path: Path, edits: dict[str, Any] | None = None, **runs: Any) -> Config:
    return load(tmp_path, {"runs": {name.replace("_", "-"): run for name, run in runs.items()}, **(edits or {})})


def reused(config: Config, run: str) -> dict[str, set[str]]:
    """Owner -> the stages that `run` has from it."""
    owners: dict[str, set[str]] = {}
    for stage in STAGES:
        if config.owner(run, stage) != run:
            owners.setdefault(config.owner(run, stage), set()).add(stage)
    return owners


def test_a_run_owns_all_of_its_stages(tmp_path: Path) -> None:
    config = load_runs(tmp_path, a={}, b=None)
    assert reused(config, "a") == reused(config, "b") == {}


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    config = load_runs(tmp_path, d20={}, more={"base_train": "d20", "mid_train": "d20", "sft": {"epochs": 2.0}})
    own = {"sft", "chat_eval/sft", "trace", "report"}
    assert reused(config, "more") == {"d20": set(STAGES) - own}


REUSE = {
    "tokenizer": {"tokenizer"},
    "tokens": {"tokenizer", "tokens/pretrain", "tokens/mid_train", "tokens/sft", "tokens/core"},
    "base_train": UP_TO_BASE | {"tokens/mid_train", "tokens/sft", "tokens/core", "base_eval"},
    "base_eval": UP_TO_BASE | {"tokens/mid_train", "tokens/sft", "tokens/core", "base_eval"},
    "mid_train": UP_TO_MID | {"tokens/sft", "tokens/core", "base_eval", "chat_eval/mid_train"},
    "sft": set(STAGES) - {"trace", "report"},
    "chat_eval": set(STAGES) - {"trace", "report"},
}


@pytest.mark.parametrize("section", REUSE)
def test_reusing_a_stage_brings_what_it_was_made_from_and_its_evaluation(section: str, tmp_path: Path) -> None:
    config = load_runs(tmp_path, a={}, b={section: "a"})
    assert reused(config, "b") == {"a": REUSE[section]}


def test_conversations_are_made_anew_where_their_keys_differ(tmp_path: Path) -> None:
    config = load_runs(tmp_path, a={}, b={"base_train": "a", "sft": {"mask_user": False}})
    assert reused(config, "b") == {"a": UP_TO_BASE | {"tokens/mid_train", "tokens/core", "base_eval"}}


def test_prompts_are_made_anew_where_their_keys_differ_and_only_then(tmp_path: Path) -> None:
    shared = UP_TO_BASE | {"tokens/mid_train", "tokens/sft"}
    other_items = {"base_train": "a", "base_eval": {"max_per_task": 3}}
    other_samples = {"base_train": "a", "base_eval": {"samples": ["Once"]}}
    config = load_runs(tmp_path, a={}, b=other_items, c=other_samples, d={"base_eval": "b"})
    assert reused(config, "b") == {"a": shared}
    assert reused(config, "c") == {"a": shared | {"tokens/core"}}
    assert reused(config, "d") == {"a": shared, "b": {"tokens/core", "base_eval"}}, "an evaluation comes with what it read"


def test_an_evaluation_of_its_own_is_not_reused(tmp_path: Path) -> None:
    config = load_runs(tmp_path, a={}, b={"mid_train": "a", "base_eval": {"seed": 1}, "chat_eval": {"seed": 1}})
    assert reused(config, "b") == {"a": UP_TO_MID | {"tokens/sft", "tokens/core"}}
    assert '"seed":1' in config.specification("b", "chat_eval/mid_train")


def test_reuse_goes_through_runs_that_reuse(tmp_path: Path) -> None:
    config = load_runs(
        tmp_path, c={"mid_train": "b", "sft": {"epochs": 2.0}}, b={"base_train": "a", "mid_train": {"seed": 1}}, a={}
    )
    assert config.run_names == ["c", "b", "a"]
    assert reused(config, "c") == {
        "a": UP_TO_BASE | {"base_eval", "tokens/sft", "tokens/core"},
        "b": {"tokens/mid_train", "mid_train", "chat_eval/mid_train"},
    }


def test_two_runs_may_be_reused_where_they_agree(tmp_path: Path) -> None:
    config = load_runs(tmp_path, a={}, b={"base_train": "a", "mid_train": {"seed": 1}}, c={"base_train": "a", "mid_train": "b"})
    assert config.owner("c", "base_train") == "a"
    assert config.owner("c", "mid_train") == "b"


def test_a_reused_stage_has_its_owners_settings(tmp_path: Path) -> None:
    runs: dict[str, Any] = {
        "a": {"base_train": {"depth": 4}, "tokens": {"sequence_len": 32}, "download": {"train_shards": 2}},
        "b": {"base_train": "a", "sft": {"epochs": 2.0}},
    }
    config = load_runs(tmp_path, **runs)
    assert config.gpt_config("b") == config.gpt_config("a")
    assert (config.gpt_config("b")["n_layer"], config.gpt_config("b")["sequence_len"]) == (4, 32)
    assert config.training_shards("b") == ["stories/shard_00000", "stories/shard_00001"]
    for stage in UP_TO_BASE:
        assert config.specification("b", stage) == config.specification("a", stage)


def test_the_identity_goes_on_with_a_reused_mid_train(tmp_path: Path) -> None:
    config = load_runs(tmp_path, a={"identity": {"name": "Ada"}}, b={"mid_train": "a", "sft": {"epochs": 2.0}})
    assert config.settings("b").identity.name == "Ada"


def test_overrides_merge_key_by_key_and_replace_lists(tmp_path: Path) -> None:
    run = {"base_train": {"model": {"mlp": "gelu"}}, "sft": {"mixture": [{"task": "identity"}]}}
    config = load_runs(tmp_path, {"base_train.model": {"norm": "layer"}}, a=run)
    model = config.gpt_config("a")
    assert (model["norm"], model["mlp"], model["n_layer"]) == ("layer", "gelu", 2)
    assert [part.task for part in config.settings("a").sft.mixture] == ["identity"]


IMPOSSIBLE = {
    "upstream of a reused stage": (
        {"a": {}, "b": {"base_train": "a", "tokenizer": {"vocab_size": 300}}},
        ["runs.b.tokenizer.vocab_size cannot count", "runs.b.base_train reuses a's base_train"],
    ),
    "far upstream": (
        {"a": {}, "b": {"chat_eval": "a", "tokens": {"sequence_len": 32}}},
        ["runs.b.tokens.sequence_len", "runs.b.chat_eval"],
    ),
    "a run-time key upstream": (
        {"a": {}, "b": {"sft": "a", "base_train": {"micro_batch": 1}}},
        ["runs.b.base_train.micro_batch", "runs.b.sft"],
    ),
    "other shards for reused tokens": (
        {"a": {}, "b": {"tokens": "a", "download": {"train_shards": 2}}},
        ["runs.b.download.train_shards cannot count", "tokens is reused from a"],
    ),
    "another validation shard for a reused tokenizer": (
        {"a": {}, "b": {"tokenizer": "a", "download": {"validation_shard": 0}}},
        ["runs.b.download.validation_shard cannot count", "tokenizer is reused from a"],
    ),
    "another identity for a reused mid_train": (
        {"a": {}, "b": {"mid_train": "a", "identity": {"name": "Bob"}}},
        ["runs.b.identity.name cannot count", "mid_train is reused from a"],
    ),
    "two owners of one stage": (
        {"a": {}, "b": {}, "c": {"base_train": "a", "mid_train": "b"}},
        ["runs.c", "mid_train is reused from b", "base_train from a", "a run has one tokenizer"],
    ),
    "a circle of two": ({"a": {"sft": "b"}, "b": {"base_train": "a"}}, ["a -> b -> a", "circle"]),
    "a circle of three": (
        {"a": {"tokenizer": "b"}, "b": {"tokenizer": "c"}, "c": {"tokenizer": "a"}},
        ["a -> b -> c -> a"],
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_reuse_is_refused_with_both_names(name: str, tmp_path: Path) -> None:
    runs, words = IMPOSSIBLE[name]
    with pytest.raises(UserError) as caught:
        load(tmp_path, {"runs": runs})
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


def test_overrides_that_change_nothing_upstream_are_allowed(tmp_path: Path) -> None:
    # the tokenizer reads the first two shards in both; mid_train's conversations do not mention the identity here
    mixture = {"mid_train.mixture": [{"task": "smoltalk"}], "sft.mixture.1": {"task": "identity"}}
    b = {"tokenizer": "a", "download": {"train_shards": 2}}
    c = {"mid_train": "a", "identity": {"name": "Bob"}}
    config = load_runs(tmp_path, mixture, a={}, b=b, c=c)
    assert len(config.training_shards("b")) == 2
    assert reused(config, "c")["a"] == UP_TO_MID | {"tokens/core", "base_eval", "chat_eval/mid_train"}


# -- traces ------------------------------------------------------------------------------------------------------------------


def test_a_trace_belongs_to_its_own_run_whatever_that_reuses(tmp_path: Path) -> None:
    config = load_runs(tmp_path, a={}, b={"sft": "a", "trace": {"prompt": "Hello"}})
    assert (config.owner("b", "trace"), config.owner("b", "base_train")) == ("b", "a")
    assert (config.settings("a").trace.prompt, config.settings("b").trace.prompt) == ("The capital of France is", "Hello")
    with pytest.raises(UserError, match=r"runs\.b\.trace is the text 'a'; trace is not a stage that can be reused"):
        load_runs(tmp_path, a={}, b={"trace": "a"})


def test_the_run_beside_may_name_this_one_too(tmp_path: Path) -> None:
    config = load_runs(tmp_path, a={"trace": {"beside": "b"}}, b={"base_train": {"depth": 4}, "trace": {"beside": "a"}})
    assert (config.settings("a").trace.beside, config.settings("b").trace.beside) == ("b", "a")


BESIDE = {
    "a prompt of too many words": (
        {"b": {"trace": {"prompt": "so " * 200}}},
        "runs.b.trace.prompt has 200 words, and at most 64 tokens can be shown line by line",
    ),
    "an unknown run": ({"b": {"trace": {"beside": "bb"}}}, "runs.b.trace.beside is bb, which is not in runs. Did you mean b?"),
    "the run itself": ({"b": {"trace": {"beside": "b"}}}, "runs.b.trace.beside is b, the run itself"),
    "the run itself, by a default for all": ({"b": {}, "trace": "b"}, "trace.beside is b, the run itself"),
    "the same model": (
        {"a": {}, "b": {"base_train": "a", "trace": {"beside": "a"}}},
        "runs.b.trace.beside is a, and both runs have the same base_train: there is nothing to compare",
    ),
    "another vocabulary": (
        {"a": {"tokenizer": {"vocab_size": 300}}, "b": {"trace": {"beside": "a"}}},
        "runs.b.trace.beside is a, with a vocabulary of 300 tokens, and b has 512",
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_cannot_stand_beside_a_run_is_refused(name: str, tmp_path: Path) -> None:
    runs, message = BESIDE[name]
    default = runs.get("trace")
    edits = {"runs": {name: run for name, run in runs.items() if name != "trace"}}
    with pytest.raises(UserError) as caught:
        load(tmp_path, {**edits, **({"trace.beside": default} if default else {})})
    assert message in str(caught.value)


def test_another_model_of_runs_that_share_one_may_stand_beside_it(tmp_path: Path) -> None:
    b = {"base_train": "a", "mid_train": "a", "sft": {"epochs": 2.0}, "trace": {"beside": "a", "model": "sft"}}
    assert load_runs(tmp_path, a={}, b=b).settings("b").trace.beside == "a"


def test_an_unknown_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run tiny; there are small"):
        load(tmp_path).owner("tiny", "sft")
