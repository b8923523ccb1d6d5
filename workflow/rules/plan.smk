# Before anything is submitted: what it will cost, and the proof that nothing is missing.
#
# needs  for the plan nothing; for the proof all that the GPU stages of a run read, its models aside
# makes  the plan on the screen; results/{run}/preflight/manifest.json


rule plan:
    """Print what every run will cost, what is missing and what cannot work."""
    log:
        "logs/plan.log",
    localrule: True
    conda:
        "../envs/nanochat.yaml"
    threads: 16
    params:
        configuration=lambda wildcards: json.dumps(config),
        source=os.path.relpath(CONFIG_FILE),
        sites=lambda wildcards, threads: [f"{stage}={site}" for stage, site in sites().items()],
    shell:
        "python workflow/scripts/plan.py"
        " --configuration {params.configuration:q}"
        " --source {params.source:q}"
        " --sites {params.sites:q}"
        " 2>&1 | keep_log {log:q}"


# No GPU stage starts without the proof, and none is done again because of a new one: `proof` in common.smk.
rule preflight:
    """Verify and open, without network, everything that a run's GPU stages read."""
    input:
        tokenizer=owned("results/{run}/tokenizer/manifest.json"),
        tokens=lambda wildcards: [
            owned(f"results/{{run}}/{stage}/manifest.json")(wildcards) for stage in token_stages(wildcards.run)
        ],
        data=downloaded(lambda run: files_before_gpus(run)),
        files=lambda wildcards: local_files_before_gpus(wildcards.run),
    output:
        manifest="results/{run}/preflight/manifest.json",
    log:
        "results/{run}/logs/preflight.log",
    benchmark:
        "results/{run}/benchmarks/preflight.tsv"
    localrule: True
    conda:
        "../envs/nanochat.yaml"
    threads: 16
    resources:
        sites=lambda wildcards: " ".join(f"{stage}={site}" for stage, site in sites().items()),
        commit_every=lambda wildcards: " ".join(
            f"{stage}={steps}" for stage, steps in commits_of(wildcards.run).items()
        ),
    params:
        specification=preflight_specification,
    shell:
        "python workflow/scripts/launch.py --no-commits --state results/{wildcards.run:q}/resume/preflight --log {log:q}"
        " workflow/scripts/preflight.py"
        " --specification {params.specification:q}"
        " --tokenizer {input.tokenizer:q}"
        " --tokens {input.tokens:q}"
        " --data {input.data:q}"
        " --files {input.files:q}"
        " --sites {resources.sites}"
        " --commit-every {resources.commit_every}"
        " --memory results/.verified.json"
        " --manifest {output.manifest:q}"
        " 2>&1 | keep_log {log:q}"
