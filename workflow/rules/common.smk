# What all rules share: the checked configuration, its catalogue, and the few functions that read them.
#
# A stage is named by its folder under results/{run}/. Functions that rules call return functions of the wildcards.

import json
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(workflow.basedir))

from nanochat.config import load_config
from nanochat.errors import UserError
from nanochat.specifications import COMPARISON_VOCABULARIES

# programs run with the Python that runs Snakemake, and find the library in this checkout, also where it is not installed
shell.prefix(
    f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'
    f' PYTHONPATH={shlex.quote(str(workflow.basedir))}:"${{{{PYTHONPATH:-}}}}"; '
)

CONFIG_FILE = (workflow.overwrite_configfiles or ["config/config.yaml"])[-1]

try:
    CONFIG = load_config(config, source=os.path.relpath(CONFIG_FILE))
except UserError as error:
    sys.exit(f"error: {error}")

CATALOGUE_FILES = {key: CONFIG.catalogue.get(key) for key in CONFIG.all_files()}
CATALOGUE_PATHS = {key: f"{CONFIG.catalogue.folder}/{entry.path}" for key, entry in CATALOGUE_FILES.items()}
CATALOGUE_KEYS = {path: key for key, path in CATALOGUE_PATHS.items()}

# every stage that a report tells of
REPORTED = {
    "tokenizer": "results/{run}/tokenizer/manifest.json",
    "tokens/pretrain": "results/{run}/tokens/pretrain/manifest.json",
    "tokens/mid_train": "results/{run}/tokens/mid_train/manifest.json",
    "tokens/sft": "results/{run}/tokens/sft/manifest.json",
    "base_train": "results/{run}/base_train/manifest.json",
    "base_eval": "results/{run}/base_eval/manifest.json",
    "mid_train": "results/{run}/mid_train/manifest.json",
    "sft": "results/{run}/sft/manifest.json",
    "chat_eval/mid_train": "results/{run}/chat_eval/mid_train/manifest.json",
    "chat_eval/sft": "results/{run}/chat_eval/sft/manifest.json",
}


wildcard_constraints:
    run="[^/]+",


# -- stages and their owners -------------------------------------------------------------------------------------------


def owner_of(run, stage):
    try:
        return CONFIG.owner(run, stage)
    except UserError as error:
        raise WorkflowError(str(error))


def owned(path):
    """A manifest's path for a run: in the run's own folder, or in that of the run whose stage it reuses."""
    stage = str(Path(path).parent.relative_to("results/{run}"))
    return lambda wildcards: path.format(run=owner_of(wildcards.run, stage))


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


# -- downloads ---------------------------------------------------------------------------------------------------------


def downloaded(keys):
    """Manifests of files of the catalogue; `keys` maps a run to the files' keys."""
    return lambda wildcards: [f"resources/{CATALOGUE_PATHS[key]}.manifest.json" for key in keys(wildcards.run)]


def vocabularies(run):
    return [key for key in CONFIG.files_needed(run, "tokenizer") if key in COMPARISON_VOCABULARIES]


def download_specification(wildcards):
    key = CATALOGUE_KEYS.get(wildcards.file)
    if key is None:
        raise WorkflowError(f"resources/{wildcards.file}: no configured run reads this file of {CONFIG.catalogue.path}")
    return json.dumps({"key": key, "revision": CATALOGUE_FILES[key].revision}, sort_keys=True)


# -- reports -----------------------------------------------------------------------------------------------------------


def title_of(run):
    return CONFIG.settings(run).report.title or run


def reported(run):
    """NAME=MANIFEST of every stage, for the report program."""
    return [f"{stage}={path.format(run=owner_of(run, stage))}" for stage, path in REPORTED.items()]


def say_where_reports_are():
    for run in CONFIG.run_names:
        if Path("results", run, "report", "manifest.json").exists():
            print(f"Report of {run}: results/{run}/report/report.md")


def write_partial_reports():
    """After a failure: report what there is, and what is missing, of each run that was begun and lacks a stage."""
    for run in CONFIG.run_names:
        folder = Path("results", run)
        if folder.exists() and not all(Path(word.partition("=")[2]).exists() for word in reported(run)):
            words = ["--partial", f"{folder}/report", "--logs", f"{folder}/logs", "--title", title_of(run)]
            words += ["--specification", CONFIG.specification(run, "report"), "--stages", *reported(run)]
            shell("python workflow/scripts/report.py {words:q}")
            print(f"Report of what there is of {run}: {folder}/report/report.md")
