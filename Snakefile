# Train a small ChatGPT from raw text to a chat window. Start here; the rules follow in the order in which they run.
#
#   snakemake --profile profiles/laptop --configfile config/tiny.yaml            everything, on this machine
#   snakemake --profile profiles/laptop --configfile config/tiny.yaml -n         what would be done, and why
#   snakemake --profile profiles/laptop --configfile config/tiny.yaml --until sft
#   snakemake results/tiny/sft/manifest.json --profile profiles/laptop --configfile config/tiny.yaml

from snakemake.utils import min_version

min_version("9.27")


# a file given with --configfile stands alone: merged with this one, its runs would be planned beside d20
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/download.smk"
include: "workflow/rules/tokenizer.smk"
include: "workflow/rules/tokens.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/base.smk"
include: "workflow/rules/chat.smk"
include: "workflow/rules/trace.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/gpu_check.smk"


rule all:
    """Make the report of every run, and all that it needs; with several runs, their comparison."""
    default_target: True
    input:
        expand("results/{run}/report/manifest.json", run=CONFIG.run_names),
        ["results/comparison/manifest.json"] if len(CONFIG.run_names) > 1 else [],
    localrule: True


onstart:
    claim_what_is_planned()
    refuse_what_cannot_work()
    requeue_what_slurm_ended()


onsuccess:
    say_where_reports_are()
    show_gpu_check()


onerror:
    write_partial_reports()
