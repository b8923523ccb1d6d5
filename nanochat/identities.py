"""What a piece of work is, for whoever goes on with what an earlier attempt left of it; and where two of them differ, in words.

A commit of a training, and a kept part of an evaluation, carry the identity of their work: the specification, the identities of
what was read, and the generation of the code. Only the very same work goes on from them. A finished stage is another matter: it
stays finished when the code changes, so its generation is not in its manifest but in its record, and the report tells of it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nanochat.errors import UserError
from nanochat.manifest import MANIFEST, Artefact, open_verified

# Raise a number by one in the same change that makes the same specification and inputs give other bits on the same machine:
# another formula, constant, order of sums or of data, another default that no specification holds. What an earlier generation
# left unfinished is then refused instead of being finished by code that would have begun it differently. Not for faster code
# that gives the same bits, nor for what is only written about the work. tests/test_identity.py notices most such changes of
# trainings; what moves only the last bits it cannot see, so think of it.
GENERATIONS = {"training": 2, "base_eval": 3, "chat_eval": 3}

OTHERS = {"tokens": "other rows of tokens", "start_from": "another model to start from", "model": "another model"}
NUM_DIGITS = 12  # of a sha256, for people; the report shows as many

Places = Mapping[str, Mapping[str, str | None]]


class Ranks(Protocol):
    """What this module needs of the processes that work together (`nanochat.distributed`)."""

    def gather_objects(self, item: Any) -> list: ...


def identity_of(kind: str, specification: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Of a training, or of an evaluation: what must be equal for one attempt to go on from another's state."""
    return {"specification": dict(specification), "inputs": dict(inputs), "code": {"generation": GENERATIONS[kind]}}


def require_same_tokenizer(tokens: Artefact, tokenizer: str | None, *, whose: object) -> None:
    """UserError unless these rows were made with the tokenizer of this identity; that it is of the same size says nothing."""
    found = tokens.inputs.get("tokenizer")
    if not found or found != tokenizer:
        raise UserError(
            f"{tokens.manifest}: these rows were made with another tokenizer ({short(found)}) than that of {whose} "
            f"({short(tokenizer)}), so the same numbers stand for other text, even where both vocabularies have the same size. "
            "Run the workflow again, which makes again what is outdated; if nothing is: python -m nanochat.verify --repair"
        )


def require_same_work(ranks: Ranks, work: Mapping[str, Any]) -> None:
    """UserError on all ranks unless each of them is about to do the same: JSON values by name, nested as they like."""
    of_ranks = ranks.gather_objects(json.loads(json.dumps(work)))
    names = list(dict.fromkeys(path for other in of_ranks for path, _, _ in differing(of_ranks[0], other)))
    if names:
        lines = [f"{name}: " + ", ".join(said_by(of_ranks, name)) for name in names]
        raise UserError(
            "the ranks are not about to do the same work:\n  "
            + "\n  ".join(lines)
            + "\nOne of them sees older files or other software than the rest. Run it again; if it stays so, look at what that "
            "machine mounts and which Python it runs"
        )


def said_by(of_ranks: Sequence[Any], name: str) -> Iterator[str]:
    """What each rank says at a dotted name:  rank 1 has "3f2a..." """
    for rank, found in enumerate(of_ranks):
        for key in name.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        yield f"rank {rank} has {shown(found)}"


# -- in words ----------------------------------------------------------------------------------------------------------------


def places_of(inputs: Mapping[str, Path]) -> dict[str, dict[str, str | None]]:
    """Where each input was read and how large it is, for messages: {"tokenizer": {"folder": ..., "size": "512 tokens"}}."""
    return {name: {"folder": str(path.parent), "size": size_of(path)} for name, path in inputs.items()}


def size_of(path: Path) -> str | None:
    """How large a person would say that something published is."""
    results = open_verified(path).results if path.name.endswith(MANIFEST) else {}
    if "vocab_size" in results:
        return f"{results['vocab_size']:,} tokens"
    if "parameters" in results:
        return f"{results['parameters']:,} parameters, {results['steps']:,} steps"
    return f"{results['train']['rows']:,} rows" if "train" in results else None


def in_words(found: Any, wanted: Any, *, before: Places | None = None, now: Places | None = None) -> list[str]:
    """A line for each difference between two identities. `before` and `now`: `places_of` the inputs of each."""
    lines = []
    for path, was, is_ in differing(found, wanted):
        group, _, name = path.partition(".")
        if path == "code.generation":
            lines.append(f"{path}: was {was}, is {is_}: this version of the code makes other bits of the same specification")
        elif group == "inputs" and was and is_:
            lines.append(f"{path}: {other_input(name, was, is_, (before or {}).get(name, {}), (now or {}).get(name, {}))}")
        else:
            lines.append(f"{path}: was {shown(was)}, is {shown(is_)}")
    return lines


def other_input(name: str, was: str, is_: str, before: Mapping[str, str | None], now: Mapping[str, str | None]) -> str:
    """another tokenizer, of the same size (512 tokens): was results/a/tokenizer (1f2e...), is results/b/tokenizer (9a8b...)"""
    old_size, new_size = before.get("size"), now.get("size")
    if old_size and old_size == new_size:
        size = f", of the same size ({new_size})"
    else:
        size = f" ({old_size}, now {new_size})" if old_size and new_size else ""
    old, new = (f"{place.get('folder') or 'one'} ({short(digits)})" for place, digits in ((before, was), (now, is_)))
    return f"{OTHERS.get(name, f'another {name}')}{size}: was {old}, is {new}"


def differing(found: Any, wanted: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two nested values differ: its dotted name, and both values (None where there is none)."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            yield from differing(found.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    elif found != wanted:
        yield path, found, wanted


def shown(value: Any) -> str:
    """A value in a message; of a sha256 its first digits."""
    return short(value) if isinstance(value, str) and is_sha256(value) else json.dumps(value)


def short(digits: str | None) -> str:
    return f"{digits[:NUM_DIGITS]}..." if digits else "unknown"


def is_sha256(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
