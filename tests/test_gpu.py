"""On a CUDA GPU: the same numbers as on the CPU, and the same bits after a resume. Skipped where there is no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_models import PRESETS, random_model

from nanochat.kv_cache import KVCache

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
]

PROGRAM = Path(__file__).with_name("training.py")
WIDE = {"vocab_size": 1000, "n_layer": 4, "n_embd": 256, "sequence_len": 512}


def token_ids(model, *shape):
    return torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def on_gpu(model, dtype=torch.float32):
    model.compute_dtype = dtype
    return model.cuda()


def relative_error(found, expected):
    return float((found.cpu().float() - expected).norm() / expected.norm())


def train(folder, *options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(PROGRAM.parent.parent), *sys.path])}
    command = [sys.executable, str(PROGRAM), str(folder), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180)


def finish(folder, *options):
    done = train(folder, *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def losses(training):
    return [row["loss"] for row in training["metrics"] if "loss" in row]


@pytest.mark.parametrize("sizes", PRESETS.values(), ids=PRESETS)
@torch.inference_mode()
def test_the_forward_pass_in_fp32_equals_that_of_the_cpu(sizes):
    model = random_model(**sizes, **WIDE)
    idx = token_ids(model, 3, 300)
    expected = model(idx)
    torch.testing.assert_close(on_gpu(model)(idx.cuda()).cpu(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sizes", PRESETS.values(), ids=PRESETS)
@torch.inference_mode()
def test_the_forward_pass_in_bf16_is_near_that_of_the_cpu_in_fp32(sizes):
    model, other = random_model(**sizes, **WIDE), random_model(**sizes, **WIDE, seed=1)
    idx = token_ids(model, 3, 300)
    expected = model(idx)
    assert relative_error(on_gpu(model, torch.bfloat16)(idx.cuda()), expected) < 0.03
    assert relative_error(on_gpu(other, torch.bfloat16)(idx.cuda()), expected) > 0.5  # negative control


@pytest.mark.parametrize("sizes", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)], ids=["fp32", "bf16"])
@torch.inference_mode()
def test_cached_decoding_equals_full_forward(sizes, dtype, tolerance):
    model = random_model(**sizes, **WIDE)
    idx = token_ids(model, 3, 40)
    expected = model(idx)
    model = on_gpu(model, dtype)
    cache = KVCache(model.config, 3, 40, dtype, "cuda")
    parts = []
    for part in idx.cuda().split([7, 1, 1, 12, 1, 18], dim=1):
        parts.append(model(part, cache))
        cache.advance(part.size(1))
    assert relative_error(torch.cat(parts, dim=1), expected) < tolerance


@pytest.mark.parametrize(
    "options",
    [
        ["--dtype", "float32"],
        ["--dtype", "bfloat16"],
        # long enough for attention's gradients to be sums over several blocks of keys, which by default come in any order
        ["--dtype", "float32", "--length", 2048],
        ["--dtype", "bfloat16", "--length", 2048],
    ],
    ids=["fp32", "bf16", "fp32 long", "bf16 long"],
)
def test_a_training_killed_and_started_again_ends_in_the_same_bits(tmp_path, options):
    options = ["--device", "cuda", *options]
    undisturbed = finish(tmp_path / "undisturbed", *options)
    for step in (5, 11):
        assert train(tmp_path / "killed", *options, "--die-at", step).returncode == -9
    resumed = finish(tmp_path / "killed", *options)
    assert resumed["weights"] == undisturbed["weights"]
    assert resumed["metrics"] == undisturbed["metrics"]
    assert resumed["is_exact"]


def test_without_the_optimizer_state_the_bits_differ(tmp_path):
    """Negative control of the test above."""
    options = ["--device", "cuda"]
    undisturbed = finish(tmp_path / "undisturbed", *options)
    assert train(tmp_path / "killed", *options, "--forget", "--die-at", 7).returncode == -9
    assert finish(tmp_path / "killed", *options, "--forget")["weights"] != undisturbed["weights"]


@pytest.mark.parametrize("preset", ["nanochat", "textbook"])
def test_twenty_steps_in_fp32_have_the_losses_of_the_cpu(tmp_path, preset):
    options = ["--steps", 20, "--preset", preset]
    cpu, gpu = (finish(tmp_path / device, *options, "--device", device) for device in ("cpu", "cuda"))
    assert losses(gpu)[0] == pytest.approx(losses(cpu)[0], rel=1e-5)
    # Muon makes its matrices orthogonal in bf16, on which the two devices round differently
    assert losses(gpu) == pytest.approx(losses(cpu), rel=5e-3)
    assert losses(gpu)[-1] < 3.5


def test_a_resume_on_the_other_device_goes_on_and_says_that_it_is_not_exact(tmp_path):
    assert train(tmp_path, "--device", "cuda", "--die-at", 7).returncode == -9
    resumed = finish(tmp_path, "--device", "cpu")
    assert not resumed["is_exact"]
