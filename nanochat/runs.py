"""Resolve `runs:`: which settings each run has, and which run owns each of its stages.

The top-level sections are the defaults of all runs. Under `runs:`, a section is either overrides (a mapping, merged key by key;
lists are replaced) or the name of another run, whose stage is then reused:

    runs:
      d20: {}
      d20-more-sft: {base_train: d20, mid_train: d20, sft: {epochs: 2}}

Reusing a stage means reusing all that it was made from, so an override that would have made it differently is an error.
Evaluations follow the model they evaluate unless the run overrides them. `tokens` are four stages: mid_train's and sft's
conversations and the prompts of CORE are reused as long as this run makes them from the same keys.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from nanochat.errors import UserError
from nanochat.sections import Settings
from nanochat.specifications import specify, with_dial
from nanochat.strict_yaml import Place, dotted, found, problems_of, suggest

STAGES = (
    "tokenizer",
    "tokens/pretrain",
    "tokens/mid_train",
    "tokens/sft",
    "tokens/core",
    "base_train",
    "base_eval",
    "mid_train",
    "sft",
    "chat_eval/mid_train",
    "chat_eval/sft",
    "trace",
    "report",
)
SECTIONS = tuple(Settings.model_fields)

# a section that names a stage, and the stage sections it was made from
MADE_FROM = {
    "tokenizer": (),
    "tokens": ("tokenizer",),
    "base_train": ("tokenizer", "tokens"),
    "mid_train": ("tokenizer", "tokens", "base_train"),
    "sft": ("tokenizer", "tokens", "base_train", "mid_train"),
    "base_eval": ("tokenizer", "tokens", "base_train"),
    "chat_eval": ("tokenizer", "tokens", "base_train", "mid_train", "sft"),
}
CHAIN = ("tokenizer", "tokens", "base_train", "mid_train", "sft")  # each is made from all before it
TRAININGS = ("base_train", "mid_train", "sft")
FIRST_STAGE = {"tokens": "tokens/pretrain", "chat_eval": "chat_eval/sft"}  # the stage that stands for a section

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# names of rules, targets and folders beside the runs
RESERVED = {stage.split("/")[0] for stage in STAGES} | {
    "all", "download", "plan", "preflight", "comparison", "gpu_check", "resume", "resources", "results",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run with its settings (where a stage is reused, its owner's), and the owner of each of its stages."""

    name: str
    settings: Settings
    owners: Mapping[str, str]

    def owns(self, stage: str) -> bool:
        return self.owners[stage] == self.name


class Resolver:
    """Turns the document (plain dicts) into runs, and collects every problem on the way in `problems`."""

    def __init__(self, document: Mapping[str, Any]):
        self.defaults = {name: document.get(name) or {} for name in SECTIONS}
        self.overrides: dict[str, dict[str, Any]] = {}
        self.problems: list[str] = []
        self.broken: set[str] = set()  # runs whose form is wrong
        self.runs: dict[str, Run] = {}
        self.sections: dict[str, dict[str, Any]] = {}  # run -> section -> its keys, of the owner where reused
        self._read_runs(document.get("runs"))

    def resolve(self) -> dict[str, Run]:
        """All runs in the order of the file. Look at `problems` afterwards: with any, runs may be missing."""
        for name in self._in_order():
            if name in self.broken:
                self._settings(name, {})  # tells what else is wrong with it
            else:
                self._resolve_run(name)
        if not self.overrides:
            self._validated("", self.defaults)
        return {name: self.runs[name] for name in self.overrides if name in self.runs}

    def place(self, run: str, place: Place) -> str:
        """The full name of a key as the reader finds it in the file: under the run that overrides it, or at the top."""
        written = self.overrides.get(run, {})
        in_list = len(place) > 2 and any(isinstance(step, int) for step in place)  # a list is written in one place, whole
        return f"runs.{run}.{dotted(place)}" if has(written, place[:-1] if in_list else place) else dotted(place)

    # -- the form of `runs:` -----------------------------------------------------------------------------------------------

    def _read_runs(self, runs: Any) -> None:
        if not isinstance(runs, Mapping) or not runs:
            what = "is missing" if runs is None else "is empty" if isinstance(runs, Mapping) else f"is {found(runs)}"
            self.problems.append(f"runs {what}; it names at least one run, such as `runs: {{d20: {{}}}}`")
            return
        lower: dict[str, str] = {}
        for name, sections in runs.items():
            if not RUN_NAME.fullmatch(name):
                self.problems.append(
                    f"runs.{name} is no name for a run: up to 64 letters, digits, '.', '_' and '-', a letter or digit first"
                )
            elif name in RESERVED:
                self.problems.append(f"runs.{name}: {name} is the name of a stage, a rule or a folder; choose another one")
            elif name.lower() in lower:
                self.problems.append(
                    f"runs.{name} and runs.{lower[name.lower()]} are the same folder where case does not count"
                )
            lower[name.lower()] = name
            if sections is not None and not isinstance(sections, Mapping):
                self.problems.append(f"runs.{name} is {found(sections)}; a mapping of sections is expected, {{}} for none")
                sections = {}
            self.overrides[name] = {section: value for section, value in (sections or {}).items() if value is not None}
        for name, sections in self.overrides.items():
            for section, value in sections.items():
                problems = self._problems_of_section(name, section, value)
                self.problems += problems
                self.broken |= {name} if problems else set()

    def _problems_of_section(self, run: str, section: str, value: Any) -> list[str]:
        name = f"runs.{run}.{section}"
        if section == "catalogue":
            return [f"{name}: all runs share one catalogue; move it to the top level"]
        if section not in SECTIONS:
            near = get_close_matches(section, SECTIONS, n=1)
            return [f"{name} is unknown.{f' Did you mean runs.{run}.{near[0]}?' if near else ''}"]
        if isinstance(value, Mapping):
            return []
        if not isinstance(value, str):
            return [f"{name} is {found(value)}; either overrides (a mapping) or the name of a run to reuse is expected"]
        if section not in MADE_FROM:
            return [f"{name} is {found(value)}; {section} is not a stage that can be reused, only {', '.join(MADE_FROM)} are"]
        if value == run:
            return [f"{name} names its own run; it takes the name of another one, or overrides"]
        if value not in self.overrides:
            return [f"{name} reuses {value}, which is not in runs.{suggest(value, self.overrides)}"]
        return []

    def _in_order(self) -> list[str]:
        """Runs, each after those whose stages it reuses. Notes a problem if there is no such order."""
        order: list[str] = []

        def visit(run: str, path: tuple[str, ...]) -> bool:
            if run in path:
                circle = " -> ".join((*path[path.index(run) :], run))
                self.problems.append(f"runs: {circle} reuse each other's stages in a circle")
                return False
            if run not in order:
                if not all(visit(other, (*path, run)) for other in self._reused(run).values() if other != run):
                    return False
                order.append(run)
            return True

        return order if all(visit(run, ()) for run in self.overrides) else []

    def _reused(self, run: str) -> dict[str, str]:
        """Section -> the run it names."""
        named = {section: value for section, value in self.overrides[run].items() if isinstance(value, str)}
        return {section: other for section, other in named.items() if section in MADE_FROM and other in self.overrides}

    def _overridden(self, run: str, section: str) -> bool:
        """Whether the run gives keys of its own in this section."""
        return bool(isinstance(self.overrides[run].get(section), Mapping) and self.overrides[run][section])

    # -- one run -----------------------------------------------------------------------------------------------------------

    def _resolve_run(self, run: str) -> None:
        reused = self._reused(run)
        if any(other not in self.runs for other in reused.values()):
            return  # its problems are told already
        sources = self._sources(run, reused)
        settings = self._settings(run, sources)
        if settings is None:
            return
        resolved = Run(run, settings, self._owners(run, settings, sources, reused))
        self.problems += self._harmful_overrides(resolved, sources)
        self.runs[run] = resolved

    def _sources(self, run: str, reused: Mapping[str, str]) -> dict[str, str]:
        """Section of the chain -> the run to take it from, named or implied by a later section that is named."""
        sources: dict[str, str] = {}
        because: dict[str, str] = {}
        for section, other in sorted(reused.items(), key=lambda item: -len(MADE_FROM[item[0]])):
            for needed in (*MADE_FROM[section], *([section] if section in CHAIN else [])):
                if needed != section and self._overridden(run, needed):
                    keys = ", ".join(f"runs.{run}.{needed}.{key}" for key in self.overrides[run][needed])
                    self.problems.append(
                        f"{keys} cannot count: runs.{run}.{section} reuses {other}'s {section}, which was made from {other}'s "
                        f"{needed}. Remove the override, or `{section}: {other}`"
                    )
                    continue
                stage = FIRST_STAGE.get(needed, needed)
                if needed not in sources:
                    sources[needed], because[needed] = other, section
                elif self.runs[sources[needed]].owners[stage] != self.runs[other].owners[stage]:
                    self.problems.append(
                        f"runs.{run}: {because[needed]} is reused from {sources[needed]}, with the {needed} of "
                        f"{self.runs[sources[needed]].owners[stage]}, and {section} from {other}, with the {needed} of "
                        f"{self.runs[other].owners[stage]}; a run has one {needed}"
                    )
                    break  # what is made from it differs, too
        return sources

    def _settings(self, run: str, sources: Mapping[str, str]) -> Settings | None:
        own = {name: merged(self.defaults[name], self._keys(run, name)) for name in SECTIONS}
        sections = {name: self.sections[sources[name]][name] if name in sources else own[name] for name in SECTIONS}
        if "tokens" in sources:
            sections["download"] = self.sections[sources["tokens"]]["download"]
        if "mid_train" in sources and not self._overridden(run, "identity"):
            sections["identity"] = self.sections[sources["mid_train"]]["identity"]  # so that sft goes on with the same one
        self.sections[run] = sections
        return self._validated(run, sections)

    def _validated(self, run: str, sections: Mapping[str, Any]) -> Settings | None:
        try:
            return with_dial(Settings.model_validate(sections))
        except UserError as error:
            self.problems.append(str(error))
            return None
        except ValidationError as error:
            self.problems += problems_of(error, Settings, lambda place: self.place(run, place))
            return None

    def _keys(self, run: str, section: str) -> Mapping[str, Any]:
        value = self.overrides[run].get(section)
        return value if isinstance(value, Mapping) else {}

    def _owners(self, run: str, settings: Settings, sources: Mapping[str, str], reused: Mapping[str, str]) -> dict[str, str]:
        owners = dict.fromkeys(STAGES, run)

        def reuse(stage: str, other: str | None) -> None:
            if other is not None:
                owners[stage] = self.runs[other].owners[stage]

        reuse("tokenizer", sources.get("tokenizer"))
        reuse("tokens/pretrain", sources.get("tokens"))

        def reuse_tokens(tokens: str, other: str | None) -> None:
            """Those of the stage that reads them; else, where tokens are reused, the same ones."""
            if other is None and "tokens" in sources:
                theirs = self.runs[sources["tokens"]]
                is_same = specify(settings, tokens) == specify(self.runs[theirs.owners[tokens]].settings, tokens)
                other = theirs.name if is_same else None
            reuse(tokens, other)

        for stage in ("mid_train", "sft"):
            reuse_tokens(f"tokens/{stage}", sources.get(stage))
            reuse(stage, sources.get(stage))
            reuse(f"chat_eval/{stage}", self._evaluation(run, "chat_eval", sources.get(stage), reused))
        reuse("base_train", sources.get("base_train"))
        evaluation = self._evaluation(run, "base_eval", sources.get("base_train"), reused)
        reuse_tokens("tokens/core", evaluation)
        reuse("base_eval", evaluation)
        return owners

    def _evaluation(self, run: str, section: str, model_from: str | None, reused: Mapping[str, str]) -> str | None:
        """Where an evaluation comes from: the run that is named, or the model's, unless this run evaluates differently."""
        return reused.get(section) or (None if self._overridden(run, section) else model_from)

    def _harmful_overrides(self, run: Run, sources: Mapping[str, str]) -> list[str]:
        """Overrides of `download` and `identity` that would have made a reused stage differently."""
        problems: dict[str, str] = {}
        for section, stage in (("download", "tokenizer"), ("download", "tokens/pretrain"), ("identity", "tokens/mid_train")):
            reused = "mid_train" if section == "identity" else stage.split("/")[0]
            if reused not in sources or not self._overridden(run.name, section) or section in problems:
                continue
            keys = merged(self.defaults[section], self.overrides[run.name][section])
            mine = self._validated(run.name, {**self.sections[run.name], section: keys})
            theirs = self.runs[run.owners[stage]].settings
            if mine is not None and specify(mine, stage) != specify(theirs, stage):
                names = ", ".join(f"runs.{run.name}.{section}.{key}" for key in self.overrides[run.name][section])
                problems[section] = (
                    f"{names} cannot count: {reused} is reused from {sources[reused]}, and was made from {sources[reused]}'s "
                    f"{section}. Remove the override, or do not reuse {reused}"
                )
        return list(problems.values())


def merged(defaults: Any, overrides: Any) -> Any:
    """Overrides over defaults, key by key through mappings; lists and values are replaced."""
    if not isinstance(defaults, Mapping) or not isinstance(overrides, Mapping):
        return overrides
    result = dict(defaults)
    for key, value in overrides.items():
        result[key] = merged(result[key], value) if key in result else value
    return result


def has(value: Any, place: Sequence[str | int]) -> bool:
    """Whether something is written at a place in nested dicts and lists."""
    for step in place:
        keys = value if isinstance(value, Mapping) else range(len(value)) if isinstance(value, list) else ()
        if step not in keys:
            return False
        value = value[step]
    return True
