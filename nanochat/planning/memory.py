"""How much of a GPU's memory a training takes, from the model's sizes alone: nothing is built, PyTorch is not imported.

    peak_bytes(d20, micro_batch=32)                                  # 72.8e9
    largest_micro_batch(d20, rows=32, memory_bytes=85_000_000_000)   # 32

Counts what our code keeps when PyTorch runs it eagerly. tests/test_memory.py runs training steps and counts every tensor that
is alive: what is kept for the backward pass is this within 2 %, the highest moment within 3 %. An H100 was asked about earlier
code, which kept whole logits (benchmarks/gpu_step.py): the formula of then was within 1 % of its answers, and such a count
within 1 % of that formula. About today's code no GPU was asked yet.

nanochat was seen to take 75.4 GB a GPU for d20 at micro-batch 32, on A100s, compiled.

Covered: training, one process a GPU, every component of GPTConfig, activations that are made again.
Not covered: the CUDA context and NCCL's buffers (about 1 GB, in `USABLE_SHARE`), generation's caches, CPUs; that a compiled
model keeps less.
"""

from collections.abc import Mapping
from typing import Any

from nanochat.presets import OFF, WINDOW_MULTIPLE, has_value_embedding, layer_windows
from nanochat.schedule import components_of_2026, count_parameters

FP32 = 4
# Bytes for each number of the largest stack of matrices, in Muon's step with all its parts. Kept: the stack of gradients and
# its successors; worked with, in bf16: the iterate, its products and their sum
MUON_KEPT, MUON_WORK = 12, 10
LOSS_CHUNK_BYTES = 2**29  # scores of a chunk of the loss on a GPU (`nanochat.loss`): enough rows to fill the matrix products
WORKSPACE = 2**27  # cuBLAS's and cuDNN's, and the table of rotations: about 0.1 GB in every measurement
# Of the device's memory, what tensors may fill. The rest is the CUDA context (0.8 GB measured), NCCL's buffers, and holes
# between tensors: on 85.0 GB, d20 ran at 73.4 (86 %); on the way to 81.5 (96 %) it found 12 GB free, but no 9.7 in one piece
USABLE_SHARE = 0.9


def peak_bytes(
    model: Mapping[str, Any], *, micro_batch: int, world_size: int = 1, dtype: str = "bfloat16", recompute: bool = False
) -> int:
    """The most bytes that tensors take in a training step, on each GPU.  `model` are the fields of GPTConfig.

    What `torch.cuda.max_memory_allocated` says. There are two moments at which a step may be at its highest: between the
    forward and the backward pass, with all activations there, or in the optimizer's step, which needs room to work in.
    """
    model = {**OFF, **model}
    step = step_bytes(model, micro_batch=micro_batch, dtype=dtype, recompute=recompute)
    return resident_bytes(model, world_size) + max(step, optimizer_bytes(model, world_size)) + WORKSPACE


def largest_micro_batch(
    model: Mapping[str, Any],
    *,
    rows: int,
    memory_bytes: int,
    world_size: int = 1,
    dtype: str = "bfloat16",
    recompute: bool = False,
) -> int:
    """The largest divisor of `rows`, a GPU's rows in a step, whose peak fits `USABLE_SHARE` of its memory; 0 if none does."""
    limit = USABLE_SHARE * memory_bytes
    for number in range(rows, 0, -1):
        if rows % number == 0:
            need = peak_bytes(model, micro_batch=number, world_size=world_size, dtype=dtype, recompute=recompute)
            if need <= limit:
                return number
    return 0


def step_bytes(model: Mapping[str, Any], *, micro_batch: int, dtype: str, recompute: bool = False) -> int:
    """The most on top of what stays between steps, in the forward and backward pass of a micro-batch."""
    tokens = micro_batch * model["sequence_len"]
    kept = tokens * kept_per_token(model, dtype, recompute=recompute) + (0 if recompute else window_masks(model, dtype))
    block = tokens * blocks_per_token(model, dtype) // model["n_layer"] if recompute else 0
    passing = max(loss_bytes(model, tokens, dtype), block + tokens * passing_per_token(model, dtype))
    return weight_copies(model, dtype) + kept + passing


# -- what does not depend on the batch ---------------------------------------------------------------------------------------


def resident_bytes(model: Mapping[str, Any], world_size: int = 1) -> int:
    """What stays on the GPU between steps, and the gradients, which the first micro-batch leaves for the second."""
    num_parameters, in_matrices = count_parameters(model), parameters_in_matrices(model)
    weights = gradients = FP32 * num_parameters
    momenta = FP32 * in_matrices  # of Muon, one number for each
    moments = 2 * FP32 * (num_parameters - in_matrices)  # of AdamW: the mean and the mean square
    return weights + gradients + (momenta + moments) // world_size


def weight_copies(model: Mapping[str, Any], dtype: str) -> int:
    """Matrices cast to the dtype of the activations (`nanochat.casts`)."""
    if dtype == "float32":
        return 0
    numbers = parameters_in_matrices(model) + model["vocab_size"] * model["n_embd"] + components_of_2026(model)["smear_gate"]
    return width_of(dtype) * numbers


def optimizer_bytes(model: Mapping[str, Any], world_size: int) -> int:
    """Muon stacks all matrices of one shape and orthogonalises them at once, each GPU its share of the stack."""
    largest_stack = 4 * model["n_embd"] ** 2 * model["n_layer"]  # of the MLPs' matrices; attention's four make one as large
    return largest_stack * MUON_KEPT + largest_stack * MUON_WORK // world_size


def parameters_in_matrices(model: Mapping[str, Any]) -> int:
    """Numbers in the matrices of the blocks: those that Muon moves."""
    inside = model["n_layer"] * model["n_embd"] * (10 * model["n_embd"] + 2 * kv_width(model))
    return inside + components_of_2026(model)["value_gates"]


# -- what grows with the tokens of a micro-batch -----------------------------------------------------------------------------


def kept_per_token(model: Mapping[str, Any], dtype: str, *, recompute: bool = False) -> int:
    """Bytes for each token that the forward pass leaves for the backward pass, without what the loss makes."""
    # the embedding before and after its norm, or the stream after `ln_f`, which the head needs; and 64-bit ids and targets
    ends = 3 * model["n_embd"] * width_of(dtype) + 16
    if recompute:
        streams = model["n_layer"] * model["n_embd"] * width_of(dtype)
        blocks = streams + values_per_token(model, "float32")  # what goes into them
    else:
        blocks = blocks_per_token(model, dtype)
    return blocks + between_blocks_per_token(model, dtype) + ends


def blocks_per_token(model: Mapping[str, Any], dtype: str) -> int:
    layers = model["n_layer"] * (mlp_per_token(model, dtype) + attention_per_token(model, dtype))
    return layers + values_per_token(model, dtype) + windows_per_token(model, dtype)


def between_blocks_per_token(model: Mapping[str, Any], dtype: str) -> int:
    """Of the components of 2026 that are not inside a block."""
    stream = model["n_embd"] * width_of(dtype)
    # what they scale: the stream that each block left, the first the embedding; or the embedding alone
    scales = stream * (model["n_layer"] if model["residual_scales"] else int(model["embedding_scales"]))
    smear = 2 * (stream + width_of(dtype)) if model["smear"] else 0  # the token before it and the embedding, and two gates
    return scales + smear


def values_per_token(model: Mapping[str, Any], dtype: str) -> int:
    """Value embeddings, and for each head two steps of its gate."""
    if not model["value_embedding"]:
        return 0
    layers = sum(has_value_embedding(layer, model["n_layer"]) for layer in range(model["n_layer"]))
    return layers * width_of(dtype) * (kv_width(model) + 2 * model["n_kv_head"])


def windows_per_token(model: Mapping[str, Any], dtype: str) -> int:
    """Blocks of queries keep their keys and values each, in place of one of each in all; and the answers in pieces besides."""
    total = 0
    for keys in window_keys(model):
        copies = sum(keys) / model["sequence_len"]
        total += round(width_of(dtype) * (2 * kv_width(model) * (copies - 1) + model["n_embd"]))
    return total


def window_masks(model: Mapping[str, Any], dtype: str) -> int:
    """Which keys each block of queries sees, as numbers that are added to scores; the same for all rows and heads."""
    return sum(width_of(dtype) * WINDOW_MULTIPLE * sum(keys) for keys in window_keys(model))


def window_keys(model: Mapping[str, Any]) -> list[list[int]]:
    """For each layer in which a window hides anything: how many keys each block of queries is given."""
    length, found = model["sequence_len"], []
    for window in layer_windows(model["window_pattern"], model["n_layer"], length):
        if window is not None and length > window + 1:
            ends = range(WINDOW_MULTIPLE, length + WINDOW_MULTIPLE, WINDOW_MULTIPLE)
            found.append([min(end, length) - max(0, end - WINDOW_MULTIPLE - window) for end in ends])
    return found


def mlp_per_token(model: Mapping[str, Any], dtype: str) -> int:
    # the stream before its norm and after it, C each; then 4 C in front of the bend's last operation and 4 C behind it
    return 10 * model["n_embd"] * width_of(dtype) + 8


def attention_per_token(model: Mapping[str, Any], dtype: str) -> int:
    width, heads = width_of(dtype), model["n_head"] + model["n_kv_head"]
    stream = 2 * model["n_embd"]  # before the norm and after it
    queries_keys_values = model["n_embd"] + 2 * kv_width(model)
    before_qk_norm = model["n_embd"] + kv_width(model) if model["qk_norm"] else 0
    answers = model["n_embd"]
    statistics = FP32 * (2 + heads + model["n_head"])  # a number for each norm, and attention's logarithm of each row's sum
    return width * (stream + queries_keys_values + before_qk_norm + answers) + statistics + scores_per_token(model, dtype)


def scores_per_token(model: Mapping[str, Any], dtype: str) -> int:
    """Attention written out keeps its weights: T for each head, in fp32 out of the softmax, and cast for the product."""
    if model["attention"] != "naive":
        return 0
    copies = 0 if dtype == "float32" else width_of(dtype)
    return model["n_head"] * model["sequence_len"] * (FP32 + copies)


def passing_per_token(model: Mapping[str, Any], dtype: str) -> int:
    """The most that is there for a moment on top, inside the last layer's backward pass."""
    mlp = 3 * 4 * model["n_embd"] * width_of(dtype)  # gradients behind the bend and before it, and a factor between
    # of attention written out: gradients in fp32 behind the softmax and before it
    scores = 2 * FP32 * model["n_head"] * model["sequence_len"] if model["attention"] == "naive" else 0
    return max(mlp, scores)


def loss_bytes(model: Mapping[str, Any], tokens: int, dtype: str) -> int:
    """What the loss makes: gradients of the stream and the head, and the scores of a chunk as often as they are worked on."""
    width, table = width_of(dtype), model["vocab_size"] * model["n_embd"]
    rows = min(tokens, max(1, LOSS_CHUNK_BYTES // (model["vocab_size"] * width)))
    stream, head = tokens * model["n_embd"] * width, FP32 * table
    # as they come, in fp32 if that is another, and once more where they are bent
    scores = width + (FP32 if width != FP32 else 0) + (FP32 if model["soft_cap"] is not None else 0)
    working = stream + head + rows * model["vocab_size"] * scores
    multiplying = stream + head + rows * model["vocab_size"] * width + table * width
    return max(working, multiplying, 2 * stream + 2 * head)


def kv_width(model: Mapping[str, Any]) -> int:
    return model["n_embd"] // model["n_head"] * model["n_kv_head"]


def width_of(dtype: str) -> int:
    """Bytes of one number."""
    return {"float32": 4, "bfloat16": 2}[dtype]
