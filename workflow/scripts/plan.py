"""Print what every run will cost, stage by stage, what is missing, and what cannot work. Nothing is run or downloaded.

What cannot work is printed, and refused when somebody tries to run it.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nanochat.config import Config, load_config
from nanochat.planning.disk import look, missing_files, missing_sources, needs, space_problems
from nanochat.planning.hardware import ON_CPUS
from nanochat.planning.plan import TRAININGS, Known, Site, plan_run, refusals
from nanochat.planning.predict import Speed
from nanochat.planning.text import as_text
from nanochat.schedule import micro_batch_on_cpu
from nanochat.stage import run_program


def site(text: str) -> tuple[str, Site]:
    name, _, rest = text.partition("=")
    return name, Site.parse(rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configuration", type=json.loads, required=True, help="the configuration, as JSON")
    parser.add_argument("--source", required=True, help="the file that it was read from, for messages")
    parser.add_argument("--sites", type=site, nargs="+", required=True, metavar="STAGE=SITE", help="what each stage is given")
    args = parser.parse_args()

    config, sites = load_config(args.configuration, source=args.source), dict(args.sites)
    runs = {run: plan_run(config, run, sites, known_of(config, run, sites)) for run in config.run_names}
    rows = [row for some in runs.values() for row in some]
    keys = config.all_files()
    found = needs(config, rows, keys)
    problems = [*refusals(rows), *space_problems(found), *missing_sources(config, missing_files(config, keys))]
    print(as_text(config, runs, found, problems))


def known_of(config: Config, run: str, sites: dict[str, Site]) -> Known:
    """What is on the disk, and how fast this machine is, if it is to train."""
    known = look(config, run)
    measured: dict[str, Speed] = {}
    trainings = [stage for stage in TRAININGS if config.owner(run, stage) == run and stage not in known.done]
    if trainings and all(is_here(sites[stage]) for stage in trainings):
        model = config.gpt_config(run)
        rows = {stage: getattr(config.settings(run), stage).total_batch_tokens // model["sequence_len"] for stage in trainings}
        micro_batches = {
            stage: config.run_time(run, stage)["micro_batch"] or micro_batch_on_cpu(model, rows[stage]) for stage in trainings
        }
        measured = measure(model, micro_batches, cores=sites[trainings[0]].threads)
        measured |= {"base_train": next(iter(measured.values()))} if measured and "base_train" not in measured else {}
    return replace(known, speeds=measured)


def measure(model: Mapping[str, Any], micro_batches: Mapping[str, int], *, cores: int) -> dict[str, Speed]:
    """In a process of its own, with the settings that trainings are started with."""
    job = json.dumps({"model": model, "micro_batches": micro_batches, "cores": cores})
    command = [sys.executable, "-m", "nanochat.planning.speed", job]
    done = subprocess.run(command, env={**ON_CPUS, **os.environ}, stdout=subprocess.PIPE, text=True, check=True)
    return {stage: Speed(**keys) for stage, keys in (json.loads(done.stdout) or {}).items()}


def is_here(site: Site) -> bool:
    """Whether a stage runs as one process on this machine's CPU."""
    return site.gpu is None and site.ranks == 1 and site.runtime_min is None


if __name__ == "__main__":
    run_program(main)
