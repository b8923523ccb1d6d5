"""Load, check and resolve a configuration: what Snakemake, and a person who wants to know what would run, asks.

    config = load_config("config/tiny.yaml")
    config.owner("tiny", "sft")             # the run whose stage it is: reuse is settled here, by name
    config.specification("tiny", "sft")     # the keys that change that stage's result, as canonical JSON
    config.files_needed("tiny", "tokens/sft")

What can be configured is in `nanochat.sections`, how runs reuse stages in `nanochat.runs`. Parsed several times in each SLURM
job, so never PyTorch. `python -m nanochat.config FILE` checks a file and prints what each of its runs would do.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from nanochat import specifications
from nanochat.catalogue import Catalogue, load_catalogue
from nanochat.config_checks import problems_in_run, trace_problems
from nanochat.errors import UserError
from nanochat.presets import PRESETS
from nanochat.runs import SECTIONS, STAGES, Resolver, Run
from nanochat.schedule import count_parameters
from nanochat.sections import Settings
from nanochat.strict_yaml import all_places, as_text_keys, found, raise_for, read_mapping

__all__ = ["PRESETS", "STAGES", "Config", "load_config"]

CATALOGUE = "config/sources.yaml"
FROZEN = "NANOCHAT_CONFIG"  # environment variable: the hash of what the driver decided
TOP_LEVEL = ("catalogue", "runs", *SECTIONS)


class Config:
    """A checked configuration. Every method that takes a stage takes one of STAGES, of a run of `run_names`."""

    def __init__(self, runs: Mapping[str, Run], catalogue: Catalogue, root: Path):
        self.catalogue = catalogue
        self.root = root
        self._runs = runs

    @property
    def run_names(self) -> list[str]:
        return list(self._runs)

    def settings(self, run: str) -> Settings:
        """All keys of a run; of a stage that it reuses, the owner's."""
        return self._run(run).settings

    def owner(self, run: str, stage: str) -> str:
        """The run that makes this stage, in whose folder it lies."""
        return self._run(run).owners[stage]

    def specification(self, run: str, stage: str) -> str:
        """The keys that change a stage's result, as canonical JSON: equal text, equal work (given equal inputs)."""
        keys = specifications.specify(self._makers_settings(run, stage), stage)
        if stage == "report":
            keys["owners"] = {name: owner for name, owner in self._run(run).owners.items() if name != "report"}
        return canonical(keys)

    def run_time(self, run: str, stage: str) -> dict[str, Any]:
        """The knobs of a stage that are in no specification: micro_batch and commit_every of a training."""
        return specifications.run_time(self._makers_settings(run, stage), stage)

    def gpt_config(self, run: str) -> dict[str, Any]:
        """The fields of this run's GPTConfig."""
        return specifications.gpt_config(self.settings(run))

    def training_shards(self, run: str) -> list[str]:
        return specifications.training_shards(self.settings(run))

    def validation_shard(self, run: str) -> str:
        return specifications.validation_shard(self.settings(run))

    def tokenizer_shards(self, run: str) -> list[str]:
        return specifications.tokenizer_shards(self._makers_settings(run, "tokenizer"))

    def files_needed(self, run: str, stage: str) -> list[str]:
        """Catalogue keys of the downloaded files that a stage reads."""
        sources = specifications.sources_needed(self._makers_settings(run, stage), stage, self.catalogue)
        return list(dict.fromkeys(key for source in sources for key in self.catalogue.parts(source)))

    def local_files(self, run: str, stage: str) -> list[str]:
        """Paths of the user's own files that a stage reads (`custom` parts with a `file`)."""
        return specifications.local_files(self._makers_settings(run, stage), stage)

    def all_files(self) -> list[str]:
        """Every catalogue key that any run ever reads: what `download` fetches."""
        needed = {key for run in self._runs for stage in STAGES for key in self.files_needed(run, stage)}
        return sorted(needed)

    def identity_hash(self) -> str:
        """sha256 of all that the configuration decides: a job that computes another one is reading an edited file.

        Comments, the order of keys and written-out defaults decide nothing.
        """
        return hashlib.sha256(
            canonical({"catalogue": str(self.catalogue.path), "runs": self._decisions()}).encode()
        ).hexdigest()

    def _decisions(self) -> dict[str, dict[str, list]]:
        """Run -> stage -> whose it is, what specifies it, its run-time knobs, the files it reads."""
        asked = (self.owner, self.specification, self.run_time, self.files_needed, self.local_files)
        return {run: {stage: [ask(run, stage) for ask in asked] for stage in STAGES} for run in self._runs}

    def _run(self, run: str) -> Run:
        if run not in self._runs:
            raise UserError(f"there is no run {run}; there are {', '.join(self._runs)}")
        return self._runs[run]

    def _makers_settings(self, run: str, stage: str) -> Settings:
        return self._runs[self.owner(run, stage)].settings


def load_config(
    path_or_dict: str | Path | Mapping[str, Any], *, source: str = "config/config.yaml", root: str | Path = "."
) -> Config:
    """Check a configuration file, or what was read from one already. UserError that lists every problem.

    `source` names a mapping's file: in messages and, where there is such a YAML file, to look for repeated keys in it, which
    whoever read it may have passed over. `root` is what the paths in the configuration are relative to.
    """
    if isinstance(path_or_dict, str | Path):
        source = str(path_or_dict)
        content: Mapping[str, Any] = read_mapping(Path(path_or_dict), "a configuration")
    else:
        content = path_or_dict
        if Path(source).suffix in (".yaml", ".yml") and Path(source).is_file():
            read_mapping(Path(source), "a configuration")
    try:
        document = as_text_keys(content)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    problems = problems_at_the_top(document)
    unusable = tuple(f"{name}." for name in SECTIONS if not isinstance(document.get(name, {}), Mapping | None))
    resolver = Resolver({name: value for name, value in document.items() if f"{name}." not in unusable})
    runs = resolver.resolve()
    problems += [problem for problem in resolver.problems if not problem.startswith(unusable)]
    catalogue = None
    if isinstance(path := document.get("catalogue", CATALOGUE), str):
        try:
            catalogue = load_catalogue(Path(root) / path)
        except UserError as error:
            problems.append(f"catalogue: {error}")
    if catalogue is not None and not unusable:
        for name, run in runs.items():
            told = [*problems_in_run(run, catalogue, Path(root)), *trace_problems(run, runs, resolver.overrides)]
            problems += [f"{resolver.place(name, place)} {problem}" for place, problem in told]
    raise_for(problems, source)
    assert catalogue is not None
    return Config(runs, catalogue, Path(root))


def freeze(config: Config, source: str, *, is_driver: bool) -> None:
    """Hold every job to the configuration that Snakemake started with. UserError in a job that reads another one.

    A cluster job reads the file again. Edited while jobs queue, it would have them do other work than Snakemake records, and
    nobody would notice: so jobs inherit what the driver decided, through the environment, and compare.
    """
    if is_driver:
        os.environ[FROZEN] = config.identity_hash()
    elif os.environ.get(FROZEN, config.identity_hash()) != config.identity_hash():
        raise UserError(
            f"{source} was edited after this job was submitted, so nothing was done. To go on with what was submitted, undo "
            "the edit; to run with the edit, stop Snakemake; then start it again"
        )


def problems_at_the_top(document: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, value in document.items():
        if name not in TOP_LEVEL:
            near = get_close_matches(name, TOP_LEVEL, n=1)
            inside = [place[0] for place in all_places(Settings) if len(place) == 2 and place[1] == name]
            hint = f"Did you mean {near[0]}?" if near else f"Did you mean {inside[0]}.{name}?" if inside else ""
            problems.append(f"{name} is unknown. {hint or 'Known: ' + ', '.join(TOP_LEVEL) + '.'}")
        elif name in SECTIONS and value is not None and not isinstance(value, Mapping):
            problems.append(f"{name} is {found(value)}; a mapping (lines of `key: value`) is expected")
        elif name == "catalogue" and not isinstance(value, str):
            problems.append(f"catalogue is {found(value)}; the path of a catalogue, such as {CATALOGUE}, is expected")
    return problems


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


# -- the command ---------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nanochat.config", description="Check a configuration and print its runs.")
    parser.add_argument("file", nargs="?", default="config/config.yaml", help="default: config/config.yaml")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of configuration files")
    parser.add_argument("--write-docs", action="store_true", help="write config/*schema.json and docs/configuration.md again")
    arguments = parser.parse_args()
    if arguments.schema or arguments.write_docs:
        from nanochat import config_docs

        print(config_docs.schema_text()) if arguments.schema else config_docs.write(Path("."))
        return
    try:
        config = load_config(arguments.file)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(describe(config))


def describe(config: Config) -> str:
    """Each run with its model and its stages: whose they are and, for its own, what specifies them."""
    lines = []
    for run in config.run_names:
        model = config.gpt_config(run)
        sizes = (
            f"{model['n_layer']} blocks, width {model['n_embd']}, {model['n_head']} heads, vocabulary {model['vocab_size']:,}"
        )
        lines += [f"{run}: {sizes}, {count_parameters(model):,} parameters, rows of {model['sequence_len']:,} tokens"]
        lines += [f"  data: {len(config.training_shards(run))} training shards, validation on {config.validation_shard(run)}"]
        for stage in STAGES:
            if config.owner(run, stage) != run:
                lines.append(f"  {stage}: reused from {config.owner(run, stage)}")
                continue
            keys = json.loads(config.specification(run, stage))
            text = yaml.safe_dump(keys, default_flow_style=None, allow_unicode=True, width=120)
            lines += [f"  {stage}:", *(f"    {line}" for line in text.splitlines())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
