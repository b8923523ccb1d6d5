"""What is generated from the models: the JSON schemas that editors complete from, and the table of every key for people.

    python -m nanochat.config --write-docs

writes them again; a test fails, naming that command, when they have fallen behind.
"""

import copy
import json
from inspect import get_annotations
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nanochat.catalogue import CatalogueDocument
from nanochat.runs import MADE_FROM, SECTIONS
from nanochat.sections import RUN_TIME_KEYS, BaseTrain, Components, OptimizerParts, Part, Section, Settings
from nanochat.strict_yaml import models_in, readable

COMMAND = "python -m nanochat.config --write-docs"
LOWER, UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")


def generated_files() -> dict[str, str]:
    """Path from the root of the project -> content."""
    return {
        "config/schema.json": schema_text(),
        "config/sources.schema.json": as_text(CatalogueDocument.model_json_schema()),
        "docs/configuration.md": documentation(),
    }


def write(root: Path) -> None:
    for name, text in generated_files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


# -- schema --------------------------------------------------------------------------------------------------------------------


def schema_text() -> str:
    return as_text(schema())


def schema() -> dict[str, Any]:
    """JSON schema of a configuration file. Looser than the check: a key that is needed may stand in any of the runs."""
    settings = Settings.model_json_schema()
    definitions = {name: copy.deepcopy(definition) for name, definition in settings["$defs"].items()}
    for name, definition in definitions.items():
        if name != Part.__name__:
            definition.pop("required", None)
    sections = {name: settings["properties"][name] for name in SECTIONS}
    run = {
        name: {"anyOf": [definition, {"type": "string", "description": "a run whose stage is reused"}]}
        if name in MADE_FROM
        else definition
        for name, definition in sections.items()
    }
    properties = {
        "catalogue": {"type": "string", "default": "config/sources.yaml", "description": "where every file comes from"},
        "runs": {
            "type": "object",
            "minProperties": 1,
            "description": "name of a run: overrides of the sections, or the run whose stage is reused",
            "additionalProperties": {"type": ["object", "null"], "properties": run, "additionalProperties": False},
        },
        **sections,
    }
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of a training workflow",
        "type": "object",
        "properties": properties,
        "required": ["runs"],
        "additionalProperties": False,
        "$defs": definitions,
    }
    return with_readable_integers(document)


def with_readable_integers(node: Any) -> Any:
    """65_536 is a number for PyYAML (YAML 1.1) and text for editors (YAML 1.2): accept either in the editor."""
    if isinstance(node, list):
        return [with_readable_integers(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "integer":
        outside = {name: node[name] for name in ("default", "description", "title") if name in node}
        inside = {name: value for name, value in node.items() if name not in outside}
        return {"anyOf": [inside, {"type": "string", "pattern": "^[0-9]{1,3}(_[0-9]{3})+$"}], **outside}
    return {name: with_readable_integers(value) for name, value in node.items()}


def as_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


# -- the table for people ------------------------------------------------------------------------------------------------------

INTRODUCTION = """\
# Configuration

Generated from `nanochat/sections.py` by `{command}`; do not edit.

```
python -m nanochat.config config/tiny.yaml      # check a file, print its runs, their stages and what specifies each
snakemake -n --configfile config/tiny.yaml      # what would run
```

A configuration file is complete by itself: what it does not say has the default below, whatever other files say. Its top level
holds `catalogue`, `runs` and the sections. Sections at the top are the defaults of all runs; under `runs`, each run overrides
what it does differently, key by key (a list is replaced as a whole), or names another run whose stage it reuses:

```yaml
runs:
  d20: {{}}
  d20-more-sft: {{base_train: d20, mid_train: d20, sft: {{epochs: 2.0}}}} # only sft, its evaluation, trace and report are made
  d12: {{tokenizer: d20, base_train: {{depth: 12}}}}
```

- Reusing a stage means reusing all that it was made from: `mid_train: d20` brings d20's tokenizer, tokens and base_train along.
  An override that would have made a reused stage differently is an error.
- A run's `trace` and `report` are its own, whatever it reuses.
- Evaluations follow the model: with `base_train: d20`, base_eval is d20's too, unless the run has `base_eval` keys of its own.
- {reusable} can be reused.
- A run's name has up to 64 letters, digits, `.`, `_` and `-`, and is not the name of a stage.

YAML reads `3e-4` and `1e6` as text: write `3.0e-4` and `1_000_000`. An empty value (`null`) means what the table says.

What reruns what: editing a key reruns the stages whose results it changes and what is made from them. The keys marked ° change
speed or logging only, and rerun nothing.

| key at the top level | type | default | meaning |
|---|---|---|---|
| `catalogue` | text | `config/sources.yaml` | the catalogue of downloads |
| `runs` | mapping | needed | name of a run: overrides, or the run whose stage is reused |
"""


def documentation() -> str:
    reusable = ", ".join(f"`{name}`" for name in MADE_FROM)
    text = INTRODUCTION.format(command=COMMAND, reusable=reusable)
    for name in SECTIONS:
        model = next(models_in(Settings.model_fields[name].annotation))
        text += f"\n## {name}\n\n{first_sentence(model)}\n\n{table(model)}"
        if name == "base_train":
            text += f"\n### base_train.model\n\n{first_sentence(Components)} The presets are in `nanochat/presets.py`.\n\n"
            text += table(Components)
            text += f"\n### base_train.optimizer\n\n{first_sentence(OptimizerParts)}\n\n{table(OptimizerParts)}"
        if name == "mid_train":
            text += f"\n### Parts of a mixture\n\n{first_sentence(Part)}\n\n{table(Part)}"
    return text


def first_sentence(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def table(model: type[BaseModel]) -> str:
    lines = ["| key | type | default | range | meaning |", "|---|---|---|---|---|"]
    properties = model.model_json_schema()["properties"]
    for name in own_first(model):
        field = model.model_fields[name]
        shown = f"`{name}`" + ("°" if name in RUN_TIME_KEYS else "")
        default = "needed" if field.is_required() else as_default(field.default, model)
        kinds = variants(properties[name])
        meaning = str(field.description).replace("|", "\\|")
        lines.append(f"| {shown} | {type_name(kinds)} | {default} | {range_of(kinds)} | {meaning} |")
    return "\n".join(lines) + "\n"


def own_first(model: type[BaseModel]) -> list[str]:
    """Names of the keys: what a section has for itself before what it shares with others."""
    names = [name for base in model.__mro__ if issubclass(base, Section) for name in get_annotations(base)]
    return [name for name in dict.fromkeys(names) if name in model.model_fields]


def variants(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return schema.get("anyOf", [schema])


def type_name(kinds: list[dict[str, Any]]) -> str:
    return " or ".join(one_type(kind) for kind in kinds)


def one_type(kind: dict[str, Any]) -> str:
    if "const" in kind:
        return f"`{kind['const']}`"
    if "enum" in kind:
        return ", ".join(f"`{value}`" for value in kind["enum"])
    if "$ref" in kind:
        return "part" if kind["$ref"].endswith("Part") else "mapping"
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false", "null": "empty"}
    if kind.get("type") == "array":
        items = one_type(kind["items"])
        return f"list of {items + 's' if items == 'part' else items}"
    return names[kind["type"]]


def range_of(kinds: list[dict[str, Any]]) -> str:
    for kind in kinds:
        low = next((f"{'>' if name.startswith('ex') else '≥'} {readable(kind[name])}" for name in LOWER if name in kind), "")
        high = next((f"{'<' if name.startswith('ex') else '≤'} {readable(kind[name])}" for name in UPPER if name in kind), "")
        if low or high:
            return ", ".join(part for part in (low, high) if part)
        if "minItems" in kind:
            return f"{kind['minItems']} or more"
    return ""


def as_default(value: Any, model: type[BaseModel]) -> str:
    if model is Components:
        return "as the preset"
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"`{readable(value)}`"
    if isinstance(value, Section):
        return "below" if isinstance(value, OptimizerParts) and model is BaseTrain else "none"
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value) or "none"
    return f"`{value}`"
