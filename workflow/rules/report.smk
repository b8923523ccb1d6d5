# The report of a run.
#
# needs  the manifest of every stage of the run, its own or reused
# makes  results/{run}/report/report.md and its figures, from manifests, records and metrics alone

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


def title_of(run):
    return CONFIG.settings(run).report.title or run


def reported(run):
    """NAME=MANIFEST of every stage, for the report program."""
    return [f"{stage}={path.format(run=owner_of(run, stage))}" for stage, path in REPORTED.items()]


def write_partial_reports():
    """After a failure: report what there is, and what is missing. The runs that did finish have their reports already."""
    for run in CONFIG.run_names:
        folder = Path("results", run)
        if not folder.exists() or (folder / "report" / "manifest.json").exists():
            continue
        command = ["python", "workflow/scripts/report.py", "--partial", folder / "report", "--logs", folder / "logs"]
        command += ["--title", title_of(run), "--specification", CONFIG.specification(run, "report")]
        if subprocess.run([*command, "--stages", *reported(run)]).returncode == 0:
            print(f"Report of what there is of {run}: {folder}/report/report.md")


rule report:
    """Write the report of a run."""
    input:
        [owned(path) for path in REPORTED.values()],
    output:
        manifest="results/{run}/report/manifest.json",
        report=report(
            "results/{run}/report/report.md",
            category="{run}",
            caption="../report/report.rst",
            labels={"page": "report"},
        ),
        loss=report(
            "results/{run}/report/loss.png",
            category="{run}",
            caption="../report/loss.rst",
            labels={"page": "losses"},
        ),
        core=report(
            "results/{run}/report/core.png",
            category="{run}",
            caption="../report/core.rst",
            labels={"page": "CORE"},
        ),
        chat=report(
            "results/{run}/report/chat.png",
            category="{run}",
            caption="../report/chat.rst",
            labels={"page": "chat scores"},
        ),
    log:
        "results/{run}/logs/report.log",
    benchmark:
        "results/{run}/benchmarks/report.tsv"
    params:
        specification=specification("report"),
        title=lambda wildcards: title_of(wildcards.run),
        stages=lambda wildcards: reported(wildcards.run),
    localrule: True
    conda:
        "../envs/nanochat.yaml"
    shell:
        "python workflow/scripts/report.py"
        " --specification {params.specification:q}"
        " --title {params.title:q}"
        " --stages {params.stages:q}"
        " --logs results/{wildcards.run:q}/logs"
        " --manifest {output.manifest:q}"
        " 2>&1 | tee {log:q}"
