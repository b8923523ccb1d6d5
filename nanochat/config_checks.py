"""What makes a configuration impossible although every key by itself is fine: found before the first job, not in the last."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from nanochat.catalogue import Catalogue
from nanochat.runs import Run
from nanochat.sections import AUTO, MAX_PROMPT_TOKENS, BaseTrain, Finetune, Part, Training
from nanochat.specifications import GENERATED_SPLITS, SPLITS, gpt_config, part_source, sources_needed, specify
from nanochat.strict_yaml import Place, readable, suggest

Problem = tuple[Place, str]  # the key it is told of, and the sentence that goes on after the key's name


def problems_in_run(run: Run, catalogue: Catalogue, root: Path) -> Iterator[Problem]:
    """Everything that is wrong with the stages that a run makes itself; those that it reuses are their owner's."""
    if run.owns("tokenizer") or run.owns("tokens/pretrain"):
        yield from shard_problems(run, catalogue)
    if run.owns("base_train"):
        yield from model_problems(run)
    for stage in ("base_train", "mid_train", "sft"):
        if run.owns(stage):
            yield from schedule_problems(run, stage)
            yield from optimizer_problems(run, stage)
    for stage in ("mid_train", "sft"):
        if run.owns(f"tokens/{stage}"):
            yield from mixture_problems(stage, getattr(run.settings, stage), catalogue, root)
    if run.owns("tokens/core") and "eval_bundle" not in catalogue:
        yield ("base_eval",), f"needs a file that is not there: {catalogue.unknown('eval_bundle')}"
    if run.owns("chat_eval/mid_train") or run.owns("chat_eval/sft"):
        yield from chat_eval_problems(run, catalogue)


def shard_problems(run: Run, catalogue: Catalogue) -> Iterator[Problem]:
    download, tokenizer = run.settings.download, run.settings.tokenizer
    family = f"{download.pretraining}/shard"
    if f"{family}_00000" not in catalogue:
        families = [name.removesuffix("/shard") for name in catalogue.names() if name.endswith("/shard")]
        has = f" It has {', '.join(families)}." if families else ""
        hint = suggest(download.pretraining, families) or has
        yield ("download", "pretraining"), f"is {download.pretraining}, and {catalogue.path} has no {family}.{hint}"
        return
    count = len(catalogue.parts(family))
    if download.validation_shard >= count:
        last = count - 1
        yield ("download", "validation_shard"), f"is {download.validation_shard}; {download.pretraining} ends with shard {last}"
    if download.train_shards > count - 1:
        yield (
            ("download", "train_shards"),
            f"is {readable(download.train_shards)}; {download.pretraining} has {count} shards in {catalogue.path}, one of them "
            f"for validation, so at most {count - 1}",
        )
    if run.owns("tokenizer") and tokenizer.shards > download.train_shards:
        yield ("tokenizer", "shards"), f"is {tokenizer.shards}, more than download.train_shards ({download.train_shards})"


def model_problems(run: Run) -> Iterator[Problem]:
    model = gpt_config(run.settings)
    width, heads = model["n_embd"], model["n_head"]
    if width % heads == 0 and width // heads % 2 == 0:
        return
    possible = [h for h in range(1, width // 2 + 1) if width % h == 0 and width // h % 2 == 0]
    if not possible:
        yield ("base_train", "width"), f"is {width}; heads need an even width, so it must be even"
        return
    nearest = min(possible, key=lambda h: (abs(h - heads), -h))
    yield (
        ("base_train", "heads"),
        f"is {heads} for a width of {width}: each head needs an equal, even share. Try base_train.heads: {nearest}",
    )


def schedule_problems(run: Run, stage: str) -> Iterator[Problem]:
    section: Training = getattr(run.settings, stage)
    row = run.settings.tokens.sequence_len
    if section.total_batch_tokens % row:
        below = section.total_batch_tokens // row * row
        near = below or row
        yield (
            (stage, "total_batch_tokens"),
            f"is {readable(section.total_batch_tokens)}, no multiple of a row (tokens.sequence_len: {row}). "
            f"Try {readable(near)}",
        )
    elif section.micro_batch is not None and section.total_batch_tokens // row % section.micro_batch:
        rows = section.total_batch_tokens // row
        yield (
            (stage, "micro_batch"),
            f"is {section.micro_batch}, which does not divide the {rows} rows of {stage}.total_batch_tokens",
        )
    if section.eval_tokens < row:
        yield (stage, "eval_tokens"), f"is {section.eval_tokens}, less than one row (tokens.sequence_len: {row})"
    if section.warmup_ratio + section.warmdown_ratio > 1:
        yield (stage, "warmup_ratio"), f"and {stage}.warmdown_ratio together are more than 1, the whole training"


def optimizer_problems(run: Run, stage: str) -> Iterator[Problem]:
    section: BaseTrain | Finetune = getattr(run.settings, stage)
    parts = specify(run.settings, stage).get("optimizer", {})
    start, end, steps = section.optimizer.momentum
    if not (0 <= start < 1 and 0 <= end < 1 and steps >= 1 and steps == int(steps)):
        yield (stage, "optimizer", "momentum"), "is a momentum from 0 to below 1, another one, and the steps between them"
    if parts.get("groups") == "speedrun" and section.weight_decay:
        yield (
            (stage, "weight_decay"),
            f"is {readable(section.weight_decay)}, and the groups `speedrun` have decays of their own; it must be 0",
        )
    if stage != "base_train" and section.optimizer.matrix_decay == AUTO:
        yield (stage, "optimizer", "matrix_decay"), "is auto, and the dial is base_train's; give a number"


def mixture_problems(stage: str, section: Finetune, catalogue: Catalogue, root: Path) -> Iterator[Problem]:
    for name in ("mixture", "validation"):
        for index, part in enumerate(getattr(section, name)):
            for key, problem in part_problems(part, catalogue, root):
                yield (stage, name, index, *key), problem
    for index, part in enumerate(section.validation):
        if part.weight is not None:
            yield (stage, "validation", index, "weight"), "has no meaning: only the mixture is weighted"
    weighted = [part.weight is not None for part in section.mixture]
    if any(weighted) and not all(weighted):
        first = weighted.index(False)
        yield (stage, "mixture", first), "has no weight, and other parts have: give all parts one, or none"
    if any(weighted) and section.mixture_rows is None:
        yield (stage, "mixture_rows"), "is missing: it is what the weights share out"
    if section.mixture_rows is not None and not any(weighted):
        yield (stage, "mixture_rows"), "needs weights to share it out: give each part of the mixture a weight, or remove it"


def part_problems(part: Part, catalogue: Catalogue, root: Path) -> Iterator[tuple[Place, str]]:
    splits = {**SPLITS, **GENERATED_SPLITS}.get(part.task, ("train",))
    if part.split not in splits:
        yield ("split",), f"is {part.split}; {part.task} has {' and '.join(splits)}"
        return
    if part.weight is not None and part.epochs is not None:
        yield (), "has epochs and a weight; it takes one of them"
    if part.task == "custom":
        yield from custom_problems(part, root)
    for key in ("file", "source"):
        if part.task != "custom" and getattr(part, key) is not None:
            yield (key,), f"is for the task custom only, not for {part.task}"
    source = part_source(part)
    if source is not None and not is_there(source, catalogue):
        yield ("source",) if part.task == "custom" else (), f"needs a file that is not there: {catalogue.unknown(source)}"


def custom_problems(part: Part, root: Path) -> Iterator[tuple[Place, str]]:
    if (part.file is None) == (part.source is None):
        yield (), "needs either a file (a path) or a source (a key of the catalogue), and not both"
    if part.file is not None and not (root / part.file).is_file():
        yield ("file",), f"is {part.file}; there is no such file"


def chat_eval_problems(run: Run, catalogue: Catalogue) -> Iterator[Problem]:
    tasks = run.settings.chat_eval.tasks
    if len(set(tasks)) < len(tasks):
        twice = next(task for task in tasks if tasks.count(task) > 1)
        yield ("chat_eval", "tasks"), f"names {twice} twice"
    if run.settings.chat_eval.num_samples > 1 and not run.settings.chat_eval.temperature:
        yield ("chat_eval", "num_samples"), "asks for several answers, and at temperature 0 they are all the same; raise that"
    for source in sources_needed(run.settings, "chat_eval/sft", catalogue):
        if not is_there(source, catalogue):
            yield ("chat_eval", "tasks"), f"needs a file that is not there: {catalogue.unknown(source)}"


def trace_problems(run: Run, runs: Mapping[str, Run], names: Collection[str]) -> Iterator[Problem]:
    """What is wrong with a trace, and with the run that stands beside it; `names` has those runs, too, that are broken."""
    trace = run.settings.trace
    name, place = trace.beside, ("trace", "beside")
    if not trace.prompt.strip():
        yield ("trace", "prompt"), "says nothing; it takes a text to follow through the model"
    limit = min(MAX_PROMPT_TOKENS, run.settings.tokens.sequence_len)
    if len(trace.prompt.split()) >= limit:  # a word is a token at least, and one more begins the text
        yield (
            ("trace", "prompt"),
            f"has {len(trace.prompt.split()):,} words, and at most {limit} tokens can be shown line by line",
        )
    if name is None:
        return
    if name == run.name:
        yield place, f"is {name}, the run itself; it takes the name of another one, or nothing"
    elif name not in names:
        yield place, f"is {name}, which is not in runs.{suggest(name, names)}"
    elif name in runs:
        other = runs[name]
        mine, theirs = run.settings.tokenizer.vocab_size, other.settings.tokenizer.vocab_size
        if other.owners[trace.model] == run.owners[trace.model]:
            yield place, f"is {name}, and both runs have the same {trace.model}: there is nothing to compare"
        elif mine != theirs:
            yield (
                place,
                f"is {name}, with a vocabulary of {readable(theirs)} tokens, and {run.name} has {readable(mine)}: models "
                "stand beside each other only with equally many",
            )


def is_there(source: str, catalogue: Catalogue) -> bool:
    return source in catalogue.names() or source in catalogue
