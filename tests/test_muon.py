"""Muon against its definition, one matrix at a time and in full precision where that matters."""

import pytest
import torch

from nanochat import distributed
from nanochat.muon import ITERATIONS, QUINTIC, Muon, orthogonalize


def newton_schulz_by_svd(matrix: torch.Tensor) -> torch.Tensor:
    """The same polynomial applied to the singular values, which is what the iteration does to a matrix."""
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / (s.norm() + 1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24), (1, 8)])
def test_orthogonalize_is_the_polynomial_of_the_singular_values(shape, dtype, tolerance):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(matrices, dtype)
    for matrix, update in zip(matrices, found, strict=True):
        expected = newton_schulz_by_svd(matrix).float()
        assert (update - expected).norm() < tolerance * expected.norm()


def test_singular_values_end_near_one():
    values = torch.linalg.svdvals(orthogonalize(torch.randn(5, 32, 16, generator=torch.Generator().manual_seed(1))))
    assert values.min() > 0.5 and values.max() < 1.3


def test_a_step_is_nesterov_momentum_orthogonalized():
    generator = torch.Generator().manual_seed(2)
    start = {"tall": torch.randn(12, 4, generator=generator), "wide": torch.randn(4, 12, generator=generator)}
    parameters = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    muon = Muon(parameters, lr=0.02)
    buffers = {name: torch.zeros_like(value) for name, value in start.items()}
    expected = {name: value.clone() for name, value in start.items()}
    for _ in range(3):
        for name, parameter in parameters.items():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient.clone()
            buffers[name] = 0.9 * buffers[name] + 0.1 * gradient
            ahead = 0.9 * buffers[name] + 0.1 * gradient
            factor = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
            expected[name] -= 0.02 * 0.5 * factor * orthogonalize(ahead[None])[0]
        muon.step(lr_scale=0.5, momentum=0.9)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.data, expected[name], atol=1e-4, rtol=0)


def test_state_brings_back_the_same_steps():
    generator = torch.Generator().manual_seed(3)
    gradients = torch.randn(4, 6, 6, generator=generator)

    def run(muon, parameter, steps):
        for gradient in gradients[steps]:
            parameter.grad = gradient.clone()
            muon.step(lr_scale=1.0, momentum=0.95)

    whole, first = torch.nn.Parameter(torch.ones(6, 6)), torch.nn.Parameter(torch.ones(6, 6))
    run(Muon({"w": whole}, lr=0.1), whole, slice(0, 4))
    before = Muon({"w": first}, lr=0.1)
    run(before, first, slice(0, 2))
    after = Muon({"w": first}, lr=0.1)
    after.load_state({name: tensor.clone() for name, tensor in before.state().items()})
    run(after, first, slice(2, 4))
    assert torch.equal(whole, first)


def test_without_instructions_for_bfloat16_it_computes_in_float32(monkeypatch):
    monkeypatch.setattr(distributed, "cpu_has_bf16", lambda: False)
    matrices = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(orthogonalize(matrices), orthogonalize(matrices, torch.float32))
    monkeypatch.setattr(distributed, "cpu_has_bf16", lambda: True)
    assert torch.equal(orthogonalize(matrices), orthogonalize(matrices, torch.bfloat16))
