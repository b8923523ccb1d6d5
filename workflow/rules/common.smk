# What all rules share: the validated configuration, and the few functions that read it.
#
# Helpers for rules take and return literal paths. A stage is named by its folder under results/{run}/.

import json
import os
import subprocess
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# programs run with the Python that runs Snakemake, and find the library in this checkout, also where it is not installed
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(workflow.basedir), os.environ.get("PYTHONPATH")]))
sys.path.insert(0, str(workflow.basedir))

from nanochat.config import load_config
from nanochat.errors import UserError

CONFIG_FILE = (workflow.overwrite_configfiles or ["config/config.yaml"])[-1]

try:
    CONFIG = load_config(config, source=os.path.relpath(CONFIG_FILE))
except UserError as error:
    sys.exit(f"error: {error}")


wildcard_constraints:
    run="[^/]+",


def owned(path):
    """The path of a stage's manifest for a run: in the run's own folder, or in that of the run whose stage it reuses."""
    stage = path.removeprefix("results/{run}/").removesuffix("/manifest.json")
    return lambda wildcards: path.format(run=owner_of(wildcards.run, stage))


def owner_of(run, stage):
    try:
        return CONFIG.owner(run, stage)
    except UserError as error:
        raise WorkflowError(str(error))


def specification(stage):
    """The keys that change a stage's result, as canonical JSON: the one parameter that Snakemake compares."""

    def of_run(wildcards):
        owner = owner_of(wildcards.run, stage)
        if owner != wildcards.run:
            raise WorkflowError(
                f"results/{wildcards.run}/{stage}: {wildcards.run} reuses this stage of {owner}; "
                f"ask for results/{owner}/{stage}/manifest.json"
            )
        return CONFIG.specification(wildcards.run, stage)

    return of_run


def run_time(stage, key):
    """A key that changes how a stage runs but not what it makes: a resource, so that Snakemake does not compare it."""
    return lambda wildcards: CONFIG.run_time(wildcards.run, stage)[key] or 0
