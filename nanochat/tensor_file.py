"""Write tensors in the safetensors format, one after another, without a copy of them all in memory.

The bytes are those of `safetensors.torch.save_file` for tensors of one dtype. That function writes into a file with a random
name beside the one that was asked for, which nobody can tell from a living process's after a kill; and on a full disk it raises
an error of its own, without the number that the system gave. Reading is the library's.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
ALIGNMENT = 8  # of the header: what follows may be mapped into memory


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of tensors that are on the CPU. The widest dtype comes first, so that each one is aligned."""
    with open(path, "wb") as file:
        file.write(header(tensors))
        for _, tensor in ordered(tensors):
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def ordered(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    return sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))


def header(tensors: Mapping[str, Tensor]) -> bytes:
    """The length of what follows, then JSON: dtype, shape, and the place behind the header."""
    content, end = {}, 0
    for name, tensor in ordered(tensors):
        begin, end = end, end + num_bytes(tensor)
        content[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def size_of_file(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that `save_tensors` will write."""
    return len(header(tensors)) + sum(map(num_bytes, tensors.values()))


def num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
