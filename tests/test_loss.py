"""The chunked loss against its definition, and how much memory it takes."""

import pytest
import torch
import torch.nn.functional as F
from small_models import PRESETS, random_model

from nanochat import loss as module
from nanochat.casts import Casts
from nanochat.loss import LinearCrossEntropy, chunked_sum_of_losses, chunks
from nanochat.recompute import recompute_blocks
from nanochat.train import sum_of_losses


def by_definition(hidden, weight, targets, soft_cap):
    logits = hidden @ weight.T
    if soft_cap:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")


@pytest.mark.parametrize("soft_cap", [15.0, None])
@pytest.mark.parametrize("chunk_rows", [7, 50, 1000])
def test_loss_and_gradients_are_those_of_the_definition(monkeypatch, soft_cap, chunk_rows):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(50, 8, generator=generator).mul(3).requires_grad_()
    weight = torch.randn(30, 8, generator=generator).mul(3).requires_grad_()
    targets = torch.randint(-1, 30, (50,), generator=generator)
    assert (targets < 0).any()
    monkeypatch.setattr(module, "CHUNK_BYTES", {"cpu": chunk_rows * 30 * 4})
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 30 * 4)
    expected = by_definition(hidden, weight, targets, soft_cap)
    found = LinearCrossEntropy.apply(hidden, weight, weight.detach(), targets, soft_cap)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-4)
    gradients = (torch.autograd.grad(loss / 7, (hidden, weight)) for loss in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_loss_of_scores_far_apart_is_finite_and_right():
    hidden, weight = torch.tensor([[1.0], [1.0]]), torch.tensor([[500.0], [-500.0], [0.0]])
    found = LinearCrossEntropy.apply(hidden, weight, weight, torch.tensor([1, 0]), None)
    assert found.item() == pytest.approx(1000.0)


def test_without_a_supervised_token_the_loss_and_its_gradients_are_zero():
    model = random_model()
    x = torch.randint(0, model.config.vocab_size, (2, 8))
    loss = chunked_sum_of_losses(model, x, torch.full_like(x, -1))
    loss.backward()
    assert loss.item() == 0 and not model.lm_head.weight.grad.any() and not model.wte.weight.grad.any()


def gradients_of(model, loss_of, casts=None, micro_batch=2):
    model.zero_grad(set_to_none=True)
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randint(0, model.config.vocab_size, (2, 6, 12), generator=generator)
    y[1, :5] = -1
    with (casts or Casts(random_model())).made():  # the copies of another model change nothing
        for inputs, targets in zip(x.split(micro_batch), y.split(micro_batch), strict=True):
            (loss_of(model, inputs, targets) / y.numel()).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("sizes", PRESETS.values(), ids=PRESETS)
def test_a_models_gradients_are_those_of_the_definition(sizes):
    model = random_model(**sizes)
    expected, found = gradients_of(model, sum_of_losses), gradients_of(model, chunked_sum_of_losses)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("sizes", PRESETS.values(), ids=PRESETS)
def test_matrices_cast_once_a_step_give_the_bits_of_matrices_cast_at_each_use(sizes):
    model = random_model(**sizes)
    model.compute_dtype = torch.bfloat16
    casts = Casts(model)
    expected, found = gradients_of(model, chunked_sum_of_losses), gradients_of(model, chunked_sum_of_losses, casts)
    assert casts.linears
    for name, gradient in expected.items():
        assert gradient.dtype == torch.float32 and torch.equal(found[name], gradient), name


def test_casts_follow_the_weights_from_step_to_step_and_are_used_only_within_one():
    model = random_model()
    model.compute_dtype = torch.bfloat16
    casts = Casts(model)
    with casts.made():
        pass
    with torch.no_grad():
        model.blocks[0].mlp.c_fc.weight.fill_(2.0)
    with casts.made():
        assert (model.blocks[0].mlp.c_fc.weight_in(torch.bfloat16) == 2).all()
    assert all(linear.cast is None for linear, _ in casts.linears)


def test_the_logits_of_all_positions_never_exist(monkeypatch):
    model = random_model()
    seen = []
    block = module.block_losses_and_gradients_

    def watched(scores, *rest):
        seen.append(len(scores))
        return block(scores, *rest)

    monkeypatch.setattr(module, "block_losses_and_gradients_", watched)
    monkeypatch.setattr(module, "CHUNK_BYTES", {"cpu": 10 * model.config.vocab_size * 4})
    x = torch.randint(0, model.config.vocab_size, (4, 12))
    monkeypatch.setattr(model, "logits", lambda *_: pytest.fail("made all logits"))
    chunked_sum_of_losses(model, x, x).backward()
    assert max(seen) <= 10 and sum(seen) == 48


def test_chunks_are_as_large_as_told_and_never_empty():
    assert chunks(5, 10, 20) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert chunks(2, 10, 1) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize("sizes", PRESETS.values(), ids=PRESETS)
def test_activations_made_again_give_the_same_bits(sizes):
    model = random_model(**sizes)
    expected = gradients_of(model, chunked_sum_of_losses)
    calls = count_calls(model.blocks[0].mlp)
    recompute_blocks(model)
    found = gradients_of(model, chunked_sum_of_losses)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert calls == [2 * 3], "three micro-batches, each forward pass made twice"


def count_calls(module):
    calls = [0]

    def count(*_):
        calls[0] += 1

    module.register_forward_pre_hook(count)
    return calls
