"""The same DAG on real data: config/small.yaml, shortened, with a catalogue of local files."""

import pytest
from project import Project

pytestmark = pytest.mark.slow

SHORT = {
    "catalogue": "config/local_sources.yaml",
    "download.train_shards": 1,
    "tokenizer.shards": 1,
    "tokenizer.vocab_size": 4096,
    "tokenizer.max_characters": 4_000_000,
    "base_train.depth": 2,
    "base_train.width": 64,
    "base_train.heads": 2,
    "base_train.steps": 30,
    "base_train.total_batch_tokens": 8192,
    "base_train.eval_every": 0,
    "base_train.eval_tokens": 32_768,
    "base_eval.max_per_task": 2,
    "base_eval.eval_tokens": 32_768,
    "base_eval.sample_tokens": 8,
    "mid_train.epochs": 0.02,
    "mid_train.eval_every": 0,
    "sft.epochs": 0.05,
    "sft.eval_every": 0,
    "chat_eval.max_per_task": 2,
    "chat_eval.max_new_tokens": 16,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory, shared_data):
    project = Project(tmp_path_factory.mktemp("small"))
    project.configure_as_shipped(SHORT, base="small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_DATA", str(shared_data))
        project.run()
    return project


def test_every_core_task_yields_a_number(small):
    results = small.manifest("base_eval", run="small")["results"]
    assert len(results["tasks"]) == 22
    assert all(0 <= task["accuracy"] <= 1 and task["num_items"] == 2 for task in results["tasks"].values())
    assert results["core"] is not None


def test_bits_per_byte_fall_below_those_of_an_untrained_model(small):
    bpb = small.manifest("base_eval", run="small")["results"]["bits_per_byte"]
    assert 1.0 < bpb["validation"] < 3.2  # log2(4096) bits for the 3.6 bytes of a token are 3.3


@pytest.mark.parametrize("model", ["mid_train", "sft"])
def test_every_chat_task_yields_a_number(small, model):
    tasks = small.manifest(f"chat_eval/{model}", run="small")["results"]["tasks"]
    assert tasks.keys() == {"arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval", "spelling_bee"}
    assert all(0 <= task["accuracy"] <= 1 and task["num_items"] == 2 for task in tasks.values())


def test_at_most_five_per_cent_of_the_tokens_are_lost(small):
    train = small.manifest("tokens/pretrain", run="small")["results"]["train"]
    assert train["tokens_lost"] <= 0.05 * train["tokens_in"]
