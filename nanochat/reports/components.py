"""The report's section about the model's parts: the component map, which nanochat.component_map made, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nanochat.text import NOTHING, Markdown, code, exact, inline, percent, table

Blocks = list[Markdown]
Link = Callable[[str, int], str]  # file and line -> the address behind them


def blocks(components: Mapping[str, Any], *, link: Link | None = None) -> Blocks:
    """The map of one model: an overview, then each concept."""
    return [*at_a_glance(components, link), *one_by_one(components, link)]


def at_a_glance(components: Mapping[str, Any], link: Link | None = None) -> Blocks:
    """Where each concept is and what it weighs."""
    if not components.get("concepts"):
        return [Markdown("The trace holds no component map.")]
    return [introduction(components), overview(components, link), totals_note()]


def one_by_one(components: Mapping[str, Any], link: Link | None = None) -> Blocks:
    """Each concept with its equation, its lines of code, its parameters."""
    return [block for concept in components.get("concepts", []) for block in in_full(concept, link)]


def introduction(components: Mapping[str, Any]) -> Markdown:
    config = components.get("config", {})
    return Markdown(
        f"Components of the preset {code(components.get('preset', ''))} (`n_layer` {config.get('n_layer')}, `n_embd` "
        f"{exact(config.get('n_embd'))}): {exact(components.get('parameters'))} parameters, "
        f"{exact(components.get('flops_per_token'))} FLOPs for each token of a training step."
    )


def overview(components: Mapping[str, Any], link: Link | None = None) -> Markdown:
    """One row a concept: where it is and what it weighs."""
    rows = [
        [
            inline(concept["concept"]),
            place_of(concept["where"], link),
            code(short(concept["where"][0]["symbol"])),
            exact(concept["num_parameters"] or None),
            *shares(concept),
        ]
        for concept in components["concepts"]
    ]
    return table(["concept", "file and line", "symbol", "parameters", "of all", "of the FLOPs"], rows, left=3)


def shares(concept: Mapping[str, Any]) -> list[str]:
    """Of the parameters and of the FLOPs; a dash where there are none."""
    return [percent(concept[key]) if concept[key] else NOTHING for key in ("share_of_parameters", "share_of_flops")]


def totals_note() -> Markdown:
    return Markdown(
        "Each parameter is counted once among the parts of the model, and once more with the optimizer that moves it. FLOPs: 6 "
        "for each weight that is multiplied, and 12 × width × sequence length (or window) for the scores and means of a "
        "block's attention. Norms, activations and additions are not counted, as everybody does."
    )


def in_full(concept: Mapping[str, Any], link: Link | None = None) -> Blocks:
    """A concept: words, equation, lines of code, parameters, and what to change."""
    found = [Markdown(f"### {inline(concept['concept'])}"), inline(concept["summary"]), Markdown(f"$${concept['equation']}$$")]
    found.append(places(concept["where"], link))
    if concept["parameters"]:
        rows = [
            [code(row["name"]), code(shape(row["shape"])), exact(row["copies"]), exact(row["number"])]
            for row in concept["parameters"]
        ]
        found.append(table(["parameter", "shape", "copies", "numbers"], rows, left=2))
    keys = "; ".join(code(f"{key}: {json.dumps(value)}") for key, value in concept["edits"].items())
    found.append(Markdown(f"To see its effect: {keys}. {inline(concept['change'])}"))
    return found


def places(where: Sequence[Mapping[str, Any]], link: Link | None) -> Markdown:
    rows = [[place_of([place], link), code(short(place["symbol"])), code_in_table(place["code"])] for place in where]
    return table(["line", "in", "code"], rows, left=3)


def place_of(where: Sequence[Mapping[str, Any]], link: Link | None) -> Markdown:
    file, line = where[0]["file"], where[0]["line"]
    shown = f"{file.removeprefix('nanochat/')}:{line}"
    return Markdown(f"[{shown}]({link(file, line)})") if link else code(shown)


def code_in_table(text: str) -> Markdown:
    # a bar ends a cell even inside code type, unless it is escaped
    return Markdown(f"`{text}`".replace("|", r"\|"))


def short(symbol: str) -> str:
    """`nanochat.gpt.Block.forward` -> `Block.forward`."""
    return ".".join(symbol.split(".")[2:])


def shape(sizes: Sequence[int]) -> str:
    return f"({', '.join(f'{size:,}'.replace(',', '_') if size >= 10_000 else str(size) for size in sizes)})"


# -- the document --------------------------------------------------------------------------------------------------------------


def document(maps: Mapping[str, Mapping[str, Any]], *, command: str, link: Link) -> str:
    """Several maps in one document: side by side, the first in full, and of the others what differs from it."""
    (first, *others) = maps
    found = [
        Markdown("# Component map"),
        Markdown(
            f"Generated from the code by {code(command)}; a test fails when a line of it is no longer true. "
            "[transformer.md](transformer.md) teaches from it."
        ),
        Markdown("## Side by side"),
        side_by_side(maps, link),
        totals_note(),
        Markdown(f"## {first}"),
        introduction(maps[first]),
        *(block for concept in maps[first]["concepts"] for block in in_full(concept, link)),
    ]
    known = {concept["concept"]: text_of(concept, link) for concept in maps[first]["concepts"]}
    for name in others:
        concepts = maps[name]["concepts"]
        same = [concept["concept"] for concept in concepts if known.get(concept["concept"]) == text_of(concept, link)]
        found += [Markdown(f"## {name}"), introduction(maps[name])]
        found.append(Markdown(f"As in {first}: {', '.join(same)}." if same else f"Nothing is as in {first}."))
        found += [block for concept in concepts if concept["concept"] not in same for block in in_full(concept, link)]
    return "\n\n".join(found) + "\n"


def side_by_side(maps: Mapping[str, Mapping[str, Any]], link: Link) -> Markdown:
    """One row for each concept that any of the models has: where it is in each of them, and what it weighs."""
    names = list(dict.fromkeys(concept["concept"] for found in maps.values() for concept in found["concepts"]))
    by_name = {preset: {concept["concept"]: concept for concept in found["concepts"]} for preset, found in maps.items()}
    rows = []
    for name in names:
        here = [by_name[preset].get(name) for preset in maps]
        symbols = [linked(concept["where"][0], link) if concept else NOTHING for concept in here]
        weights = [shares(concept) if concept else [NOTHING, NOTHING] for concept in here]
        rows.append([name, *symbols, *(parameters for parameters, _ in weights), *(flops for _, flops in weights)])
    header = ["concept", *maps, *(f"{what}, {preset}" for what in ("parameters", "FLOPs") for preset in maps)]
    return table(header, rows, left=1 + len(maps))


def linked(place: Mapping[str, Any], link: Link) -> Markdown:
    return Markdown(f"[{short(place['symbol'])}]({link(place['file'], place['line'])})")


def text_of(concept: Mapping[str, Any], link: Link) -> str:
    return "\n".join(in_full(concept, link))
