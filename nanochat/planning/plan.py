"""What a run will cost, and whether it can work at all: known before anything is submitted, from arithmetic.

    rows = plan_run(config, "d20", sites)      # a row a stage: steps, tokens, FLOPs, hours, jobs, memory
    refusals(rows)                             # one sentence, with the remedy, for everything that cannot work

A `Site` is what the profile gives a stage: GPUs or cores, and how long a job may run. What lies on the disk, and how much room
there is, is in `nanochat.planning.disk`; how it is shown, in `nanochat.planning.text`.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nanochat.config import Config
from nanochat.planning import predict
from nanochat.planning.hardware import Device, find
from nanochat.planning.memory import largest_micro_batch, peak_bytes
from nanochat.planning.predict import Prediction, Speed, table_speed
from nanochat.runs import TRAININGS
from nanochat.schedule import divisor_at_most, micro_batch_on_cpu

GPU_STAGES = ("base_train", "base_eval", "mid_train", "sft", "chat_eval/mid_train", "chat_eval/sft")
STAGES = ("tokenizer", "tokens/pretrain", "tokens/mid_train", "tokens/sft", "tokens/core", *GPU_STAGES)

DAY_S = 86_400
MAX_CPU_DAYS = 60  # what takes longer on CPUs was hardly meant; config/tiny.yaml takes minutes, config/small.yaml 20
WALL_SHARE = 0.95  # of a job's time; the rest goes to starting it and to stopping before the wall
GENERATED_BYTES = 150.0  # of a conversation in the tiny world


@dataclass(frozen=True)
class Site:
    """What a stage is given."""

    ranks: int = 1
    gpu: str | None = None  # GPUs, one a rank, by a name or a cluster's type of them; None: CPUs
    threads: int = 1  # of the whole job
    runtime_min: float | None = None  # of a job; None: nobody ends it

    @property
    def device(self) -> Device | None:
        return find(self.gpu)

    def __str__(self) -> str:
        """8*a100/16/720: ranks, GPU (or cpu), threads, minutes (or none)."""
        return f"{self.ranks}*{self.gpu or 'cpu'}/{self.threads}/{'none' if self.runtime_min is None else self.runtime_min}"

    @classmethod
    def parse(cls, text: str) -> "Site":
        ranks, _, rest = text.partition("*")
        gpu, threads, minutes = rest.rsplit("/", 2)
        return cls(int(ranks), None if gpu == "cpu" else gpu, int(threads), None if minutes == "none" else float(minutes))


@dataclass(frozen=True)
class Known:
    """What is on the disk already, or was measured."""

    rows: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # tokens stage -> rows to train and to validate on
    done: frozenset[str] = frozenset()  # stages that are published
    speeds: Mapping[str, Speed] = field(default_factory=dict)  # of trainings, measured
    text_bytes: Mapping[str, float] = field(default_factory=dict)  # tokenizer, tokens/pretrain -> text to read
    core: predict.Counts | None = None  # of the prompts that are there


@dataclass(frozen=True)
class Row:
    """One stage of one run."""

    run: str
    stage: str
    site: Site
    model: Mapping[str, Any]
    specification: Mapping[str, Any]
    prediction: Prediction | None  # None: not known before the tokens are made
    speed: Speed | None = None
    micro_batch: int = 0  # rows of a forward pass: asked for, or chosen
    largest: int | None = None  # micro-batch that fits the GPU; None where there is no GPU or it is unknown
    commit_every: int = 0
    recompute: bool = False
    is_done: bool = False

    @property
    def num_gpus(self) -> int:
        return self.site.ranks if self.site.gpu and self.stage in GPU_STAGES else 0

    @property
    def num_jobs(self) -> int | None:
        if self.prediction is None or self.site.runtime_min is None:
            return None
        return max(1, math.ceil(self.prediction.seconds / (60 * self.site.runtime_min * WALL_SHARE)))

    @property
    def batch_rows(self) -> int:
        """Rows of a step, of a training."""
        return self.specification["total_batch_tokens"] // self.model["sequence_len"]

    @property
    def peak_bytes(self) -> int | None:
        if self.stage not in TRAININGS or not self.num_gpus or not self.micro_batch:
            return None
        return self.peak_bytes_at(self.micro_batch)

    def peak_bytes_at(self, micro_batch: int) -> int:
        """What a training needs of each GPU."""
        return peak_bytes(self.model, micro_batch=micro_batch, world_size=self.site.ranks, recompute=self.recompute)


# -- the rows ----------------------------------------------------------------------------------------------------------------


def plan_run(config: Config, run: str, sites: Mapping[str, Site], known: Known = Known()) -> list[Row]:
    """A row for each stage that this run makes itself; `sites` maps stages to what they are given."""
    model = config.gpt_config(run)
    return [plan_stage(config, run, stage, sites[stage], model, known) for stage in STAGES if config.owner(run, stage) == run]


def plan_stage(config: Config, run: str, stage: str, site: Site, model: Mapping[str, Any], known: Known) -> Row:
    specification = json.loads(config.specification(run, stage))
    is_done = stage in known.done
    if stage not in GPU_STAGES:
        prediction = predict_preparation(config, run, stage, specification, site, model, known)
        return Row(run, stage, site, model, specification, prediction, is_done=is_done)
    speed = known.speeds.get(stage if stage in TRAININGS else "base_train") or speed_of(model, site)
    if speed is None:
        return Row(run, stage, site, model, specification, None, is_done=is_done)
    if stage not in TRAININGS:
        prediction = predict_evaluation(config, run, stage, specification, model, speed, known)
        return Row(run, stage, site, model, specification, prediction, speed, is_done=is_done)
    run_time = config.run_time(run, stage)
    commit_every, requested = run_time["commit_every"] or 0, run_time["micro_batch"] or 0
    tokens = "tokens/pretrain" if stage == "base_train" else f"tokens/{stage}"
    train_rows, validation_rows = known.rows.get(tokens) or guessed_rows(config, run, tokens, model)
    prediction = predict.predict_training(
        specification,
        model,
        speed,
        train_rows=train_rows,
        validation_rows=validation_rows,
        commit_every=commit_every,
    )
    recompute = bool(run_time["recompute"])
    micro_batch, largest = micro_batches(specification, model, site, requested, recompute=recompute)
    return Row(
        run,
        stage,
        site,
        model,
        specification,
        prediction,
        speed,
        micro_batch,
        largest,
        commit_every,
        recompute,
        is_done=is_done,
    )


def speed_of(model: Mapping[str, Any], site: Site) -> Speed | None:
    """From the table; None for a GPU that is not in it."""
    if site.gpu and site.device is None:
        return None
    return table_speed(model, device=site.device, num_devices=site.ranks, cores=site.threads)


def micro_batches(
    specification: Mapping[str, Any], model: Mapping[str, Any], site: Site, requested: int, *, recompute: bool
) -> tuple[int, int | None]:
    """The rows of a forward pass, as the training will choose them, and the most that fit (None: no GPU)."""
    rows = max(1, specification["total_batch_tokens"] // model["sequence_len"] // site.ranks)
    if site.device is None:
        return requested or micro_batch_on_cpu(model, rows), None
    largest = largest_micro_batch(
        model, rows=rows, memory_bytes=site.device.memory_bytes, world_size=site.ranks, recompute=recompute
    )
    return requested or largest, largest


def predict_preparation(
    config: Config,
    run: str,
    stage: str,
    specification: Mapping[str, Any],
    site: Site,
    model: Mapping[str, Any],
    known: Known,
) -> Prediction | None:
    if stage == "tokenizer":
        size = known.text_bytes.get(stage)
        return None if size is None else predict.predict_tokenizer(specification, text_bytes=size)
    if stage == "tokens/pretrain":
        size = known.text_bytes.get(stage)
        if size is None:
            return None
        return predict.predict_text_tokens(text_bytes=size, vocab_size=model["vocab_size"], threads=site.threads)
    if stage == "tokens/core":
        return predict.predict_prompt_tokens(core_counts(config, run, model, known), threads=site.threads)
    tokens = mixture_tokens(config, [*specification["mixture"], *specification["validation"]], model)
    return None if tokens is None else predict.predict_conversation_tokens(tokens=tokens)


def guessed_rows(config: Config, run: str, tokens: str, model: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Rows of a mixture before it is made, from the sizes of its data sets."""
    if tokens == "tokens/pretrain":
        return None, None
    specification = json.loads(config.specification(run, tokens))
    found = []
    for split in ("mixture", "validation"):
        total = mixture_tokens(config, specification[split], model)
        found.append(None if total is None else max(1.0, total / model["sequence_len"]))
    return found[0], found[1]


def mixture_tokens(config: Config, parts: list[Mapping[str, Any]], model: Mapping[str, Any]) -> float | None:
    size = GENERATED_BYTES if is_generated(config, "smoltalk/train") else None
    return predict.conversation_tokens(parts, rows=catalogue_rows(config), model=model, size=size)


def is_generated(config: Config, name: str) -> bool:
    """Whether a data set is of the tiny world, whose texts are short."""
    return any(config.catalogue.get(key).address.startswith("generated:") for key in config.catalogue.parts(name)[:1])


def catalogue_rows(config: Config) -> dict[str, int]:
    """How many conversations each data set has, where the catalogue says so."""
    names = set(config.catalogue.names())
    return {name: rows for name in names if (rows := config.catalogue.rows(name)) is not None}


def core_counts(config: Config, run: str, model: Mapping[str, Any], known: Known) -> predict.Counts:
    if known.core is not None:
        return known.core
    if is_generated(config, "eval_bundle"):
        return {}  # the tiny world's bundle is small beside the text whose bits are counted
    return predict.core_counts(json.loads(config.specification(run, "tokens/core")), model)


def predict_evaluation(
    config: Config,
    run: str,
    stage: str,
    specification: Mapping[str, Any],
    model: Mapping[str, Any],
    speed: Speed,
    known: Known,
) -> Prediction:
    if stage == "base_eval":
        return predict.predict_base_eval(specification, model, speed, core=core_counts(config, run, model, known))
    rows = catalogue_rows(config)
    items = {task: rows.get(f"{task}/test", 1000) for task in specification["tasks"]}
    items["spelling_bee"] = specification["spelling_items"]
    return predict.predict_chat_eval(specification, model, speed, chat=predict.chat_counts(model, items))


# -- what cannot work --------------------------------------------------------------------------------------------------------


def refusals(rows: Iterable[Row]) -> list[str]:
    """A sentence for everything that cannot work, with the remedy. `rows` are the stages that are about to be run."""
    rows = [row for row in rows if not row.is_done]
    return [problem for check in (slow_problems, sharing_problems, memory_problems, wall_problems) for problem in check(rows)]


def slow_problems(rows: list[Row]) -> Iterable[str]:
    for run in dict.fromkeys(row.run for row in rows):
        stages = [row for row in rows if row.run == run and row.stage in GPU_STAGES and not row.num_gpus and row.prediction]
        seconds = sum(row.prediction.seconds for row in stages if row.prediction)
        if seconds > MAX_CPU_DAYS * DAY_S:
            slowest = max(stages, key=lambda row: row.prediction.seconds if row.prediction else 0.0)
            assert slowest.speed is not None
            yield (
                f"{run}: {slowest.stage} and the stages after it would take about {long_time(seconds)} on "
                f"{slowest.speed.source}. Did you mean --configfile config/tiny.yaml? On a cluster with GPUs: "
                "--profile profiles/ptolemy"
            )


def sharing_problems(rows: list[Row]) -> Iterable[str]:
    """Every rank needs the same number of rows of a step, and every forward pass of them."""
    for row in rows:
        if row.stage not in TRAININGS:
            continue
        where, ranks = f"{row.run}: {row.stage}", row.site.ranks
        if row.batch_rows % ranks:
            shareable = max(d for d in range(1, min(ranks, row.batch_rows) + 1) if row.batch_rows % d == 0)
            yield (
                f"{where}.total_batch_tokens gives {row.batch_rows} rows a step, which {ranks} ranks cannot share evenly; "
                f"give {row.stage} {shareable} rank{'s' * (shareable > 1)} (set-resources in the profile), or a batch of "
                f"{max(1, round(row.batch_rows / ranks)) * ranks * row.model['sequence_len']:,} tokens"
            )
        elif row.micro_batch and row.batch_rows // ranks % row.micro_batch:
            share = row.batch_rows // ranks
            yield (
                f"{where}.micro_batch is {row.micro_batch}, which does not divide the {share} rows that each of {ranks} ranks "
                f"has in a step; try {divisor_at_most(share, row.micro_batch)}, or leave it empty"
            )


def memory_problems(rows: list[Row]) -> Iterable[str]:
    for row in rows:
        device = row.site.device
        if row.stage not in TRAININGS or row.largest is None or device is None:
            continue
        has = f"and a {device.name} has {device.memory_bytes / 2**30:.0f}"
        if row.largest == 0:
            need = row.peak_bytes_at(1) / 2**30
            yield (
                f"{row.run}: {row.stage} needs {need:.0f} GiB on each GPU even for one row at a time, {has}; "
                "take a smaller base_train.depth, a shorter tokens.sequence_len, or a larger GPU"
            )
        elif row.micro_batch > row.largest:
            yield (
                f"{row.run}: {row.stage}.micro_batch {row.micro_batch} needs {(row.peak_bytes or 0) / 2**30:.0f} GiB on each"
                f" GPU, {has}; the largest that fits is {row.largest}"
            )


def wall_problems(rows: list[Row]) -> Iterable[str]:
    """A job that ends before its first commit leaves nothing, and so does every one after it."""
    for row in rows:
        if row.stage not in TRAININGS or row.prediction is None or row.site.runtime_min is None:
            continue
        longest = 60 * row.site.runtime_min * WALL_SHARE
        between = predict.seconds_between_commits(row.specification, row.prediction, row.commit_every)
        if between > longest:
            steps = max(1, int(longest / 2 / row.prediction.seconds * (row.prediction.steps or 1)))
            yield (
                f"{row.run}: {row.stage} would commit every {long_time(between)}, and a job ends after "
                f"{long_time(60 * row.site.runtime_min)}, so nothing would be kept; try {row.stage}.commit_every: {steps}, or a"
                " longer runtime"
            )


def long_time(seconds: float) -> str:
    """For people: 45 s, 12 min, 7.1 h, 3 days, 10 years."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48), ("days", DAY_S, 700)):
        if seconds / size < most:
            return f"{seconds / size:.1f} {unit}" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds / (365 * DAY_S):,.0f} years"
