"""The table of devices: names as PyTorch and as clusters give them."""

import re

import pytest

from nanochat.planning.hardware import DEVICES, by_gres, find, gpus_here


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ],
)
def test_a_device_is_found_by_the_name_that_pytorch_gives_it(name, device):
    assert find(name).name == device


@pytest.mark.parametrize("name", ["cpu", "", None, "NVIDIA A1000 Laptop GPU", "Some Accelerator 9000"])
def test_what_is_not_in_the_table_is_not_guessed(name):
    assert find(name) is None


@pytest.mark.parametrize(
    ("type_", "device"), [("a100", "A100 80GB"), ("A100_40gb", "A100 40GB"), ("nvidia_h100_80gb_hbm3", "H100 SXM")]
)
def test_a_device_is_found_by_the_type_that_a_cluster_gives_it(type_, device):
    assert by_gres(type_).name == device


def test_peaks_are_dense_bf16_and_memory_is_what_a_program_can_see():
    a100 = find("NVIDIA A100-SXM4-80GB")
    assert a100.peak_flops == 312e12
    assert 79 * 2**30 < a100.memory_bytes < 80 * 2**30
    for pattern, device in DEVICES:
        assert re.compile(pattern) and 5e13 < device.peak_flops < 5e15 and 2e11 < device.bandwidth < 1e13, device.name


def test_the_gpus_of_this_machine_are_asked_of_the_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus_here() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA A100-SXM4-80GB\necho NVIDIA A100-SXM4-80GB\n")
    program.chmod(0o755)
    assert gpus_here() == ["NVIDIA A100-SXM4-80GB"] * 2
    program.write_text("#!/bin/sh\necho no driver >&2; exit 9\n")
    assert gpus_here() == []
