# The report of a run, and the comparison of all configured runs.
#
# needs  the manifest of every stage of a run, its own or reused
# makes  results/{run}/report/: report.html, and report.md with its figures, from manifests, records and metrics alone; the times
#        that were predicted from the records of preflights, where there are some
#        results/comparison/comparison.html, if more than one run is configured


rule report:
    """Write the report of a run."""
    input:
        [owned(path) for path in REPORTED.values()],
    output:
        manifest="results/{run}/report/manifest.json",
        page=report(
            "results/{run}/report/report.html",
            category="{run}",
            caption="../report/report.rst",
            labels={"page": "report"},
        ),
        text=report(
            "results/{run}/report/report.md",
            category="{run}",
            caption="../report/text.rst",
            labels={"page": "report, as text"},
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
    localrule: True
    conda:
        "../envs/nanochat.yaml"
    params:
        specification=specification("report"),
        title=lambda wildcards: title_of(wildcards.run),
        stages=lambda wildcards: reported(wildcards.run),
        preflights=lambda wildcards: preflight_records(wildcards.run),
    shell:
        "python workflow/scripts/launch.py --no-commits"
        " --state results/{wildcards.run:q}/resume/report --log {log:q}"
        " workflow/scripts/report.py"
        " --specification {params.specification:q}"
        " --title {params.title:q}"
        " --stages {params.stages:q}"
        " --preflights {params.preflights:q}"
        " --logs results/{wildcards.run:q}/logs"
        " --manifest {output.manifest:q}"
        " 2>&1 | keep_log {log:q}"


rule comparison:
    """Compare all configured runs in one page."""
    input:
        expand("results/{run}/report/manifest.json", run=CONFIG.run_names),
    output:
        manifest="results/comparison/manifest.json",
        page=report(
            "results/comparison/comparison.html",
            category="Comparison",
            caption="../report/comparison.rst",
            labels={"page": "comparison"},
        ),
    log:
        "results/comparison/comparison.log",
    benchmark:
        "results/comparison/comparison.tsv"
    localrule: True
    conda:
        "../envs/nanochat.yaml"
    params:
        specification=json.dumps({"runs": CONFIG.run_names}),
        runs=[f"results/{run}" for run in CONFIG.run_names],
    shell:
        "python workflow/scripts/launch.py --no-commits"
        " --state results/comparison/resume/comparison --log {log:q}"
        " workflow/scripts/compare.py"
        " --specification {params.specification:q}"
        " --runs {params.runs:q}"
        " --manifest {output.manifest:q}"
        " 2>&1 | keep_log {log:q}"
