"""Muon against its definition, one matrix at a time and in full precision where that matters."""

import pytest
import torch

from nanochat import distributed
from nanochat.muon import ITERATIONS, POLAR_EXPRESS, QUINTIC, Muon, orthogonalize
from nanochat.schedule import cosine_to_zero, muon_momentum, warmdown_done


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
    after.load_state({name: tensor.clone() for name, tensor in before.own_state().items()})
    run(after, first, slice(2, 4))
    assert torch.equal(whole, first)


def test_without_instructions_for_bfloat16_it_computes_in_float32(monkeypatch):
    monkeypatch.setattr(distributed, "cpu_has_bf16", lambda: False)
    matrices = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(orthogonalize(matrices), orthogonalize(matrices, torch.float32))
    monkeypatch.setattr(distributed, "cpu_has_bf16", lambda: True)
    assert torch.equal(orthogonalize(matrices), orthogonalize(matrices, torch.bfloat16))


# -- the parts of later versions ----------------------------------------------------------------------------------------------


def equilibrated(g):
    length = (g.norm() / len(g) ** 0.5).item()
    return torch.stack([row * length / row.norm() for row in g])


def polar(g):
    """Five polynomials of the singular values, each with coefficients of its own."""
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    s = s / (1.01 * s.norm() + 1e-7)
    for a, b, c in POLAR_EXPRESS:
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt


def renormalized(g):
    return g * min(g.shape) ** 0.5 / g.norm()


def without_variance(g, variance):
    """A number for each row of a tall matrix, for each column of a wide one; returns the update and the running square."""
    rows = g if g.size(0) >= g.size(1) else g.T
    variance = 0.9 * variance + 0.1 * torch.stack([row.square().mean() for row in rows])
    divided = torch.stack([row / v.sqrt() for row, v in zip(rows, variance, strict=True)])
    divided = divided * rows.norm() / divided.norm()
    return (divided if g.size(0) >= g.size(1) else divided.T), variance


PARTS = {
    "polar express": {"orthogonalizer": "polar_express"},
    "equal rows": {"equilibrate_rows": True},
    "Frobenius norm": {"renormalize": True},
    "variance": {"normalize_variance": True},
    "decay": {},
    "cautious decay": {"cautious": True},
    "all": {
        "orthogonalizer": "polar_express",
        "equilibrate_rows": True,
        "renormalize": True,
        "normalize_variance": True,
        "cautious": True,
    },
}


@pytest.mark.parametrize("name", PARTS)
def test_steps_with_each_part_are_what_the_definition_gives(monkeypatch, name):
    """Three steps of tall, square and wide matrices in float32, beside float64 and singular values."""
    monkeypatch.setattr(distributed, "cpu_has_bf16", lambda: False)
    parts, weight_decay = PARTS[name], 0.3 if name in ("decay", "cautious decay", "all") else 0.0
    generator = torch.Generator().manual_seed(4)
    shapes = {"tall": (12, 4), "square": (6, 6), "wide": (4, 12), "also wide": (4, 12)}
    weights = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    parameters = {key: torch.nn.Parameter(weight.clone()) for key, weight in weights.items()}
    muon = Muon(parameters, lr=0.05, **parts)
    weights = {key: weight.double() for key, weight in weights.items()}
    momenta = {key: torch.zeros_like(weight) for key, weight in weights.items()}
    variances = {key: torch.zeros(max(shape)).double() for key, shape in shapes.items()}
    for _ in range(3):
        for key, parameter in parameters.items():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad, gradient = gradient.clone(), gradient.double()
            momenta[key] = 0.9 * momenta[key] + 0.1 * gradient
            update = 0.9 * momenta[key] + 0.1 * gradient
            if parts.get("equilibrate_rows"):
                update = equilibrated(update)
            update = polar(update) if parts.get("orthogonalizer") else newton_schulz_by_svd(update)
            if parts.get("renormalize"):
                update = renormalized(update)
            if parts.get("normalize_variance"):
                update, variances[key] = without_variance(update, variances[key])
            lr = 0.05 * 0.5 * max(1.0, update.size(0) / update.size(1)) ** 0.5
            pulled = (update * weights[key] >= 0) if parts.get("cautious") else torch.ones_like(update)
            weights[key] -= lr * update + lr * weight_decay * pulled * weights[key]
        muon.step(lr_scale=0.5, momentum=0.9, weight_decay=weight_decay)
    for key, parameter in parameters.items():
        torch.testing.assert_close(parameter.data.double(), weights[key], atol=2e-5, rtol=0)


def test_polar_express_brings_singular_values_nearer_to_one_than_newton_schulz():
    matrices = torch.randn(5, 32, 16, generator=torch.Generator().manual_seed(1))
    spread = {
        method: (torch.linalg.svdvals(orthogonalize(matrices, torch.float32, method=method)) - 1).abs().max()
        for method in ("newton_schulz", "polar_express")
    }
    assert spread["polar_express"] < 0.2 < spread["newton_schulz"]


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_gradient_of_zeros_moves_nothing_and_spoils_nothing(parts):
    parameter = torch.nn.Parameter(torch.ones(4, 6))
    parameter.grad = torch.zeros(4, 6)
    Muon({"w": parameter}, lr=0.1, **parts).step(lr_scale=1.0, momentum=0.9)
    assert torch.equal(parameter.data, torch.ones(4, 6))


def test_momentum_falls_and_decay_goes_to_zero_with_the_training():
    rise = (0.85, 0.97, 400)
    at = [
        muon_momentum(step, rise, final=0.9, fallen=warmdown_done(step / 1000, 0.5)) for step in (0, 200, 400, 500, 750, 1000)
    ]
    assert at == pytest.approx([0.85, 0.91, 0.97, 0.97, 0.935, 0.90])
    assert [cosine_to_zero(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert muon_momentum(399, rise, final=0.9, fallen=1.0) == muon_momentum(399, rise)  # a warm-down never cuts the rise short
