"""The figures of a report's page: which plots stand where, and the cards with the headline numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nanochat.reports import charts, scores
from nanochat.reports.document import Card, Figure, Plot, cards_html
from nanochat.reports.machine import gpu_cost, predicted_cost, price
from nanochat.runs import TRAININGS
from nanochat.text import count, duration, exact, score

if TYPE_CHECKING:
    from nanochat.reports.report import StageData

Stages = Mapping[str, "StageData"]

HEADLINES, TIMES = "headlines", "times"  # figures that only the page has

TRAINING_PLOTS = {
    "loss": "Loss",
    "bpb": "Validation bits per byte",
    "lr": "Learning rate",
    "norm": "Gradient norm, before clipping",
    "speed": "Speed",
}


def report_figures(
    stages: Stages, specification: Mapping[str, Any], *, losses: str, core: str, chat: str
) -> dict[str, Figure | str]:
    """Every figure by the file of the picture that it stands for."""
    return {
        HEADLINES: cards_html(list(cards(stages, specification))),
        losses: training_figure(stages),
        core: core_figure(stages["base_eval"]),
        chat: chat_figure(stages),
        TIMES: time_figure(stages, specification),
    }


def cards(stages: Stages, specification: Mapping[str, Any]) -> Iterable[Card]:
    """The numbers that a reader looks for first, each with what to hold it against."""
    evaluated, base = stages["base_eval"].results, stages["base_train"]
    published = " · ".join(f"{name}: {value}" for name, value in published_cores(evaluated.get("tasks", {})).items())
    bounds = evaluated.get("interval")
    uncertainty = f"95 %: {scores.interval(bounds)} · " if bounds else ""
    yield Card("CORE", score(evaluated.get("core")), uncertainty + published)
    yield chatcore_card(stages)
    yield Card("Validation bits per byte", score(scores.validation_bpb(stages)), "after base_train; lower is better")
    if base.is_finished:
        parameters, tokens = base.results.get("parameters"), base.results.get("tokens")
        config = base.config
        shape = f"{scores.layers(config)} of width {config['n_embd']:,}" if config else ""
        yield Card("Parameters", count(parameters), shape)
        ratio = f", {tokens / parameters:.2g} a parameter" if tokens and parameters else ""
        yield Card("Tokens trained on", count(tokens), f"{exact(base.results.get('steps'))} steps{ratio}")
    times = [(s, stage.predicted_s) for stage in stages.values() if (s := stage.record.get("seconds")) is not None]
    known = [(took, predicted) for took, predicted in times if predicted is not None]
    note = "of all finished stages"
    if known:
        took, predicted = (sum(column) for column in zip(*known, strict=True))
        note = f"predicted: {duration(predicted)} for what took {duration(took)}"
    yield Card("Time", duration(sum(took for took, _ in times) if times else None), note)
    if price(specification) is not None:
        costs = [cost for stage in stages.values() if (cost := gpu_cost(stage, specification)) is not None]
        yield Card("Cost of the GPUs", f"{sum(costs):,.2f}" if costs else "–", f"at {price(specification):,.2f} an hour of one")


def chatcore_card(stages: Stages) -> Card:
    """ChatCORE after sft: of five tasks, as published; of six where one of the five was not asked."""
    mid, sft = (stages[f"chat_eval/{name}"].results.get("chatcore", {}) for name in ("mid_train", "sft"))
    key = "five" if sft.get("five") is not None or sft.get("six") is None else "six"
    published = scores.PUBLISHED_D20.get(key, {}).get("sft")
    bounds = sft.get(f"{key}_interval")
    notes = ["after sft", *([f"95 %: {scores.interval(bounds)}"] if bounds else [])]
    notes += [f"after mid_train: {score(mid[key])}"] if mid.get(key) is not None else []
    notes += [f"published d20: {score(published)}"] if published else []
    return Card(f"ChatCORE of {key}", score(sft.get(key)), " · ".join(notes))


def training_figure(stages: Stages) -> Figure:
    found = {name: training_charts(stages[name]) for name in TRAININGS}
    return Figure(
        "The curves of the chosen training over its steps. Drag to zoom in, double-click to see all. Where there are more than "
        f"{charts.MAX_POINTS:,} steps, a point is the mean of several neighbouring ones, of the gradient norm the largest. The "
        "speed does not count evaluations and commits.",
        [
            Plot(key, title, {name: found[name][key] for name in TRAININGS}, is_wide=key == "loss", empty=nothing(key))
            for key, title in TRAINING_PLOTS.items()
        ],
        {name: name for name in TRAININGS},
        choose="Which training",
    )


def training_charts(stage: StageData) -> dict[str, charts.Chart | None]:
    grad_clip = stage.specification.get("grad_clip") or 0.0
    return charts.training_charts(stage.metrics, stage.record.get("speeds") or [], grad_clip=grad_clip)


def nothing(key: str) -> str:
    return "The speed along the training was not recorded." if key == "speed" else "No metrics yet."


def core_figure(stage: StageData) -> Figure:
    tasks = stage.results.get("tasks", {})
    references = {"CORE": stage.results.get("core"), **published_cores(tasks)}
    return Figure(
        "CORE task by task, with 95 % intervals. Left: the share of right answers. Right: the same, centred so that 0 is "
        "chance and 1 all right; their mean is CORE. GPT-2's and the published d20's lines are means over the usual 22 tasks.",
        [
            Plot("core", "Accuracy and chance", charts.core_accuracy_chart(tasks), empty="No CORE scores yet."),
            Plot("centred", "Centred scores", charts.core_centred_chart(tasks, references), empty="No CORE scores yet."),
        ],
    )


def published_cores(tasks: Mapping[str, Any]) -> dict[str, float]:
    """What CORE is held against. Where it is the mean of other tasks than the usual 22, the names say so."""
    usual = f" on {scores.NUM_CORE_TASKS} tasks" if tasks and len(tasks) != scores.NUM_CORE_TASKS else ""
    return {f"GPT-2 (1.5 B){usual}": scores.GPT2_CORE, f"published d20{usual}": scores.PUBLISHED_D20["core"]["base"]}


def chat_figure(stages: Stages) -> Figure:
    evaluations = {name: scores.chat_tasks(stages, f"chat_eval/{name}") for name in ("mid_train", "sft")}
    names = [scores.task_title(name) for name in scores.chat_task_names(stages)]
    groups = {
        f"after {name}": {title: (task.get("accuracy"), task.get("interval")) for title, task in tasks.items()}
        for name, tasks in evaluations.items()
    }
    chance = {title: task.get("baseline") for tasks in evaluations.values() for title, task in tasks.items()}
    published = {
        f"published d20, {title}": {
            scores.task_title(name): card[key] for name, card in scores.PUBLISHED_D20.items() if key in card
        }
        for key, title in (("mid", "MID"), ("sft", "SFT"))
    }
    return Figure(
        "The share of right answers after each training with its 95 % interval; hollow marks are the published d20.",
        [
            Plot(
                "chat",
                "Chat scores",
                charts.scores_chart(names, groups, chance=chance, published=published),
                is_wide=True,
                empty="No chat scores yet.",
            )
        ],
    )


def time_figure(stages: Stages, specification: Mapping[str, Any]) -> Figure:
    finished = {name: stage for name, stage in stages.items() if stage.is_finished}
    times = {
        "predicted": {name: stage.predicted_s for name, stage in finished.items()},
        "actual": {name: stage.record.get("seconds") for name, stage in finished.items()},
    }
    priced = price(specification) is not None
    plots = [Plot("times", "Time of each stage", charts.times_chart(times, hollow_first=True), is_wide=not priced)]
    if priced:
        costs = {
            "predicted": {name: predicted_cost(stage, specification) for name, stage in finished.items()},
            "actual": {name: gpu_cost(stage, specification) for name, stage in finished.items()},
        }
        chart = charts.costs_chart(costs, hollow_first=True)
        plots.append(Plot("costs", "Cost of each stage", chart, empty="No stage used a GPU."))
    return Figure("Full marks: what a stage took; hollow ones: what the plan expected of it before it began.", plots)
