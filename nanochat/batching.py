"""Sequences of different lengths in one forward pass, laid end to end: nothing is padded, and what they share is read once.

A `Tree` is a sequence that may go on in several ways: a trunk, and branches that all continue it. Where an item's choices
share a long prompt, the prompt is the trunk. Tokens meet in attention alone, and in smear where a model has it, so only these
must know where a sequence ends; all other parts see one row of tokens.

Letters in the shape comments: N tokens of all sequences, C the model's width, H heads, G heads of keys and values, D width of a
head, T tokens that ask, S keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt import GPT, ROPE_TABLE_FACTOR, Attention, GPTConfig, windowed

Tokens = Sequence[int] | np.ndarray

# tokens in one forward pass; more fills no CPU any better, and a GPU's memory holds the activations of many more
BATCH_TOKENS = {"cpu": 8_192, "cuda": 65_536}


@dataclass(frozen=True)
class Tree:
    """A trunk of tokens and the branches that continue it, each by itself. Its tokens in order: the trunk's, then theirs."""

    trunk: Tokens
    branches: tuple[Tokens, ...] = ()

    def __len__(self) -> int:
        return len(self.trunk) + sum(map(len, self.branches))


class PackedTrees:
    """The `Cache` of a pass over whole trees in one row: a token attends to those before it in its trunk and its branch.

    `wanted` names the tokens of the row whose hidden states are asked for, in order, each once; None: all.
    """

    def __init__(self, trees: Sequence[Tree], device: torch.device, wanted: np.ndarray | None = None):
        ends = list(accumulate(map(len, trees)))
        starts = [0, *ends[:-1]]
        forks = [start + len(tree.trunk) for start, tree in zip(starts, trees, strict=True)]
        self.spans = list(zip(starts, forks, ends, strict=True))
        self.trees = trees
        self.visible: list[Tensor | None] = [branches_visible(tree).to(device) if tree.branches else None for tree in trees]
        self.visible_near: dict[int, list[Tensor | None]] = {}  # through windows
        self.places = torch.from_numpy(np.concatenate([positions_of(tree) for tree in trees])).to(device)[None]  # (1, N)
        self.wanted = None if wanted is None else torch.from_numpy(wanted).to(device)
        if wanted is not None:
            asking = [wanted[(start <= wanted) & (wanted < end)] - start for start, _, end in self.spans]
            self.visible_to_wanted = [visible_to(tree, some).to(device) for tree, some in zip(trees, asking, strict=True)]

    def positions(self, num_tokens: int) -> Tensor:
        """Where each token stands in its own sequence, (1, N)."""
        return self.places

    def before(self, x: Tensor) -> Tensor:
        """Of embeddings (1, N, C) those of the token before each one, zeros where a sequence begins."""
        before = np.concatenate(
            [tokens_before(tree, start) for tree, (start, _, _) in zip(self.trees, self.spans, strict=True)]
        )
        return F.pad(x, (0, 0, 1, 0))[:, torch.from_numpy(before + 1).to(x.device)]  # (1, N, C)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: Attention, window: int | None = None) -> Tensor:
        """q (1, H, N, D), or of the wanted tokens (1, H, W, D), k and v (1, G, N, D) -> as q"""
        if q.size(2) < k.size(2):
            return self.attend_wanted(q, k, v, attention)
        pieces = []
        for (start, fork, end), visible in zip(self.spans, self.visible_within(window), strict=True):
            trunk, whole, behind = slice(start, fork), slice(start, end), slice(fork, end)
            if window is None:
                pieces.append(attention(q[:, :, trunk], k[:, :, trunk], v[:, :, trunk], None))
            else:
                pieces.append(windowed(attention, q[:, :, trunk], k[:, :, trunk], v[:, :, trunk], window))
            if visible is not None:
                pieces.append(attention(q[:, :, behind], k[:, :, whole], v[:, :, whole], visible))
        return torch.cat(pieces, dim=2)

    def visible_within(self, window: int | None) -> list[Tensor | None]:
        """What the branches of each tree see of it, (T, S); through a window, not what is further away."""
        if window is None:
            return self.visible
        if window not in self.visible_near:
            places = [self.places[0, start:end] for start, _, end in self.spans]
            self.visible_near[window] = [
                None if visible is None else visible & (place[-len(visible) :, None] - place <= window)
                for place, visible in zip(places, self.visible, strict=True)
            ]
        return self.visible_near[window]

    def attend_wanted(self, q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
        """What the wanted tokens find in the last block, which has no window."""
        asking = q.split([len(visible) for visible in self.visible_to_wanted], dim=2)
        pieces = [
            attention(some, k[:, :, start:end], v[:, :, start:end], visible)
            for some, (start, _, end), visible in zip(asking, self.spans, self.visible_to_wanted, strict=True)
            if some.size(2)
        ]
        return torch.cat(pieces, dim=2)


def positions_of(tree: Tree) -> np.ndarray:
    """Trunk of 3, branches of 2 and 1  ->  0 1 2, 3 4, 3"""
    trunk = len(tree.trunk)
    return np.concatenate([np.arange(trunk), *(np.arange(trunk, trunk + len(branch)) for branch in tree.branches)])


def tokens_before(tree: Tree, start: int) -> np.ndarray:
    """Which token of the row stands before each of the tree's, which begin at `start`; -1 before the first of a sequence.

    Trunk of 3, branches of 2 and 1, start 0  ->  -1 0 1, 2 3, 2
    """
    trunk = len(tree.trunk)
    before = [np.arange(trunk) - 1]
    for branch in tree.branches:
        begin = sum(map(len, before))
        before.append(np.array([trunk - 1, *range(begin, begin + len(branch) - 1)][: len(branch)], dtype=np.int64))
    joined = np.concatenate(before)
    return np.where(joined < 0, -1, joined + start)


def branches_visible(tree: Tree) -> Tensor:
    """Which tokens of the tree (S) each token of its branches (T) sees: the trunk, and its own branch up to itself; (T, S)."""
    trunk, lengths = len(tree.trunk), [len(branch) for branch in tree.branches]
    own = torch.block_diag(*(torch.ones(length, length).tril() for length in lengths)).bool()
    return torch.cat([torch.ones(sum(lengths), trunk, dtype=torch.bool), own], dim=1)


def visible_to(tree: Tree, places: np.ndarray) -> Tensor:
    """Which tokens of the tree (S) those at these places (W) see: those before them, of branches only their own; (W, S)."""
    forks = np.cumsum([len(tree.trunk), *map(len, tree.branches)])  # where each branch begins, and the end
    begins = np.concatenate([[0], forks])[np.searchsorted(forks, places, side="right")]  # of the part that each place is in
    keys, places, begins = np.arange(len(tree)), places[:, None], begins[:, None]
    return torch.from_numpy((keys <= places) & ((keys < len(tree.trunk)) | (keys >= begins)))


def hidden_at(model: GPT, asked: Sequence[tuple[Sequence[Tree], np.ndarray]]) -> Tensor:
    """One forward pass over (trees, places): the model's hidden states at these places, counted over those trees: (N, C).

    The vocabulary is as wide as fifty layers of a small model, so only the tokens that are read go on to `model.logits`.
    """
    device = model.wte.weight.device
    trees = [tree for some, _ in asked for tree in some]
    starts = accumulate((sum(map(len, some)) for some, _ in asked), initial=0)
    index = np.concatenate([places + start for (_, places), start in zip(asked, starts, strict=False)])
    wanted, order = np.unique(index, return_inverse=True)
    x = model.hidden(flat_tokens(trees, device), PackedTrees(trees, device, wanted))[0]  # (W, C)
    return x[torch.from_numpy(order).to(device)]  # (N, C)


def flat_tokens(trees: Sequence[Tree], device: torch.device) -> Tensor:
    """The tokens of all trees, in order, (1, N)."""
    tokens = np.concatenate([part for tree in trees for part in (tree.trunk, *tree.branches)]).astype(np.int64)
    return torch.from_numpy(tokens).to(device)[None]


# -- batches -----------------------------------------------------------------------------------------------------------------


def context_limit(config: GPTConfig) -> int:
    """The longest sequence that a model can take at all: its table of positions ends there."""
    return config.sequence_len * (ROPE_TABLE_FACTOR if config.positions == "rope" else 1)


def default_batch_tokens(device: torch.device) -> int:
    return BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])


def batches_by_tokens(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences in batches of at most `max_tokens` tokens.

    The longest come first, so that memory runs out at once or never.
    lengths [3, 9, 4], max_tokens 10  ->  [1], [2, 0].  A sequence longer than `max_tokens` is a batch of its own.
    """
    batch: list[int] = []
    left = max_tokens
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[index] > left:
            yield batch
            batch, left = [], max_tokens
        batch.append(index)
        left -= lengths[index]
    if batch:
        yield batch
