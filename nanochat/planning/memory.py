"""How much of a GPU's memory a training takes, from the model's sizes alone: nothing is built, PyTorch is not imported.

    peak_bytes(d20, micro_batch=16)                                  # 73.4e9
    largest_micro_batch(d20, rows=32, memory_bytes=85_000_000_000)   # 16

Counts what our code keeps when PyTorch runs it eagerly. Measured on an H100 (benchmarks/gpu_step.py); the table in
tests/test_memory.py holds the figures, from which this differs by less than 1 %.

nanochat was seen to take 75.4 GB a GPU for d20 at micro-batch 32, on A100s, compiled. At 32 we would need 138 GB, so
we run at 16, in 73. Its optimizer shares its state among the 8 GPUs, which would save us 2.6 GB; the rest must be activations:
a compiled model can make norms, rotations, relu^2, the soft cap and the softmax anew where the backward pass needs them; an
eager one keeps each result: of our 4.1 GB a row, 2.1 are logits in four versions. The batch of a step is the same with any
micro-batch, so a smaller one changes the result by rounding only, and the speed by 3 % from 16 to 8 (benchmarks/README.md).

Since these measurements the loss is computed in chunks (`nanochat.loss`) and the optimizer's state is shared out among ranks,
so a training takes less than this says; how much less, no GPU was asked yet. Larger micro-batches than the one chosen may fit.

Covered: training, one process a GPU, every component of GPTConfig.
Not covered: the CUDA context and NCCL's buffers (about 1 GB, in `USABLE_SHARE`), generation's caches, CPUs.
"""

from collections.abc import Mapping
from typing import Any

from nanochat.schedule import components_of_2026, count_parameters

FP32 = 4
# Bytes for each number of the largest stack of matrices, in Muon's step. Kept: the stacks of gradients, momenta and updates,
# and of the stack before it the last two. Worked with, in bf16: the iterate, its products and their sum
MUON_KEPT, MUON_WORK = 20, 10
WORKSPACE = 2**27  # cuBLAS's and cuDNN's, and the table of rotations: about 0.1 GB in every measurement
# Of the device's memory, what tensors may fill. The rest is the CUDA context (0.8 GB measured), NCCL's buffers, and holes
# between tensors: on 85.0 GB, d20 runs at 73.4 (86 %); on the way to 81.5 (96 %) it found 12 GB free, but no 9.7 in one piece
USABLE_SHARE = 0.9


def peak_bytes(model: Mapping[str, Any], *, micro_batch: int, world_size: int = 1, dtype: str = "bfloat16") -> int:
    """The most bytes that tensors take in a training step, on each GPU.  `model` are the fields of GPTConfig.

    What `torch.cuda.max_memory_allocated` says. There are two moments at which a step may be at its highest: when the backward
    pass starts, with all activations there, or in the optimizer's step, which needs room to work in.
    """
    tokens = micro_batch * model["sequence_len"]
    backward = weight_copies(model, dtype) + tokens * (kept_per_token(model, dtype) + passing_per_token(model, dtype))
    return resident_bytes(model) + max(backward, optimizer_bytes(model, world_size)) + WORKSPACE


def largest_micro_batch(model: Mapping[str, Any], *, rows: int, memory_bytes: int, dtype: str = "bfloat16") -> int:
    """The largest divisor of `rows`, a GPU's rows in a step, whose peak fits `USABLE_SHARE` of its memory; 0 if none does."""
    divisors = (number for number in range(rows, 0, -1) if rows % number == 0)
    limit = USABLE_SHARE * memory_bytes
    return next((number for number in divisors if peak_bytes(model, micro_batch=number, dtype=dtype) <= limit), 0)


# -- what does not depend on the batch ---------------------------------------------------------------------------------------


def resident_bytes(model: Mapping[str, Any]) -> int:
    """What stays on the GPU between steps, and the gradients, which the first micro-batch leaves for the second."""
    num_parameters, in_matrices = count_parameters(model), parameters_in_matrices(model)
    weights = gradients = FP32 * num_parameters
    momenta = FP32 * in_matrices  # of Muon, one number for each. Not shared out: every GPU keeps all
    moments = 2 * FP32 * (num_parameters - in_matrices)  # of AdamW: the mean and the mean square
    return weights + gradients + momenta + moments


def weight_copies(model: Mapping[str, Any], dtype: str) -> int:
    """Weights cast to the dtype of the activations: made where they are used, kept for the backward pass."""
    return (
        0 if dtype == "float32" else width_of(dtype) * (parameters_in_matrices(model) + model["vocab_size"] * model["n_embd"])
    )


def optimizer_bytes(model: Mapping[str, Any], world_size: int) -> int:
    """Muon stacks all matrices of one shape and orthogonalises them at once, each GPU its share of the stack."""
    largest_stack = 4 * model["n_embd"] ** 2 * model["n_layer"]  # of the MLPs' matrices; attention's four make one as large
    return largest_stack * MUON_KEPT + largest_stack * MUON_WORK // world_size


def parameters_in_matrices(model: Mapping[str, Any]) -> int:
    """Numbers in the matrices of the blocks: those that Muon moves."""
    inside = model["n_layer"] * model["n_embd"] * (10 * model["n_embd"] + 2 * kv_width(model))
    return inside + components_of_2026(model)["value_gates"]


# -- what grows with the tokens of a micro-batch -----------------------------------------------------------------------------


def kept_per_token(model: Mapping[str, Any], dtype: str) -> int:
    """Bytes for each token that the forward pass leaves for the backward pass, without the logits."""
    # the embedding before and after its norm, or the stream after `ln_f`, which the head needs; and 64-bit ids and targets
    ends = 3 * model["n_embd"] * width_of(dtype) + 16
    return model["n_layer"] * (mlp_per_token(model, dtype) + attention_per_token(model, dtype)) + ends


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
    """The most that is there for a moment on top: at the start of the backward pass, or inside the last layer's."""
    # all of V numbers in fp32: the softmax's logarithm, its gradient, the loss's gradient, and what tanh made for the soft cap
    logits = FP32 * model["vocab_size"] * (3 if model["soft_cap"] is None else 4)
    mlp = 3 * 4 * model["n_embd"] * width_of(dtype)  # gradients behind the bend and before it, and a factor between
    # of attention written out: gradients in fp32 behind the softmax and before it
    scores = 2 * FP32 * model["n_head"] * model["sequence_len"] if model["attention"] == "naive" else 0
    return max(logits, mlp, scores)


def kv_width(model: Mapping[str, Any]) -> int:
    return model["n_embd"] // model["n_head"] * model["n_kv_head"]


def width_of(dtype: str) -> int:
    """Bytes of one number."""
    return {"float32": 4, "bfloat16": 2}[dtype]
