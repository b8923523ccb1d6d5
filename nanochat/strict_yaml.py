"""Read YAML strictly, check it against a pydantic model, and say in sentences what is wrong with it.

PyYAML keeps the last of two equal keys and reads `3e-4` as text, both without a word. Here the first is an error, and the
second is explained when it meets a key that wants a number. Problems are collected: a person sees all of them at once.

Covered: brackets nested so deep that the parser would overflow its stack, aliases that stand for themselves or multiply without
    end, objects of Python (tags), keys of other types than text, characters that YAML does not allow.
Not covered: what the values mean; that is the model's part.
"""

import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from nanochat.errors import UserError

MAX_DEPTH = 64  # of brackets and indentation; libyaml's reader for Python ends the process at some ten thousand
MAX_VALUES = 100_000  # with each alias counted as what it stands for

Place = tuple[str | int, ...]  # ("mid_train", "mixture", 2, "task")

EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping (lines of `key: value`)",
    "model_type": "a mapping (lines of `key: value`)",
    "model_attributes_type": "a mapping (lines of `key: value`)",
}
BOUNDS = {"greater_than_equal": "at least", "greater_than": "more than", "less_than_equal": "at most", "less_than": "less than"}


# -- reading -------------------------------------------------------------------------------------------------------------------


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file. UserError for what cannot be read, is not YAML, repeats a key, is empty or no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; expected {what}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None
    try:
        content = load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}{explain(error, text)}") from None
    if content is None:
        raise UserError(f"{path}: is empty; expected {what}")
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {found(content)}; expected {what}, which is a mapping (lines of `key: value`)")
    return content


def load(text: str) -> Any:
    """The content of a YAML text. YAMLError also for what is nested too deep or grows out of aliases."""
    refuse_bombs(text)
    try:
        return yaml.load(text, UniqueKeyLoader)
    except ValueError as error:  # 2026-02-31, which looks like a date
        raise yaml.YAMLError(str(error)) from None


@dataclass
class Size:
    """Of a value with all that is inside it: how many values, how many levels inside each other."""

    anchor: str | None = None
    values: int = 1
    levels: int = 0

    def hold(self, inner: "Size") -> None:
        self.values += inner.values
        self.levels = max(self.levels, inner.levels + 1)


def refuse_bombs(text: str) -> None:
    """YAMLError for a text whose values, with aliases written out, are too many or too deep inside each other."""
    known: dict[str | None, Size] = {}  # by anchor
    around: list[Size] = []  # the values that have begun and not ended
    for event in yaml.parse(text, UniqueKeyLoader):
        match event:
            case yaml.CollectionStartEvent():
                around.append(Size(event.anchor))
                size = Size()
            case yaml.CollectionEndEvent():
                size = around.pop()
            case yaml.AliasEvent(anchor=anchor):
                if any(value.anchor == anchor for value in around):
                    raise bomb(event, f"*{anchor} stands inside itself")
                size = known.get(anchor, Size())
            case yaml.ScalarEvent():
                size = Size(event.anchor)
            case _:
                continue
        if len(around) + size.levels > MAX_DEPTH:
            raise bomb(event, f"more than {MAX_DEPTH} levels inside each other")
        if isinstance(event, yaml.CollectionStartEvent):
            continue
        known[size.anchor] = size
        if around:
            around[-1].hold(size)
        if (around[-1] if around else size).values > MAX_VALUES:
            raise bomb(event, f"more than {MAX_VALUES:,} values")


def bomb(event: yaml.Event, problem: str) -> yaml.YAMLError:
    return yaml.composer.ComposerError(None, None, problem, event.start_mark)  # type: ignore[arg-type]


class UniqueKeyLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key.value, str):
                continue  # a list or a mapping as a key is refused below
            line = key.start_mark.line + 1
            if key.value in seen:
                problem = f"the key {key.value} is there twice, in line {seen[key.value]} and in line {line}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen[key.value] = line
        return super().construct_mapping(node, deep)


def explain(error: yaml.YAMLError, text: str) -> str:
    """`, line 7: what is wrong there`, for behind the name of the file."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    if mark is None:
        return f": is not YAML: {problem}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line:
        problem = "there is a tab; YAML indents with spaces only"
    elif not problem.startswith("the key "):
        problem = f"is not YAML: {problem}"
    return f", line {mark.line + 1}: {problem}" + (f"\n    {line.strip()}" if line.strip() else "")


# -- checking ------------------------------------------------------------------------------------------------------------------


def problems_of(
    error: ValidationError, model: type[BaseModel], name_of: Callable[[Place], str] = lambda place: dotted(place)
) -> list[str]:
    """One sentence for each problem that pydantic found. `name_of` gives the full name of a key at a place in the model."""
    return [sentence(dict(e), model, name_of) for e in error.errors(include_url=False)]


def sentence(error: dict[str, Any], model: type[BaseModel], name_of: Callable[[Place], str]) -> str:
    place, kind, value, context = error["loc"], error["type"], error["input"], error.get("ctx", {})
    name = name_of(place)
    if kind == "extra_forbidden":
        return f"{name} is unknown.{did_you_mean(place, model, name)}"
    if kind == "missing":
        field = field_at(place, model)
        return f"{name} is missing" + (f": {field.description}" if field is not None and field.description else ".")
    if kind in EXPECTED:
        return f"{name} is {found(value)}; {EXPECTED[kind]} is expected.{number_hint(value, EXPECTED[kind])}"
    if kind in BOUNDS:
        limit = next(iter(context.values()))
        return f"{name} is {found(value)}; it must be {BOUNDS[kind]} {readable(limit)}."
    if kind == "literal_error":
        field = field_at(place, model)
        choices = list(literals(field.annotation)) if field is not None else []
        return f"{name} is {found(value)}; it must be one of {', '.join(map(str, choices))}.{suggest(value, choices)}"
    if kind == "too_short":
        return f"{name} is empty; at least {context['min_length']} is needed."
    if kind == "string_pattern_mismatch":
        return f"{name} is {found(value)}, which does not have the form {context['pattern']}"
    return f"{name}: {error['msg'].removeprefix('Value error, ')}"


def did_you_mean(place: Place, model: type[BaseModel], name: str) -> str:
    """The nearest key of the same section or, if none is near, the same key of another section."""
    *parent, key = place
    siblings = keys_at(tuple(parent), model)
    near = get_close_matches(str(key), siblings, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {name.removesuffix(str(key))}{near[0]}?"
    elsewhere = [p for p in all_places(model) if p[-1] == key]
    if elsewhere:
        return f" Did you mean {' or '.join(dotted(p) for p in elsewhere[:3])}?"
    return f" Known there: {', '.join(siblings)}." if siblings else ""


def suggest(value: Any, choices: Iterable[Any]) -> str:
    near = get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def number_hint(value: Any, expected: str) -> str:
    """What to write where a number was meant and YAML made text, or a fraction, of it."""
    if isinstance(value, float) and value.is_integer() and "whole" in expected:
        return f" Write {int(value):_}."
    if not isinstance(value, str) or "number" not in expected:
        return ""
    text = value.replace("_", "").replace(",", "")
    try:
        number = float(text)
    except ValueError:
        return ""
    if "whole" in expected:
        return f" Write {int(number):_}, without quotes." if number.is_integer() else ""
    if match := re.fullmatch(r"([-+]?\d+)(\.\d*)?[eE]([-+]?)(\d+)", text):
        digits, fraction, sign, exponent = match.groups()
        written = f"{digits}{fraction if fraction and len(fraction) > 1 else '.0'}e{sign or '+'}{exponent}"
        return f" YAML reads {value} as text; write {written}."
    return " Write it without quotes." if text == value else f" Write {readable(number)}."


def as_text_keys(value: Any, place: Place = ()) -> Any:
    """A copy in plain dicts and lists. UserError for a key that YAML did not read as text: `1:`, `on:`, `null:`."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                inside = f" in {dotted(place)}" if place else ""
                raise UserError(f"the key {key!r}{inside} is not text for YAML; put it in quotes")
        return {key: as_text_keys(item, (*place, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_text_keys(item, (*place, index)) for index, item in enumerate(value)]
    return value


def raise_for(problems: Sequence[str], source: str) -> None:
    """UserError that lists them all, if there are any."""
    problems = list(dict.fromkeys(problems))
    if len(problems) == 1:
        raise UserError(f"{source}: {problems[0]}")
    if problems:
        raise UserError("\n  ".join([f"{source}: {len(problems)} problems", *problems]))


# -- words ---------------------------------------------------------------------------------------------------------------------


def dotted(place: Place) -> str:
    """("mid_train", "mixture", 2, "task")  ->  mid_train.mixture[2].task"""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")


def found(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return readable(value)
    return "a mapping" if isinstance(value, Mapping) else "a list" if isinstance(value, list | tuple) else repr(value)


def readable(number: float) -> str:
    """A number as one writes it in YAML:  524288 -> 524_288,  0.0003 -> 3.0e-4"""
    if isinstance(number, int):
        return f"{number:_}" if abs(number) >= 10_000 else str(number)
    if number != 0 and abs(number) < 1e-3:
        mantissa, exponent = f"{number:e}".split("e")
        mantissa = mantissa.rstrip("0")
        return f"{mantissa}{'0' if mantissa.endswith('.') else ''}e{int(exponent)}"
    return repr(number)


# -- walking a model -----------------------------------------------------------------------------------------------------------


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation mentions: Part, list[Part], Part | None, dict[str, Part]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not None:
        for argument in get_args(annotation):
            yield from models_in(argument)


def literals(annotation: Any) -> Iterator[Any]:
    for argument in get_args(annotation):
        if get_origin(annotation) in (Union, types.UnionType, list, tuple):
            yield from literals(argument)
        else:
            yield argument


def field_at(place: Place, model: type[BaseModel]) -> Any:
    """The field that a place names; None if there is none. Indices and keys of mappings belong to their field."""
    current: type[BaseModel] | None = model
    field = None
    for step in place:
        if current is not None and isinstance(step, str) and step in current.model_fields:
            field = current.model_fields[step]
            current = next(models_in(field.annotation), None)
    return field


def keys_at(place: Place, model: type[BaseModel]) -> list[str]:
    if not place:
        return list(model.model_fields)
    field = field_at(place, model)
    inner = next(models_in(field.annotation), None) if field is not None else None
    return list(inner.model_fields) if inner is not None else []


def all_places(model: type[BaseModel], place: Place = ()) -> Iterator[Place]:
    for name, field in model.model_fields.items():
        yield (*place, name)
        for inner in models_in(field.annotation):
            yield from all_places(inner, (*place, name))
