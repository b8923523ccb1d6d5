"""What each stage of a run needs to know: its specification, its run-time knobs, the files it reads.

A stage's specification holds exactly the keys that change its result and that its inputs do not tell it. It is what Snakemake
watches and what the stage's program is given, so a key that is not in it cannot matter, and one that is in it reruns the stage.
Stages read their predecessors through manifests: editing `sft` changes the specification of sft, and not of its evaluation.
"""

from typing import Any

from nanochat import dial
from nanochat.catalogue import Catalogue
from nanochat.presets import OFF, PRESETS
from nanochat.schedule import num_training_steps
from nanochat.sections import AUTO, RUN_TIME_KEYS, Finetune, OptimizerParts, Part, Settings, Training

RATES = ("embedding_lr", "unembedding_lr", "matrix_lr")
DATA_KEYS = ("mixture", "validation", "mixture_rows", "mask_user")  # of mid_train and sft: they make the tokens
PROMPT_KEYS = ("tasks", "max_per_task")  # of base_eval: they make the tokens

# the splits that each task has in its catalogue entry, `{task}/{split}`
SPLITS = {
    "smoltalk": ("train", "test"),
    "mmlu": ("auxiliary_train", "test"),
    "gsm8k": ("train", "test"),
    "arc_easy": ("train", "test"),
    "arc_challenge": ("train", "test"),
}
# made on this machine: the spellings from the word list (whose words are split in two), the identity from the configuration
GENERATED_SPLITS = {"identity": ("train", "test"), "simple_spelling": ("train", "test"), "spelling_bee": ("train", "test")}
COMPARISON_VOCABULARIES = ("gpt2_bpe", "cl100k_bpe")  # compared with if the catalogue has them


# -- specifications ------------------------------------------------------------------------------------------------------------


def specify(settings: Settings, stage: str) -> dict[str, Any]:
    """The keys that change the result of a stage. (`report` is specified by `Config`: it also tells whose stages it shows.)"""
    match stage:
        case "tokenizer":
            return {**settings.tokenizer.model_dump(), "validation": validation_shard(settings)}
        case "tokens/pretrain":
            shards = {"train_shards": settings.download.train_shards, "validation": validation_shard(settings)}
            return {**settings.tokens.model_dump(), **shards}
        case "tokens/mid_train":
            return specify_conversations(settings, settings.mid_train)
        case "tokens/sft":
            return specify_conversations(settings, settings.sft)
        case "tokens/core":
            return settings.base_eval.model_dump(include=set(PROMPT_KEYS))
        case "base_train":
            return specify_pretraining(settings)
        case "base_eval":
            return settings.base_eval.model_dump(exclude=set(PROMPT_KEYS))
        case "mid_train":
            return specify_finetuning(settings, settings.mid_train)
        case "sft":
            return specify_finetuning(settings, settings.sft)
        case "chat_eval/mid_train" | "chat_eval/sft":
            return settings.chat_eval.model_dump()
        case "trace":
            return settings.trace.model_dump()
        case "report":
            return settings.report.model_dump()
    raise ValueError(f"there is no stage {stage!r}")


def specify_conversations(settings: Settings, section: Finetune) -> dict[str, Any]:
    specification: dict[str, Any] = {"sequence_len": settings.tokens.sequence_len, "seed": section.seed}
    specification |= {"mask_user": section.mask_user, "mixture_rows": section.mixture_rows}
    specification["mixture"] = [specify_part(part) for part in section.mixture]
    specification["validation"] = [specify_part(part) for part in section.validation]
    if uses_identity(section):
        specification["identity"] = settings.identity.model_dump()
    return specification


def specify_part(part: Part) -> dict[str, Any]:
    keys = part.model_dump()
    if part.epochs is None and part.weight is None:
        keys["epochs"] = 1.0
    return keys


def specify_pretraining(settings: Settings) -> dict[str, Any]:
    section = settings.base_train
    keys = without(section, *RUN_TIME_KEYS, "depth", "width", "heads", "preset", "model", "optimizer", "counted_parameters")
    if section.steps is not None:
        keys["tokens_per_parameter"] = None  # does not count then
    # the vocabulary and the length of the rows come from the inputs
    model = {name: value for name, value in gpt_config(settings).items() if name not in ("vocab_size", "sequence_len")}
    return {**keys, **specify_optimizer(section.optimizer.model_dump()), "model": model}


def specify_finetuning(settings: Settings, section: Finetune) -> dict[str, Any]:
    inherited = {rate: getattr(settings.base_train, rate) for rate in RATES if getattr(section, rate) is None}
    keys = {**without(section, *RUN_TIME_KEYS, *DATA_KEYS, "optimizer"), **inherited}
    # the pretraining ended without any decay of the matrices, where it had a schedule, and tuning is short
    parts = (
        settings.base_train.optimizer.model_dump() | {"matrix_decay": 0.0} | section.optimizer.model_dump(exclude_unset=True)
    )
    return {**keys, **specify_optimizer(parts)}


def specify_optimizer(parts: dict[str, Any]) -> dict[str, Any]:
    """The parts that differ from the defaults; no key at all if none does, as before there were any."""
    defaults = OptimizerParts().model_dump()
    different = {name: value for name, value in parts.items() if value != defaults[name]}
    return {"optimizer": different} if different else {}


def without(section: Training, *names: str) -> dict[str, Any]:
    return section.model_dump(exclude=set(names))


def run_time(settings: Settings, stage: str) -> dict[str, Any]:
    """The knobs of a training that are in no specification; for other stages there are none."""
    section = getattr(settings, stage, None)
    return section.model_dump(include=set(RUN_TIME_KEYS)) if isinstance(section, Training) else {}


# -- the model -----------------------------------------------------------------------------------------------------------------


def gpt_config(settings: Settings) -> dict[str, Any]:
    """The fields of GPTConfig: sizes from the depth, components from the preset and what overrides it."""
    section = settings.base_train
    n_embd = section.width or 64 * section.depth
    n_head = section.heads or -(-n_embd // 128)  # rounded up: heads of 128, as far as the width allows
    sizes = {"n_layer": section.depth, "n_embd": n_embd, "n_head": n_head, "n_kv_head": n_head}
    data = {"vocab_size": settings.tokenizer.vocab_size, "sequence_len": settings.tokens.sequence_len}
    components = {**PRESETS[section.preset], **section.model.model_dump(exclude_unset=True)}
    # what is off and was not there in October 2025 is not named: models from before it are the same models
    named = {name: value for name, value in components.items() if name not in OFF or value != OFF[name]}
    return {**data, **sizes, **named}


# -- the dial ------------------------------------------------------------------------------------------------------------------


def with_dial(settings: Settings) -> Settings:
    """Numbers in the places of `auto`, and steps where tokens are counted for each scaling parameter (`nanochat.dial`).

    The dial is base_train's. mid_train and sft have the rates of its model of 12 blocks, times an lr_scale of their own.
    UserError if the horizon is shorter than a step.
    """
    base, model = settings.base_train, gpt_config(settings)
    batch = dial.batch_tokens(model) if base.total_batch_tokens == AUTO else base.total_batch_tokens
    found: dict[str, Any] = {"total_batch_tokens": batch}
    automatic = [rate for rate in RATES if getattr(base, rate) == AUTO]
    found |= {rate: dial.REFERENCE_RATES[rate] * dial.rate_scale(batch) for rate in automatic}
    if base.counted_parameters == "scaling" and base.steps is None:
        found["steps"] = num_training_steps(
            steps=None,
            tokens_per_parameter=base.tokens_per_parameter,
            num_parameters=dial.scaling_parameters(model),
            total_batch_tokens=batch,
        )
    parts: dict[str, Any] = {}
    if base.optimizer.matrix_decay == AUTO:
        parts["matrix_decay"] = dial.matrix_decay(model, batch)
    if base.optimizer.scalar_lr == AUTO:
        parts["scalar_lr"] = dial.REFERENCE_RATES["scalar_lr"] * dial.rate_scale(batch)
    found["optimizer"] = base.optimizer.model_copy(update=parts)
    changed: dict[str, Any] = {"base_train": base.model_copy(update=found)}
    for stage in ("mid_train", "sft"):
        changed[stage] = undialled(getattr(settings, stage), automatic, scalar_is_automatic="scalar_lr" in parts)
    return settings.model_copy(update=changed)


def undialled(section: Finetune, automatic: list[str], *, scalar_is_automatic: bool) -> Finetune:
    """With the rates of the dial's model of 12 blocks, where base_train's are automatic and the section has none of its own."""
    rates = {rate: dial.REFERENCE_RATES[rate] for rate in automatic if getattr(section, rate) is None}
    parts = section.optimizer
    if parts.scalar_lr == AUTO or (scalar_is_automatic and "scalar_lr" not in parts.model_fields_set):
        parts = parts.model_copy(update={"scalar_lr": dial.REFERENCE_RATES["scalar_lr"]})
    return section.model_copy(update={**rates, "optimizer": parts})


# -- files ---------------------------------------------------------------------------------------------------------------------


def shard_key(settings: Settings, index: int) -> str:
    return f"{settings.download.pretraining}/shard_{index:05d}"


def validation_shard(settings: Settings) -> str:
    return shard_key(settings, settings.download.validation_shard)


def training_shards(settings: Settings) -> list[str]:
    """Keys of the first `train_shards` shards, the validation shard left out."""
    download = settings.download
    indices = [i for i in range(download.train_shards + 1) if i != download.validation_shard]
    return [shard_key(settings, i) for i in indices[: download.train_shards]]


def tokenizer_shards(settings: Settings) -> list[str]:
    return training_shards(settings)[: settings.tokenizer.shards]


def uses_identity(section: Finetune) -> bool:
    return any(part.task == "identity" for part in parts_of(section))


def parts_of(section: Finetune) -> list[Part]:
    return [*section.mixture, *section.validation]


def part_source(part: Part) -> str | None:
    """The catalogue's name for what a part reads; None if it reads nothing from there."""
    if part.task in SPLITS:
        return f"{part.task}/{part.split}"
    return {"simple_spelling": "words", "spelling_bee": "words", "custom": part.source}.get(part.task)


def sources_needed(settings: Settings, stage: str, catalogue: Catalogue) -> list[str]:
    """What a stage reads of the catalogue, by the names of whole data sets: `smoltalk/train`, though it may be many files."""
    match stage:
        case "tokenizer":
            vocabularies = [key for key in COMPARISON_VOCABULARIES if key in catalogue]
            return [*tokenizer_shards(settings), validation_shard(settings), *vocabularies]
        case "tokens/pretrain":
            return [*training_shards(settings), validation_shard(settings)]
        case "tokens/mid_train" | "tokens/sft":
            sources = [part_source(part) for part in parts_of(getattr(settings, stage.removeprefix("tokens/")))]
            return [key for key in dict.fromkeys(sources) if key is not None]
        case "tokens/core":
            return ["eval_bundle"]
        case "chat_eval/mid_train" | "chat_eval/sft":
            return ["words" if task == "spelling_bee" else f"{task}/test" for task in settings.chat_eval.tasks]
    return []


def local_files(settings: Settings, stage: str) -> list[str]:
    """Files of the user's own that a stage reads: conversations of `custom` parts."""
    if stage not in ("tokens/mid_train", "tokens/sft"):
        return []
    files = [part.file for part in parts_of(getattr(settings, stage.removeprefix("tokens/")))]
    return [file for file in dict.fromkeys(files) if file is not None]
