"""The page of a recorded training step: the training's own code with what each line made, and the pictures that explain it.

Everything shown comes from the trace (see `step.py`). Numbers and code are written into the page, so that they are there
without scripts, on paper and for a search; the script adds coloured text, plots, pictures, and what lies behind each value.

Covered: foreign text (tokens, names) is put in as text, by Jinja2 or by `page.el`, never as HTML.
"""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nanochat.pages.math import mathml
from nanochat.pages.page import template, write_page
from nanochat.text import visible
from nanochat.tracing.forward_page import coloured

FOR_SCRIPT = ("tokens", "components", "muon", "adamw", "schedule", "bpb", "setting")


def write_step_page(path: Path, trace: Mapping[str, Any], *, title: str) -> None:
    """Write step.html from a whole trace, of which it shows {"step": ...}."""
    step = trace["step"]
    num_blocks = step["config"]["n_layer"]
    body = template("step.html").render(
        title=visible(title),
        step=step,
        totals=totals(step["components"]),
        chapters=chapters(step["code"], num_blocks),
        placed=lambda name: placed(name, num_blocks),
        formula=lambda latex, display=True: Markup(mathml(latex, display=display)),
        short=short,
        given=given,
        plural=plural,
        ln=math.log,
    )
    events = [{"function": code["function"], "events": code["events"]} for code in step["code"]]
    write_page(
        path,
        title=title,
        body=body,
        data={"step": {key: step[key] for key in FOR_SCRIPT} | {"code": events, "num_blocks": num_blocks}},
        scripts=["step.js"],
        styles=["step.css"],
        plotly=True,
    )


# -- the code ----------------------------------------------------------------------------------------------------------------


def chapters(code: list[dict[str, Any]], num_blocks: int) -> dict[str, list[dict[str, Any]]]:
    """The functions by chapter, their lines in coloured segments, each with what it made."""
    found: dict[str, list[dict[str, Any]]] = {}
    for function in code:
        found.setdefault(function["chapter"], []).append(listing(function, num_blocks))
    return found


def listing(function: Mapping[str, Any], num_blocks: int) -> dict[str, Any]:
    events: dict[int, list[Mapping[str, Any]]] = {}
    ran: set[int] = set()
    for event in function["events"]:
        events.setdefault(event["line"], []).append(event)
        ran |= set(range(event["line"], event["end_line"] + 1))
    lines = textwrap.dedent("\n".join(function["code"])).split("\n")
    return {
        "name": function["function"],
        "file": function["file"],
        "followed": placed(function["followed"], num_blocks),
        "rows": [
            {
                "line": number,
                "segments": segments,
                "indent": len(line) - len(line.lstrip()),
                "ran": number in ran,
                "brief": brief(events[number]) if number in events else "",
                "has_more": any(is_spread(value) for event in events.get(number, []) for value in event["values"]),
            }
            for number, (line, segments) in enumerate(zip(lines, coloured(lines), strict=True), start=function["line"])
        ],
    }


def brief(events: list[Mapping[str, Any]]) -> str:
    """What a line made, in a few words; of a line that ran in several rounds, what it made in the last."""
    event = events[-1]
    tensors = [value for value in event["values"] if "shape" in value and not {"number", "numbers"} & value.keys()]
    parts = [describe(value) for value in event["values"] if value not in tensors]
    if len(tensors) == 1:
        parts.append(describe(tensors[0]))
    else:
        alike: dict[str, list[str]] = {}
        for value in tensors:
            alike.setdefault(size(value), []).append(value["name"])
        parts += [f"{', '.join(names)}: {shape}" for shape, names in alike.items()]
    if "taken" in event:
        parts.append("yes" if event["taken"] else "no")
    rounds = f"last of {len(events)}: " if len(events) > 1 and parts else ""
    return rounds + "; ".join(parts)


def describe(value: Mapping[str, Any]) -> str:
    name = "returns" if value["name"] == "return" else f"{value['name']} ="
    if "text" in value:
        return f"{name} {value['text']}"
    if "number" in value:
        return f"{name} {short(value['number'], 4)}"
    if "numbers" in value:
        return f"{name} [{', '.join(short(v, 4) for v in value['numbers'])}]"
    if not is_spread(value):
        return f"{name} {size(value)}"
    return f"{name} {size(value)}, {short(value['mean'], 2)} ± {short(value['std'], 2)}"


def size(tensor: Mapping[str, Any]) -> str:
    dtype = "" if is_spread(tensor) else f" {tensor['dtype']}"
    return " × ".join(f"{n:,}" for n in tensor["shape"]) + dtype


def is_spread(value: Mapping[str, Any]) -> bool:
    """Whether mean and spread say anything of a tensor: token ids and marks have none."""
    return "mean" in value and "numbers" not in value and str(value["dtype"]).startswith(("float", "bfloat"))


def placed(name: str, num_blocks: int) -> str:
    """A parameter as the forward page counts blocks, from 1: "attn.c_q, block 3 of 4 (blocks.2)"; "wte" outside of them."""
    parts = name.removesuffix(".weight").split(".")
    if parts[0] != "blocks":
        return ".".join(parts)
    return f"{'.'.join(parts[2:])}, block {int(parts[1]) + 1} of {num_blocks} (blocks.{parts[1]})"


# -- numbers -----------------------------------------------------------------------------------------------------------------


def totals(components: list[dict[str, Any]]) -> dict[str, float]:
    """Lengths over all components together."""
    lengths = {key: math.hypot(*(c[key] for c in components)) for key in ("gradient", "clipped", "weight", "moved")}
    return lengths | {"num_parameters": sum(c["num_parameters"] for c in components)}


def short(value: float | None, digits: int = 3) -> str:
    """A number for people: 0.0123, 1.5, 12,345, 3.1e−7; a dash if there is none."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}".replace("-", "−")
    if 1e-3 <= abs(value) < 1e6:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:,.{decimals}f}".replace("-", "−")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")


def given(value: float) -> str:
    """A number that somebody chose, as they would write it: 0.02, 8e−5."""
    mantissa, _, exponent = f"{value:.6g}".partition("e")
    return mantissa + (f"e{int(exponent)}".replace("-", "−") if exponent else "")


def plural(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"
