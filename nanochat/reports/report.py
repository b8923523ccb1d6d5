"""The report of a run, made from manifests, records and metrics alone: no model is loaded, nothing is computed again.

`write_report` makes `report.md` with its pictures, to hand in, and `report.html`, the same sections as a page with interactive
plots; always all of FILES. A stage that has not finished, or a file of it that is damaged, costs the numbers that would come
from it and nothing else: the section says what is missing and what to do.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat import runs
from nanochat.errors import UserError
from nanochat.manifest import Artefact, open_verified, record_path
from nanochat.reports import components, forward, machine, making, plots, predictions, scores, step
from nanochat.reports.document import write_document
from nanochat.reports.figures import HEADLINES, TIMES, report_figures
from nanochat.storage import atomic_path
from nanochat.text import Markdown, code, inline, picture

REPORT, PAGE, LOSSES, CORE, CHAT = "report.md", "report.html", "loss.png", "core.png", "chat.png"
FILES = (REPORT, PAGE, LOSSES, CORE, CHAT)
COMPONENTS_IN_FULL = "Components one by one"
FOLDED = (COMPONENTS_IN_FULL, "Provenance", "Specification")  # in the page, until a reader opens them

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
    trace: dict = field(default_factory=dict)  # of the trace
    pages: dict[str, Path] = field(default_factory=dict)  # the stage's own pages, by name
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
    plots.plot_losses(folder / LOSSES, {name: data[name].metrics for name in runs.TRAININGS})
    core = data["base_eval"].results
    plots.plot_core(folder / CORE, core.get("tasks"), core.get("core"), core.get("interval"))
    plots.plot_chat(folder / CHAT, {name.split("/")[1]: scores.chat_tasks(data, name) for name in CHAT_EVALS})
    with atomic_path(folder / REPORT) as temporary:
        temporary.write_text(document(data, specification, title, folder), encoding="utf-8")
    write_document(
        folder / PAGE,
        title=title,
        notice=scores.missing(data),
        sections=sections(data, specification, folder, is_page=True),
        figures=report_figures(data, specification, losses=LOSSES, core=CORE, chat=CHAT),
        folded=FOLDED,
    )
    return list(FILES)


def document(stages: Mapping[str, StageData], specification: Mapping[str, Any], title: str, folder: Path) -> str:
    """The whole text: title, what is missing, then the sections from the scores to the specification."""
    blocks = [f"# {inline(title)}", *scores.missing(stages)]
    for heading, body in sections(stages, specification, folder).items():
        blocks += [f"## {heading}", *body]
    return "\n\n".join(blocks) + "\n"


def sections(
    stages: Mapping[str, StageData], specification: Mapping[str, Any], folder: Path, *, is_page: bool = False
) -> dict[str, list[Markdown]]:
    """Every section by its heading. The page has two figures more than the text, in the place of a table and beside one."""
    headlines = picture("Headline numbers", HEADLINES) if is_page else scores.headline_table(stages, specification)
    times = [picture("Time and cost of each stage, predicted and actual", TIMES)] if is_page else []
    return {
        "Summary": [headlines, *scores.summary(stages)],
        "Model": making.model(stages),
        **component_sections(stages),
        "Forward pass": traced(stages, "forward", folder),
        "Data": making.data(stages),
        "Training": making.training(stages, figure=LOSSES),
        "Training step": traced(stages, "step", folder),
        "Base evaluation": scores.base_evaluation(stages, figure=CORE),
        "Chat evaluation": scores.chat_evaluation(stages, figure=CHAT),
        "Samples": scores.samples(stages),
        "Machine and time": [*times, *machine.machine_and_time(stages, specification)],
        "Provenance": machine.provenance(stages, specification),
        "Specification": machine.full_specification(stages, specification),
    }


# -- what the trace tells ----------------------------------------------------------------------------------------------------


def component_sections(stages: Mapping[str, StageData]) -> dict[str, list[Markdown]]:
    """The component map of the preset that the model is nearest to: its overview, and each component."""
    trace, config = stages["trace"], stages["base_train"].config
    if not trace.trace:
        return {"Components": [missing_trace(trace)]}
    found = (trace.trace.get("components") or {}).get(making.nearest_preset(config) if config else "nanochat") or {}
    details = components.one_by_one(found)
    return {"Components": components.at_a_glance(found)} | ({COMPONENTS_IN_FULL: details} if details else {})


def traced(stages: Mapping[str, StageData], key: str, folder: Path) -> list[Markdown]:
    """A part of the trace, after a link to the page that shows it number by number."""
    trace = stages["trace"]
    if not trace.trace:
        return [missing_trace(trace)]
    page = trace.pages.get(f"{key}.html")
    link = Path(os.path.relpath(page, folder)).as_posix() if page else ""
    where = f"Line by line, with every number: [{link}]({link}); in a report of Snakemake, the page beside this one."
    shown = [Markdown(where)] if re.fullmatch(r"[\w./-]+", link) else []
    blocks = {"forward": forward.blocks, "step": step.blocks}[key]
    return [*shown, *blocks(trace.trace)]


def missing_trace(trace: StageData) -> Markdown:
    return trace.problem or Markdown("The trace cannot be read; see the top of this report.")


# -- reading -----------------------------------------------------------------------------------------------------------------


def collect(name: str, manifest: Path | None, log: Path | None = None) -> StageData:
    """Read what a stage published. A file that does not verify is left out, and named in `damage`."""
    if manifest is None:
        return StageData(name, problem=unfinished(name, manifest, log))
    try:
        artefact = open_verified(manifest)
    except UserError as error:
        if not manifest.exists():
            return StageData(name, problem=unfinished(name, manifest, log))
        return StageData(name, problem=Markdown(f"{code(name)} cannot be read: {inline(error)}"))
    stage = StageData(
        name,
        specification=artefact.specification,
        inputs=artefact.inputs,
        results=artefact.results,
        record=artefact.record(),
        identity=artefact.identity,
    )
    if not stage.record and record_path(manifest).exists():
        stage.damage.append(
            Markdown(
                f"{code(name)}: {code(manifest)} and the record beside it do not belong together: one of them is damaged or "
                f"was exchanged, and what is shown here may be of another stage. To put it right, run: "
                f"{code(f'python -m nanochat.verify --repair {manifest.parent}')}"
            )
        )
    stage.config = read(stage, artefact, "config.json") or {}
    stage.metrics = read(stage, artefact, "metrics.jsonl") or []
    stage.trace = read(stage, artefact, "trace.json") or {}
    stage.pages = {name: artefact.folder / name for name in artefact.files if name.endswith(".html")}
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
