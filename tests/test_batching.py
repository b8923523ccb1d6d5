"""Trees of sequences in one row against each of their branches alone."""

import numpy as np
import pytest
import torch
from small_models import PRESETS, random_model

from nanochat.batching import (
    PackedTrees,
    Tree,
    batches_by_tokens,
    branches_visible,
    flat_tokens,
    hidden_at,
    positions_of,
    tokens_before,
    visible_to,
)

CPU = torch.device("cpu")


def random_tree(rng, trunk, *branches):
    return Tree(rng.integers(0, 300, trunk), tuple(rng.integers(0, 300, length) for length in branches))


@pytest.mark.parametrize("sizes", PRESETS.values(), ids=PRESETS)
@torch.inference_mode()
def test_each_branch_is_read_as_if_it_were_alone(sizes):
    model = random_model(**sizes)
    rng = np.random.default_rng(0)
    trees = [random_tree(rng, 20, 5, 1, 9), random_tree(rng, 1), random_tree(rng, 33), random_tree(rng, 1, 2, 2)]
    x = model.hidden(flat_tokens(trees, CPU), PackedTrees(trees, CPU))[0]
    start = 0
    for tree in trees:
        fork = start + len(tree.trunk)
        alone = model.hidden(torch.tensor(tree.trunk)[None])[0]
        torch.testing.assert_close(x[start:fork], alone, atol=1e-4, rtol=1e-4)
        for branch in tree.branches:
            alone = model.hidden(torch.tensor(np.concatenate([tree.trunk, branch]))[None])[0]
            torch.testing.assert_close(x[fork : fork + len(branch)], alone[len(tree.trunk) :], atol=1e-4, rtol=1e-4)
            fork += len(branch)
        start += len(tree)
    assert start == len(x)


@torch.inference_mode()
def test_windows_reach_from_a_branch_into_its_trunk():
    model = random_model("speedrun", n_layer=4)
    assert [block.attn.window for block in model.blocks] == [128, 128, 128, None]
    rng = np.random.default_rng(0)
    trees = [random_tree(rng, 100, 60, 5), random_tree(rng, 300, 140, 3), random_tree(rng, 5, 200, 20), random_tree(rng, 1)]
    x = model.hidden(flat_tokens(trees, CPU), PackedTrees(trees, CPU))[0]
    start = 0
    for tree in trees:
        fork = start + len(tree.trunk)
        for branch in tree.branches or ([],):
            alone = model.hidden(torch.tensor(np.concatenate([tree.trunk, branch]).astype(np.int64))[None])[0]
            torch.testing.assert_close(x[start : start + len(tree.trunk)], alone[: len(tree.trunk)], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(x[fork : fork + len(branch)], alone[len(tree.trunk) :], atol=1e-4, rtol=1e-4)
            fork += len(branch)
        start += len(tree)


def test_a_tree_is_laid_out_as_told():
    tree = Tree([5, 6, 7], ([8, 9], [8]))
    assert len(tree) == 6
    assert flat_tokens([tree, Tree([1])], CPU).tolist() == [[5, 6, 7, 8, 9, 8, 1]]
    assert positions_of(tree).tolist() == [0, 1, 2, 3, 4, 3]
    assert tokens_before(tree, 0).tolist() == [-1, 0, 1, 2, 3, 2]
    assert tokens_before(tree, 10).tolist() == [-1, 10, 11, 12, 13, 12]
    assert tokens_before(Tree([], ([8, 9], [8])), 10).tolist() == [-1, 10, -1]
    assert branches_visible(tree).int().tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 1]]


def test_a_token_sees_what_stands_before_it_and_of_the_branches_only_its_own():
    tree = Tree([5, 6, 7], ([8, 9], [8]))
    everything = visible_to(tree, np.arange(6))
    assert torch.equal(everything[:3, :3], torch.ones(3, 3).tril().bool()) and not everything[:3, 3:].any()
    assert torch.equal(everything[3:], branches_visible(tree))
    assert torch.equal(visible_to(tree, np.array([1, 5])), everything[[1, 5]])


@pytest.mark.parametrize("sizes", PRESETS.values(), ids=PRESETS)
@torch.inference_mode()
def test_hidden_states_come_in_the_order_asked_for(sizes):
    model = random_model(**sizes)
    rng = np.random.default_rng(1)
    one, two, three = random_tree(rng, 4, 3), random_tree(rng, 6), random_tree(rng, 2)
    packed = model.hidden(flat_tokens([one, two, three], CPU), PackedTrees([one, two, three], CPU))[0]
    for one_is, others_are, places in [
        ([5, 0], [7, 5], [5, 0, 14, 12]),
        ([5, 5], [0], [5, 5, 7]),  # a token that is asked for twice, a tree of which none is
        ([*range(7)], [*range(8)], [*range(15)]),
    ]:
        found = hidden_at(model, [((one,), np.array(one_is)), ((two, three), np.array(others_are))])
        torch.testing.assert_close(found, packed[places], atol=1e-5, rtol=1e-5)


def test_batches_hold_no_more_tokens_than_told_unless_one_sequence_does():
    assert list(batches_by_tokens([3, 9, 4], 10)) == [[1], [2, 0]]
    assert list(batches_by_tokens([3, 30, 4], 10)) == [[1], [2, 0]]
    assert list(batches_by_tokens([], 10)) == []
