"""The report's interactive plots as plain data: what `page.plot` of nanochat/pages/static/base.js draws.

A chart is {"traces": [...], "layout": {...}} in Plotly's words, with the colour variables of base.css in place of colours; or,
where a reader chooses between several, a mapping of their names to such charts. A chart that has nothing to show is None. One
with a "note" says in it what cannot be seen at first sight, such as a start above the plot.
Foreign text may stand in names, ticks, texts and customdata, which `page.plot` escapes. Hover templates are ours.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nanochat.reports.plots import Rows, range_without_start, running_mean, series
from nanochat.reports.scores import centred_interval
from nanochat.text import duration, visible

BLUE, ORANGE, GREEN, PINK, GREY = "--plot-1", "--plot-2", "--plot-3", "--plot-4", "--plot-8"
TEXT, MUTED = "--fg", "--muted"
COLOURS = [f"--plot-{number}" for number in (1, 2, 3, 4, 6, 5, 7, 8)]
SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon"]

SEE_ALL = "double-click to see all"
MAX_POINTS = 1500  # of a curve: more than a screen has columns
Chart = dict[str, Any]
Interval = tuple[float, float]
Estimate = tuple[float | None, Sequence[float] | None]  # an accuracy and its 95 % interval

STEPS = {"title": {"text": "step"}, "exponentformat": "B", "rangemode": "tozero"}
ACCURACY = {"title": {"text": "accuracy (fraction right)"}, "range": [-0.02, 1.02], "zeroline": False}
PLUS_OR_MINUS = "%{x:.3f}, 95 % interval %{customdata[1]:.3f} to %{customdata[2]:.3f}"


# -- trainings ---------------------------------------------------------------------------------------------------------------


def training_charts(rows: Rows, speeds: Sequence[Sequence[float]], *, grad_clip: float = 0.0) -> dict[str, Chart | None]:
    """The five curves of one training: loss, bpb, lr, norm, speed. `rows` of metrics.jsonl, `speeds` of the record.

    `grad_clip` is the length to which longer gradients were shortened; 0: they were not.
    """
    return {
        "loss": loss_chart(rows),
        "bpb": bpb_chart(rows),
        "lr": lr_chart(rows),
        "norm": norm_chart(rows, grad_clip),
        "speed": speed_chart(speeds),
    }


def loss_chart(rows: Rows) -> Chart | None:
    steps, losses = series(rows, "loss")
    if not len(steps):
        return None
    validation_steps, validation = series(rows, "validation_loss")
    traces = [
        line(*thinned(steps, losses), "training, each step", BLUE, opacity=0.35, width=1),
        line(*thinned(steps, running_mean(losses)), "training, running mean", BLUE),
        points(validation_steps, validation, "validation", ORANGE),
    ]
    shown = range_without_start(losses)
    if shown and len(validation):  # its last values stay in sight, however far they are from the training loss
        margin = 0.05 * (shown[1] - shown[0])
        shown = min(shown[0], validation[-1] - margin), max(shown[1], validation[-1] + margin)
    found = chart(traces, y="loss (nats per token)", y_range=shown, height=380, hovermode="x unified")
    return noted(found, hidden_start(losses, shown))


def bpb_chart(rows: Rows) -> Chart | None:
    steps, values = series(rows, "validation_bpb")
    if not len(steps):
        return None
    shown = range_without_start(values)
    found = chart([points(steps, values, "validation", ORANGE)], y="bits per byte", y_range=shown)
    return noted(found, hidden_start(values, shown))


def lr_chart(rows: Rows) -> Chart | None:
    steps, values = series(rows, "lr_scale")
    if not len(steps):
        return None
    title = "learning rate (times its base)"
    return chart([line(*thinned(steps, values), title, GREEN)], y=title, rangemode="tozero")


def norm_chart(rows: Rows, grad_clip: float) -> Chart | None:
    """The gradient's norm before clipping, and the limit where it lies in sight; the note says what the plot cuts off."""
    steps, values = series(rows, "grad_norm")
    is_known = np.isfinite(values)
    if not is_known.any():
        return None
    shown = range_without_start(values)
    highest = int(np.argmax(np.where(is_known, values, -np.inf)))
    top = shown[1] if shown else float(values[highest])
    traces = [line(*thinned(steps, values, np.max), "norm", GREY)]
    if 0 < grad_clip <= top:
        limit = line([steps[0], steps[-1]], [grad_clip] * 2, f"limit {grad_clip:g}", ORANGE, width=1.6)
        traces.append({**limit, "line": {**limit["line"], "dash": "dash"}, "hoverinfo": "skip", "hovertemplate": None})
    text = f"Highest {values[highest]:.3g} at step {steps[highest]:,}"
    if values[highest] > top:
        text += f", above the plot ({SEE_ALL})"
    if grad_clip > 0:
        clipped = int((values[is_known] > grad_clip).sum())
        text += f"; clipped at {grad_clip:g} in {clipped:,} of {len(values):,} steps"
    y_range = (0.0, top) if shown else None
    return noted(chart(traces, y="norm", y_range=y_range, rangemode="tozero"), f"{text}.")


def hidden_start(values: np.ndarray, shown: Interval | None) -> str:
    """That a curve begins above what is shown of it, if it does."""
    known = values[np.isfinite(values)]
    return f"Starts at {known[0]:.3g}, above the plot; {SEE_ALL}." if shown and known[0] > shown[1] else ""


def noted(chart: Chart, note: str) -> Chart:
    return {**chart, "note": note} if note else chart


def speed_chart(speeds: Sequence[Sequence[float]]) -> Chart | None:
    """`speeds`: [step, tokens/s over the steps since the entry before]."""
    if not speeds:
        return None
    steps, values = (np.array(column, dtype=float) for column in zip(*speeds, strict=True))
    return chart([line(steps, values, "tokens/s", PINK)], y="tokens per second", rangemode="tozero", exponentformat="B")


# -- scores ------------------------------------------------------------------------------------------------------------------


def core_accuracy_chart(tasks: Mapping[str, Mapping]) -> Chart | None:
    """Each CORE task's accuracy with its 95 % interval, beside chance; the best centred score on top."""
    ordered = by_centred(tasks)
    if not ordered:
        return None
    labels = [label for label, _ in ordered]
    traces = [
        chance_marks([task.get("baseline") for _, task in ordered]),
        estimates([(task.get("accuracy"), task.get("interval")) for _, task in ordered], labels, "accuracy", 0),
    ]
    return list_chart(traces, labels, ACCURACY)


def core_centred_chart(tasks: Mapping[str, Mapping], references: Mapping[str, float | None]) -> Chart | None:
    """Each CORE task's centred score with its 95 % interval; lines for whole scores, such as this run's CORE and GPT-2's."""
    ordered = by_centred(tasks)
    if not ordered:
        return None
    labels = [label for label, _ in ordered]
    points = estimates([(task.get("centered"), centred_interval(task)) for _, task in ordered], labels, "centred score", 0)
    bars = {
        **points, "type": "bar", "orientation": "h", "marker": {"color": BLUE, "opacity": 0.75}, "showlegend": False,
        "error_x": {**points["error_x"], "color": TEXT},
    }  # fmt: skip
    known = {name: value for name, value in references.items() if value is not None}
    lines = [
        {
            "x": [value, value], "y": [-0.6, len(labels) - 0.4], "mode": "lines", "name": f"{name}: {value:.4f}",
            "line": {"color": colour, "width": 2, "dash": dash}, "hoverinfo": "name",
        }
        for (name, value), colour, dash in zip(known.items(), (GREEN, ORANGE, PINK), ("solid", "dash", "dot"), strict=False)
    ]  # fmt: skip
    axis = {"title": {"text": "centred score (0 = chance, 1 = all right)"}, "zeroline": True}
    return list_chart([bars, *lines], labels, axis)


def by_centred(tasks: Mapping[str, Mapping]) -> list[tuple[str, Mapping]]:
    """Worst first: plots count from below."""
    return sorted(tasks.items(), key=lambda item: item[1].get("centered") or 0.0)


def scores_chart(
    names: Sequence[str],
    groups: Mapping[str, Mapping[str, Estimate]],
    *,
    chance: Mapping[str, float | None],
    published: Mapping[str, Mapping[str, float]] | None = None,
) -> Chart | None:
    """A score's estimates side by side, `groups` being {"after sft": {"ARC-Easy": (0.3, interval)}}.

    `chance` is what guessing gives; `published` are values without interval, which are drawn hollow: its groups are in the
    order of those that they stand beside.
    """
    ordered = list(reversed(names))
    if not ordered or not any(groups.values()):
        return None
    traces = [chance_marks([chance.get(name) for name in ordered], half=0.42)]
    apart = min(0.2, 0.8 / len(groups))  # however many there are, all stay in the row of their score
    for index, (group, values) in enumerate(groups.items()):
        offset = (len(groups) - 1) / 2 * apart - index * apart
        found = [values.get(name, (None, None)) for name in ordered]
        traces.append(estimates(found, ordered, group, index, offset=offset))
    for index, (group, known) in enumerate((published or {}).items()):
        offset = (len(groups) - 1) / 2 * apart - index * apart
        traces.append(hollow([known.get(name) for name in ordered], ordered, group, index, offset=offset))
    return list_chart(traces, ordered, ACCURACY, row=18 + 11 * len(groups))


def chance_marks(values: Sequence[float | None], half: float = 0.36) -> dict:
    """A short dotted line across each row, where guessing stands."""
    x: list[float | None] = []
    y: list[float | None] = []
    for row, value in enumerate(values):
        if value is not None:
            x += [rounded(value), rounded(value), None]
            y += [row - half, row + half, None]
    return {
        "x": x, "y": y, "mode": "lines", "name": "chance", "line": {"color": GREY, "width": 2, "dash": "dot"},
        "hovertemplate": "chance: %{x:.4f}<extra></extra>",
    }  # fmt: skip


def estimates(
    values: Sequence[Estimate],
    labels: Sequence[str],
    name: str,
    index: int,
    offset: float = 0.0,
) -> dict:
    """A point with its 95 % interval in each row that has one."""
    kept = [(row, value, bounds or (value, value)) for row, (value, bounds) in enumerate(values) if value is not None]
    name = visible(name)
    return {
        "x": [rounded(value) for _, value, _ in kept],
        "y": [row + offset for row, _, _ in kept],
        "mode": "markers",
        "name": name,
        "marker": {"color": COLOURS[index % 8], "symbol": SYMBOLS[index % 8], "size": 9},
        "error_x": {
            "type": "data", "symmetric": False, "thickness": 1.6, "width": 3,
            "array": [rounded(high - value) for _, value, (_, high) in kept],
            "arrayminus": [rounded(value - low) for _, value, (low, _) in kept],
        },
        "customdata": [[visible(labels[row]), rounded(low), rounded(high)] for row, _, (low, high) in kept],
        "hovertemplate": f"%{{customdata[0]}}<br>%{{fullData.name}}: {PLUS_OR_MINUS}<extra></extra>",
    }  # fmt: skip


def hollow(values: Sequence[float | None], labels: Sequence[str], name: str, index: int, offset: float) -> dict:
    kept = [(row, value) for row, value in enumerate(values) if value is not None]
    return {
        "x": [rounded(value) for _, value in kept],
        "y": [row + offset for row, _ in kept],
        "mode": "markers",
        "name": visible(name),
        "marker": {"color": COLOURS[index % 8], "symbol": f"{SYMBOLS[index % 8]}-open", "size": 9, "line": {"width": 1.6}},
        "customdata": [[visible(labels[row])] for row, _ in kept],
        "hovertemplate": "%{customdata[0]}<br>%{fullData.name}: %{x:.4f}<extra></extra>",
    }


# -- time and cost -----------------------------------------------------------------------------------------------------------


def times_chart(groups: Mapping[str, Mapping[str, float | None]], *, hollow_first: bool = False) -> Chart | None:
    """Seconds of each stage on a logarithmic scale, from seconds to days: `groups` as in `dots_chart`."""
    known = [value for values in groups.values() for value in values.values() if value]
    return dots_chart(groups, duration, seconds_axis(known), hollow_first=hollow_first) if known else None


def seconds_axis(known: Sequence[float]) -> dict:
    marks = {
        0.1: "0.1 s", 1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 6 * 3600: "6 h", 86_400: "1 d",
        10 * 86_400: "10 d",
    }  # fmt: skip
    bounds = [rounded(math.log10(bound)) for bound in (min(known) / 1.6, max(known) * 1.6)]
    return {"type": "log", "tickvals": list(marks), "ticktext": list(marks.values()), "range": bounds}


def costs_chart(groups: Mapping[str, Mapping[str, float | None]], *, hollow_first: bool = False) -> Chart | None:
    """What each stage that used GPUs cost, in the currency of the price."""
    if not any(value for values in groups.values() for value in values.values()):
        return None
    axis = {"title": {"text": "cost"}, "rangemode": "tozero"}
    return dots_chart(groups, lambda value: f"{value:,.2f}", axis, hollow_first=hollow_first)


def dots_chart(
    groups: Mapping[str, Mapping[str, float | None]], words: Callable[[float], str], axis: dict, *, hollow_first: bool
) -> Chart:
    """One row for each name, with a mark for each group's value ({"actual": {"tokenizer": 2.3}}), and a line between them."""
    names = [
        name for name in reversed(list(next(iter(groups.values())))) if any(values.get(name) for values in groups.values())
    ]
    x: list[float | None] = []
    y: list[float | None] = []
    for row, name in enumerate(names):
        found = [value for values in groups.values() if (value := values.get(name))]
        x += [rounded(min(found)), rounded(max(found)), None]
        y += [row, row, None]
    traces: list[dict] = [
        {
            "x": x, "y": y, "mode": "lines", "line": {"color": GREY, "width": 1.5}, "hoverinfo": "skip", "showlegend": False,
            "name": "difference",
        }
    ]  # fmt: skip
    for index, (group, values) in enumerate(groups.items()):
        kept = [(row, value) for row, name in enumerate(names) if (value := values.get(name))]
        is_hollow = hollow_first and index == 0
        traces.append(
            {
                "x": [rounded(value) for _, value in kept],
                "y": [row for row, _ in kept],
                "mode": "markers",
                "name": visible(group),
                "marker": {
                    "color": ORANGE if is_hollow else COLOURS[(index - hollow_first) % 8],
                    "symbol": "circle-open" if is_hollow else SYMBOLS[(index - hollow_first) % 8],
                    "size": 10,
                    "line": {"width": 2 if is_hollow else 0},
                },
                "customdata": [[names[row], words(value)] for row, value in kept],
                "hovertemplate": "%{customdata[0]}<br>%{fullData.name}: %{customdata[1]}<extra></extra>",
            }
        )
    return list_chart(traces, names, axis)


# -- parts -------------------------------------------------------------------------------------------------------------------


def chart(
    traces: list[dict], *, y: str, y_range: Interval | None = None, height: int = 260, hovermode: str = "x", **axis: Any
) -> Chart:
    """Curves over the steps."""
    y_axis: dict[str, Any] = {"title": {"text": y}, **axis}
    if y_range:
        y_axis["range"] = [rounded(bound) for bound in y_range]
    return {"traces": traces, "layout": {"height": height, "hovermode": hovermode, "xaxis": dict(STEPS), "yaxis": y_axis}}


def list_chart(traces: list[dict], labels: Sequence[str], x_axis: Mapping[str, Any], row: int = 24) -> Chart:
    """One row for each label, the last on top."""
    y_axis = {
        "tickvals": list(range(len(labels))),
        "ticktext": [visible(label) for label in labels],
        "range": [-0.6, len(labels) - 0.4],
        "zeroline": False,
        "showgrid": False,
        "ticks": "",
    }
    height = 90 + row * max(3, len(labels))
    return {"traces": traces, "layout": {"height": height, "xaxis": dict(x_axis), "yaxis": y_axis}}


def line(x: Iterable, y: Iterable, name: str, colour: str, *, width: float = 2, opacity: float = 1.0) -> dict:
    found = {
        "x": numbers(x), "y": numbers(y), "mode": "lines", "name": name, "line": {"color": colour, "width": width},
        "hovertemplate": "%{y:.4~g}",
    }  # fmt: skip
    return found if opacity == 1.0 else {**found, "opacity": opacity}


def points(x: Iterable, y: Iterable, name: str, colour: str) -> dict:
    found = line(x, y, name, colour, width=1.6)
    return {**found, "mode": "lines+markers", "line": {**found["line"], "dash": "dot"}, "marker": {"color": colour, "size": 6}}


def thinned(x: np.ndarray, y: np.ndarray, keep=np.mean) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points: of each run of neighbours, the last x and the mean (or what `keep` makes) of the y."""
    stride = -(-len(x) // MAX_POINTS)
    if stride <= 1:
        return x, y
    starts = range(0, len(x), stride)
    last = [min(start + stride, len(x)) - 1 for start in starts]
    return x[last], np.array([keep(y[start : start + stride]) for start in starts])


def numbers(values: Iterable) -> list[float | None]:
    return [rounded(value) for value in values]


def rounded(value: float | None) -> float | int | None:
    """To six significant digits, as many as a plot can show; None for what is no number."""
    if value is None or not math.isfinite(value):
        return None
    if float(value).is_integer() and abs(value) < 1e15:
        return int(value)
    return float(f"{value:.6g}")
