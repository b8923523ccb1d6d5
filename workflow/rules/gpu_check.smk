# A look at the machine that trainings get. For people: `snakemake gpu_check --profile profiles/ptolemy`
#
# needs  nothing
# makes  results/gpu_check/check.json and check.txt. They are no declared output: asked for again, the machine is checked again


rule gpu_check:
    """Check the GPU node in one short job: GPUs, PyTorch, attention, speed, memory, network."""
    log:
        "results/gpu_check/gpu_check.log",
    conda:
        "../envs/nanochat.yaml"
    threads: 16
    resources:
        ranks=1,
        slurm_extra=SLURM_EXTRA,
        mem="32GB",
        runtime="15m",
        device="auto",
    params:
        model=json.dumps(CONFIG.gpt_config(CONFIG.run_names[0]), sort_keys=True),
    shell:
        "python workflow/scripts/launch.py --ranks {resources.ranks} --runtime-min {resources.runtime}"
        " --state results/gpu_check/resume/gpu_check --log {log:q}"
        " workflow/scripts/gpu_check.py"
        " --model {params.model:q}"
        " --folder results/gpu_check"
        " --device {resources.device:q}"
        " 2>&1 | keep_log {log:q}"
