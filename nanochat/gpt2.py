"""GPT-2 as a yardstick: a checkpoint in Hugging Face's format, from a folder, as our `GPT` with GPT-2's own tokenizer.

    config.json                     the sizes
    model.safetensors               the weights; or in parts, with model.safetensors.index.json
    tokenizer.json                  the vocabulary; or vocab.json with merges.txt

The model is the preset `textbook` with what GPT-2 does differently: GELU by its tanh approximation, and q, k and v from one
matrix. Its matrices are stored as (inputs, outputs), the other way round than ours.

Not covered: variants of the architecture, which are refused by name; files of pickled weights (pytorch_model.bin), which could
run a program when they are opened.
"""

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nanochat.checkpoint import load_weights, require_same_tensors
from nanochat.distributed import choose_dtype
from nanochat.errors import UserError
from nanochat.gpt import GPT, MLP, GPTConfig, LayerNorm
from nanochat.gpt2_tokenizer import Gpt2Tokenizer, load_tokenizer, read_json
from nanochat.jsonl import require_file
from nanochat.text import shown

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

SIZES = {
    "vocab_size": "vocab_size",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "n_positions": "sequence_len",
}
# what must be so if config.json says anything about it; all of it is what GPT-2 has
REQUIRED: dict[str, tuple] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names for one function
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "tie_word_embeddings": (True,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
}
# the causal mask, which early files store beside the weights of each layer
MASK = re.compile(r"h\.\d+\.attn\.(masked_)?bias")


def load_gpt2(folder: Path, device: str | torch.device = "cpu", dtype: str = "auto") -> tuple[GPT, Gpt2Tokenizer]:
    """Open a checkpoint, ready to evaluate. `dtype` is that of the activations.

    UserError for what is missing or damaged, and for what the configuration asks for and this model does not do.
    """
    folder = Path(folder)
    content = read_json(folder / "config.json", "GPT-2's configuration")
    config, eps = read_config(folder / "config.json", content)
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{folder}: its tokenizer has {tokenizer.vocab_size:,} tokens, and its model {config.vocab_size:,}")
    model = GPT(config)
    load_weights(model, our_tensors(read_tensors(folder, config), config), where=folder)
    for module in model.modules():
        if isinstance(module, LayerNorm):
            module.eps = eps
        elif isinstance(module, MLP):
            module.activation = partial(F.gelu, approximate="tanh")
    model.compute_dtype = choose_dtype(dtype, torch.device(device))
    return model.to(device).eval(), tokenizer


def read_config(path: Path, content: Mapping[str, Any]) -> tuple[GPTConfig, float]:
    """The sizes, and the epsilon of the norms."""
    for key, allowed in REQUIRED.items():
        found = content.get(key, allowed[0])
        if found not in allowed:
            expected = " or ".join(json.dumps(value) for value in allowed)
            raise UserError(f"{path}: {key} is {shown(found)}; this model does {expected} and nothing else")
    sizes: dict[str, int] = {}
    for theirs, ours in SIZES.items():
        match content.get(theirs):
            case int(size) if size is not True and size > 0:
                sizes[ours] = size
            case wrong:
                raise UserError(
                    f"{path}: {theirs} is {'missing' if theirs not in content else shown(wrong)}; expected a number"
                )
    if content.get("n_inner") not in (None, 4 * sizes["n_embd"]):
        raise UserError(f"{path}: n_inner is {shown(content['n_inner'])}; the MLP of this model is 4 n_embd wide")
    eps = content.get("layer_norm_epsilon", 1e-5)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise UserError(f"{path}: layer_norm_epsilon is {shown(eps)}; expected a number such as 1e-05")
    try:
        return GPTConfig.preset("textbook", attention="sdpa", n_kv_head=sizes["n_head"], **sizes), eps
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


# -- weights -----------------------------------------------------------------------------------------------------------------


def read_tensors(folder: Path, config: GPTConfig) -> dict[str, Tensor]:
    """Every tensor in fp32 by GPT-2's own name, the head and the masks aside; just those of this configuration."""
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        require_file(path, "GPT-2's weights")
        try:
            stored = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: cannot be read as safetensors ({error}). Copy it again") from error
        for name, tensor in stored.items():
            if not MASK.fullmatch(name := name.removeprefix("transformer.")):
                found[name] = tensor.float() if tensor.is_floating_point() else tensor
    head = found.pop("lm_head.weight", None)
    if head is not None and "wte.weight" in found and not torch.equal(head, found["wte.weight"]):
        raise UserError(f"{folder}: lm_head.weight is not wte.weight; this model's head is its table of tokens, as GPT-2's is")
    require_same_tensors(folder, found, their_tensors(config))
    return found


def weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        names = read_json(folder / INDEX, "the index of the weights").get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) and n == Path(n).name for n in names.values()):
            raise UserError(f"{folder / INDEX}: expected a weight_map, from each tensor to the file in this folder that has it")
        return [folder / name for name in sorted(set(names.values()))]
    if any(folder.glob("*.bin")):
        raise UserError(
            f"{folder}: has its weights as .bin, pickled files, which are not opened: they could run a program. Take the "
            f"{WEIGHTS} of the same model"
        )
    raise UserError(f"{folder / WEIGHTS} is not there. A GPT-2 folder has config.json, {WEIGHTS} and tokenizer.json")


def their_tensors(config: GPTConfig) -> dict[str, Tensor]:
    """GPT-2's tensors by name, without their numbers."""
    C, shapes = config.n_embd, {}
    for layer in range(config.n_layer):
        for name, shape in {
            "ln_1": (C,), "attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C),
            "ln_2": (C,), "mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C),
        }.items():  # fmt: skip
            shapes[f"h.{layer}.{name}.weight"], shapes[f"h.{layer}.{name}.bias"] = shape, shape[-1:]
    shapes |= {"wte.weight": (config.vocab_size, C), "wpe.weight": (config.sequence_len, C)}
    shapes |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def our_tensors(theirs: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The same by our names: matrices the other way round, q, k and v by themselves."""
    found: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        ours = re.sub(r"^h\.", "blocks.", name)
        if ".c_" in name and tensor.dim() == 2:
            tensor = tensor.T
        if ".c_attn." in name:
            parts = tensor.split(config.n_embd, dim=0)
            found |= {ours.replace("c_attn", part): rows for part, rows in zip(("c_q", "c_k", "c_v"), parts, strict=True)}
        else:
            found[ours] = tensor
    return found
