# What all rules share: the checked configuration, its catalogue, and the few functions that read them.
#
# A stage is named by its folder under results/{run}/. Functions that rules call return functions of the wildcards.

import functools
import json
import os
import shlex
import signal
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(workflow.basedir))

from nanochat.jobs import driver, preemption
from nanochat.config import freeze, load_config
from nanochat.planning.disk import is_as_specified, look, missing_sources, needs, num_cores, space_problems
from nanochat.errors import UserError
from nanochat.planning.hardware import gpus_here
from nanochat.planning.inventory import find_problems
from nanochat.jobs.mail import mail_options
from nanochat.planning.plan import GPU_STAGES, STAGES, TRAININGS, Site, plan_run, refusals
from nanochat.schedule import count_parameters
from nanochat.specifications import COMPARISON_VOCABULARIES
from nanochat.stage import rule_of

# Programs run with the Python that runs Snakemake, and find the library in this checkout, also where it is not installed.
# A prefix of one's own replaces Snakemake's: without pipefail, a program that fails before `| tee` has succeeded.
shell.prefix(
    f'set -euo pipefail; export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'
    f' PYTHONPATH={shlex.quote(str(workflow.basedir))}:"${{{{PYTHONPATH:-}}}}"; '
    # SLURM signals every process of a job: the shell waits for its program, and what that says while it stops is kept
    'trap : TERM HUP; keep_log() {{ trap "" INT TERM HUP; tee "$1"; }}; '
)

CONFIG_FILE = (workflow.overwrite_configfiles or ["config/config.yaml"])[-1]

try:
    CONFIG = load_config(config, source=os.path.relpath(CONFIG_FILE))
    freeze(CONFIG, os.path.relpath(CONFIG_FILE), is_driver=workflow.is_main_process)
    # for GPU stages. Their SLURM log goes on after a requeue, instead of starting anew
    SLURM_EXTRA = " ".join(["--open-mode=append", *mail_options(Path(".env.local"))])
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
    "tokens/core": "results/{run}/tokens/core/manifest.json",
    "base_train": "results/{run}/base_train/manifest.json",
    "base_eval": "results/{run}/base_eval/manifest.json",
    "mid_train": "results/{run}/mid_train/manifest.json",
    "sft": "results/{run}/sft/manifest.json",
    "chat_eval/mid_train": "results/{run}/chat_eval/mid_train/manifest.json",
    "chat_eval/sft": "results/{run}/chat_eval/sft/manifest.json",
    "trace": "results/{run}/trace/manifest.json",
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

    def value(wildcards):
        found = CONFIG.run_time(wildcards.run, stage)[key] or 0
        return int(found) if isinstance(found, bool) else found

    return value


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


# -- before anything is submitted ----------------------------------------------------------------------------------------


def sites():
    """What the profile gives each stage: from the rules' resources, as they are once it has overridden them."""
    return {stage: site_of(workflow.get_rule(rule_of(stage))) for stage in STAGES}


def site_of(rule):
    def asked(name, default=None):
        resource = rule.resources.get(name)
        if resource is None:
            return default
        if resource.is_evaluable():
            known = {"rulename": rule.name, "async_run": workflow.async_run, "threads": 1, "attempt": 1}
            resource = resource.evaluate(None, input=[], **known)
        return default if resource.value is None else resource.value

    ranks = int(asked("ranks", 1))
    gpu = gpu_of(str(asked("gres", "")), asked("gpu"), asked("gpu_model"))
    if not workflow.local_exec:
        return Site(ranks, gpu, int(asked("_cores", 1)), float(asked("runtime", 0)) or None)
    if gpu is None and GPUS_HERE() and "ranks" in rule.resources:
        gpu = GPUS_HERE()[0].replace(" ", "-")
    return Site(ranks, gpu, min(int(asked("_cores", 1)), workflow.cores or num_cores()))


def gpu_of(gres, number, model):
    """The type of GPU that a job asks for: gres="gpu:a100:8", or gpu=8 and gpu_model="a100"."""
    words = gres.split(":")
    if words[0] == "gpu":
        return words[1] if len(words) > 2 or (len(words) == 2 and not words[1].isdecimal()) else "unnamed-gpu"
    return str(model or "unnamed-gpu") if number else None


GPUS_HERE = functools.cache(gpus_here)


def gpu_stages(run):
    return [stage for stage in GPU_STAGES if CONFIG.owner(run, stage) == run]


def proof(stage):
    """The preflight that a GPU stage waits for. A new one never makes a finished stage anew, and hides no other reason to.

    `ancient` keeps a new proof from retriggering the stage. But Snakemake (9.27) looks no further at what is downstream of a
    planned job, through `ancient` as well: planned together with a preflight, an edited stage would be passed over. So a stage
    whose specification is another than its manifest's takes the proof as any other input.
    """

    def of_run(wildcards):
        path = f"results/{wildcards.run}/preflight/manifest.json"
        return ancient(path) if is_as_specified(CONFIG, wildcards.run, stage) else path

    return of_run


def token_stages(run):
    """The tokens that this run's own trainings and evaluations read."""
    trainings = {"base_train": "tokens/pretrain", "mid_train": "tokens/mid_train", "sft": "tokens/sft"}
    needed = [tokens for stage, tokens in trainings.items() if CONFIG.owner(run, stage) == run]
    if CONFIG.owner(run, "base_eval") == run:
        needed = ["tokens/pretrain", *needed, "tokens/core"]
    return list(dict.fromkeys(needed))


MIXTURES = ("tokens/mid_train", "tokens/sft")


def files_before_gpus(run):
    """Files of the catalogue that are opened before the first GPU job: those of its GPU stages and of its mixtures."""
    stages = [*gpu_stages(run), *(stage for stage in token_stages(run) if stage in MIXTURES)]
    return list(dict.fromkeys(key for stage in stages for key in CONFIG.files_needed(run, stage)))


def local_files_before_gpus(run):
    return list(dict.fromkeys(file for stage in token_stages(run) for file in CONFIG.local_files(run, stage)))


def commits_of(run):
    return {
        stage: CONFIG.run_time(run, stage)["commit_every"] or 0
        for stage in TRAININGS
        if CONFIG.owner(run, stage) == run
    }


def preflight_specification(wildcards):
    """What is to be opened: the keys that decide it, so that only they make a new proof."""
    run = wildcards.run
    settings = CONFIG.settings(run)
    named = {"tokens/pretrain": settings.base_train, "tokens/mid_train": settings.mid_train, "tokens/sft": settings.sft}
    stages = token_stages(run)
    backends = {CONFIG.run_time(run, stage)["attention_backend"] for stage in TRAININGS if stage in gpu_stages(run)}
    asked = sorted(backends - {"auto"})
    return json.dumps(
        {
            **({"attention_backends": asked} if asked else {}),
            "model": CONFIG.gpt_config(run),
            "trainings": {s: {"batch_tokens": named[s].total_batch_tokens} for s in stages if s in named},
            "mixtures": {s: json.loads(CONFIG.specification(run, s)) for s in stages if s in MIXTURES},
            "chat": (
                settings.chat_eval.model_dump(include={"tasks", "spelling_items", "sandbox"})
                if any(stage.startswith("chat_eval/") for stage in gpu_stages(run))
                else None
            ),
        },
        sort_keys=True,
    )


def claim_what_is_planned():
    """Be the only Snakemake that works on these runs, or stop before the first job."""

    def give_up(problem):
        print(f"error: {problem}, as this one was silent for too long. Stopping.", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGINT)

    runs = {job.wildcards.get("run") for job in workflow.dag.needrun_jobs()} - {None}
    try:
        driver.claim_runs(Path("results"), runs, give_up=give_up)
    except UserError as error:
        sys.exit(f"error: {error}")


def refuse_what_cannot_work():
    """Stop before the first job if a planned stage cannot work, or if a file that a planned job reads is not as published."""
    try:
        problems = problems_of_jobs(list(workflow.dag.needrun_jobs()))
    except UserError as error:
        sys.exit(f"error: {error}")
    if problems:
        sys.exit("error: nothing was started:\n" + "\n".join(f"  {problem}" for problem in problems))


def problems_of_jobs(jobs):
    planned = {(job.wildcards.get("run"), job.rule.name) for job in jobs}
    given, rows = sites(), []
    for run in CONFIG.run_names:
        if any(name == run for name, _ in planned):
            rows += [
                row for row in plan_run(CONFIG, run, given, look(CONFIG, run)) if (run, rule_of(row.stage)) in planned
            ]
    fetched = [CATALOGUE_KEYS[job.wildcards.file] for job in jobs if job.rule.name == "download_file"]
    problems = [*refusals(rows), *space_problems(needs(CONFIG, rows, fetched)), *missing_sources(CONFIG, fetched)]
    made = {str(path) for job in jobs for path in job.output}
    read = {str(path) for job in jobs for path in job.input} - made
    manifests = [Path(path) for path in read if path.endswith("manifest.json") and Path(path).exists()]
    # what nobody has hashed yet, a planned preflight will
    is_hashed_later = any(name == "preflight" for _, name in planned)
    return problems + find_problems(manifests, memory=Path("results/.verified.json"), new=not is_hashed_later)


def requeue_what_slurm_ended():
    """Where SLURM runs the jobs: put those back in the queue that it ended for good, as Snakemake waits for them in vain."""

    def give_up(problem):
        print(f"error: {problem}. Stopping; start Snakemake again to go on.", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGINT)

    if workflow.executor_plugin.name == "slurm":
        preemption.watch(Path.cwd(), give_up=give_up)


# -- traces ------------------------------------------------------------------------------------------------------------


def traced_model(wildcards):
    """The model that is traced: this run's, its own or reused."""
    return manifest_of(wildcards.run, trace_of(wildcards.run).model)


def traced_tokens(wildcards):
    """The rows that it was trained on."""
    model = trace_of(wildcards.run).model
    return manifest_of(wildcards.run, "tokens/pretrain" if model == "base_train" else f"tokens/{model}")


def model_beside(wildcards):
    """The model of another run that stands beside it, if one is named."""
    trace = trace_of(wildcards.run)
    return [manifest_of(trace.beside, trace.model)] if trace.beside else []


def trace_memory(wildcards):
    """Seven times the weights (a copy of them that moves, its gradients, the optimizers' state), and room to spare."""
    return f"{8 + 36 * count_parameters(CONFIG.gpt_config(wildcards.run)) // 10**9}GB"


def manifest_of(run, stage):
    return f"results/{owner_of(run, stage)}/{stage}/manifest.json"


def trace_of(run):
    try:
        return CONFIG.settings(run).trace
    except UserError as error:
        raise WorkflowError(str(error))


# -- reports -----------------------------------------------------------------------------------------------------------


def title_of(run):
    return CONFIG.settings(run).report.title or run


def reported(run):
    """NAME=MANIFEST of every stage, for the report program."""
    return [f"{stage}={path.format(run=owner_of(run, stage))}" for stage, path in REPORTED.items()]


def preflight_records(run):
    """NAME=RECORD of what each stage's time was predicted from, by the run that made it. Some may not be there."""
    return [f"{stage}=results/{owner_of(run, stage)}/preflight/record.json" for stage in REPORTED]


def say_where_reports_are():
    for run in CONFIG.run_names:
        if Path("results", run, "report", "manifest.json").exists():
            print(f"Report of {run}: results/{run}/report/report.html")
    if len(CONFIG.run_names) > 1 and Path("results/comparison/manifest.json").exists():
        print("Comparison of the runs: results/comparison/comparison.html")


def write_partial_reports():
    """After a failure: report what there is, and what is missing, of each run that was begun and lacks a stage."""
    for run in CONFIG.run_names:
        folder = Path("results", run)
        if folder.exists() and not all(Path(word.partition("=")[2]).exists() for word in reported(run)):
            words = ["--partial", f"{folder}/report", "--logs", f"{folder}/logs", "--title", title_of(run)]
            words += ["--preflights", *preflight_records(run)]
            words += ["--specification", CONFIG.specification(run, "report"), "--stages", *reported(run)]
            shell("python workflow/scripts/report.py {words:q}")
            print(f"Report of what there is of {run}: {folder}/report/report.html")


# -- the check of a GPU node -------------------------------------------------------------------------------------------


def gpu_check_text():
    path = Path("results/gpu_check/check.txt")
    return path.read_text() if path.is_file() else ""


GPU_CHECK_BEFORE = gpu_check_text()


def show_gpu_check():
    """Print what a check found that was made by this very call of Snakemake."""
    if (text := gpu_check_text()) != GPU_CHECK_BEFORE:
        print(text)
