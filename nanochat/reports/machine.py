"""The report's sections about where, when and from what: machine, time and cost; provenance; the specification."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from nanochat.planning.hardware import find
from nanochat.runs import TRAININGS
from nanochat.schedule import flops_per_token
from nanochat.text import (
    NOTHING,
    Markdown,
    code,
    count,
    duration,
    exact,
    fenced_json,
    given,
    inline,
    memory,
    moment,
    percent,
    score,
    table,
)

if TYPE_CHECKING:
    from nanochat.reports.report import StageData

Stages = Mapping[str, "StageData"]
Blocks = list[Markdown]


def machine_and_time(stages: Stages, specification: Mapping[str, Any]) -> Blocks:
    """What ran where, for how long, how fast and for how much."""
    finished = [stage for stage in stages.values() if stage.is_finished]
    if not finished:
        return [Markdown("No stage has finished.")]
    priced = price(specification) is not None
    rows = []
    for stage in finished:
        record = stage.record
        row = [
            stage.name,
            device(record),
            given(record.get("dtype")),
            duration(stage.predicted_s),
            duration(record.get("seconds")),
            count(record.get("tokens_per_second")),
            utilisation(stage),
            memory(record.get("peak_memory_bytes")),
            count(len(record["segments"])) if record.get("segments") else NOTHING,
        ]
        rows.append([*row, score(gpu_cost(stage, specification), 2)] if priced else row)
    header = ["stage", "device", "dtype", "predicted", "time", "tokens/s", "of peak", "peak memory", "segments"]
    total = duration(sum(stage.record.get("seconds", 0) for stage in finished))
    blocks = [
        table([*header, "cost"] if priced else header, rows, left=3),
        Markdown(
            f"{total} if one stage had run after the other. A training that was stopped went on in a further segment. "
            "`of peak`: the model's operations as a share of a device's highest bf16 rate, where that is known."
        ),
        prediction_block(finished),
    ]
    if priced:
        blocks.append(
            Markdown(f"Cost: GPUs × hours × {price(specification):,.2f} for an hour of one GPU; stages on CPUs are free.")
        )
    return [*blocks, *segment_blocks(finished)]


def prediction_block(finished: Sequence[StageData]) -> Markdown:
    """All that was predicted beside what it took, and where predictions come from."""
    known = [stage for stage in finished if stage.predicted_s is not None and stage.record.get("seconds")]
    if not known:
        return Markdown("Nothing was predicted: there is no record of this run's preflight.")
    predicted = sum(stage.predicted_s or 0.0 for stage in known)
    took = sum(stage.record["seconds"] for stage in known)
    return Markdown(
        f"`predicted`: from the work in a stage's inputs and the speed of the machine as the preflight measured it, or as the "
        f"table of devices has it. {duration(predicted)} for what took {duration(took)}, {predicted / took:.2f} of it."
    )


def segment_blocks(finished: Sequence[StageData]) -> Blocks:
    """Where trainings stopped and went on, if any did; and whether they went on in the same numbers."""
    interrupted = [stage for stage in finished if len(stage.record.get("segments") or []) > 1]
    if not interrupted:
        return not_exact(trainings(finished))
    rows = [
        [
            stage.name,
            f"{number} of {len(stage.record['segments'])}",
            moment(segment.get("started")),
            moment(segment.get("finished")),
            given(segment.get("host")),
            f"{exact(segment.get('from_step'))} to {exact(segment.get('to_step'))}",
        ]
        for stage in interrupted
        for number, segment in enumerate(stage.record["segments"], start=1)
    ]
    blocks = [table(["training", "segment", "started (UTC)", "finished", "host", "steps"], rows, left=5)]
    return [*blocks, *not_exact(trainings(finished))]


def trainings(stages: Sequence[StageData]) -> list[StageData]:
    return [stage for stage in stages if stage.name in TRAININGS]


def not_exact(stages: Sequence[StageData]) -> Blocks:
    """A sentence for each training whose bits are not those that an undisturbed run, or today's code, would have made."""
    blocks = []
    for stage in stages:
        if stage.record.get("is_exact") is False:
            changes = [
                f"from step {exact(segment.get('from_step'))} on {inline('; '.join(segment['changed']))}"
                for segment in stage.record.get("segments") or []
                if segment.get("changed")
            ]
            what = ". ".join(changes) or "other devices, numbers of processes or versions"
            blocks.append(
                Markdown(
                    f"{code(stage.name)} was interrupted, and went on with something else than it began with, so its weights "
                    f"are not bit-identical to those of an undisturbed run: {what}. The same sums in another order or with "
                    "other rounding; the specification is the same."
                )
            )
    trained = [stage for stage in stages if stage.record.get("generation")]
    for before, after in pairwise(trained):
        first, second = before.record["generation"], after.record["generation"]
        if first != second:
            blocks.append(
                Markdown(
                    f"{code(after.name)} was trained by code of generation {exact(second)}, from weights that "
                    f"{code(before.name)} got from code of generation {exact(first)}: trained again, {code(before.name)} would "
                    "get other bits."
                )
            )
    return blocks


def device(record: Mapping[str, Any]) -> str:
    name, number = record.get("device"), record.get("num_devices") or 1
    return f"{number} × {name}" if name and number > 1 else given(name)


def utilisation(stage: StageData) -> str:
    """Model FLOPs per second as a share of what the devices can do at most, where that is known."""
    speed, known = stage.record.get("tokens_per_second"), find(stage.record.get("device"))
    if not (known and speed and stage.config and stage.record.get("dtype") == "bfloat16"):
        return NOTHING
    return percent(speed * flops_per_token(stage.config) / (known.peak_flops * (stage.record.get("num_devices") or 1)))


def price(specification: Mapping[str, Any]) -> float | None:
    return specification.get("cost_per_gpu_hour")


def gpu_cost(stage: StageData, specification: Mapping[str, Any]) -> float | None:
    """GPU hours times the price of one; None for a stage that had no GPU."""
    return cost_of(stage, stage.record.get("seconds"), specification)


def predicted_cost(stage: StageData, specification: Mapping[str, Any]) -> float | None:
    """The same of the time that was predicted, on the GPUs that the stage had."""
    return cost_of(stage, stage.predicted_s, specification)


def cost_of(stage: StageData, seconds: float | None, specification: Mapping[str, Any]) -> float | None:
    name, hourly = stage.record.get("device"), price(specification)
    if hourly is None or seconds is None or not name or str(name).lower().startswith("cpu"):
        return None
    return seconds / 3600 * (stage.record.get("num_devices") or 1) * hourly


def provenance(stages: Stages, specification: Mapping[str, Any]) -> Blocks:
    """What each stage is, in hashes: enough to say whether two runs are the same, and to find what they were made from."""
    finished = [stage for stage in stages.values() if stage.is_finished]
    if not finished:
        return [Markdown("No stage has finished.")]
    owners = specification.get("owners", {})
    rows = [
        [
            stage.name,
            given(owners.get(stage.name)),
            code(stage.identity[:12]),
            code(canonical_hash(stage.specification)[:12]),
            revision(stage.record.get("code")),
            moment(stage.record.get("finished")),
            given(stage.record.get("host")),
        ]
        for stage in finished
    ]
    inputs = [[stage.name, *row] for stage in finished for row in input_rows(stage.inputs)]
    return [
        Markdown(
            "The identity of a stage is the sha256 of its manifest, which holds its specification, the identities of its "
            "inputs and the sha256 of every file that it made. Here are the first 12 digits of each; `+` behind the code's "
            "revision means that files differed from it."
        ),
        table(["stage", "of run", "identity", "specification", "code", "finished (UTC)", "host"], rows, left=7),
        Markdown("Inputs:"),
        table(["stage", "input", "identity"], inputs, left=3),
        Markdown("Versions:"),
        table(["package", "version", "stages"], version_rows(finished), left=3),
    ]


def revision(commit: str | None) -> Markdown | str:
    return code(commit[:12] + "+" * (commit[12:].endswith("+"))) if commit else "unknown"


def input_rows(inputs: Mapping[str, str]) -> list[list[str]]:
    """Name and identity of each input; the shards of a data set are one line, with one hash over all their identities."""
    groups: dict[str, list[str]] = {}
    for name in sorted(inputs):
        groups.setdefault(re.sub(r"\d{5}$", "", name) if "shard_" in name else name, []).append(name)
    rows = []
    for group, names in groups.items():
        if len(names) == 1:
            rows.append([names[0], code(inputs[names[0]][:12])])
        else:
            together = hashlib.sha256("\n".join(inputs[name] for name in names).encode()).hexdigest()
            rows.append([f"{names[0]} to {names[-1].removeprefix(group)} ({len(names)} files)", code(together[:12])])
    return rows


def version_rows(finished: Sequence[StageData]) -> list[list[str]]:
    users: dict[tuple[str, str], list[str]] = {}
    for stage in finished:
        for package, version in (stage.record.get("versions") or {}).items():
            users.setdefault((package, str(version)), []).append(stage.name)
    return [[*key, "all" if len(names) == len(finished) else ", ".join(names)] for key, names in sorted(users.items())]


def full_specification(stages: Stages, specification: Mapping[str, Any]) -> Blocks:
    finished = {name: stage.specification for name, stage in stages.items() if stage.is_finished}
    return [
        Markdown("Every key that decided what came out, stage by stage, defaults filled in:"),
        fenced_json({**finished, "report": dict(specification)}),
    ]


def canonical_hash(specification: Mapping[str, Any]) -> str:
    text = json.dumps(specification, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
