"""The component map: each concept of a Transformer -> its code, its equation, its parameters, its share of the work.

    python -m nanochat.component_map                                  # nanochat, at the sizes of d20
    python -m nanochat.component_map --preset textbook
    python -m nanochat.component_map --model results/tiny/base_train  # of a model that was trained
    python -m nanochat.component_map --preset textbook --sizes-of results/tiny/base_train  # the other kind, as large
    python -m nanochat.component_map --write-docs                     # write docs/component-map.md again

Generated from the code that runs. Files and lines are found in the syntax trees; names and shapes of parameters come from a
model without storage (PyTorch's meta device), the parameters of each optimizer from the function that builds it. Something that
moved or vanished is an error (`SymbolMoved`), and so is a parameter that no concept owns, or two do.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.concepts.concept import Concept
from nanochat.concepts.model import MODEL
from nanochat.concepts.training import TRAINING
from nanochat.dialogue import no_model_message
from nanochat.errors import UserError
from nanochat.manifest import MANIFEST, open_verified
from nanochat.presets import COMPONENTS, PRESETS, nearest_preset
from nanochat.reports import components
from nanochat.schedule import flops_per_token, tokens_attended
from nanochat.sections import Settings
from nanochat.strict_yaml import all_places

if TYPE_CHECKING:
    from nanochat.gpt import GPT, GPTConfig

DOCUMENT = Path("docs/component-map.md")
COMMAND = "python -m nanochat.component_map --write-docs"
FLOPS_PER_WEIGHT = 6  # a multiplication and an addition, forward once and backward twice


def component_map(config: GPTConfig) -> dict[str, Any]:
    """The map of a model of this configuration, as plain JSON.

    {"preset": the nearer one, "config", "parameters", "flops_per_token", "concepts": [{"concept", "group": "model"|"training",
    "summary", "where": [{"symbol", "file", "line", "code"}], "parameters": [{"name", "shape", "copies", "number"}],
    "num_parameters", "share_of_parameters", "flops", "share_of_flops", "equation" (LaTeX), "change", "keys", "edits"}]}

    The shares add up to 1 over the model's concepts. So do those of the parameters over the training's, where each parameter is
    listed with the optimizer that moves it. FLOPs are those of a training step for each token; training's concepts have None.
    """
    model = build_without_storage(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    concepts = [concept for make in (*MODEL, *TRAINING) if (concept := make(config)) is not None]
    owners = {**owners_in_model(concepts, shapes), **owners_in_training(model)}
    flops = flops_of(concepts, model)
    require_whole(concepts, owners, shapes, flops, config)
    for concept in concepts:
        require_keys(concept, config)
    rows = [describe(concept, {name: shapes[name] for name in owners[concept.name]}, flops) for concept in concepts]
    num_parameters, num_flops = model.num_parameters(), sum(flops.values())
    for row in rows:
        row["share_of_parameters"] = row["num_parameters"] / num_parameters
        row["share_of_flops"] = None if row["flops"] is None else row["flops"] / num_flops
    return {
        "preset": nearest_preset(config.as_dict()),
        "config": config.as_dict(),
        "parameters": num_parameters,
        "flops_per_token": num_flops,
        "concepts": rows,
    }


def describe(concept: Concept, shapes: Mapping[str, tuple[int, ...]], flops: Mapping[str, int]) -> dict[str, Any]:
    """One concept as JSON, but for the shares; `shapes` are those of its own parameters."""
    rows = parameter_rows(shapes)
    return {
        "concept": concept.name,
        "group": concept.group,
        "summary": concept.summary.strip(),
        "where": [asdict(place) for place in concept.places],
        "parameters": rows,
        "num_parameters": sum(row["number"] for row in rows),
        "flops": flops.get(concept.name),
        "equation": concept.equation,
        "change": concept.change,
        "keys": list(concept.edits),
        "edits": dict(concept.edits),
    }


# -- counting ----------------------------------------------------------------------------------------------------------------


def build_without_storage(config: GPTConfig) -> GPT:
    import torch

    from nanochat.gpt import GPT

    with torch.device("meta"):
        return GPT(config)


def owners_in_model(concepts: Iterable[Concept], names: Iterable[str]) -> dict[str, list[str]]:
    """Concept -> the names of its parameters, by the pattern that it gives."""
    return {concept.name: [name for name in names if re.fullmatch(concept.owns, name)] for concept in concepts}


def owners_in_training(model: GPT) -> dict[str, list[str]]:
    """Optimizer -> the names of the parameters that it moves."""
    from nanochat.optimizer import build_optimizer

    optimizer = build_optimizer(model, matrix_lr=0.0, embedding_lr=0.0, unembedding_lr=0.0)
    adamw = [name for group in optimizer.adamws.values() for name in group.parameters]
    return {"Optimizer: Muon": list(optimizer.muon.momenta), "Optimizer: AdamW": adamw}


def flops_of(concepts: Iterable[Concept], model: GPT) -> dict[str, int]:
    """Operations of a training step for each token: of the matrices that are multiplied, and of attention itself."""
    from torch import nn

    matrices = {f"{name}.weight": part.weight for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    scores = 12 * model.config.n_embd * sum(tokens_attended(model.config.as_dict()))
    flops = {}
    for concept in concepts:
        if concept.group == "model":
            own = sum(matrix.numel() for name, matrix in matrices.items() if re.fullmatch(concept.owns, name))
            flops[concept.name] = FLOPS_PER_WEIGHT * own + (scores if concept.attends else 0)
    return flops


def parameter_rows(shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    """Parameters that differ in the number of their block alone are one row: `blocks.*.mlp.c_fc.weight`."""
    rows: dict[tuple[str, tuple[int, ...]], int] = {}
    for name, shape in shapes.items():
        pattern = re.sub(r"^(blocks|value_embeds)\.\d+\.", r"\1.*.", name)
        rows[pattern, shape] = rows.get((pattern, shape), 0) + 1
    return [
        {"name": name, "shape": list(shape), "copies": copies, "number": copies * prod(shape)}
        for (name, shape), copies in rows.items()
    ]


# -- what must hold ------------------------------------------------------------------------------------------------------------


def require_whole(
    concepts: Iterable[Concept],
    owners: Mapping[str, list[str]],
    names: Iterable[str],
    flops: Mapping[str, int],
    config: GPTConfig,
) -> None:
    """Each parameter belongs to one concept of the model and to one optimizer, and the operations are all there."""
    for group in ("model", "training"):
        owned = [name for concept in concepts if concept.group == group for name in owners[concept.name]]
        if wrong := sorted({name for name in names if owned.count(name) != 1}):
            raise UserError(
                f"component map: {len(wrong)} parameters belong to no concept of the {group}, or to more than one: "
                f"{', '.join(wrong[:5])}. Their concept is in nanochat/concepts/{group}.py"
            )
    if sum(flops.values()) != flops_per_token(config.as_dict()):
        raise UserError(
            f"component map: the concepts' operations add up to {sum(flops.values()):,} a token, and "
            f"nanochat.schedule.flops_per_token says {flops_per_token(config.as_dict()):,}"
        )


def require_keys(concept: Concept, config: GPTConfig) -> None:
    """What a reader is told to change is a key of the configuration, and the value is another one than the model has."""
    known = {".".join(map(str, place)) for place in all_places(Settings)}
    for key, value in concept.edits.items():
        component = key.removeprefix("base_train.model.")
        if key not in known:
            raise UserError(f"component map: {concept.name} tells to change {key}, which is no key of the configuration")
        if component != key and getattr(config, component) == value:
            raise UserError(f"component map: {concept.name} tells to set {key} to {value!r}, which it is already")


# -- the document --------------------------------------------------------------------------------------------------------------


def document() -> str:
    """docs/component-map.md: all presets at the sizes of d20, side by side and then in full."""
    from nanochat.gpt import GPTConfig

    maps = {name: component_map(GPTConfig.preset(name)) for name in PRESETS}
    return components.document(maps, command=COMMAND, link=lambda file, line: f"../{file}#L{line}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nanochat.component_map", description=__doc__.split("\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--preset", choices=sorted(PRESETS), help="at the sizes of d20; default: nanochat")
    which.add_argument("--model", type=Path, metavar="FOLDER", help="of a trained model, such as results/tiny/base_train")
    which.add_argument("--write-docs", action="store_true", help=f"write {DOCUMENT} again")
    parser.add_argument(
        "--sizes-of", type=Path, metavar="FOLDER", help="with --preset: at the sizes of a trained model instead of d20's"
    )
    options = parser.parse_args()
    if options.sizes_of and not options.preset:
        parser.error("--sizes-of goes with --preset")
    try:
        if options.write_docs:
            if not DOCUMENT.parent.is_dir():
                raise UserError(f"there is no folder {DOCUMENT.parent} here: run this in the project's folder")
            DOCUMENT.write_text(document(), encoding="utf-8")
        else:
            print("\n\n".join(components.blocks(component_map(config_of(options)))))
    except UserError as error:
        sys.exit(f"error: {error}")


def config_of(options: argparse.Namespace) -> GPTConfig:
    """What was asked for; UserError, before PyTorch is imported, if it is a model that is not there."""
    folder = options.model or options.sizes_of
    fields = fields_of(folder) if folder else {}
    from nanochat.gpt import GPTConfig

    if options.model:
        return GPTConfig(**fields)
    preset = options.preset or "nanochat"
    return GPTConfig.preset(preset, **{name: value for name, value in fields.items() if name not in COMPONENTS})


def fields_of(folder: Path) -> dict[str, Any]:
    """The fields of the GPTConfig of a trained model."""
    if not (folder / MANIFEST).exists():
        raise UserError(no_model_message(folder))
    return open_verified(folder / MANIFEST).json("config.json")


if __name__ == "__main__":
    main()
