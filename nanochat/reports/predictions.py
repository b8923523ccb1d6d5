"""What the plan expected of each stage, for the report to put beside what it took.

Expected from what was known before a stage began: the work, counted in its inputs, and the speed that the run's preflight
measured or took from the table of devices. Nothing of the stage's own time goes into it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.planning import predict
from nanochat.planning.predict import Speed

if TYPE_CHECKING:
    from nanochat.reports.report import StageData

TOKENS = {"base_train": "tokens/pretrain", "mid_train": "tokens/mid_train", "sft": "tokens/sft"}


def predicted_seconds(stages: Mapping[str, StageData], preflights: Mapping[str, Path]) -> dict[str, float]:
    """Stage -> seconds; a stage of which nothing was known is not in it. `preflights`: stage -> the record of its run's."""
    model = stages["base_train"].config
    found = {}
    for name, stage in stages.items():
        record = read_record(preflights.get(name))
        if not (record and model and stage.is_finished):
            continue
        try:
            prediction = predict_stage(name, stages, model, record)
        except (KeyError, TypeError, ValueError):
            continue  # made by another version, which knew something else
        if prediction is not None:
            found[name] = prediction.seconds
    return found


def predict_stage(
    name: str, stages: Mapping[str, StageData], model: Mapping[str, Any], record: Mapping[str, Any]
) -> predict.Prediction | None:
    stage = stages[name]
    if name == "tokenizer":
        text = stages["tokens/pretrain"]
        share = stage.specification["shards"] / text.specification["train_shards"]
        return predict.predict_tokenizer(stage.specification, text_bytes=text.results["train"]["bytes"] * share)
    if name == "tokens/core":
        return predict.predict_prompt_tokens(predict.counted_core(stage.results), threads=record["threads"][name])
    if name.startswith("tokens/"):
        tokens = sum(stage.results[split]["tokens_in"] for split in ("train", "validation"))
        if name != "tokens/pretrain":
            return predict.predict_conversation_tokens(tokens=tokens)
        size = tokens * predict.bytes_per_token(model["vocab_size"])
        return predict.predict_text_tokens(text_bytes=size, vocab_size=model["vocab_size"], threads=record["threads"][name])
    speed = Speed(**record["speeds"][name])
    if name in TOKENS:
        rows = stages[TOKENS[name]].results
        return predict.predict_training(
            stage.specification,
            model,
            speed,
            train_rows=rows["train"]["rows"],
            validation_rows=rows["validation"]["rows"],
            commit_every=record["commit_every"][name],
        )
    if name == "base_eval":
        core = predict.counted_core(stages["tokens/core"].results)
        return predict.predict_base_eval(stage.specification, model, speed, core=core)
    return predict.predict_chat_eval(stage.specification, model, speed, chat=record["chat"])


def read_record(path: Path | None) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text()) if path else None
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
