"""The report of a run, made from manifests, records and metrics alone: no model is loaded, nothing is computed again.

`write_report` makes `report.md` and its figures, always all of FILES. A stage that has not finished, or a file of it that is
damaged, costs the numbers that would come from it and nothing else: the section says what is missing and what to do.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat import runs
from nanochat.errors import UserError
from nanochat.manifest import Artefact, atomic_path, open_verified
from nanochat.reports import machine, making, plots, predictions, scores
from nanochat.reports.text import Markdown, code, inline

REPORT, LOSSES, CORE, CHAT = "report.md", "loss.png", "core.png", "chat.png"
FILES = (REPORT, LOSSES, CORE, CHAT)

TRAININGS = ("base_train", "mid_train", "sft")
CHAT_EVALS = ("chat_eval/mid_train", "chat_eval/sft")
STAGES = tuple(stage for stage in runs.STAGES if stage != "report")


@dataclass
class StageData:
    """What the report knows of a stage. All is empty, and `problem` says why, if the stage has nothing to tell."""

    name: str
    problem: Markdown | None = None  # why there is no manifest to read
    damage: list[Markdown] = field(default_factory=list)  # files of it that were refused
    specification: dict = field(default_factory=dict)
    inputs: dict = field(default_factory=dict)
    results: dict = field(default_factory=dict)
    record: dict = field(default_factory=dict)
    identity: str = ""
    config: dict = field(default_factory=dict)  # the model's, of a training
    metrics: list[dict] = field(default_factory=list)  # rows of a training
    predicted_s: float | None = None  # how long the plan expected it to take

    @property
    def is_finished(self) -> bool:
        return self.problem is None


def write_report(
    folder: Path,
    *,
    stages: Mapping[str, Path | None],
    specification: Mapping[str, Any],
    title: str,
    logs: Mapping[str, Path] | None = None,
    preflights: Mapping[str, Path] | None = None,
) -> list[str]:
    """Write the report and its figures into `folder`; returns their names, which are always FILES.

    `stages` maps each name in STAGES to the stage's manifest, or to None; the manifest need not exist. `specification` is the
    report's own: {"cost_per_gpu_hour": a price or None, "owners": stage -> the run that made it}, both optional. `logs` maps a
    stage to the log that a reader is sent to when the stage is missing; `preflights` maps it to the record of its run's
    preflight, from which its time was predicted.
    """
    if unknown := sorted(set(stages) - set(STAGES)):
        raise UserError(f"report: stage {unknown[0]!r} is unknown; there are {', '.join(STAGES)}")
    data = {name: collect(name, stages.get(name), (logs or {}).get(name)) for name in STAGES}
    for name, seconds in predictions.predicted_seconds(data, preflights or {}).items():
        data[name].predicted_s = seconds
    plots.plot_losses(folder / LOSSES, {name: data[name].metrics for name in TRAININGS})
    plots.plot_core(folder / CORE, data["base_eval"].results.get("tasks"), data["base_eval"].results.get("core"))
    plots.plot_chat(folder / CHAT, {name.split("/")[1]: chat_tasks(data, name) for name in CHAT_EVALS})
    with atomic_path(folder / REPORT) as temporary:
        temporary.write_text(document(data, specification, title), encoding="utf-8")
    return list(FILES)


def document(stages: Mapping[str, StageData], specification: Mapping[str, Any], title: str) -> str:
    """The whole text: title, what is missing, then the sections from the scores to the specification."""
    sections = {
        "Summary": scores.summary(stages, specification),
        "Model": making.model(stages),
        "Data": making.data(stages),
        "Training": making.training(stages, figure=LOSSES),
        "Base evaluation": scores.base_evaluation(stages, figure=CORE),
        "Chat evaluation": scores.chat_evaluation(stages, figure=CHAT),
        "Samples": scores.samples(stages),
        "Machine and time": machine.machine_and_time(stages, specification),
        "Provenance": machine.provenance(stages, specification),
        "Specification": machine.full_specification(stages, specification),
    }
    blocks = [f"# {inline(title)}", *scores.missing(stages)]
    for heading, body in sections.items():
        blocks += [f"## {heading}", *body]
    return "\n\n".join(blocks) + "\n"


# -- reading -----------------------------------------------------------------------------------------------------------------


def collect(name: str, manifest: Path | None, log: Path | None = None) -> StageData:
    """Read what a stage published. A file that does not verify is left out, and named in `damage`."""
    if manifest is None or not manifest.exists():
        return StageData(name, problem=unfinished(name, manifest, log))
    try:
        artefact = open_verified(manifest)
    except UserError as error:
        return StageData(name, problem=Markdown(f"{code(name)} cannot be read: {inline(error)}"))
    stage = StageData(
        name,
        specification=artefact.specification,
        inputs=artefact.inputs,
        results=artefact.results,
        record=artefact.record(),
        identity=artefact.identity,
    )
    stage.config = read(stage, artefact, "config.json") or {}
    stage.metrics = read(stage, artefact, "metrics.jsonl") or []
    return stage


def read(stage: StageData, artefact: Artefact, file: str) -> Any:
    """The content of a JSON or JSON-lines file, or None if the stage has no such file or it is damaged."""
    if file not in artefact.files:
        return None
    try:
        text = artefact.path(file).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line] if file.endswith("l") else json.loads(text)
    except (UserError, ValueError) as error:
        stage.damage.append(Markdown(f"{code(stage.name)}: {code(file)} is left out of this report: {inline(error)}"))
        return None


def unfinished(name: str, manifest: Path | None, log: Path | None) -> Markdown:
    where = f": {code(manifest)} is not there" if manifest else ""
    what_to_do = f"See {code(log)}, then run" if log else "Look at its log, then run"
    return Markdown(f"{code(name)} has not finished{where}. {what_to_do} the same command again.")


def chat_tasks(stages: Mapping[str, StageData], name: str) -> dict[str, dict]:
    """The scores of one evaluation, by the tasks' titles and in their usual order."""
    tasks, usual = stages[name].results.get("tasks", {}), scores.chat_task_names(stages)
    return {scores.task_title(task): tasks[task] for task in usual if task in tasks}
