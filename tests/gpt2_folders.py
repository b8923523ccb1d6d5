"""Small GPT-2 checkpoints with random weights, as Hugging Face's library stores them, for tests that need no published one."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from small_models import small_tokenizer
from torch import Tensor

CONFIG = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 299,
    "layer_norm_epsilon": 1e-3, "model_type": "gpt2", "n_ctx": 48, "n_embd": 24, "n_head": 3, "n_layer": 2,
    "n_positions": 48, "resid_pdrop": 0.1, "vocab_size": 300,
}  # fmt: skip
END_OF_TEXT = "<|endoftext|>"


def write_gpt2(folder: Path, *, texts: list[str] | None = None, dtype: torch.dtype = torch.float32, **config) -> Path:
    """A whole checkpoint with vocab.json and merges.txt; its tokenizer learned from the texts."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, **config}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.to(dtype) for name, tensor in random_tensors(config).items()}, folder / "model.safetensors")
    vocabulary, merges = learned_vocabulary(config["vocab_size"], texts)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder


def random_tensors(config: Mapping) -> dict[str, Tensor]:
    """With weights of a size at which every detail shows in what the model says."""
    generator = torch.Generator().manual_seed(3)
    C = config["n_embd"]

    def draw(*shape: int, scale: float) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    tensors = {"wte.weight": draw(config["vocab_size"], C, scale=0.5), "wpe.weight": draw(config["n_positions"], C, scale=0.2)}
    norms = ["ln_f"]
    for layer in range(config["n_layer"]):
        norms += [f"h.{layer}.ln_1", f"h.{layer}.ln_2"]
        for name, rows, columns in (
            ("attn.c_attn", C, 3 * C), ("attn.c_proj", C, C), ("mlp.c_fc", C, 4 * C), ("mlp.c_proj", 4 * C, C)
        ):  # fmt: skip
            tensors[f"h.{layer}.{name}.weight"] = draw(rows, columns, scale=1.5 * rows**-0.5)
            tensors[f"h.{layer}.{name}.bias"] = draw(columns, scale=0.3)
    for name in norms:
        tensors |= {f"{name}.weight": 1 + draw(C, scale=0.3), f"{name}.bias": draw(C, scale=0.3)}
    return tensors


def learned_vocabulary(vocab_size: int, texts: list[str] | None = None) -> tuple[dict[str, int], list[str]]:
    """vocab.json and the lines of merges.txt: the bytes in the order of their signs, the merges, then <|endoftext|>."""
    num_merges = vocab_size - 257
    tokens = small_tokenizer(256 + 9 + num_merges, texts=texts).tokens
    ranks = {token: rank for rank, token in enumerate(tokens)}
    ordered = [bytes([byte]) for _, byte in sorted((sign(byte), byte) for byte in range(256))] + tokens[256:]
    vocabulary = {written(token): number for number, token in enumerate(ordered)} | {END_OF_TEXT: vocab_size - 1}
    return vocabulary, [" ".join(map(written, parts_of(token, ranks))) for token in tokens[256:]]


def parts_of(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that a merge joins: what the merges before it make of its bytes."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        first = joined.index(min(joined))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    left, right = parts
    return left, right


def written(token: bytes) -> str:
    return "".join(map(sign, token))


def sign(byte: int) -> str:
    """GPT-2's printable sign for a byte: ! to ~ and most of Latin-1 are themselves, the others follow from U+0100 on."""
    if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE:
        return chr(byte)
    return chr(0x100 + [*range(0x21), *range(0x7F, 0xA1), 0xAD].index(byte))
