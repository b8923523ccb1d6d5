"""The report's section on the training step: what one recorded step did, in numbers. From trace.json alone."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from nanochat.reports.forward import shown
from nanochat.text import Markdown, code, exact, inline, percent, score, table

Blocks = list[Markdown]
ROWS = 8  # of a table of tokens


def blocks(trace: Mapping[str, Any]) -> Blocks:
    """The section's blocks; what a trace does not hold is named instead of shown."""
    step = trace.get("step")
    if not step:
        return [Markdown("The trace holds no training step.")]
    parts: dict[str, Callable[[Mapping[str, Any]], Blocks]] = {
        "setting": setting,
        "tokens": losses,
        "components": gradients,
        "muon": muon,
        "adamw": adamw,
        "schedule": rates,
        "bpb": bits_per_byte,
    }
    return [block for key, part in parts.items() for block in shown(key, part, step)]


# -- the parts ---------------------------------------------------------------------------------------------------------------


def setting(step: Mapping[str, Any]) -> Blocks:
    set_, loss, gradient = step["setting"], step["loss"], step["gradient"]
    is_cut = set_["num_tokens"] < set_["sequence_len"]
    batch = f"the first {exact(set_['num_tokens'])} tokens of one row" if is_cut else "one row"
    clipped = (
        f"shortened to {short(gradient['clipped'])}"
        if gradient["clipped"] < 0.9999 * gradient["norm"]
        else "short enough not to be clipped"
    )
    return [
        Markdown(
            f"One real step of {inline(step['name'])}, made by `nanochat.train.update` in float32 on a CPU, and recorded line "
            f"by line. Its batch is {batch} of the training; {exact(set_['num_supervised'])} tokens count. Its rate is that "
            f"of step {exact(set_['step'])} of {exact(set_['num_steps'])}, {percent(set_['lr_scale'])} of the full rates. The "
            "optimizer's running means are those of one step before, on another row."
        ),
        Markdown(
            f"The loss on these tokens went from **{score(loss['before'])}** to **{score(loss['after'])}** nats a token. The "
            f"gradient was {short(gradient['norm'])} long, {clipped}."
        ),
    ]


def losses(step: Mapping[str, Any]) -> Blocks:
    counted = [token for token in step["tokens"] if token.get("loss") is not None]
    hardest = sorted(counted, key=lambda token: -token["loss"])[:ROWS]
    rows = [
        [
            quoted(token["text"]),
            quoted(token["preferred"][0][0]),
            percent(token["preferred"][0][1]),
            percent(token["p"]),
            score(token["loss"], 3),
            score(token["after"], 3),
        ]
        for token in hardest
    ]
    header = ["token", "the model expected", "with", "gave the token", "loss", "after the step"]
    return [
        Markdown("### Loss of each token"),
        Markdown(
            f"$L = -\\frac{{1}}{{N}} \\sum_t \\ln p(x_t \\mid x_{{<t}})$: the {exact(len(counted))} tokens cost "
            f"{score(step['loss']['sum'], 2)} nats together. The {len(rows)} that cost most:"
        ),
        table(header, rows, left=2),
    ]


def gradients(step: Mapping[str, Any]) -> Blocks:
    components = step["components"]
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for component in components:
        kinds.setdefault(component["kind"], []).append(component)
    rows = [
        [
            code(kind) if len(members) == 1 else Markdown(f"{code(kind)} of {len(members)} blocks"),
            members[0]["optimizer"],
            exact(sum(member["num_parameters"] for member in members)),
            *(short(length(members, key)) for key in ("gradient", "clipped", "moved")),
            percent(ratio(length(members, "moved"), length(members, "weight"))),
        ]
        for kind, members in kinds.items()
    ]
    whole = [short(length(components, key)) for key in ("gradient", "clipped", "moved")]
    share = percent(ratio(length(components, "moved"), length(components, "weight")))
    rows.append(["all", "", exact(sum(component["num_parameters"] for component in components)), *whole, share])
    header = ["component", "moved by", "parameters", "gradient", "clipped", "moved", "of its length"]
    return [Markdown("### Gradient and move of each component"), table(header, rows, left=2)]


def muon(step: Mapping[str, Any]) -> Blocks:
    rows = []
    for matrix in step["muon"]:
        stages = {stage["stage"]: stage for stage in matrix["stages"]}
        gradient, update = stages["gradient"], stages["update"]
        rows.append(
            [
                code(matrix["name"].removesuffix(".weight")),
                f"{matrix['shape'][0]:,} × {matrix['shape'][1]:,}",
                f"{short(gradient['directions'])} → {short(update['directions'])}",
                f"{short(gradient['largest'])} → {short(update['largest'])}",
                f"{short(gradient['median'])} → {short(update['median'])}",
                percent(matrix["relative"]),
            ]
        )
    header = ["matrix", "shape", "directions that carry it", "largest singular value", "median", "moved"]
    return [
        Markdown("### What Muon did"),
        Markdown(
            "Each matrix's gradient, and what five rounds of the Newton-Schulz iteration made of it: singular values near 1. "
            "Directions are counted as the squared length over the square of the largest singular value."
        ),
        table(header, rows, left=2),
    ]


def adamw(step: Mapping[str, Any]) -> Blocks:
    rows = []
    for matrix in step["adamw"]:
        spread = matrix["spread"] or {"gradient": {}, "moved": {}}
        rows.append(
            [
                code(matrix["name"].removesuffix(".weight")),
                exact(matrix["num_rows"]["with_gradient"]),
                exact(matrix["num_rows"]["moved"]),
                short(spread["gradient"].get("decades")),
                short(spread["moved"].get("decades")),
                short(spread["moved"].get("middle")),
                short(matrix["one"].get("lr")),
            ]
        )
    header = ["table", "rows with a gradient", "rows moved", "gradients span", "moves span", "typical move", "rate"]
    return [
        Markdown("### What AdamW did"),
        Markdown("How many powers of ten 98 of 100 gradients span, and the moves that were made of them:"),
        table(header, rows),
    ]


def rates(step: Mapping[str, Any]) -> Blocks:
    factor = step["setting"]["lr_scale"]
    rows = [
        [
            rate["optimizer"],
            code(rate["key"]),
            *(short(value) for value in (rate["given"], rate["width_scale"], factor, rate["rate"] * factor)),
        ]
        for rate in step["schedule"]["rates"]
    ]
    return [
        Markdown("### Rates of this step"),
        table(["moved by", "key", "given", "× width", "× schedule", "= rate"], rows, left=2),
    ]


def bits_per_byte(step: Mapping[str, Any]) -> Blocks:
    bpb = step["bpb"]
    before, after = bpb["bpb"], bpb["after"]["bpb"]
    explanation = ""
    if after > before:  # in the words of step.html
        explanation = (
            ": a finished model that takes a large step for the sake of one row forgets a little of everything else, which is "
            "why real batches are large and why the rate falls towards the end"
        )
    elif after < before:
        explanation = ": what is learned from one row helps a little with other text"
    return [
        Markdown("### Bits per byte, by hand"),
        Markdown(
            f"On {exact(bpb['num_tokens'])} tokens of a validation row the model's surprise adds up to "
            f"{score(bpb['text_nats'], 3)} nats over {exact(bpb['bytes'])} bytes of text: "
            f"{score(bpb['text_nats'], 3)} / (ln 2 × {exact(bpb['bytes'])}) = **{score(bpb['by_hand'])}** bits per byte. "
            f"`evaluate_bpb` returns {score(before)}. After the step it is {score(after)}{explanation}."
        ),
    ]


# -- small parts -------------------------------------------------------------------------------------------------------------


def length(components: list[Mapping[str, Any]], key: str) -> float:
    """Of several components together."""
    return math.hypot(*(component[key] for component in components))


def ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def quoted(token: str) -> Markdown:
    """A token of text, with marks that show its blanks."""
    return Markdown(f"“{inline(token.replace(' ', '␣'))}”")


def short(value: float | None) -> str:
    """Three digits: 0.0123, 1.50, 3.1e-07."""
    if value is None:
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        decimals = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:,.{decimals}f}"
    return f"{value:.2e}"
