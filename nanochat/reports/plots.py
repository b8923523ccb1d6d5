"""The report's figures, from plain numbers: how the losses fell, CORE task by task, the chat scores.

Each function draws one PNG. What is missing is said in the figure, so that a file always comes out. Colours are those of
Okabe and Ito (2008), which people with a colour vision deficiency can tell apart; markers and line styles differ as well.
The same numbers give the same bytes.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from nanochat.accuracy import centered_interval
from nanochat.storage import atomic_path
from nanochat.text import count

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "text.parse_math": False,  # a task's name may hold a dollar sign
    "axes.formatter.useoffset": False,
    "savefig.dpi": 150,
}

ENOUGH_TO_CUT = 20  # with fewer points than this, each is worth seeing

Rows = Sequence[Mapping[str, float]]


def plot_losses(path: Path, trainings: Mapping[str, Rows | None]) -> None:
    """One column a training: loss, validation bits per byte, learning-rate scale and gradient norm, over the steps.

    `trainings` maps a stage's name to the rows of its metrics.jsonl, or to None when there are none.
    """
    panels = [loss_panel, bpb_panel, lr_panel, norm_panel]
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(3.8 * len(trainings), 8.6), layout="constrained")
        grid = figure.subplots(len(panels), len(trainings), sharex="col", squeeze=False, height_ratios=[2, 1.4, 0.9, 0.9])
        for column, (name, rows) in enumerate(trainings.items()):
            title = f"{short(name)}\n"
            if rows and (tokens := last(rows, "tokens")):
                title += f"{count(max(row['step'] for row in rows))} steps, {count(tokens)} tokens"
            grid[0, column].set_title(title)
            for panel, axes in zip(panels, grid[:, column], strict=True):
                if rows:
                    panel(axes, rows, labelled=column == 0)
                else:
                    empty(axes, "no metrics yet")
            grid[-1, column].set_xlabel("step")
            grid[-1, column].xaxis.set_major_formatter(EngFormatter(sep=""))
            grid[-1, column].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        save(figure, path)


def loss_panel(axes: Axes, rows: Rows, labelled: bool) -> None:
    steps, losses = series(rows, "loss")
    axes.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=0.8)
    axes.plot(steps, running_mean(losses), color=BLUE, label="training, running mean")
    axes.plot(*series(rows, "validation_loss"), "o--", color=ORANGE, markersize=3, linewidth=1, label="validation")
    validation = series(rows, "validation_loss")[1]
    note(axes, cut_first_steps(axes, losses), top=0.78)
    if len(validation):  # its last values stay in sight, however far they are from the training loss
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, validation[-1] - 0.05 * (high - low)), max(high, validation[-1] + 0.05 * (high - low)))
    axes.legend(loc="upper right")
    if labelled:
        axes.set_ylabel("loss (nats per token)")


def bpb_panel(axes: Axes, rows: Rows, labelled: bool) -> None:
    steps, values = series(rows, "validation_bpb")
    axes.plot(steps, values, "o--", color=ORANGE, markersize=3, linewidth=1)
    first = cut_first_steps(axes, values)
    note(axes, first, f"ends at {values[-1]:.4f}" if len(values) else "")
    if labelled:
        axes.set_ylabel("validation\n(bits per byte)")


def lr_panel(axes: Axes, rows: Rows, labelled: bool) -> None:
    axes.plot(*series(rows, "lr_scale"), color=GREEN)
    axes.set_ylim(bottom=0)
    if labelled:
        axes.set_ylabel("learning rate\n(times its base)")


def norm_panel(axes: Axes, rows: Rows, labelled: bool) -> None:
    steps, norms = series(rows, "grad_norm")
    axes.plot(steps, norms, color=GREY, linewidth=0.9)
    note(axes, cut_first_steps(axes, norms))
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    if labelled:
        axes.set_ylabel("gradient norm\n(before clipping)")


def plot_core(
    path: Path, tasks: Mapping[str, Mapping] | None, core: float | None, interval: Sequence[float] | None = None
) -> None:
    """CORE task by task, best first: accuracy beside chance, and the centred scores whose mean is CORE; with 95 % intervals.

    `tasks` maps a label to {accuracy, interval, baseline, centered}; `interval` is CORE's.
    """
    ordered = sorted((tasks or {}).items(), key=lambda item: item[1]["centered"])
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(9.5, 1.6 + 0.24 * max(4, len(ordered))), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.2, 1])
        if ordered:
            accuracy_bars(left, ordered)
            centred_bars(right, ordered, core, interval)
            left.set_yticks(range(len(ordered)), [short(label) for label, _ in ordered])
            left.set_ylim(-0.6, len(ordered) - 0.4)
            for axes in (left, right):
                axes.tick_params(axis="y", length=0)
        else:
            empty(left, "no CORE scores yet")
            empty(right, "")
        save(figure, path)


def accuracy_bars(axes: Axes, tasks: Sequence[tuple[str, Mapping]]) -> None:
    rows = range(len(tasks))
    values = [task["accuracy"] for _, task in tasks]
    bounds = [task["interval"] for _, task in tasks]
    axes.barh(rows, values, color=BLUE, alpha=0.75, height=0.66, label="accuracy")
    axes.hlines(rows, [low for low, _ in bounds], [high for _, high in bounds], color="black", linewidth=1)
    chance = [task["baseline"] for _, task in tasks]
    axes.plot(chance, rows, "|", color=ORANGE, markersize=11, markeredgewidth=2, label="chance")
    axes.plot([], [], color="black", linewidth=1, label="95 % interval")
    axes.set_xlim(-0.01, 1)
    axes.set_xlabel("accuracy (fraction right)")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)


def centred_bars(
    axes: Axes, tasks: Sequence[tuple[str, Mapping]], core: float | None, interval: Sequence[float] | None
) -> None:
    rows, values = range(len(tasks)), [task["centered"] for _, task in tasks]
    bounds = [centered_interval(task["interval"], task["baseline"]) for _, task in tasks]
    axes.barh(rows, values, color=[BLUE if v >= 0 else ORANGE for v in values], alpha=0.75, height=0.66)
    axes.hlines(rows, [low for low, _ in bounds], [high for _, high in bounds], color="black", linewidth=1)
    axes.axvline(0, color="black", linewidth=0.8)
    if core is not None:
        if interval:
            axes.axvspan(*interval, color=GREEN, alpha=0.2, linewidth=0)
        axes.axvline(core, color=GREEN, linestyle="--", label=f"CORE = mean = {core:.4f}")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1))
    axes.set_xlabel("centred score (0 = chance, 1 = all right)")
    axes.grid(axis="y", visible=False)


def plot_chat(path: Path, scores: Mapping[str, Mapping[str, Mapping] | None]) -> None:
    """The accuracy on each chat task after each training, with 95 % intervals and the chance of guessing.

    `scores` maps a stage's name to its tasks, name -> {accuracy, baseline, interval}, or to None.
    """
    longest_first = sorted(scores.values(), key=lambda tasks: -len(tasks or {}))
    names = list(dict.fromkeys(name for tasks in longest_first for name in tasks or {}))
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(9.5, 1.5 + 0.5 * max(3, len(names))), layout="constrained")
        axes = figure.subplots()
        if names:
            chat_points(axes, names, scores)
        else:
            empty(axes, "no chat scores yet")
        save(figure, path)


def chat_points(axes: Axes, names: Sequence[str], scores: Mapping[str, Mapping[str, Mapping] | None]) -> None:
    chance = {name: tasks[name]["baseline"] for tasks in scores.values() if tasks for name in tasks}
    lines = [(name, len(names) - 1 - i) for i, name in enumerate(names)]  # the first on top
    axes.vlines(
        [chance[name] for name, _ in lines],
        [y - 0.36 for _, y in lines],
        [y + 0.36 for _, y in lines],
        color=GREY,
        linestyle=":",
        linewidth=2,
        label="chance",
    )
    for i, (stage, tasks) in enumerate(scores.items()):
        colour, marker = [(BLUE, "o"), (ORANGE, "s"), (GREEN, "D")][i % 3]
        offset = 0.16 * (len(scores) - 1) / 2 - 0.16 * i
        points = [(y + offset, tasks[name]) for name, y in lines if tasks and name in tasks]
        label = f"after {short(stage)}" if tasks else f"after {short(stage)}: no scores yet"
        axes.hlines(
            [y for y, _ in points],
            [task["interval"][0] for _, task in points],
            [task["interval"][1] for _, task in points],
            color=colour,
            linewidth=1.6,
        )
        axes.plot([t["accuracy"] for _, t in points], [y for y, _ in points], marker, color=colour, label=label, markersize=6)
    axes.set_yticks([y for _, y in lines], [short(name) for name, _ in lines])
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("accuracy (fraction right, 95 % interval)")
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(scores) + 1)


# -- small parts -------------------------------------------------------------------------------------------------------------


def series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps and the values of all rows that have `key`."""
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return np.array([step for step, _ in pairs]), np.array([value for _, value in pairs], dtype=float)


def last(rows: Rows, key: str) -> float | None:
    return next((row[key] for row in reversed(rows) if row.get(key) is not None), None)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a row and the rows before it: 2 % of all, at least five, at the start as many as there are."""
    window = max(len(values) // 50, min(5, len(values) // 10), 1)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def cut_first_steps(axes: Axes, values: np.ndarray) -> str:
    """Leave the first 5 % out of the vertical range if the fall from random weights would flatten the rest; returns a note."""
    shown = range_without_start(values)
    if shown is None:
        return ""
    axes.set_ylim(*shown)
    return f"starts at {values[np.isfinite(values)][0]:.4g} (off the scale)"


def range_without_start(values: np.ndarray) -> tuple[float, float] | None:
    """The vertical range of all but the first 5 %, if those would flatten the rest."""
    values = values[np.isfinite(values)]
    rest = values[math.ceil(len(values) / 20) :]
    if len(values) < ENOUGH_TO_CUT or values.max() <= rest.max() + 0.5 * np.ptp(rest):
        return None
    margin = 0.08 * max(float(np.ptp(rest)), 1e-6)
    return float(rest.min()) - margin, float(rest.max()) + 2 * margin


def note(axes: Axes, *lines: str, top: float = 0.98) -> None:
    text = "\n".join(line for line in lines if line)
    axes.text(0.99, top, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=GREY)


def short(label: str) -> str:
    label = "".join(c if c.isprintable() else "?" for c in label)  # a control character has no glyph
    return label if len(label) <= 40 else f"{label[:39]}…"


def empty(axes: Axes, reason: str) -> None:
    axes.text(0.5, 0.5, reason, ha="center", va="center", transform=axes.transAxes, color=GREY)
    axes.set_axis_off()


def save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
