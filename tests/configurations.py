"""A small valid configuration and its catalogue, for tests to break."""

import copy
from pathlib import Path
from typing import Any

from nanochat.config import Config, load_config

REPOSITORY = Path(__file__).resolve().parent.parent

CATALOGUE = """\
folder: small
families:
  stories/shard: {url: "generated:shard_{index:05d}.parquet", count: 5}
  smoltalk/train: {url: "generated:smoltalk-{index:05d}.parquet", count: 2}
files:
  smoltalk/test: {url: "generated:smoltalk/test.parquet"}
  gsm8k/train: {url: "generated:gsm8k/train.parquet"}
  gsm8k/test: {url: "generated:gsm8k/test.parquet"}
  arc_easy/test: {url: "generated:arc_easy/test.parquet"}
  words: {url: "generated:words.txt"}
  eval_bundle: {url: "generated:eval_bundle.zip"}
  own_chats: {url: "generated:own.jsonl"}
  gpt2_bpe: {url: "generated:gpt2.tiktoken"}
"""

DOCUMENT: dict[str, Any] = {
    "catalogue": "sources.yaml",
    "runs": {"small": {}},
    "download": {"pretraining": "stories", "train_shards": 3, "validation_shard": 4},
    "tokenizer": {"vocab_size": 512, "shards": 2},
    "tokens": {"sequence_len": 64},
    "base_train": {"depth": 2, "steps": 10, "total_batch_tokens": 512, "eval_tokens": 256},
    "mid_train": {
        "mixture": [{"task": "smoltalk"}, {"task": "identity"}, {"task": "spelling_bee", "rows": 5}],
        "validation": [{"task": "smoltalk", "split": "test"}],
        "total_batch_tokens": 512,
    },
    "sft": {
        "mixture": [{"task": "gsm8k", "rows": 10}, {"task": "custom", "source": "own_chats"}],
        "validation": [{"task": "gsm8k", "split": "test"}],
        "total_batch_tokens": 512,
    },
    "chat_eval": {"tasks": ["arc_easy", "gsm8k", "spelling_bee"]},
}


def edited(edits: dict[str, Any]) -> dict[str, Any]:
    """DOCUMENT with values put in at dotted places: {"base_train.depth": 3}. The value `...` removes the key."""
    document = copy.deepcopy(DOCUMENT)
    for place, value in edits.items():
        *parents, key = place.split(".")
        node: Any = document
        for step in parents:
            node = node[int(step)] if isinstance(node, list) else node.setdefault(step, {})
        if value is ...:
            del node[key]
        elif isinstance(node, list):
            node[int(key)] = value
        else:
            node[key] = value
    return document


def load(root: Path, edits: dict[str, Any] | None = None) -> Config:
    """DOCUMENT with edits, checked, with its catalogue in `root`."""
    (root / "sources.yaml").write_text(CATALOGUE)
    return load_config(edited(edits or {}), source="my.yaml", root=root)
