# The report of a run.
#
# needs  the manifest of every stage of the run, its own or reused
# makes  results/{run}/report/report.md and its figures, from manifests, records and metrics alone; the times that were predicted
#        from the records of preflights, where there are some


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
