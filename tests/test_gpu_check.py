"""gpu_check: what one short job tells of the machine that trainings get. Here CPUs with two ranks, GPUs where there are any."""

import json
import re
import subprocess
import sys
import warnings

import pytest
import torch
from project import ROOT, Project

from nanochat.distributed import Ranks
from nanochat.gpt import GPTConfig
from nanochat.jobs import machine_check

A100 = {
    "name": "NVIDIA A100-SXM4-80GB",
    "has_bf16": True,
    "peak_flops": 312e12,
    "flops_per_second": 2.5e14,
    "memory_free": 78 * 2**30,
    "memory_total": 79 * 2**30,
    "error": None,
}
WELL = {
    "on_gpu": True,
    "gpu_problem": None,
    "devices": [A100] * 8,
    "attention": {"chosen": "flash"},
    "exchange": {"is_right": True},
    "network": {"method": "namespace", "description": "refused", "routes": []},
}
SMALL = GPTConfig(vocab_size=64, n_layer=1, n_head=4, n_kv_head=4, n_embd=64, sequence_len=32).as_dict()
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
with_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


# -- judgement ---------------------------------------------------------------------------------------------------------------


def test_a_machine_that_is_well_has_no_problems_and_no_warnings():
    assert machine_check.problems_of(WELL) == [] and machine_check.warnings_of(WELL) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu_problem": "8 ranks were started, and PyTorch sees 4 of the GPUs"}, "sees 4 of the GPUs"),
        ({"devices": [A100, {**A100, "name": "Tesla V100", "has_bf16": False}]}, r"GPU 1 \(Tesla V100\) has no bfloat16"),
        ({"devices": [{**A100, "error": "no kernel image"}]}, r"rank 0 \(NVIDIA A100-SXM4-80GB\): no kernel image"),
        ({"attention": None, "attention_error": "out of memory"}, "attention: out of memory"),
        ({"exchange": {"is_right": False}}, "wrong numbers"),
        ({"exchange": None, "exchange_error": "NCCL error"}, "cannot exchange gradients: NCCL error"),
        ({"network": {"method": "namespace", "routes": ["eth0"]}}, "leaks: there are routes over eth0"),
    ],
)
def test_what_a_training_needs_and_does_not_find_is_a_problem(changes, words):
    problems = machine_check.problems_of({**WELL, **changes})
    assert len(problems) == 1 and re.search(words, problems[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devices": [A100] * 7 + [{**A100, "flops_per_second": 1.9e14}]}, "GPU 7 is slower than the others"),
        ({"devices": [{**A100, "flops_per_second": 1e14}] * 8}, "GPU 0 reaches 32% of its peak"),
        ({"attention": {"chosen": "math"}}, "without a fused kernel"),
        ({"network": {"method": "hook", "routes": []}}, "not refused by the kernel"),
    ],
)
def test_what_works_badly_is_a_warning_and_no_problem(changes, words):
    found = {**WELL, **changes}
    assert words in machine_check.warnings_of(found)[0] and machine_check.problems_of(found) == []


# -- why PyTorch gives no GPU ------------------------------------------------------------------------------------------------


@pytest.fixture
def cuda_build(monkeypatch):
    """PyTorch as it would be when built for CUDA; returns a way to say what it finds."""

    def finds(num_gpus: int, warning: str = "") -> None:
        def is_available() -> bool:
            if warning:
                warnings.warn(warning, stacklevel=2)
            return num_gpus > 0

        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)

    return finds


def test_a_driver_that_is_too_old_is_named_with_the_remedy(cuda_build, monkeypatch):
    cuda_build(0, "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update")
    monkeypatch.setattr(machine_check, "driver_version", lambda: "470.57.02")
    problem = machine_check.gpu_problem(8)
    assert (
        problem.startswith("the driver (470.57.02) is too old for a PyTorch built for CUDA 12.8") and "TORCH_INDEX" in problem
    )


def test_fewer_gpus_than_ranks_are_a_problem(cuda_build):
    cuda_build(4)
    assert machine_check.gpu_problem(8).startswith("8 ranks were started, and PyTorch sees 4 of the GPUs")
    assert machine_check.gpu_problem(4) is None


@pytest.mark.parametrize(
    ("module", "version"),
    [
        ("NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\nGCC version:  gcc 9.3", "470.57.02"),
        ("NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build", "580.159.04"),
        ("NVIDIA UNIX Open Kernel Module for aarch64  570.86", "570.86"),
    ],
)
def test_the_driver_is_read_from_its_kernel_module(tmp_path, monkeypatch, module, version):
    (tmp_path / "version").write_text(f"NVRM version: {module}\n")
    monkeypatch.setattr(machine_check, "DRIVER", tmp_path / "version")
    assert machine_check.driver_version() == version


def test_no_gpu_at_all_is_a_problem(cuda_build):
    cuda_build(0)
    assert machine_check.gpu_problem(1) == "PyTorch sees no GPU here: no driver, or the job was given none (--gres)"


@no_gpu
def test_gpus_given_by_the_scheduler_are_meant_to_be_used(monkeypatch):
    monkeypatch.setattr(machine_check, "driver_version", lambda: None)
    for visible, are_meant in [("", False), ("NoDevFiles", False), ("-1", False), ("0,1", True)]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert machine_check.are_gpus_meant("auto") is are_meant
        assert machine_check.are_gpus_meant("cpu") is False


# -- measurements ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_the_attention_back_end_that_pytorch_takes_is_one_that_runs(num_kv_heads):
    found = machine_check.attention({**SMALL, "n_kv_head": num_kv_heads}, torch.device("cpu"))
    assert found["milliseconds"]["math"] > 0
    assert found["chosen"] is None or found["milliseconds"][found["chosen"]] > 0
    assert set(found["milliseconds"]) == set(machine_check.BACK_ENDS)


def test_products_have_a_rate_and_one_rank_exchanges_nothing(monkeypatch):
    monkeypatch.setitem(machine_check.PRODUCT_SIZE, "cpu", 64)
    assert machine_check.product_rate(torch.device("cpu")) > 0
    assert machine_check.exchange(Ranks(), torch.device("cpu")) is None


@with_gpu
def test_a_gpu_is_described_and_measured():
    device = torch.device("cuda", 0)
    found = machine_check.describe(device)
    assert 0 < found["memory_free"] <= found["memory_total"]
    assert machine_check.product_rate(device) > 1e12
    assert machine_check.attention(SMALL | {"n_embd": 256, "n_head": 4}, device)["milliseconds"]["math"] > 0
    assert machine_check.gpu_problem(1) is None and machine_check.driver_version()


# -- the whole ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_ranks_on_the_cpu_are_checked_and_again_when_asked_again(tmp_path):
    project = Project(tmp_path)
    project.configure()
    path = project.folder / "results" / "gpu_check" / "check.json"
    options = ("gpu_check", "--set-resources", "gpu_check:ranks=2", "gpu_check:device=cpu")
    output = project.run(*options)
    found = json.loads(path.read_text())
    assert (found["ranks"], len(found["devices"]), found["problems"]) == (2, 2, [])
    assert found["exchange"]["is_right"] and found["exchange"]["bytes_per_second"] > 0
    assert found["attention"]["shape"]["head_dim"] == 16 and all(device["flops_per_second"] for device in found["devices"])
    assert found["network"]["method"] in ("namespace", "hook")
    text = (project.folder / "results" / "gpu_check" / "check.txt").read_text()
    assert text.splitlines()[0].endswith("all that a training needs is there")
    assert text in output  # the person who asked sees it, wherever the job ran
    assert project.planned(*options) == {"gpu_check": 1}


@no_gpu
@pytest.mark.slow
def test_a_missing_gpu_ends_it_with_words_and_leaves_the_rest_of_what_was_found(tmp_path):
    command = ["workflow/scripts/launch.py", "--ranks", "2", "--state", str(tmp_path / "resume/gpu_check")]
    command += ["workflow/scripts/gpu_check.py", "--model", json.dumps(SMALL), "--folder", str(tmp_path), "--device", "cuda"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    why = "build for CPUs" if torch.version.cuda is None else "PyTorch sees no GPU here"
    assert done.stderr.count("error: ") == 1 and why in done.stderr and "Traceback" not in done.stderr
    found = json.loads((tmp_path / "check.json").read_text())
    assert len(found["problems"]) == 1 and found["versions"]["torch"] == torch.__version__ and found["disk"]["free"] > 0
