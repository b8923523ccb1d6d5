"""How long a stage will take: its work, counted, divided by how fast its processes are.

Each `predict_*` takes a specification and what is known of its inputs, and returns a `Prediction`. How fast is a `Speed`:
measured (a few seconds of real steps, `nanochat.planning.speed`) or from the table of devices (`table_speed`).

Covered: arithmetic, commits, evaluations during a training, the start of a program.
Not covered: waiting in a queue, other users of the disk, a model that writes longer answers than were counted.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nanochat.planning.hardware import CPU_FLOPS_PER_CORE, Device
from nanochat.schedule import components_of_2026, count_parameters, flops_per_token, num_training_steps

Model = Mapping[str, Any]  # the fields of GPTConfig

START_S = 3.0  # from the start of a program to its first step: importing PyTorch, reading the model
COMMIT_BYTES_PER_S = 0.5e9  # copying, hashing, writing and syncing a commit
ROWS_OF_DECODING = 64  # answers that are written side by side (nanochat.engine)
DECODE_S_PER_LAYER = 4.1e-3  # a step of it on a GPU: 82 ms for d20, nearly all of it starting small kernels (H100)

# A training on a GPU, eager, fitted to measurements on an H100 (benchmarks/gpu_step.py) from d8 to d20, to 5 %: the products
# run at this share of the peak, and everything between them moves so many bytes a token through the GPU's memory
PRODUCTS_SHARE = 0.76
BYTES_PER_LAYER_AND_WIDTH = 543
BYTES_PER_VOCABULARY = 127
DETERMINISTIC = 1.10  # d20 with kernels that give the same bits each time, over those that do not, at 8 and at 16 rows

# CPU stages, on one thread (benchmarks/README.md, data.py)
TOKENIZER_BYTES_PER_S = 12.9e6
TEXT_TOKENS_PER_S = 2.5e6
CONVERSATION_TOKENS_PER_S = 0.62e6  # rendered, encoded and packed, as config/small.yaml took
PROMPT_TOKENS_PER_S = 0.7e6  # of CORE, rendered and encoded: those kept, though each option is encoded with what it shares

# The tasks of nanochat's CORE bundle: items, and bytes of text that an item puts through the model, what its options share once
CORE_TASKS = {
    "hellaswag_zeroshot": (10_042, 750),
    "jeopardy": (2_117, 1_300),
    "bigbench_qa_wikidata": (20_321, 510),
    "arc_easy": (2_376, 1_790),
    "arc_challenge": (1_172, 2_200),
    "copa": (100, 90),
    "commonsense_qa": (1_221, 1_660),
    "piqa": (1_838, 1_860),
    "openbook_qa": (500, 90),
    "lambada_openai": (5_153, 320),
    "hellaswag": (10_042, 4_630),
    "winograd": (273, 130),
    "winogrande": (1_267, 140),
    "bigbench_dyck_languages": (1_000, 1_750),
    "agi_eval_lsat_ar": (230, 3_630),
    "bigbench_cs_algorithms": (1_320, 1_570),
    "bigbench_operators": (210, 1_450),
    "bigbench_repeat_copy_logic": (32, 2_240),
    "squad": (2_098, 10_200),
    "coqa": (8_021, 2_060),
    "boolq": (3_270, 7_270),
    "bigbench_language_identification": (10_000, 3_420),
}
# Bytes of a question, and of the reference answer where the model writes one (0: the likeliest letter is the answer)
CHAT_TASKS = {
    "arc_easy": (300, 0),
    "arc_challenge": (350, 0),
    "mmlu": (600, 0),
    "gsm8k": (300, 400),
    "humaneval": (500, 250),
    "spelling_bee": (100, 300),
    "open_questions": (60, 40),
}
IDENTITY_ROWS = {"train": 400, "test": 40}  # made where no number is asked for (nanochat.tasks.identity)
# Bytes of a conversation, as rendered
CONVERSATION_BYTES = {
    "smoltalk": 3_100,
    "mmlu": 1_500,
    "gsm8k": 800,
    "arc_easy": 350,
    "arc_challenge": 400,
    "identity": 200,
    "simple_spelling": 100,
    "spelling_bee": 500,
    "custom": 1_000,
}


@dataclass(frozen=True)
class Speed:
    """Seconds that all processes of a stage together need for one of each."""

    train_token_s: float  # forward and backward
    update_s: float  # the optimizer, once a step
    forward_token_s: float
    decode_token_s: float  # a token written, many answers side by side
    source: str  # where these come from, for people

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Prediction:
    """What a stage will do, and how long it takes. None: it does not have such a thing."""

    seconds: float
    steps: int | None = None
    tokens: int | None = None  # trained on, scored, written or made
    flops: float | None = None


# -- speeds ------------------------------------------------------------------------------------------------------------------


def table_speed(model: Model, *, device: Device | None, num_devices: int, cores: int) -> Speed:
    """From the table: `num_devices` GPUs at the stated share of their peak, or (device None) so many cores of a CPU."""
    if device is None:
        flops, source = cores * CPU_FLOPS_PER_CORE, f"{cores} CPU cores at {CPU_FLOPS_PER_CORE / 1e9:.0f} GFLOP/s each"
        forward = flops_per_token(model) / 3 / flops
        # decoding reads every weight for each step, and on a CPU costs about as much again in starting small operations
        return Speed(flops_per_token(model) / flops, 0.0, forward, 6 * forward, source)
    token_s = train_token_seconds(model, device) / num_devices
    share = flops_per_token(model) / token_s / (num_devices * device.peak_flops)
    source = f"{num_devices} x {device.name} at {share:.0%} of {device.peak_flops / 1e12:.0f} TFLOP/s"
    step = model["n_layer"] * DECODE_S_PER_LAYER + 4 * count_parameters(model) / device.bandwidth
    return Speed(token_s, 0.0, token_s / 3, step / ROWS_OF_DECODING / num_devices, source)


def train_token_seconds(model: Model, device: Device) -> float:
    """Seconds of one GPU for a token of training."""
    traffic = BYTES_PER_LAYER_AND_WIDTH * model["n_layer"] * model["n_embd"] + BYTES_PER_VOCABULARY * model["vocab_size"]
    products = flops_per_token(model) / (PRODUCTS_SHARE * device.peak_flops)
    return DETERMINISTIC * (products + traffic / device.bandwidth)


# -- trainings ---------------------------------------------------------------------------------------------------------------


def count_steps(specification: Mapping[str, Any], model: Model, *, train_rows: float | None) -> int | None:
    """Steps of a training; None where they depend on rows that nobody has counted yet."""
    if "epochs" not in specification:
        return num_training_steps(
            steps=specification["steps"],
            tokens_per_parameter=specification["tokens_per_parameter"] or 0.0,
            num_parameters=count_parameters(model),
            total_batch_tokens=specification["total_batch_tokens"],
        )
    if train_rows is None:
        return None
    batch_rows = specification["total_batch_tokens"] // model["sequence_len"]
    return max(1, math.ceil(specification["epochs"] * train_rows / batch_rows - 1e-9))


def predict_training(
    specification: Mapping[str, Any],
    model: Model,
    speed: Speed,
    *,
    train_rows: float | None = None,
    validation_rows: float | None = None,
    commit_every: int = 0,
) -> Prediction | None:
    """None where the number of steps is not known yet."""
    steps = count_steps(specification, model, train_rows=train_rows)
    if steps is None:
        return None
    length, batch_tokens, every = model["sequence_len"], specification["total_batch_tokens"], specification["eval_every"]
    evaluations = 1 + ((steps - 1) // every if every else 0)
    eval_rows = min(specification["eval_tokens"] // length, math.inf if validation_rows is None else validation_rows)
    commits = (
        len({*range(every or steps, steps, every or steps), *range(commit_every or steps, steps, commit_every or steps)}) + 1
    )
    seconds = steps * (batch_tokens * speed.train_token_s + speed.update_s)
    seconds += evaluations * eval_rows * length * speed.forward_token_s
    seconds += commits * commit_bytes(model) / COMMIT_BYTES_PER_S
    tokens = steps * batch_tokens
    return Prediction(seconds, steps, tokens, tokens * flops_per_token(model))


def matrix_parameters(model: Model) -> int:
    """Parameters of the blocks' matrices, which Muon trains with one buffer each; AdamW has two for every other one."""
    kv_width = model["n_embd"] // model["n_head"] * model["n_kv_head"]
    inside = model["n_layer"] * (10 * model["n_embd"] ** 2 + 2 * model["n_embd"] * kv_width)
    return inside + components_of_2026(model)["value_gates"]


def model_bytes(model: Model) -> int:
    return 4 * count_parameters(model)


def commit_bytes(model: Model) -> int:
    """A commit: fp32 weights, and the optimizers' buffers."""
    matrices = matrix_parameters(model)
    return model_bytes(model) + 4 * (matrices + 2 * (count_parameters(model) - matrices))


def seconds_between_commits(specification: Mapping[str, Any], prediction: Prediction, commit_every: int) -> float:
    """How long a training goes on, at most, without saving anything."""
    assert prediction.steps
    every = min(value for value in (commit_every, specification["eval_every"], prediction.steps) if value)
    return prediction.seconds / prediction.steps * min(every, prediction.steps)


# -- evaluations -------------------------------------------------------------------------------------------------------------

Counts = Mapping[str, tuple[int, float]]  # CORE task -> items, tokens an item
ChatCounts = Mapping[str, tuple[int, float, float]]  # chat task -> items, tokens of a question, tokens written (0: a letter)


def bytes_per_token(vocab_size: int) -> float:
    """Of English text: 4.8 with 65,536 tokens, 3.9 with 8,192, about 3 with 1,024 (measured, byte-pair encoding)."""
    return 0.3 * math.log2(vocab_size)


def core_counts(prompts: Mapping[str, Any], model: Model) -> Counts:
    """CORE as nanochat distributes it, for when its prompts are not made yet. `prompts` specifies them."""
    chosen, most = CORE_TASKS if prompts["tasks"] is None else prompts["tasks"], prompts["max_per_task"] or math.inf
    found = {name: CORE_TASKS[name] for name in chosen if name in CORE_TASKS}
    return {
        name: (round(min(items, most)), size / bytes_per_token(model["vocab_size"])) for name, (items, size) in found.items()
    }


def counted_core(results: Mapping[str, Any]) -> Counts:
    """CORE as its prompts were made: of the results in their manifest."""
    return {name: (task["num_items"], task["tokens"] / task["num_items"]) for name, task in results["tasks"].items()}


def chat_counts(model: Model, items: Mapping[str, int]) -> ChatCounts:
    """Chat tasks of so many items, for when the questions themselves were not counted."""
    ratio = bytes_per_token(model["vocab_size"])
    return {name: (number, *(size / ratio for size in CHAT_TASKS[name])) for name, number in items.items()}  # type: ignore[misc]


def predict_base_eval(specification: Mapping[str, Any], model: Model, speed: Speed, *, core: Counts) -> Prediction:
    """Bits per byte of two splits, and the CORE tasks: tokens that go forward through the model."""
    tokens = 2 * specification["eval_tokens"] + sum(items * size for items, size in core.values())
    written = len(specification["samples"]) * specification["sample_tokens"]
    seconds = START_S + tokens * speed.forward_token_s + written * speed.decode_token_s
    return Prediction(seconds, tokens=round(tokens), flops=tokens * flops_per_token(model) / 3)


def predict_chat_eval(specification: Mapping[str, Any], model: Model, speed: Speed, *, chat: ChatCounts) -> Prediction:
    """Questions go forward through the model; answers are written token by token, as long as the reference answers."""
    most, longest = specification["max_per_task"] or math.inf, specification["max_new_tokens"]
    read = written = 0.0
    for items, question, answer in (chat[name] for name in specification["tasks"] if name in chat):
        read += min(items, most) * min(question, 10 * model["sequence_len"])
        written += min(items, most) * min(answer, longest)
    seconds = START_S + read * speed.forward_token_s + written * speed.decode_token_s
    return Prediction(seconds, tokens=round(read + written), flops=(read + written) * flops_per_token(model) / 3)


# -- stages before any model -------------------------------------------------------------------------------------------------


def predict_tokenizer(specification: Mapping[str, Any], *, text_bytes: float) -> Prediction:
    """Byte-pair encoding of at most max_characters, out of so many bytes of text."""
    return Prediction(min(specification["max_characters"], text_bytes) / TOKENIZER_BYTES_PER_S)


def predict_text_tokens(*, text_bytes: float, vocab_size: int, threads: int) -> Prediction:
    tokens = text_bytes / bytes_per_token(vocab_size)
    return Prediction(tokens / (TEXT_TOKENS_PER_S * threads), tokens=round(tokens))


def predict_conversation_tokens(*, tokens: float) -> Prediction:
    return Prediction(tokens / CONVERSATION_TOKENS_PER_S, tokens=round(tokens))


def predict_prompt_tokens(core: Counts, *, threads: int) -> Prediction:
    tokens = sum(items * size for items, size in core.values())
    return Prediction(tokens / (PROMPT_TOKENS_PER_S * threads), tokens=round(tokens) or None)  # none: nobody counted them


def conversation_tokens(
    parts: list[Mapping[str, Any]], *, rows: Mapping[str, int], model: Model, size: float | None = None
) -> float | None:
    """Tokens of a mixture; `rows` says how many conversations each `task/split` has, `size` how many bytes a conversation has
    if not as many as usual. None if a number is not known."""
    total = 0.0
    for part in parts:
        available = rows.get(f"{part['task']}/{part['split']}", part.get("rows"))
        if part["task"] == "identity":
            available = part.get("rows") or IDENTITY_ROWS.get(part["split"])
        if available is None:
            return None
        number = min(available, part.get("rows") or available) * (part.get("epochs") or 1.0)
        tokens = (size or CONVERSATION_BYTES[part["task"]]) / bytes_per_token(model["vocab_size"])
        total += number * min(tokens, model["sequence_len"])
    return total
