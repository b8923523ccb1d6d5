# The base model: predicts the next token of any text.
#
# needs  the preflight's proof, the tokenizer, the packed text; for the evaluation the prompts of CORE
# makes  results/{run}/base_train/ (a model folder) and results/{run}/base_eval/ (bits per byte, CORE, samples)


rule base_train:
    """Train the base model on text."""
    input:
        tokenizer=owned("results/{run}/tokenizer/manifest.json"),
        tokens=owned("results/{run}/tokens/pretrain/manifest.json"),
        preflight=proof("base_train"),
    output:
        manifest="results/{run}/base_train/manifest.json",
    log:
        "results/{run}/logs/base_train.log",
    benchmark:
        "results/{run}/benchmarks/base_train.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 16
    resources:
        ranks=1,
        slurm_extra=SLURM_EXTRA,
        mem="64GB",
        runtime="12h",
        micro_batch=run_time("base_train", "micro_batch"),
        commit_every=run_time("base_train", "commit_every"),
        attention_backend=run_time("base_train", "attention_backend"),
        compile=run_time("base_train", "compile"),
        recompute=run_time("base_train", "recompute"),
        determinism=run_time("base_train", "determinism"),
    params:
        specification=specification("base_train"),
        model=lambda wildcards: json.dumps(CONFIG.gpt_config(wildcards.run), sort_keys=True),
    shell:
        "python workflow/scripts/launch.py --ranks {resources.ranks} --runtime-min {resources.runtime}"
        " --state results/{wildcards.run:q}/resume/base_train --log {log:q}"
        " workflow/scripts/train.py"
        " --specification {params.specification:q}"
        " --model {params.model:q}"
        " --micro-batch {resources.micro_batch}"
        " --commit-every {resources.commit_every}"
        " --attention-backend {resources.attention_backend}"
        " --compile {resources.compile}"
        " --recompute {resources.recompute}"
        " --determinism {resources.determinism}"
        " --tokenizer {input.tokenizer:q}"
        " --tokens {input.tokens:q}"
        " --resume results/{wildcards.run:q}/resume/base_train"
        " --manifest {output.manifest:q}"
        " 2>&1 | keep_log {log:q}"


rule base_eval:
    """Evaluate the base model: bits per byte, CORE, samples."""
    input:
        model=owned("results/{run}/base_train/manifest.json"),
        tokens=owned("results/{run}/tokens/pretrain/manifest.json"),
        core=owned("results/{run}/tokens/core/manifest.json"),
        preflight=proof("base_eval"),
    output:
        manifest="results/{run}/base_eval/manifest.json",
    log:
        "results/{run}/logs/base_eval.log",
    benchmark:
        "results/{run}/benchmarks/base_eval.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 16
    resources:
        ranks=1,
        slurm_extra=SLURM_EXTRA,
        mem="64GB",
        runtime="4h",
    params:
        specification=specification("base_eval"),
    shell:
        "python workflow/scripts/launch.py --ranks {resources.ranks} --runtime-min {resources.runtime}"
        " --state results/{wildcards.run:q}/resume/base_eval --log {log:q}"
        " workflow/scripts/base_eval.py"
        " --specification {params.specification:q}"
        " --model {input.model:q}"
        " --tokens {input.tokens:q}"
        " --core {input.core:q}"
        " --manifest {output.manifest:q}"
        " 2>&1 | keep_log {log:q}"
