"""Predicted GPU memory against the tensors that are alive while our code trains, counted one by one."""

import pytest
import torch
from live_bytes import LiveBytes
from small_models import random_model

from nanochat import gpt, loss
from nanochat.attention import use_attention
from nanochat.casts import Casts
from nanochat.gpt import GPT, GPTConfig
from nanochat.optimizer import Parts, build_optimizer
from nanochat.planning import memory
from nanochat.planning.memory import largest_micro_batch, peak_bytes
from nanochat.presets import PRESETS
from nanochat.recompute import recompute_blocks

SIZES = {"vocab_size": 2_000, "sequence_len": 256, "n_layer": 4, "n_head": 4, "n_kv_head": 4, "n_embd": 256}
D20 = {"vocab_size": 65_536, "sequence_len": 2_048, "n_layer": 20, "n_head": 10, "n_kv_head": 10, "n_embd": 1_280}
LONG = {"sequence_len": 1_024, "n_layer": 6, "n_kv_head": 2, "n_embd": 128}  # so long that windows hide something
STEPS = {
    "nanochat": {},
    "nanochat, small vocabulary": {"vocab_size": 300},
    "nanochat, large vocabulary": {"vocab_size": 20_000},
    "nanochat, grouped": {"n_kv_head": 1},
    "textbook": {"preset": "textbook"},
    "textbook, fused": {"preset": "textbook", "attention": "sdpa"},
    "speedrun": {"preset": "speedrun", **LONG},
    "residual scales": {"residual_scales": True},
    "embedding scales": {"embedding_scales": True},
    "value embedding": {"value_embedding": True},
    "smear": {"smear": True},
    "backout": {"backout": True},
    "windows": {"window_pattern": "SSSL", **LONG},
}
ALL_PARTS = Parts(
    orthogonalizer="polar_express",
    equilibrate_rows=True,
    renormalize=True,
    normalize_variance=True,
    matrix_decay=0.1,
    cautious=True,
)


class FusedNorm(torch.autograd.Function):
    """RMSNorm that keeps its input and a number a vector, as PyTorch's kernel does on GPUs; on CPUs in bf16 it has none."""

    @staticmethod
    def forward(ctx, x):
        scale = (x.float().square().mean(-1, keepdim=True) + gpt.NORM_EPS).rsqrt()
        ctx.save_for_backward(x, scale)
        return (x.float() * scale).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        x, scale = ctx.saved_tensors
        y, g = x.float() * scale, gradient.float()
        return (scale * (g - y * (g * y).mean(-1, keepdim=True))).to(x.dtype)


def count_step(monkeypatch, *, dtype="bfloat16", rows=8, recompute=False, preset="nanochat", chunk_bytes=2**29, **sizes):
    """(fields of the model, kept by the forward pass a token, peak of a micro-batch): bytes beyond weights and gradients."""
    monkeypatch.setattr(gpt, "rms_norm", FusedNorm.apply)
    monkeypatch.setitem(loss.CHUNK_BYTES, "cpu", chunk_bytes)
    monkeypatch.setattr(memory, "LOSS_CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(loss, "BLOCK_BYTES", 2**60)  # GPUs work on a chunk at once
    model = GPT(GPTConfig(**{**SIZES, **PRESETS[preset], **sizes})).init_weights(0)
    model.compute_dtype = getattr(torch, dtype)
    if model.config.attention == "sdpa":
        use_attention(model, "sdpa")
    if recompute:
        recompute_blocks(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    x, y = torch.randint(0, model.config.vocab_size, (2, rows, model.config.sequence_len))
    with LiveBytes() as live:
        live.ignore(*(parameter.grad for parameter in model.parameters()), *model.parameters(), *model.buffers())
        casts = Casts(model)
        with casts.made():
            before = live.now
            hidden = model.hidden(x)
            kept = live.now - before
            del hidden
            live.peak = live.now
            loss.chunked_sum_of_losses(model, x, y).backward()
    return memory.OFF | GPTConfig(**{**SIZES, **PRESETS[preset], **sizes}).as_dict(), kept, live.peak


@pytest.mark.parametrize("sizes", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_step_takes_what_is_predicted(monkeypatch, sizes, dtype):
    model, kept, peak = count_step(monkeypatch, dtype=dtype, **sizes)
    tokens = 8 * model["sequence_len"]
    ids = 16 * tokens  # of inputs and targets, which this counts as there before
    expected = tokens * memory.kept_per_token(model, dtype) + memory.window_masks(model, dtype) - ids
    assert kept == pytest.approx(expected, rel=0.02)
    assert peak == pytest.approx(memory.step_bytes(model, micro_batch=8, dtype=dtype) - ids, rel=0.03)


@pytest.mark.parametrize("sizes", [{}, {"preset": "textbook"}, {"preset": "speedrun", **LONG}, {"vocab_size": 300}])
def test_activations_that_are_made_again_take_what_is_predicted(monkeypatch, sizes):
    model, _, peak = count_step(monkeypatch, recompute=True, **sizes)
    expected = memory.step_bytes(model, micro_batch=8, dtype="bfloat16", recompute=True)
    assert 0.97 * peak < expected < 1.3 * peak  # the most of a block and the most of its backward pass never meet
    assert expected < memory.step_bytes(model, micro_batch=8, dtype="bfloat16")


def test_chunks_of_the_loss_take_less(monkeypatch):
    whole = count_step(monkeypatch)[2]
    model, _, peak = count_step(monkeypatch, chunk_bytes=2**20)
    assert peak < 0.8 * whole
    assert peak == pytest.approx(memory.step_bytes(model, micro_batch=8, dtype="bfloat16"), rel=0.03)


@pytest.mark.parametrize("part", ["blocks_per_token", "loss_bytes", "weight_copies"])
def test_without_one_of_its_parts_the_formula_is_wrong(monkeypatch, part):
    """Negative control of the tests above."""
    model, _, peak = count_step(monkeypatch)
    monkeypatch.setattr(memory, part, lambda *_: 0)
    assert memory.step_bytes(model, micro_batch=8, dtype="bfloat16") < 0.96 * peak


@pytest.mark.parametrize("parts", [Parts(), ALL_PARTS], ids=["2025", "2026"])
def test_the_optimizer_takes_no_more_than_predicted(parts):
    model = random_model(n_layer=6, n_embd=128)
    optimizer = build_optimizer(model, matrix_lr=0.02, embedding_lr=0.2, unembedding_lr=0.004, parts=parts)
    peaks = []
    for step in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        with LiveBytes() as live:
            live.ignore(*model.parameters(), *(p.grad for p in model.parameters()), *optimizer.own_state().values())
            optimizer.clip(1.0)
            optimizer.step(step=step, lr_scale=1.0, progress=step / 2)
        peaks.append(live.peak)
    assert 0.6 < max(peaks) / memory.optimizer_bytes(model.config.as_dict(), 1) < 1


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("n_kv_head", [1, 4])
def test_what_stays_between_steps_is_what_the_optimizer_and_the_model_hold(preset, n_kv_head):
    model = random_model(preset, n_kv_head=n_kv_head)
    optimizer = build_optimizer(model, matrix_lr=0.02, embedding_lr=0.2, unembedding_lr=0.004)
    held = [*model.parameters(), *model.parameters(), *optimizer.own_state().values()]  # gradients are as large as weights
    assert all(tensor.dtype == torch.float32 for tensor in held)
    assert memory.resident_bytes(model.config.as_dict()) == sum(tensor.nbytes for tensor in held)


def test_more_ranks_need_less_room_for_the_optimizer():
    model = D20 | PRESETS["nanochat"]
    one, eight = (peak_bytes(model, micro_batch=16, world_size=ranks) for ranks in (1, 8))
    shared = memory.resident_bytes(model) - memory.resident_bytes(model, 8)
    assert one - eight == shared > 2e9


@pytest.mark.parametrize(
    "rows, gigabytes, expected", [(32, 85, 32), (32, 40, 8), (24, 85, 24), (7, 85, 7), (11, 40, 11), (32, 13, 0)]
)
def test_the_largest_micro_batch_divides_the_rows_and_fits(rows, gigabytes, expected):
    assert largest_micro_batch(D20 | PRESETS["nanochat"], rows=rows, memory_bytes=gigabytes * 10**9) == expected


def test_with_activations_made_again_more_rows_fit():
    model = D20 | PRESETS["nanochat"]
    assert largest_micro_batch(model, rows=32, memory_bytes=40 * 10**9, recompute=True) == 32
