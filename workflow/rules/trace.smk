# What the model does with one prompt, and what one step of its training does, number by number.
#
# needs  a trained model, the rows that it was trained on; the same model of another run, if one is to stand beside it
# makes  results/{run}/trace/: trace.json with every number, and forward.html and step.html, which show them


rule trace:
    """Trace a prompt through the model, and one step of its training."""
    input:
        model=traced_model,
        tokens=traced_tokens,
        beside=model_beside,
    output:
        manifest="results/{run}/trace/manifest.json",
        forward=report(
            "results/{run}/trace/forward.html",
            category="{run}",
            caption="../report/forward.rst",
            labels={"page": "forward pass"},
        ),
        step=report(
            "results/{run}/trace/step.html",
            category="{run}",
            caption="../report/step.rst",
            labels={"page": "training step"},
        ),
    log:
        "results/{run}/logs/trace.log",
    benchmark:
        "results/{run}/benchmarks/trace.tsv"
    conda:
        "../envs/nanochat.yaml"
    threads: 1  # so that the same sums are made in the same order, however many cores a node has
    resources:
        mem=trace_memory,
        runtime="4h",
    params:
        specification=specification("trace"),
    shell:
        "python workflow/scripts/launch.py --no-commits --runtime-min {resources.runtime}"
        " --state results/{wildcards.run:q}/resume/trace --log {log:q}"
        " workflow/scripts/trace.py"
        " --specification {params.specification:q}"
        " --run {wildcards.run:q}"
        " --model {input.model:q}"
        " --tokens {input.tokens:q}"
        " --beside {input.beside:q}"
        " --manifest {output.manifest:q}"
        " 2>&1 | keep_log {log:q}"
