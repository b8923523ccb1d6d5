"""The report's section on the forward pass: one prompt through the model, in numbers. From trace.json alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nanochat.text import NOTHING, Markdown, bullets, code, exact, inline, percent, score, table

Blocks = list[Markdown]
GUESSES = 4


def blocks(trace: Mapping[str, Any]) -> Blocks:
    """The section's blocks; what a trace does not hold is named instead of shown."""
    forward = trace.get("forward")
    if not forward:
        return [Markdown("The trace holds no forward pass.")]
    parts: dict[str, Callable[[Mapping[str, Any]], Blocks]] = {
        "tokens": tokens,
        "steps": lines_of_a_block,
        "lens": lens,
        "residual": residual,
    }
    made = [block for key, part in parts.items() for block in shown(key, part, forward)]
    return [*made, *shown("differences", differing, trace)]


def shown(key: str, part: Callable[[Mapping[str, Any]], Blocks], source: Mapping[str, Any]) -> Blocks:
    """A part of a section, or that this trace, which another version made, does not tell enough for it."""
    try:
        return part(source)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return [Markdown(f"This trace does not tell all about {code(key)}; make it again to see it here.")]


# -- the parts ---------------------------------------------------------------------------------------------------------------


def tokens(forward: Mapping[str, Any]) -> Blocks:
    rows = [
        [place, quoted(token["text"]), exact(token["id"]), token["bytes"] or NOTHING]
        for place, token in enumerate(forward["tokens"], start=1)
    ]
    return [
        Markdown(
            f"The prompt {quoted(forward['prompt'])}{', put into a conversation,' if forward['is_chat'] else ''} is "
            f"{exact(len(rows))} tokens for {inline(forward['name'])}. Its way through the code was recorded line by line: "
            f"{exact(len(forward['steps']))} lines ran."
        ),
        table(["place", "token", "id", "bytes"], rows, left=2),
    ]


def lines_of_a_block(forward: Mapping[str, Any]) -> Blocks:
    """The lines that change a shape, of everything outside the blocks and of the first block."""
    rows, told = [], set()
    for step in forward["steps"]:
        place = step["function"], step["line"], step["module"]
        if step["file"] != "nanochat/gpt.py" or step["layer"] not in (None, 0) or "letters" not in step or place in told:
            continue
        told.add(place)
        value = next((value for value in step["values"] if "shape" in value), None)
        if value:
            where = f"{step['function']}:{step['line']}"
            size = " × ".join(map(str, value["shape"]))
            rows.append(
                [
                    code(where),
                    code(step["code"].split("#")[0].strip()),
                    f"({step['letters']})",
                    size,
                    short(value.get("mean")),
                    short(value.get("std")),
                ]
            )
    return [
        Markdown("What the lines of `gpt.py` made, outside the blocks and in the first one (all blocks are alike):"),
        table(["line", "code", "shape", "here", "mean", "spread"], rows, left=3),
    ]


def lens(forward: Mapping[str, Any]) -> Blocks:
    words = forward["vocabulary"]
    final = forward["lens"][-1]["top"][0][0]
    rows = []
    for row in forward["lens"]:
        after = "embedding" if row["layer"] is None else f"block {row['layer'] + 1}"
        guesses = [f"{quoted(words[str(token)])} {percent(chance)}" for token, chance in row["top"][:GUESSES]]
        rows.append([after, Markdown(", ".join(guesses)), exact(row["rank"]), percent(row["chance"]), score(row["entropy"], 2)])
    return [
        Markdown(
            "What the model would say next if it ended after each block (the residual stream through the last norm and the "
            f"output projection); rank and chance are those of its final choice, {quoted(words[str(final)])}:"
        ),
        table(["after", "likeliest next tokens", "rank", "chance", "entropy, bits"], rows, left=2),
    ]


def residual(forward: Mapping[str, Any]) -> Blocks:
    stages = forward["residual"]
    last = {stage["layer"]: stage for stage in stages}
    rows = []
    for layer, stage in last.items():
        added = {other["half"]: mean(other["added"]) for other in stages if other["layer"] == layer and "added" in other}
        name = "embedding" if layer is None else f"block {layer + 1}"
        rows.append([name, short(mean(stage["rms"])), short(added.get("attn")), short(added.get("mlp"))])
    return [
        Markdown(
            "The size of the residual stream (root mean square, mean over the tokens), and of what each half of a block added:"
        ),
        table(["after", "stream", "attention added", "MLP added"], rows),
    ]


def differing(trace: Mapping[str, Any]) -> Blocks:
    beside = trace.get("beside")
    if not beside:
        return []
    lines = [
        f"{d['title']}: {code(setting(d['this']))} here, {code(setting(d['that']))} there. {d['explanation']}"
        for d in trace["differences"]
    ]
    untrained = "" if beside["is_trained"] else " (its numbers mean nothing; its code and shapes are real)"
    return [
        Markdown(f"Beside it in the trace stands {inline(beside['name'])}{untrained}. The two differ in:"),
        bullets([Markdown(line) for line in lines]),
    ]


# -- small parts -------------------------------------------------------------------------------------------------------------


def quoted(text: str) -> Markdown:
    """A token or prompt in code type, with its blanks; what cannot stand there is escaped."""
    return code(text) if text.strip() == text else Markdown(f"`{text}`") if plain(text) else Markdown(f"“{inline(text)}”")


def plain(text: str) -> bool:
    """Whether a text with blanks at its ends can stand in code type: Markdown strips one blank from each side of two."""
    return text.isprintable() and not set("`|") & set(text) and text.strip() != "" and not (text[0] == text[-1] == " ")


def setting(value: object) -> str:
    return "none" if value is None else "yes" if value is True else "no" if value is False else str(value)


def short(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
