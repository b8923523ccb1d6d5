"""What is said of a concept before anything is counted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanochat.concepts.source import Place, find

NOTHING = r"(?!)"  # a regular expression that no name matches


@dataclass(frozen=True)
class Concept:
    """One entry of the component map."""

    name: str
    group: str  # model | training
    summary: str
    equation: str  # LaTeX
    places: tuple[Place, ...]  # the first stands for the concept
    change: str  # what to look at after the change
    edits: Mapping[str, Any]  # configuration key -> a value that differs from the model's
    owns: str = NOTHING  # regular expression of the whole names of its parameters
    attends: bool = False  # computes scores and weighted means, which no parameter takes part in


def at(symbol: str, **what: str) -> Place:
    return find(f"nanochat.{symbol}", **what)
