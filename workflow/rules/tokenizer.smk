# The tokenizer.
#
# needs  the first training shards and the validation shard; GPT-2's and GPT-4's vocabularies where they are in the catalogue
# makes  results/{run}/tokenizer/tokenizer.json


rule tokenizer:
    """Train the tokenizer, and compare its compression with known vocabularies."""
    input:
        shards=downloaded(CONFIG.tokenizer_shards),
        validation_shard=downloaded(lambda run: [CONFIG.validation_shard(run)]),
        vocabularies=downloaded(vocabularies),
    output:
        manifest="results/{run}/tokenizer/manifest.json",
    log:
        "results/{run}/logs/tokenizer.log",
    benchmark:
        "results/{run}/benchmarks/tokenizer.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 16
    resources:
        mem="32GB",
        runtime="2h",
    params:
        specification=specification("tokenizer"),
    shell:
        "python workflow/scripts/launch.py --no-commits --runtime-min {resources.runtime}"
        " --state results/{wildcards.run:q}/resume/tokenizer --log {log:q}"
        " workflow/scripts/tokenizer.py"
        " --specification {params.specification:q}"
        " --shards {input.shards:q}"
        " --validation-shard {input.validation_shard:q}"
        " --vocabularies {input.vocabularies:q}"
        " --manifest {output.manifest:q}"
        " 2>&1 | keep_log {log:q}"
