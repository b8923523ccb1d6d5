"""Attention kernels for GPUs, for trainings that ask for them by name: FlashAttention 2 and 3, and PyTorch's FlexAttention.

    flash2    package flash_attn: Ampere and newer (arXiv 2307.08691)
    flash3    package flash_attn_interface, built from the folder `hopper` of that project: Hopper (arXiv 2407.08608)
    flex      part of PyTorch (arXiv 2412.05496); on CPUs it has no backward pass

All know windows by themselves and multiply only what a window shows. Nothing is imported before it is asked for, and nothing
takes the place of what is missing: `open_kernel` raises. Before a training begins, `check_kernel` has the kernel compute a
small case forward and backward on the device, beside attention written out.
"""

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from nanochat.errors import UserError
from nanochat.gpt import GPT, naive_attention

# of q (B, H, T, D), k and v (B, G, T, D), and how many tokens before itself each one sees (None: all)
Windowed = Callable[[Tensor, Tensor, Tensor, int | None], Tensor]

PACKAGES = {"flash2": "flash_attn", "flash3": "flash_attn_interface"}
KERNELS = (*PACKAGES, "flex")
FAR = 0.02  # relative distance from attention written out in fp32; rounding to bfloat16 makes 0.002 to 0.005
TOKENS, WINDOW = 200, 60  # of the case that is checked


def require_package(name: str) -> None:
    """UserError if the kernel's package is not installed. Imports nothing."""
    package = PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        raise UserError(
            f"attention_backend: {name} was asked for, and its package {package} is not installed. "
            "Install it, or say auto, which takes what PyTorch has"
        )


def open_kernel(name: str, device: torch.device) -> "Kernel":
    """One of KERNELS. UserError if it is not there, or not for this device."""
    require_package(name)
    if name == "flex":
        return Kernel(name, flex(device))
    if device.type != "cuda":
        raise UserError(f"attention_backend: {name} was asked for, and it needs a GPU; this training is on {device.type}")
    try:
        function = importlib.import_module(PACKAGES[name]).flash_attn_func
    except (ImportError, AttributeError, OSError) as error:
        raise UserError(
            f"attention_backend: {name} was asked for, and its package {PACKAGES[name]} does not load with PyTorch "
            f"{torch.__version__}: {error}"
        ) from error
    return Kernel(name, flash(function))


class Kernel:
    """Attention as `nanochat.gpt` calls it."""

    def __init__(self, name: str, function: Windowed):
        self.name, self.windowed = name, function

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        if visible is not None:
            raise ValueError(f"attention {self.name} is for training: it takes no masks")
        return self.windowed(q, k, v, None)


def flash(function: Callable) -> Windowed:
    """Of either FlashAttention: they take (B, T, H, D), and give other bits each time unless told not to."""

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        y = function(
            *(x.transpose(1, 2) for x in (q, k, v)),
            causal=True,
            window_size=(-1, -1) if window is None else (window, 0),
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        y = y[0] if isinstance(y, tuple) else y  # early versions of 3 also return the sums of the softmax
        return y.transpose(1, 2)

    return attend


def flex(device: torch.device) -> Windowed:
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

    # without it all scores would be written to memory
    function = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention

    @cache
    def mask(num_tokens: int, window: int | None) -> BlockMask:
        reach = num_tokens if window is None else window

        def is_visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query - key <= reach)

        return create_block_mask(is_visible, None, None, num_tokens, num_tokens, device=str(device))

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        y = function(q, k, v, block_mask=mask(q.size(2), window), enable_gqa=q.size(1) != k.size(1))
        assert isinstance(y, Tensor)
        return y

    return attend


def check_kernel(kernel: Kernel, model: GPT, device: torch.device) -> None:
    """Forward and backward of a small case in the shapes of a model's heads. UserError if it fails or is far off."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    heads = (config.n_head, config.n_kv_head, config.n_kv_head, config.n_head)
    shapes = [(1, TOKENS, number, config.head_dim) for number in heads]
    q, k, v, slope = (torch.randn(shape, generator=generator).to(device, model.compute_dtype) for shape in shapes)
    for window in (None, WINDOW):
        try:
            found = with_gradients(kernel.windowed, window, q, k, v, slope)
        except Exception as error:  # whatever a foreign kernel raises
            raise UserError(
                f"attention_backend: {kernel.name} does not compute heads of {config.head_dim} in {model.dtype_name} on "
                f"{device}: {type(error).__name__}: {error}"
            ) from error
        exact = [x.float() for x in (q, k, v, slope)]
        expected = with_gradients(written_out, window, *exact)
        off = max(((x.float() - y).norm() / y.norm()).item() for x, y in zip(found, expected, strict=True))
        if not off <= FAR:
            raise UserError(
                f"attention_backend: {kernel.name} computes something else than attention: {off:.1%} off, with "
                f"{'no window' if window is None else f'a window of {window}'}. Say auto, which takes what PyTorch has"
            )


def written_out(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    place = torch.arange(q.size(2), device=q.device)
    distance = place[:, None] - place
    return naive_attention(q, k, v, (distance >= 0) & (distance <= (q.size(2) if window is None else window)))


def with_gradients(attend: Windowed, window: int | None, q: Tensor, k: Tensor, v: Tensor, slope: Tensor) -> tuple[Tensor, ...]:
    """The answers, and what `slope` does to q, k and v: all as (1, T, heads, D)."""
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), window).transpose(1, 2)
    return y.detach(), *torch.autograd.grad(y, (q, k, v), slope)
