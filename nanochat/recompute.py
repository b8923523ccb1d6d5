"""Make a block's activations again in the backward pass instead of keeping them (arXiv 1604.06174, "activation checkpointing").

Of each block only its input is kept: about a twentieth. The forward pass of a block is computed twice, so a step has a third
more arithmetic. The same operations on the same numbers: the same bits.
"""

from functools import partial

from torch.utils.checkpoint import checkpoint

from nanochat.gpt import GPT


def recompute_blocks(model: GPT) -> None:
    """Before the blocks are compiled, if they are."""
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)  # type: ignore[method-assign]
