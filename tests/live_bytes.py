"""Count the bytes of all tensors that are alive while a piece of code runs, on any device."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """In its body, `now` and `peak` are about what operations made; what was there before is not counted.

    What kernels need inside themselves is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, tuple[weakref.ref, int]] = {}
        self.known: set[int] = set()
        self.now = self.peak = 0

    def ignore(self, *tensors: torch.Tensor) -> None:
        """What is there already, and may be returned by operations in place."""
        self.known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor)
        return found

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.sizes and key not in self.known:
            self.sizes[key] = weakref.ref(storage, lambda _: self._forget(key)), size
            self.now += size
            self.peak = max(self.peak, self.now)

    def _forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key)[1]
