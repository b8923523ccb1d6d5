"""Kernels that give the same bits every time, without which no training on a GPU could be resumed exactly.

By default the gradients of attention are summed in the order in which blocks of keys happen to finish: on an H100 two backward
passes of the same batch of d20 differ in their last bits. Measured cost of the order being fixed: benchmarks/README.md.
"""

import os

import torch

# cuBLAS promises the same bits only with a workspace of a fixed size, and reads this when it is first used
CUBLAS_WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def use_deterministic_kernels() -> None:
    """For the whole process. Call before the first product on the GPU; an operation that has no such kernel is an error."""
    for name, value in CUBLAS_WORKSPACE.items():
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True)
    # else PyTorch fills every new tensor, to expose reads of memory that nobody wrote: we have none, and it costs time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
