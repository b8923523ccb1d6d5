"""The matrices of a model in the dtype of its activations, cast once a step instead of once a micro-batch.

Master weights and their gradients stay fp32. Between them and the products stands a copy: the forward pass reads it, and the
gradient that the backward pass leaves at it is added to the fp32 gradient at once, so micro-batches are still summed in fp32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nanochat.gpt import GPT, Linear


class Casts:
    """Copies of a model's matrices, made anew for each step. None where the model computes in fp32."""

    def __init__(self, model: GPT):
        self.linears: list[tuple[Linear, Tensor]] = []
        if model.compute_dtype == torch.float32:
            return
        for module in model.modules():
            if isinstance(module, Linear):
                cast = torch.empty_like(module.weight, dtype=model.compute_dtype).requires_grad_()
                cast.register_post_accumulate_grad_hook(adding_to(module))
                self.linears.append((module, cast))

    @contextmanager
    def made(self) -> Iterator[None]:
        """In its body, the model uses the copies. Its weights must not change there."""
        with torch.no_grad():
            for linear, cast in self.linears:
                cast.copy_(linear.weight)
                linear.cast = cast
        try:
            yield
        finally:
            for linear, _ in self.linears:
                linear.cast = None


def adding_to(linear: Linear) -> Callable[[Tensor], None]:
    """A hook that moves a copy's gradient to the weight that it is of."""

    def move(cast: Tensor) -> None:
        assert cast.grad is not None
        if linear.weight.grad is None:
            linear.weight.grad = cast.grad.to(linear.weight.dtype)
        else:
            linear.weight.grad += cast.grad
        cast.grad = None

    return move
