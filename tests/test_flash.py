"""Attention kernels that are asked for by name: there or refused, right or refused."""

import pytest
import torch
from small_models import random_model

from nanochat import flash as module
from nanochat.attention import use_attention
from nanochat.errors import UserError
from nanochat.flash import Kernel, check_kernel, flash, flex, open_kernel, require_package, written_out

CPU = torch.device("cpu")


def as_documented(q, k, v, *, causal, window_size, deterministic):
    """What both FlashAttentions say that they compute: (B, T, H, D), a token sees `window_size[0]` before it, -1: all."""
    assert causal and window_size[1] in (0, -1) and deterministic is torch.are_deterministic_algorithms_enabled()
    window = None if window_size[0] == -1 else window_size[0]
    return written_out(*(x.transpose(1, 2) for x in (q, k, v)), window).transpose(1, 2)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_kernels_that_compute_attention_pass(kv_heads):
    model = random_model(n_head=4, n_kv_head=kv_heads)
    check_kernel(Kernel("flash2", flash(as_documented)), model, CPU)
    check_kernel(Kernel("flash3", flash(lambda *x, **keys: (as_documented(*x, **keys), None))), model, CPU)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda q, k, v, window: written_out(q, k, v, None),  # forgets windows
        lambda q, k, v, window: written_out(q, k, v, window and window + 8),
        lambda q, k, v, window: 1.03 * written_out(q, k, v, window),
        lambda q, k, v, window: written_out(q, k, v.detach(), window) + 0 * v,  # no gradient of v
        lambda q, k, v, window: written_out(q, k, v, window) * torch.nan,
    ],
)
def test_one_that_computes_something_else_is_refused(wrong):
    with pytest.raises(UserError, match="flash9 computes something else than attention"):
        check_kernel(Kernel("flash9", wrong), random_model(), CPU)


def test_one_that_fails_is_refused_by_name():
    def broken(q, k, v, window):
        raise RuntimeError("only head dimensions that are multiples of 8")

    with pytest.raises(UserError, match=r"flash9 does not compute heads of .* in float32 on cpu: RuntimeError: only head dim"):
        check_kernel(Kernel("flash9", broken), random_model(), CPU)


@pytest.mark.parametrize(("name", "package"), [("flash2", "flash_attn"), ("flash3", "flash_attn_interface")])
def test_what_is_not_installed_is_named_and_nothing_takes_its_place(monkeypatch, name, package):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"{name} was asked for, and its package {package} is not installed"):
        require_package(name)
    with pytest.raises(UserError, match="is not installed"):
        use_attention(random_model(), name)


def test_flash_attention_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="needs a GPU; this training is on cpu"):
        open_kernel("flash2", CPU)


def test_a_package_that_does_not_load_is_told(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(module.PACKAGES, "flash2", "json")  # installed, and without that function
    with pytest.raises(UserError, match=r"its package json does not load with PyTorch .*: .*flash_attn_func"):
        open_kernel("flash2", torch.device("cuda"))


@pytest.mark.parametrize("window", [None, 60])
@pytest.mark.parametrize("kv_heads", [4, 2])
@torch.inference_mode()
def test_flex_sees_what_a_window_shows(window, kv_heads):
    q, k, v = (torch.randn(2, number, 200, 16) for number in (4, kv_heads, kv_heads))
    torch.testing.assert_close(flex(CPU)(q, k, v, window), written_out(q, k, v, window), rtol=1e-4, atol=1e-5)


def test_flex_does_not_train_on_cpus():
    with pytest.raises(UserError, match=r"flex does not compute heads of 8 in float32 on cpu: .*backward"):
        use_attention(random_model(), "flex")


@pytest.mark.parametrize("pattern", ["L", "SL"])
def test_a_model_gives_its_windows_to_a_kernel_that_knows_them(pattern):
    model = random_model(window_pattern=pattern, sequence_len=512)
    x = torch.randint(0, model.config.vocab_size, (2, 400))
    expected, asked = model(x), []

    def attend(q, k, v, window):
        asked.append(window)
        return written_out(q, k, v, window)

    for block in model.blocks:
        block.attn.attend = Kernel("flash9", attend)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert asked == ([128] if "S" in pattern else []) + [None] * (2 - ("S" in pattern))


def test_it_takes_no_masks():
    q = torch.randn(1, 2, 4, 8)
    with pytest.raises(ValueError, match="attention flex is for training"):
        Kernel("flex", flex(CPU))(q, q, q, torch.ones(4, 4, dtype=torch.bool))
