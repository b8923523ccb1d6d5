# Downloads: the only rules that reach the network. They run where Snakemake itself runs, never in a cluster job.
#
# needs  the catalogue (config: `catalogue`)
# makes  resources/{file} and resources/{file}.manifest.json, for every file of the catalogue that a configured run reads, and
#        resources/{folder}.lock.jsonl: what files were at their first download whose sha256 the catalogue does not give
#
# resources/ may be a link to a read-only folder that a class shares: finished files there are used as they are.


rule download:
    """Fetch every file that any configured run will ever read."""
    input:
        expand("resources/{file}.manifest.json", file=CATALOGUE_PATHS.values()),
    localrule: True


rule download_file:
    """Fetch one file of the catalogue, check it, and publish it with a manifest of its own."""
    output:
        manifest="resources/{file}.manifest.json",
    log:
        "logs/download/{file}.log",
    benchmark:
        "benchmarks/results/download/{file}.tsv"
    localrule: True
    conda:
        "../envs/nanochat.yaml"
    resources:
        catalogue=str(CONFIG.catalogue.path),
        lock=f"resources/{CONFIG.catalogue.folder}.lock.jsonl",
    params:
        specification=download_specification,
    shell:
        "python workflow/scripts/download.py"
        " --catalogue {resources.catalogue:q}"
        " --lock {resources.lock:q}"
        " --specification {params.specification:q}"
        " --manifest {output.manifest:q}"
        " 2>&1 | tee {log:q}"
