# Downloads: the only rules that reach the network. They run where Snakemake itself runs, never in a cluster job.
#
# needs  the catalogue (config: `catalogue`)
# makes  resources/{file} and resources/{file}.manifest.json, for every file of the catalogue that a configured run reads

CATALOGUE = CONFIG.catalogue
CATALOGUE_FILES = {key: CATALOGUE.get(key) for key in CONFIG.all_files()}
CATALOGUE_PATHS = {key: f"resources/{CATALOGUE.folder}/{entry.path}" for key, entry in CATALOGUE_FILES.items()}
CATALOGUE_KEYS = {path: key for key, path in CATALOGUE_PATHS.items()}


def downloaded(keys):
    """Manifests of files of the catalogue; `keys` maps a run to the files' keys."""
    return lambda wildcards: [f"{CATALOGUE_PATHS[key]}.manifest.json" for key in keys(wildcards.run)]


def download_specification(wildcards):
    key = CATALOGUE_KEYS.get(f"resources/{wildcards.file}")
    if key is None:
        raise WorkflowError(f"resources/{wildcards.file}: no configured run reads this file of {CATALOGUE.path}")
    return json.dumps({"key": key, "revision": CATALOGUE_FILES[key].revision}, sort_keys=True)


rule download:
    """Fetch every file that any configured run will ever read."""
    localrule: True
    input:
        expand("{path}.manifest.json", path=CATALOGUE_PATHS.values()),


rule download_file:
    """Fetch one file of the catalogue, check it, and publish it with a manifest of its own."""
    output:
        manifest="resources/{file}.manifest.json",
    log:
        "logs/download/{file}.log",
    benchmark:
        "benchmarks/results/download/{file}.tsv"
    params:
        specification=download_specification,
    resources:
        catalogue=str(CATALOGUE.path),
    localrule: True
    conda:
        "../envs/nanochat.yaml"
    shell:
        "python workflow/scripts/download.py"
        " --catalogue {resources.catalogue:q}"
        " --specification {params.specification:q}"
        " --manifest {output.manifest:q}"
        " 2>&1 | tee {log:q}"
