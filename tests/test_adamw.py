import pytest
import torch

from nanochat.adamw import AdamW


def test_equals_the_one_of_pytorch():
    generator = torch.Generator().manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(5, 7, generator=generator))
    theirs = torch.nn.Parameter(ours.detach().clone())
    optimizer = AdamW({"w": ours}, lr=0.01, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.1)
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(30):
        ours.grad = torch.randn(5, 7, generator=generator)
        theirs.grad = ours.grad.clone()
        optimizer.step(step=step, lr_scale=1.0)
        reference.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 5), (64, 33), (130, 7), (1000, 33), (3, 20_000), (700, 384)])
def test_a_table_in_pieces_moves_to_the_same_bits(shape):
    generator = torch.Generator().manual_seed(1)
    rows = 64 * max(1, 1000 // (64 * shape[1]))
    start = torch.randn(shape, generator=generator)
    tables = {"in pieces": torch.nn.Parameter(start.clone()), "whole": torch.nn.Parameter(start.clone())}
    optimizers = {kind: AdamW({"w": table}, lr=0.01, weight_decay=0.1) for kind, table in tables.items()}
    optimizers["in pieces"].piece, optimizers["whole"].piece = 1000, 2**40
    for step in range(4):
        gradient = torch.randn(shape, generator=generator)
        for kind, table in tables.items():
            table.grad = gradient.clone()
            optimizers[kind].step(step=step, lr_scale=1.0)
    assert torch.equal(tables["in pieces"], tables["whole"])
    assert [len(list(optimizer.pieces("w"))) for optimizer in optimizers.values()] == [-(-shape[0] // rows), 1]


def test_lr_scale_multiplies_the_rate():
    one, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    for parameter, lr, scale in ((one, 0.02, 0.5), (other, 0.01, 1.0)):
        parameter.grad = torch.tensor([1.0, -2.0, 3.0])
        AdamW({"w": parameter}, lr=lr).step(step=0, lr_scale=scale)
    assert torch.equal(one, other)
