"""The report's sections about how the models were made: model, data, training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nanochat.presets import changed_components, nearest_preset
from nanochat.reports.machine import not_exact
from nanochat.schedule import components_of_2026, count_parameters, flops_per_token
from nanochat.text import Markdown, bullets, code, count, exact, inline, percent, picture, score, setting, table

if TYPE_CHECKING:
    from nanochat.reports.report import StageData

Stages = Mapping[str, "StageData"]
Blocks = list[Markdown]


def model(stages: Stages) -> Blocks:
    """Shape, components, and where the parameters and the operations are."""
    stage = stages["base_train"]
    if not stage.config:
        return [stage.problem or Markdown("The model's configuration is missing; see the top of this report.")]
    config = stage.config
    shape = ["n_layer", "n_embd", "n_head", "n_kv_head", "vocab_size", "sequence_len"]
    titles = ["layers", "width", "query heads", "key and value heads", "vocabulary", "sequence length (tokens)"]
    rows = [[title, code(key), f"{config[key]:,}"] for title, key in zip(titles, shape, strict=True)]
    rows.insert(4, ["width of a head", code("n_embd / n_head"), f"{config['n_embd'] // config['n_head']:,}"])
    components = [[code(key), setting(value)] for key, value in config.items() if key not in shape]
    total = stage.results.get("parameters")
    return [
        table(["shape", "key", "value"], rows, left=2),
        Markdown(f"Components: {inline(preset(config))}."),
        table(["component", "setting"], components, left=2),
        Markdown("Parameters, by what they belong to:"),
        table(["group", "parameters", "share"], parameter_rows(config, total)),
        Markdown(
            f"Operations: {count(flops_per_token(config))} FLOPs per token of training (6 for each parameter that is "
            "multiplied, 12 × width × sequence length, or window, for the attention of a layer), "
            f"{count(stage.results.get('flops'))} in all of {code('base_train')}."
        ),
    ]


def preset(config: Mapping[str, Any]) -> str:
    """The preset that a model is nearest to, and where it differs: `preset nanochat, with mlp gelu`."""
    name = nearest_preset(config)
    changed = ", ".join(f"{key} {json.dumps(config[key]).strip(chr(34))}" for key in changed_components(config, name))
    return f"preset {name}" + (f", with {changed}" if changed else "")


def parameter_rows(config: Mapping[str, Any], total: int | None) -> list[list[str]]:
    """The matrices by group; what is left of the total are vectors: gains and biases."""
    width, layers = config["n_embd"], config["n_layer"]
    kv_width = width // config["n_head"] * config["n_kv_head"]
    components = components_of_2026(config)
    groups = {
        "token embedding": config["vocab_size"] * width,
        "position embedding": config["sequence_len"] * width if config.get("positions") == "learned" else 0,
        "attention": layers * (2 * width * width + 2 * width * kv_width),
        "MLP": layers * 8 * width * width,
        "head": 0 if config.get("tied_head") else config["vocab_size"] * width,
        "value embeddings": components["value_tables"],
        "gates and scales": sum(number for kind, number in components.items() if kind != "value_tables"),
    }
    total = total or count_parameters(config)
    groups["norms and biases"] = total - sum(groups.values())
    if config.get("tied_head"):
        groups["head (the token embedding again)"] = groups.pop("head")
    rows = [[name, f"{number:,}", percent(number / total)] for name, number in groups.items() if number or "head" in name]
    return [*rows, ["all", f"{total:,}", percent(1.0)]]


def data(stages: Stages) -> Blocks:
    """Tokenizer against known ones, the token files, the mixtures."""
    return [*tokenizer_blocks(stages["tokenizer"]), *token_blocks(stages)]


def tokenizer_blocks(stage: StageData) -> Blocks:
    if stage.problem:
        return [stage.problem]
    ratio = stage.results.get("bytes_per_token", {})
    rows = []
    for key, title in (("ours", "this run's"), ("gpt2", "GPT-2"), ("cl100k", "GPT-4 (cl100k)")):
        train, validation = ratio.get(f"{key}_train"), ratio.get(f"{key}_val", ratio.get(f"{key}_validation"))
        absent = train is None and validation is None
        vocab_size = stage.results.get("vocab_size") if key == "ours" else {"gpt2": 50_257, "cl100k": 100_277}[key]
        cells = ["not downloaded"] * 2 if absent else [score(train, 2), score(validation, 2)]
        rows.append([title, exact(vocab_size), *cells])
    characters = stage.results.get("characters")
    source = f" from {count(characters)} characters" if characters else ""
    return [
        Markdown(
            f"The tokenizer learned {exact(stage.results.get('vocab_size'))} tokens{source}. More bytes in a token mean fewer "
            "tokens for the same text:"
        ),
        table(["tokenizer", "vocabulary", "bytes per token, training text", "validation text"], rows),
    ]


def token_blocks(stages: Stages) -> Blocks:
    prompts = stages["tokens/core"]
    tokens = [stage for name, stage in stages.items() if name.startswith("tokens/") and stage is not prompts]
    blocks = [stage.problem for stage in (*tokens, prompts) if stage.problem]
    if prompts.is_finished:
        blocks.append(prompt_words(prompts))
    finished = [stage for stage in tokens if stage.is_finished]
    if not finished:
        return blocks
    blocks += [
        Markdown(
            "Text and conversations became rows of tokens once, before any training. Lost tokens did not fit into the rows; "
            "padding fills rows up; only supervised tokens count in the loss. Shares are of the tokens read."
        ),
        table(
            ["for", "read from", "tokens", "rows", "lost", "padding", "supervised", "validation rows"],
            [token_row(stage) for stage in finished],
            left=2,
        ),
    ]
    odd = [
        f"{stage.name}, {split}: {found}"
        for stage in finished
        for split in ("train", "validation")
        if (found := oddities(stage.results.get(split, {})))
    ]
    if odd:
        blocks.append(bullets(odd))
    for stage in finished:
        parts = stage.results.get("train", {}).get("parts") or stage.specification.get("mixture")
        if parts:
            blocks += [Markdown(f"Mixture of {code(stage.name.split('/')[1])}:"), mixture_table(parts)]
    return blocks


def prompt_words(stage: StageData) -> Markdown:
    """Of CORE: how many items of how many tasks, in tokens."""
    tasks = stage.results.get("tasks", {})
    items, available, tokens = (
        sum(task.get(key, 0) for task in tasks.values()) for key in ("num_items", "num_available", "tokens")
    )
    drawn = f"{items:,} of {available:,} items, drawn with a seed," if items < available else f"all {items:,} items"
    return Markdown(f"The prompts of CORE, {drawn} of {len(tasks)} tasks, became {count(tokens)} tokens.")


def token_row(stage: StageData) -> list[str]:
    train, validation = stage.results.get("train", {}), stage.results.get("validation", {})
    total = train.get("tokens_in")

    def with_share(*keys: str) -> str:
        value = next((train[key] for key in keys if key in train), None)
        return count(value) + (f" ({percent(value / total)})" if value and total else "")

    shards = sum("shard_" in name for name in stage.inputs) - 1  # one of them is to validate on
    documents = f"{count(train['documents'])} documents in {shards:,} shards" if "documents" in train else ""
    return [
        stage.name.split("/")[1],
        documents or f"{count(train.get('conversations'))} conversations",
        count(total),
        count(train.get("rows")),
        with_share("tokens_lost", "tokens_truncated"),
        with_share("tokens_padding"),
        with_share("tokens_supervised"),
        count(validation.get("rows")),
    ]


def oddities(counts: Mapping[str, Any]) -> str:
    """What was wrong with the text or the conversations, if anything was."""
    words = {
        "null_documents": "documents without text were skipped",
        "empty_documents": "empty documents were skipped",
        "invalid_documents": "documents were not UTF-8 and were read with U+FFFD in place of the broken bytes",
        "truncated": "conversations were longer than a row and lost their end",
        "without_target": "conversations were left out, for no token in their first row is supervised",
    }
    return "; ".join(f"{exact(counts[key])} {meaning}" for key, meaning in words.items() if counts.get(key))


def mixture_table(parts: Sequence[Mapping[str, Any]]) -> Markdown:
    """One row a part; a column for every key that any part has, what it is before how much of it."""
    found = dict.fromkeys(key for part in parts for key, value in part.items() if value is not None)
    first = [key for key in ("task", "split", "file", "source") if key in found]
    keys = first + [key for key in found if key not in first]
    rows = [[exact(v) if isinstance(v := part.get(key), int) else setting(v) for key in keys] for part in parts]
    return table([key.replace("_", " ") for key in keys], rows, left=len(first))


def training(stages: Stages, *, figure: str) -> Blocks:
    """The three trainings: how far they came, and the curves."""
    trainings = [stages[name] for name in ("base_train", "mid_train", "sft")]
    blocks = [stage.problem for stage in trainings if stage.problem]
    if all(stage.problem for stage in trainings):
        return blocks
    rows = [training_row(stage) for stage in trainings if stage.is_finished]
    losses = ["training loss", "validation loss"]
    header = ["training", "steps", "tokens", *losses, "validation bits per byte: first", "lowest", "last"]
    return [
        *blocks,
        table(header, rows),
        picture("Loss, validation bits per byte, learning rate and gradient norm over the steps", figure),
        Markdown(
            "Losses are in nats per supervised token. Each training is validated on text of its own kind (web text, then "
            "conversations), so bits per byte fall along a row and are not to be compared between rows."
        ),
        *first_validations(trainings),
        *not_exact([stage for stage in trainings if stage.is_finished]),
    ]


def first_validations(trainings: Sequence[StageData]) -> Blocks:
    """After how many steps each training was first validated, where that was not at its start."""
    first = {stage.name: rows[0]["step"] for stage in trainings if (rows := validations(stage))}
    found = [f"{exact(step)} of {code(name)}" for name, step in first.items() if step > 0]
    return [Markdown(f"`first` is the first measurement, not the start: after step {', '.join(found)}.")] if found else []


def validations(stage: StageData) -> list[dict]:
    return [row for row in stage.metrics if row.get("validation_bpb") is not None]


def training_row(stage: StageData) -> list[str]:
    results = stage.results
    bpb = [row["validation_bpb"] for row in validations(stage)]
    return [
        stage.name,
        exact(results.get("steps")),
        count(results.get("tokens")),
        score(results.get("train_loss")),
        score(results.get("validation_loss")),
        score(bpb[0] if bpb else None),
        score(min(bpb) if bpb else None),
        score(results.get("validation_bpb")),
    ]
