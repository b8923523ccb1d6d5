# The chat model: two further trainings, on conversations, and their scores.
#
# needs  the preflight's proof, the base model, the packed conversations; for the scores the test files of the chat tasks
# makes  results/{run}/mid_train/ and results/{run}/sft/ (model folders); results/{run}/chat_eval/mid_train/ and chat_eval/sft/


rule mid_train:
    """Train the base model on conversations: special tokens, tools, multiple choice."""
    input:
        tokenizer=owned("results/{run}/tokenizer/manifest.json"),
        tokens=owned("results/{run}/tokens/mid_train/manifest.json"),
        model=owned("results/{run}/base_train/manifest.json"),
        preflight=proof("mid_train"),
    output:
        manifest="results/{run}/mid_train/manifest.json",
    log:
        "results/{run}/logs/mid_train.log",
    benchmark:
        "results/{run}/benchmarks/mid_train.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 16
    resources:
        ranks=1,
        slurm_extra=SLURM_EXTRA,
        mem="64GB",
        runtime="12h",
        micro_batch=run_time("mid_train", "micro_batch"),
        commit_every=run_time("mid_train", "commit_every"),
        attention_backend=run_time("mid_train", "attention_backend"),
        compile=run_time("mid_train", "compile"),
        recompute=run_time("mid_train", "recompute"),
        determinism=run_time("mid_train", "determinism"),
    params:
        specification=specification("mid_train"),
        resume="results/{run}/resume/mid_train",
    shell:
        "python workflow/scripts/launch.py --ranks {resources.ranks} --runtime-min {resources.runtime}"
        " --state {params.resume:q} --log {log:q}"
        " workflow/scripts/train.py"
        " --specification {params.specification:q}"
        " --start-from {input.model:q}"
        " --micro-batch {resources.micro_batch}"
        " --commit-every {resources.commit_every}"
        " --attention-backend {resources.attention_backend}"
        " --compile {resources.compile}"
        " --recompute {resources.recompute}"
        " --determinism {resources.determinism}"
        " --tokenizer {input.tokenizer:q}"
        " --tokens {input.tokens:q}"
        " --resume {params.resume:q}"
        " --manifest {output.manifest:q}"
        " 2>&1 | keep_log {log:q}"


use rule mid_train as sft with:
    input:
        tokenizer=owned("results/{run}/tokenizer/manifest.json"),
        tokens=owned("results/{run}/tokens/sft/manifest.json"),
        model=owned("results/{run}/mid_train/manifest.json"),
        preflight=proof("sft"),
    output:
        manifest="results/{run}/sft/manifest.json",
    log:
        "results/{run}/logs/sft.log",
    benchmark:
        "results/{run}/benchmarks/sft.tsv"
    resources:
        ranks=1,
        slurm_extra=SLURM_EXTRA,
        mem="64GB",
        runtime="12h",
        micro_batch=run_time("sft", "micro_batch"),
        commit_every=run_time("sft", "commit_every"),
        attention_backend=run_time("sft", "attention_backend"),
        compile=run_time("sft", "compile"),
        recompute=run_time("sft", "recompute"),
        determinism=run_time("sft", "determinism"),
    params:
        specification=specification("sft"),
        resume="results/{run}/resume/sft",


rule chat_eval:
    """Score a chat model on the chat tasks, after mid_train and after sft."""
    input:
        model=lambda wildcards: owned(f"results/{{run}}/{wildcards.model}/manifest.json")(wildcards),
        data=downloaded(lambda run: CONFIG.files_needed(run, "chat_eval/sft")),
        preflight=lambda wildcards: proof(f"chat_eval/{wildcards.model}")(wildcards),
    output:
        manifest="results/{run}/chat_eval/{model}/manifest.json",
    log:
        "results/{run}/logs/chat_eval_{model}.log",
    benchmark:
        "results/{run}/benchmarks/chat_eval_{model}.tsv"
    wildcard_constraints:
        model="mid_train|sft",
    conda:
        "../envs/nanochat.yaml"
    threads: 16
    resources:
        ranks=1,
        slurm_extra=SLURM_EXTRA,
        mem="64GB",
        runtime="4h",
    params:
        specification=lambda wildcards: specification(f"chat_eval/{wildcards.model}")(wildcards),
    shell:
        "python workflow/scripts/launch.py --ranks {resources.ranks} --runtime-min {resources.runtime}"
        " --state results/{wildcards.run:q}/resume/chat_eval/{wildcards.model} --log {log:q}"
        " workflow/scripts/chat_eval.py"
        " --specification {params.specification:q}"
        " --model {input.model:q}"
        " --data {input.data:q}"
        " --manifest {output.manifest:q}"
        " 2>&1 | keep_log {log:q}"
