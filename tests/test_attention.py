"""The back ends of attention against attention written out."""

import pytest
import torch
from small_models import random_model

from nanochat import attention as module
from nanochat.attention import blocked_attention, blocks, choose_attention, use_attention
from nanochat.compiling import choose_compiling
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig, naive_attention
from nanochat.kv_cache import KVCache

CPU = torch.device("cpu")


def with_gradients(attention, q, k, v, gradient):
    y = attention(q, k, v, None)
    return y, *torch.autograd.grad(y, (q, k, v), gradient)


@pytest.mark.parametrize(("num_tokens", "block"), [(1, 256), (7, 3), (64, 16), (300, 256)])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_blocked_attention_and_its_gradients_are_those_of_attention_written_out(monkeypatch, num_tokens, block, kv_heads):
    monkeypatch.setattr(module, "BLOCK", block)
    generator = torch.Generator().manual_seed(num_tokens)

    def heads(number):  # as the model passes them: transposed views
        return torch.randn(2, num_tokens, number, 8, generator=generator).transpose(1, 2).requires_grad_()

    q, k, v = heads(4), heads(kv_heads), heads(kv_heads)
    gradient = torch.randn(q.shape, generator=generator)
    expected, found = (with_gradients(way, q, k, v, gradient) for way in (naive_attention, blocked_attention))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 5, 64, 300])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("is_masked", [False, True])
@torch.inference_mode()
def test_without_gradients_it_goes_head_by_head_to_the_same_end(monkeypatch, num_tokens, kv_heads, is_masked):
    monkeypatch.setattr(module, "SHORT", 4)
    monkeypatch.setattr(module, "BLOCK", 128)
    q = torch.randn(2, num_tokens, 4, 8).transpose(1, 2)
    k, v = (torch.randn(2, num_tokens, kv_heads, 8).transpose(1, 2) for _ in range(2))
    visible = torch.rand(num_tokens, num_tokens) < 0.7 if is_masked else None
    if visible is not None:
        visible |= torch.eye(num_tokens, dtype=torch.bool)  # each sees one at least
    found = blocked_attention(q, k, v, visible)
    torch.testing.assert_close(found, naive_attention(q, k, v, visible), rtol=1e-5, atol=1e-5)


def test_in_bfloat16_it_is_as_close_to_the_truth_as_attention_written_out():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 128, 32, generator=generator).bfloat16().requires_grad_() for _ in range(3))
    gradient = torch.randn(q.shape, generator=generator).bfloat16()
    exact = with_gradients(naive_attention, *(x.detach().double().requires_grad_() for x in (q, k, v)), gradient.double())

    def errors(way):
        found = with_gradients(way, q, k, v, gradient)
        return [((ours - truth).norm() / truth.norm()).item() for ours, truth in zip(found, exact, strict=True)]

    for ours, written_out in zip(errors(blocked_attention), errors(naive_attention), strict=True):
        assert ours < 1.5 * written_out < 0.02


def test_a_mask_of_its_own_is_obeyed():
    q, k, v = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    visible = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]).bool()
    inputs = [x.requires_grad_() for x in (q, k, v)]
    expected, found = (way(q, k, v, visible) for way in (naive_attention, blocked_attention))
    torch.testing.assert_close(found, expected)
    gradient = torch.randn(q.shape)
    for ours, theirs in zip(*(torch.autograd.grad(y, inputs, gradient) for y in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_model_with_a_cache_can_use_it():
    model = random_model()
    x = torch.randint(0, model.config.vocab_size, (2, 6))
    expected = model(x)
    use_attention(model, "blocked")
    cache = KVCache(model.config, 2, 8, torch.float32, "cpu")
    for token in range(6):
        found = model(x[:, token : token + 1], cache)
        cache.advance(1)
    torch.testing.assert_close(found[:, 0], expected[:, -1], rtol=1e-4, atol=1e-4)


def test_blocks_cover_all_tokens(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    assert blocks(9, 9, is_causal=True) == [(0, 4, 4), (4, 8, 8), (8, 9, 9)]
    assert blocks(9, 11, is_causal=False) == [(0, 9, 11)]


def test_auto_is_blocked_on_cpus_in_bfloat16_and_sdpa_elsewhere():
    model = random_model()
    assert choose_attention("auto", model, CPU) == "sdpa"
    model.compute_dtype = torch.bfloat16
    assert choose_attention("auto", model, CPU) == "blocked"
    assert choose_attention("auto", model, torch.device("cuda")) == "sdpa"
    assert choose_attention("sdpa", model, CPU) == "sdpa"


def test_attention_written_out_stays_so_and_an_unknown_back_end_is_refused():
    textbook = GPT(GPTConfig.preset("textbook", vocab_size=50, n_layer=1, n_head=2, n_kv_head=2, n_embd=16, sequence_len=8))
    assert choose_attention("blocked", textbook, CPU) == "naive"
    use_attention(textbook, "naive")
    assert textbook.blocks[0].attn.attend is naive_attention
    with pytest.raises(UserError, match=r"attention 'flash9' is unknown; there are sdpa"):
        use_attention(random_model(), "flash9")


def test_a_model_uses_the_back_end_that_it_was_given():
    model = random_model()
    x = torch.randint(0, model.config.vocab_size, (2, 9))
    expected = model(x)
    use_attention(model, "blocked")
    assert all(block.attn.attend is blocked_attention for block in model.blocks)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_only_long_trainings_on_cpus_are_compiled_unless_asked(monkeypatch):
    monkeypatch.setattr("nanochat.compiling.has_compiler", lambda: True)
    assert choose_compiling("auto", device=CPU, seconds=3_000.0)
    assert not choose_compiling("auto", device=CPU, seconds=30.0)
    assert not choose_compiling("auto", device=torch.device("cuda"), seconds=3_000.0)
    assert choose_compiling("always", device=CPU, seconds=1.0) and not choose_compiling("never", device=CPU, seconds=1e9)
    monkeypatch.setattr("nanochat.compiling.has_compiler", lambda: False)
    assert not choose_compiling("auto", device=CPU, seconds=3_000.0)
    with pytest.raises(UserError, match=r"no C\+\+ compiler"):
        choose_compiling("always", device=CPU, seconds=1.0)
