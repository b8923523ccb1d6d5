# Tokens: all text, all conversations and the prompts of CORE become token ids once, on CPUs, before any GPU waits.
#
# needs  the tokenizer; the shards of text; the files of the tasks in the mixtures; the CORE bundle
# makes  results/{run}/tokens/pretrain/, tokens/mid_train/ and tokens/sft/: rows of sequence_len + 1 ids as .npy, with masks;
#        results/{run}/tokens/core/: prompts of any length as .npy, and where each begins


rule tokens_pretrain:
    """Tokenize and pack the text to pretrain on."""
    input:
        tokenizer=owned("results/{run}/tokenizer/manifest.json"),
        shards=downloaded(CONFIG.training_shards),
        validation_shard=downloaded(lambda run: [CONFIG.validation_shard(run)]),
    output:
        manifest="results/{run}/tokens/pretrain/manifest.json",
    log:
        "results/{run}/logs/tokens_pretrain.log",
    benchmark:
        "results/{run}/benchmarks/tokens_pretrain.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 16
    resources:
        mem="32GB",
        runtime="4h",
    params:
        specification=specification("tokens/pretrain"),
    shell:
        "python workflow/scripts/launch.py --no-commits --runtime-min {resources.runtime}"
        " --state results/{wildcards.run:q}/resume/tokens/pretrain --log {log:q}"
        " workflow/scripts/tokens_text.py"
        " --specification {params.specification:q}"
        " --tokenizer {input.tokenizer:q}"
        " --shards {input.shards:q}"
        " --validation-shard {input.validation_shard:q}"
        " --threads {threads}"
        " --manifest {output.manifest:q}"
        " 2>&1 | keep_log {log:q}"


rule tokens_mid_train:
    """Render, tokenize and pack the conversations of mid_train."""
    input:
        tokenizer=owned("results/{run}/tokenizer/manifest.json"),
        data=downloaded(lambda run: CONFIG.files_needed(run, "tokens/mid_train")),
        files=lambda wildcards: CONFIG.local_files(wildcards.run, "tokens/mid_train"),
    output:
        manifest="results/{run}/tokens/mid_train/manifest.json",
    log:
        "results/{run}/logs/tokens_mid_train.log",
    benchmark:
        "results/{run}/benchmarks/tokens_mid_train.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 4
    resources:
        mem="32GB",
        runtime="2h",
    params:
        specification=specification("tokens/mid_train"),
        state="results/{run}/resume/tokens/mid_train",
    shell:
        "python workflow/scripts/launch.py --no-commits --runtime-min {resources.runtime}"
        " --state {params.state:q} --log {log:q}"
        " workflow/scripts/tokens_conversations.py"
        " --specification {params.specification:q}"
        " --tokenizer {input.tokenizer:q}"
        " --data {input.data:q}"
        " --files {input.files:q}"
        " --threads {threads}"
        " --manifest {output.manifest:q}"
        " 2>&1 | keep_log {log:q}"


use rule tokens_mid_train as tokens_sft with:
    input:
        tokenizer=owned("results/{run}/tokenizer/manifest.json"),
        data=downloaded(lambda run: CONFIG.files_needed(run, "tokens/sft")),
        files=lambda wildcards: CONFIG.local_files(wildcards.run, "tokens/sft"),
    output:
        manifest="results/{run}/tokens/sft/manifest.json",
    log:
        "results/{run}/logs/tokens_sft.log",
    benchmark:
        "results/{run}/benchmarks/tokens_sft.tsv"
    params:
        specification=specification("tokens/sft"),
        state="results/{run}/resume/tokens/sft",


rule tokens_core:
    """Render and tokenize the prompts of CORE."""
    input:
        tokenizer=owned("results/{run}/tokenizer/manifest.json"),
        data=downloaded(lambda run: CONFIG.files_needed(run, "tokens/core")),
    output:
        manifest="results/{run}/tokens/core/manifest.json",
    log:
        "results/{run}/logs/tokens_core.log",
    benchmark:
        "results/{run}/benchmarks/tokens_core.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 4
    resources:
        mem="8GB",
        runtime="1h",
    params:
        specification=specification("tokens/core"),
    shell:
        "python workflow/scripts/launch.py --no-commits --runtime-min {resources.runtime}"
        " --state results/{wildcards.run:q}/resume/tokens/core --log {log:q}"
        " workflow/scripts/tokens_core.py"
        " --specification {params.specification:q}"
        " --tokenizer {input.tokenizer:q}"
        " --data {input.data:q}"
        " --threads {threads}"
        " --manifest {output.manifest:q}"
        " 2>&1 | keep_log {log:q}"
