"""Several runs in one page: their curves laid over each other, their scores with differences, what was configured differently.

Made from what the runs published, as a report is. A run that has not finished is compared as far as it is, and the page says
what is missing. The first run is what the others are compared with.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nanochat.accuracy import difference_interval
from nanochat.errors import UserError
from nanochat.manifest import MANIFEST, open_verified
from nanochat.reports import charts, predictions, scores
from nanochat.reports.charts import Chart
from nanochat.reports.document import Figure, Plot, write_document
from nanochat.reports.machine import device, gpu_cost, price
from nanochat.reports.plots import running_mean, series
from nanochat.reports.report import STAGES, StageData, collect
from nanochat.runs import TRAININGS
from nanochat.text import (
    NOTHING,
    Markdown,
    bullets,
    code,
    count,
    duration,
    fenced,
    inline,
    picture,
    score,
    table,
    visible,
)

Blocks = list[Markdown]

CURVES, CORE, CHAT, TIMES = "curves", "core", "chat", "times"
COMPARED = tuple(name for name in STAGES if name != "trace")  # that tells of one run, and counts in the time only
NOT_THERE = "(not there)"


@dataclass
class RunData:
    """A run as the comparison sees it."""

    name: str
    stages: Mapping[str, StageData]
    specification: dict = field(default_factory=dict)  # of its report, if it has one


def write_comparison(path: Path, folders: Sequence[Path]) -> list[str]:
    """Write the page that compares the runs in these folders (results/a, results/b, ...).

    Returns the names of what is missing, such as "b: sft has not finished". UserError with fewer than two runs, or if a folder
    is not there.
    """
    runs = open_runs(folders)
    write_document(
        path,
        title="Comparison of " + ", ".join(run.name for run in runs),
        notice=missing(runs),
        sections={
            "Summary": [summary(runs)],
            "Curves": [picture("Loss and validation bits per byte over the tokens", CURVES), curve_note()],
            "Scores": score_blocks(runs),
            "What differs": difference_blocks(runs),
            "Time and cost": time_blocks(runs),
            "Samples": sample_blocks(runs),
        },
        figures={CURVES: curves(runs), CORE: core_figure(runs), CHAT: chat_figure(runs), TIMES: time_figure(runs)},
        folded=("Samples",),
    )
    return [f"{run.name}: {name}" for run in runs for name in COMPARED if run.stages[name].problem]


def missing(runs: Sequence[RunData]) -> Blocks:
    lines = [Markdown(f"{code(run.name)}: {line}") for run in runs for line in problems(run)]
    return [Markdown("**Not everything can be compared.**"), bullets(lines)] if lines else []


def problems(run: RunData) -> list[Markdown]:
    """What is missing of a run. If many stages are, in one line: nobody reads twelve."""
    stages = [run.stages[name] for name in COMPARED]
    unfinished = [stage.name for stage in stages if stage.problem]
    damage = [line for stage in stages for line in stage.damage]
    if len(unfinished) <= 2:
        return [*(problem for stage in stages if (problem := stage.problem)), *damage]
    return [Markdown(f"{', '.join(code(name) for name in unfinished)} have not finished."), *damage]


# -- reading -----------------------------------------------------------------------------------------------------------------


def open_runs(folders: Sequence[Path]) -> list[RunData]:
    if len(folders) < 2:
        raise UserError("a comparison takes at least two runs: python -m nanochat.compare results/a results/b")
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder; a run is a folder such as results/d20")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is given twice; name each once")
    names = [folder.resolve().name for folder in folders]
    return [
        open_run(folder, visible(name if names.count(name) == 1 else str(folder)))
        for folder, name in zip(folders, names, strict=True)
    ]


def open_run(folder: Path, name: str) -> RunData:
    manifests = find_stages(folder)
    stages = {stage: collect(stage, path) for stage, path in manifests.items()}
    preflights = {stage: run_folder(path, stage) / "preflight" / "record.json" for stage, path in manifests.items()}
    for stage, seconds in predictions.predicted_seconds(stages, preflights).items():
        stages[stage].predicted_s = seconds
    report = folder / "report" / MANIFEST
    return RunData(name, stages, open_verified(report).specification if report.exists() else {})


def run_folder(manifest: Path, stage: str) -> Path:
    return manifest.parents[1 + stage.count("/")]


def find_stages(folder: Path) -> dict[str, Path]:
    """The manifest of every stage: in the run's folder, or in that of the run whose stage it reuses.

    Which one that is, the identities tell that stand in the manifests of what was made from it. Where nothing tells, the path
    is the run's own, at which there is nothing.
    """
    found = {stage: folder / stage / MANIFEST for stage in STAGES}
    others = sorted(path for path in folder.parent.iterdir() if path.is_dir() and path != folder)
    known = inputs_of([*found.values(), folder / "report" / MANIFEST])
    while True:
        absent = [stage for stage, path in found.items() if not path.exists()]
        candidates = [(stage, other / stage / MANIFEST) for stage in absent for other in others]
        more = {stage: path for stage, path in candidates if identity_of(path) in known}
        if not more:
            return found
        found |= more
        known |= inputs_of(more.values())


def inputs_of(manifests: Iterable[Path]) -> set[str]:
    """The identities of all that these were made from."""
    found: set[str] = set()
    for path in manifests:
        try:
            found |= set(open_verified(path).inputs.values())
        except UserError:
            continue  # missing or damaged: `collect` tells the reader
    return found


def identity_of(manifest: Path) -> str | None:
    try:
        return open_verified(manifest).identity
    except UserError:
        return None


# -- summary -----------------------------------------------------------------------------------------------------------------


def summary(runs: Sequence[RunData]) -> Markdown:
    """The headline numbers, one column a run."""
    columns = [dict(headlines(run)) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, NOTHING) for column in columns)] for name in names]
    return table(["", *(run.name for run in runs)], rows)


def headlines(run: RunData):
    yield from scores.headlines(run.stages, run.specification)
    yield "Trained on the device", device(run.stages["base_train"].record)


# -- curves ------------------------------------------------------------------------------------------------------------------


def curves(runs: Sequence[RunData]) -> Figure:
    return Figure(
        "Running means of the training loss, and the validation at the steps at which it was made. A training that several "
        "runs share is drawn once.",
        [
            Plot(
                "loss",
                "Training loss, running mean",
                {name: loss_chart(runs, name) for name in TRAININGS},
                True,
                "No metrics yet.",
            ),
            Plot(
                "bpb", "Validation bits per byte", {name: bpb_chart(runs, name) for name in TRAININGS}, True, "No metrics yet."
            ),
        ],
        {name: name for name in TRAININGS},
        choose="Which training",
    )


def curve_note() -> Markdown:
    return Markdown(
        "Losses are in nats per token, and can be compared between runs with the same tokenizer and validation text only; bits "
        "per byte also between tokenizers."
    )


def loss_chart(runs: Sequence[RunData], training: str) -> Chart | None:
    traces, shown, starts = [], [], {}
    for index, (name, stage) in enumerate(distinct(runs, training)):
        steps, losses = series(stage.metrics, "loss")
        if len(steps):
            smooth = running_mean(losses)
            traces.append(charts.line(*charts.thinned(tokens_at(stage, steps), smooth), name, charts.COLOURS[index % 8]))
            shown.append(charts.range_without_start(losses))
            starts[name] = losses[0]
    return over_tokens(traces, "loss (nats per token)", shown, starts)


def bpb_chart(runs: Sequence[RunData], training: str) -> Chart | None:
    traces, shown, starts = [], [], {}
    for index, (name, stage) in enumerate(distinct(runs, training)):
        steps, values = series(stage.metrics, "validation_bpb")
        if len(steps):
            trace = charts.points(tokens_at(stage, steps), values, name, charts.COLOURS[index % 8])
            trace["marker"]["symbol"] = charts.SYMBOLS[index % 8]
            traces.append(trace)
            shown.append(charts.range_without_start(values))
            starts[name] = values[0]
    return over_tokens(traces, "bits per byte", shown, starts)


def over_tokens(
    traces: list[dict], title: str, shown: Sequence[tuple[float, float] | None], starts: Mapping[str, float]
) -> Chart | None:
    """The curves over the tokens; a note names those of `starts` that lie above the plot."""
    if not traces:
        return None
    known = [bounds for bounds in shown if bounds]
    y_range = (min(low for low, _ in known), max(high for _, high in known)) if len(known) == len(traces) else None
    chart = charts.chart(traces, y=title, y_range=y_range, height=360, hovermode="x unified")
    chart["layout"]["xaxis"]["title"] = {"text": "tokens trained on"}
    hidden = [f"{name} at {start:.3g}" for name, start in starts.items() if y_range and start > y_range[1]]
    note = f"Start above the plot: {'; '.join(hidden)}. {charts.SEE_ALL.capitalize()}." if hidden else ""
    return charts.noted({**chart, "layout": {**chart["layout"], "showlegend": True}}, note)


def distinct(runs: Sequence[RunData], name: str) -> list[tuple[str, StageData]]:
    """Each finished stage once, under the names of all runs that have it."""
    owners: dict[str, list[str]] = {}
    found: dict[str, StageData] = {}
    for run in runs:
        stage = run.stages[name]
        if stage.is_finished:
            owners.setdefault(stage.identity, []).append(run.name)
            found[stage.identity] = stage
    return [(", ".join(names), found[identity]) for identity, names in owners.items()]


def tokens_at(stage: StageData, steps: np.ndarray) -> np.ndarray:
    """Tokens trained on before each of these steps."""
    results = stage.results
    per_step = results["tokens"] / results["steps"] if results.get("tokens") and results.get("steps") else 1
    return steps * per_step


# -- scores ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """A score; its 95 % interval, if it has one; and which items were asked (identities of their files)."""

    value: float
    interval: Sequence[float] | None = None
    asked: tuple = ()


Scores = dict[str, list[Score | None]]  # by name, one a run

# the files of a chat task's questions, as the evaluation's inputs name them
FIVE = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval")
WORDS = "spelling_bee"


def score_blocks(runs: Sequence[RunData]) -> Blocks:
    return [
        Markdown(
            f"Differences are to {code(runs[0].name)}, each with its 95 % interval; **bold** where the interval leaves out 0, "
            "so that the difference is more than the luck of which items were asked. Where two runs were asked the same ones, "
            "that luck is shared, and the true intervals are narrower. They say nothing of another training: two of one d20 "
            "differ by 0.01 in CORE. Bits per byte have none."
        ),
        score_table(runs, whole_scores(runs)),
        picture("Chat scores of each run, with 95 % intervals", CHAT),
        score_table(runs, chat_scores(runs)),
        picture("CORE task by task, with 95 % intervals", CORE),
        score_table(runs, core_scores(runs)),
    ]


def whole_scores(runs: Sequence[RunData]) -> Scores:
    def core(run: RunData) -> Score | None:
        stage = run.stages["base_eval"]
        tasks = tuple(sorted(stage.results.get("tasks", {})))
        return whole(stage.results.get("core"), stage.results.get("interval"), (bundle(run), tasks))

    def chatcore(run: RunData, training: str, key: str) -> Score | None:
        stage = run.stages[f"chat_eval/{training}"]
        tasks = FIVE if key == "five" else (*FIVE, WORDS)
        found = stage.results.get("chatcore", {})
        return whole(found.get(key), found.get(f"{key}_interval"), tuple(questions(stage, task) for task in tasks))

    found: Scores = {
        "validation bits per byte, after base_train": [whole(scores.validation_bpb(run.stages)) for run in runs],
        "CORE": [core(run) for run in runs],
    }
    for key in ("five", "six"):
        for training in ("mid_train", "sft"):
            found[f"ChatCORE of {key}, after {training}"] = [chatcore(run, training, key) for run in runs]
    return {name: row for name, row in found.items() if any(row)}


def whole(value: float | None, interval: Sequence[float] | None = None, asked: tuple = ()) -> Score | None:
    return None if value is None else Score(value, interval, asked)


def questions(stage: StageData, task: str) -> str | None:
    """The identity of the file that a chat task's items are from."""
    return stage.inputs.get("words" if task == WORDS else f"{task}/test")


def chat_scores(runs: Sequence[RunData]) -> Scores:
    found: Scores = {}
    for training in ("mid_train", "sft"):
        stages = [run.stages[f"chat_eval/{training}"] for run in runs]
        for name in dict.fromkeys(name for run in runs for name in scores.chat_task_names(run.stages)):
            row = [share(stage.results.get("tasks", {}).get(name), (questions(stage, name),)) for stage in stages]
            found |= {f"{scores.task_title(name)}, after {training}": row} if any(row) else {}
    return found


def core_scores(runs: Sequence[RunData]) -> Scores:
    found = [(run.stages["base_eval"].results.get("tasks", {}), bundle(run)) for run in runs]
    names = sorted({name for tasks, _ in found for name in tasks})
    return {name: [share(tasks.get(name), (asked,)) for tasks, asked in found] for name in names}


def bundle(run: RunData) -> str | None:
    """The identity of the file that CORE's items are from."""
    read_by = [run.stages["tokens/core"], run.stages["base_eval"]]  # the second read it itself before there were tokens of CORE
    return next((stage.inputs["eval_bundle"] for stage in read_by if "eval_bundle" in stage.inputs), None)


def share(task: Mapping[str, Any] | None, asked: tuple) -> Score | None:
    if not task or task.get("accuracy") is None:
        return None
    return Score(task["accuracy"], task.get("interval"), asked)


def score_table(runs: Sequence[RunData], found: Scores) -> Markdown:
    """One row a score: every run's, and of each but the first the difference to the first."""
    if not found:
        return Markdown("None of the runs has these scores yet.")
    has_intervals = any(cell and cell.interval for row in found.values() for cell in row)
    first, *others = runs
    header: list[str] = ["", first.name]
    for run in others:
        header += [run.name, "difference", *(["95 % interval"] if has_intervals else [])]
    rows = []
    for name, cells in found.items():
        row: list[str] = [name, value_of(cells[0])]
        for cell in cells[1:]:
            row += [value_of(cell), *difference(cells[0], cell)[: 2 if has_intervals else 1]]
        rows.append(row)
    return table(header, rows)


def value_of(cell: Score | None) -> str:
    return score(cell.value if cell else None)


def difference(first: Score | None, second: Score | None) -> tuple[Markdown | str, str]:
    """second - first, and its 95 % interval if both have one."""
    if first is None or second is None:
        return NOTHING, NOTHING
    if first.asked != second.asked:
        return "other items", NOTHING
    text = f"{second.value - first.value:+.4f}"
    if not (first.interval and second.interval):
        return text, NOTHING
    low, high = difference_interval((first.value, first.interval), (second.value, second.interval))
    return Markdown(f"**{text}**") if low > 0 or high < 0 else text, f"{low:+.3f} to {high:+.3f}"


def chat_figure(runs: Sequence[RunData]) -> Figure:
    found: dict[str, Chart | None] = {}
    for stage in ("sft", "mid_train"):
        evaluations = {run.name: scores.chat_tasks(run.stages, f"chat_eval/{stage}") for run in runs}
        found[stage] = tasks_chart(evaluations)
    plot = Plot("chat", "Chat scores", found, is_wide=True, empty="No chat scores yet.")
    return Figure(
        "The share of right answers of each run, with 95 % intervals, beside chance.",
        [plot],
        {"sft": "after sft", "mid_train": "after mid_train"},
        choose="After which training",
    )


def core_figure(runs: Sequence[RunData]) -> Figure:
    evaluations = {run.name: run.stages["base_eval"].results.get("tasks", {}) for run in runs}
    plot = Plot("core", "CORE task by task", tasks_chart(evaluations), is_wide=True, empty="No CORE scores yet.")
    return Figure("The share of right answers of each run's base model, with 95 % intervals, beside chance.", [plot])


def tasks_chart(evaluations: Mapping[str, Mapping[str, Mapping]]) -> Chart | None:
    names = list(dict.fromkeys(name for tasks in evaluations.values() for name in tasks))
    groups = {
        run: {name: (task.get("accuracy"), task.get("interval")) for name, task in tasks.items()}
        for run, tasks in evaluations.items()
    }
    chance = {name: task.get("baseline") for tasks in evaluations.values() for name, task in tasks.items()}
    return charts.scores_chart(names, groups, chance=chance)


# -- what differs ------------------------------------------------------------------------------------------------------------


def difference_blocks(runs: Sequence[RunData]) -> Blocks:
    return [
        Markdown("Every key that two of the runs have with different values, stage by stage. All other keys are equal."),
        specification_table(runs),
        Markdown(
            "The identity of each stage: the sha256 of its manifest, shortened. Where runs show the same one, the stage is the "
            "same to the last bit, whether it was made once or twice."
        ),
        identity_table(runs),
        Markdown("Code and machine of each stage, where they differ:"),
        machine_table(runs),
    ]


def specification_table(runs: Sequence[RunData]) -> Markdown:
    rows = []
    for name in COMPARED:
        compared = {run.name: flat(run.stages[name].specification) for run in runs if run.stages[name].is_finished}
        if len(compared) < 2:
            continue
        for key in sorted({key for keys in compared.values() for key in keys}):
            values = {run: keys.get(key, NOT_THERE) for run, keys in compared.items()}
            if is_different(values.values()):
                rows.append([name, code(key), *(shown(values.get(run.name)) for run in runs)])
    if not rows:
        return Markdown("None: what the runs have in common was configured alike.")
    return table(["stage", "key", *(run.name for run in runs)], rows, left=2 + len(runs))


def flat(value: Any, place: str = "") -> dict[str, str]:
    """Nested keys by their full names, values as JSON: {"a": {"b": [1]}}  ->  {"a.b[0]": "1"}"""
    if isinstance(value, Mapping) and value:
        parts = {f"{place}.{key}".removeprefix("."): inner for key, inner in value.items()}
    elif isinstance(value, list) and value:
        parts = {f"{place}[{number}]": inner for number, inner in enumerate(value)}
    else:
        return {place: json.dumps(value, ensure_ascii=False)} if place else {}
    return {key: text for name, inner in parts.items() for key, text in flat(inner, name).items()}


def is_different(values: Iterable[str]) -> bool:
    """Whether a key's values differ. One that is null counts as not there: parts of a mixture have all keys."""
    return len({NOT_THERE if value == "null" else value for value in values}) > 1


def shown(text: str | None) -> Markdown | str:
    if text is None:
        return NOTHING
    return Markdown("not there") if text == NOT_THERE else code(text)


def identity_table(runs: Sequence[RunData]) -> Markdown:
    rows = []
    for name in COMPARED:
        identities = [run.stages[name].identity for run in runs]
        known = [identity for identity in identities if identity]
        if known:
            alike = (
                "the same" if len(set(known)) == 1 and len(known) == len(runs) else "different" if len(known) > 1 else NOTHING
            )
            rows.append([name, *(code(identity[:12]) if identity else NOTHING for identity in identities), alike])
    return table(["stage", *(run.name for run in runs), ""], rows, left=2 + len(runs))


def machine_table(runs: Sequence[RunData]) -> Markdown:
    """Code, device, number format and versions of the stages that ran more than once and not alike."""
    found: dict[tuple[str, ...], list[str]] = {}  # a fact with its value in each run -> stages
    for name in COMPARED:
        finished = [run for run in runs if run.stages[name].is_finished]
        if len({run.stages[name].identity for run in finished}) < 2:
            continue
        facts = {run.name: machine_facts(run.stages[name].record) for run in finished}
        for key in dict.fromkeys(key for of_run in facts.values() for key in of_run):
            values = [facts[run.name].get(key, NOTHING) if run.name in facts else NOTHING for run in runs]
            if len(set(values) - {NOTHING}) > 1:
                found.setdefault((key, *values), []).append(name)
    if not found:
        return Markdown("They do not.")
    rows = [[*values, ", ".join(stages)] for values, stages in found.items()]
    return table(["", *(run.name for run in runs), "stages"], rows, left=2 + len(runs))


def machine_facts(record: Mapping[str, Any]) -> dict[str, str]:
    facts = {"code": str(record.get("code") or "unknown")[:12], "device": device(record)}
    facts |= {key: str(record[key]) for key in ("dtype", "micro_batch", "world_size") if record.get(key) is not None}
    return facts | {name: str(version) for name, version in sorted((record.get("versions") or {}).items())}


# -- time and cost -----------------------------------------------------------------------------------------------------------


def time_blocks(runs: Sequence[RunData]) -> Blocks:
    header = ["stage"]
    for run in runs:
        header += [f"{run.name}: time", "tokens/s", *(["cost"] if priced(run) else [])]
    rows = []
    for name in STAGES:
        if not any(run.stages[name].is_finished for run in runs):
            continue
        row: list[str] = [name]
        for run in runs:
            stage = run.stages[name]
            row += [duration(stage.record.get("seconds")), count(stage.record.get("tokens_per_second"))]
            row += [score(gpu_cost(stage, run.specification), 2)] if priced(run) else []
        rows.append(row)
    if not rows:
        return [Markdown("No stage has finished.")]
    return [
        picture("Time of each stage", TIMES),
        table(header, rows),
        Markdown(
            "A stage that a run reuses counts with the time that it once took. Costs are of GPUs, at each run's own price."
        ),
    ]


def priced(run: RunData) -> bool:
    return price(run.specification) is not None


def time_figure(runs: Sequence[RunData]) -> Figure:
    times = {run.name: {name: stage.record.get("seconds") for name, stage in run.stages.items()} for run in runs}
    plots = [Plot("times", "Time of each stage", charts.times_chart(times), is_wide=not any(map(priced, runs)))]
    if any(map(priced, runs)):
        costs = {run.name: {name: gpu_cost(stage, run.specification) for name, stage in run.stages.items()} for run in runs}
        plots.append(Plot("costs", "Cost of each stage", charts.costs_chart(costs), empty="No stage used a GPU."))
    return Figure("The time of each stage in each run.", plots)


# -- samples -----------------------------------------------------------------------------------------------------------------


def sample_blocks(runs: Sequence[RunData]) -> Blocks:
    """What the runs' models made of the same prompts."""
    prompts: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for run in runs:
        for name, stage in run.stages.items():
            for sample in stage.results.get("samples") or []:
                prompts.setdefault((name, sample["prompt"]), []).append((run.name, sample["text"]))
    blocks: Blocks = []
    for (name, prompt), texts in prompts.items():
        blocks.append(Markdown(f"### {inline(prompt)}"))
        blocks += [block for run, text in texts for block in (Markdown(f"{code(run)}, {code(name)}:"), fenced(text))]
    return blocks or [Markdown("There are none.")]
