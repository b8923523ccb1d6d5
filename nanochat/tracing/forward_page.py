"""The page of a traced forward pass: the real code on the left, what each line made on the right, a step for a line.

Everything shown comes from the trace (see `forward.py`): the files as they were when it was made, the values, the pictures. If
it holds a second model, the two stand side by side: the lines that both ran are one step, a line that only one of them ran is a
step at which the other waits.

Covered: foreign text (the prompt, tokens, names) is put in as text, by Jinja2 or by `page.el`, never as HTML.
Not covered: browsers without JavaScript see the code and a note.
"""

import io
import keyword
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from nanochat.pages.page import template, write_page
from nanochat.text import visible

# forward.js starts what the others define
SCRIPTS = ("forward_base.js", "forward_steps.js", "forward_attention.js", "forward_overviews.js", "forward.js")

Step = Mapping[str, Any]
Segment = tuple[str, str]  # (CSS class or "", text)


def write_forward_page(path: Path, trace: Mapping[str, Any], *, title: str) -> None:
    """Write forward.html from a whole trace: {"forward": ..., "beside": ... or None, "differences": [...]}."""
    models = [model for model in (trace["forward"], trace.get("beside")) if model]
    pairs = paired(*(model["steps"] for model in models))
    body = template("forward.html").render(
        title=visible(title),
        models=models,
        num_steps=len(pairs),
        files=[code_file(name, lines) for name, lines in trace["forward"]["sources"].items()],
    )
    write_page(
        path,
        title=title,
        body=body,
        data={
            "models": [{key: value for key, value in model.items() if key not in ("sources", "calls")} for model in models],
            "pairs": pairs,
            "differences": [
                {**difference, "pairs": where_seen(difference, pairs, models)} for difference in trace.get("differences") or []
            ],
        },
        scripts=SCRIPTS,
        styles=["forward.css"],
    )


# -- two models, one sequence of steps ---------------------------------------------------------------------------------------


def paired(these: Sequence[Step], those: Sequence[Step] | None = None) -> list[list[int | None]]:
    """[number of this model's step, number of that one's]; None where a model does not run the line of the other.

    Steps are the same if they run the same line of the same function for the same module. With one model: [[0], [1], ...].
    """
    if those is None:
        return [[index] for index in range(len(these))]
    pairs: list[list[int | None]] = []
    matcher = SequenceMatcher(None, [place(step) for step in these], [place(step) for step in those], autojunk=False)
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        if kind == "equal":
            pairs += [[start + i, other_start + i] for i in range(end - start)]
        else:
            pairs += [[i, None] for i in range(start, end)] + [[None, i] for i in range(other_start, other_end)]
    return pairs


def place(step: Step) -> tuple:
    return step["file"], step["function"], step["line"], step["module"]


def where_seen(difference: Mapping[str, Any], pairs: Sequence[Sequence[int | None]], models: Sequence[Mapping]) -> list[int]:
    """The first pair of steps at which each place of a difference is passed, by whichever model."""
    found = []
    for wanted in difference.get("places", []):
        for number, pair in enumerate(pairs):
            steps = [model["steps"][index] for model, index in zip(models, pair, strict=True) if index is not None]
            if any(step["function"] == wanted["function"] and wanted["code"] in step["code"] for step in steps):
                found.append(number)
                break
    return list(dict.fromkeys(found))


# -- the code ----------------------------------------------------------------------------------------------------------------


def code_file(name: str, lines: Sequence[str]) -> dict[str, Any]:
    """A source file for the template: each line in coloured segments, which joined are the line."""
    # where a line goes on if it is wrapped
    indents = [len(line) - len(line.lstrip()) + 4 for line in lines]
    return {"name": name, "id": Path(name).stem, "lines": list(coloured(lines)), "indents": indents}


def coloured(lines: Sequence[str]) -> Iterator[list[Segment]]:
    """Each line as (class, text) segments: "comment", "string", "keyword", "number", "name" of what a def or class names."""
    marks: list[list[tuple[int, int, str]]] = [[] for _ in lines]
    previous = ""
    for token in tokenize.generate_tokens(io.StringIO("\n".join(lines) + "\n").readline):
        kind = KINDS.get(token.type, "")
        if token.type == tokenize.NAME:
            kind = "name" if previous in ("def", "class") else "keyword" if keyword.iskeyword(token.string) else ""
            previous = token.string
        if kind:
            for row in range(token.start[0], token.end[0] + 1):
                begin = token.start[1] if row == token.start[0] else 0
                end = token.end[1] if row == token.end[0] else len(lines[row - 1])
                marks[row - 1].append((begin, end, kind))
    for line, marked in zip(lines, marks, strict=True):
        segments, position = [], 0
        for begin, end, kind in marked:
            segments += [("", line[position:begin]), (kind, line[begin:end])]
            position = end
        yield [segment for segment in [*segments, ("", line[position:])] if segment[1]]


KINDS = {
    tokenize.COMMENT: "comment",
    tokenize.STRING: "string",
    tokenize.NUMBER: "number",
    **{
        getattr(tokenize, name): "string"
        for name in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END")
        if hasattr(tokenize, name)
    },
}
