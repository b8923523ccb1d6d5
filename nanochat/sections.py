"""What can be configured: one class a section, and for each key its type, default, range and meaning. Nothing is computed here.

From these classes come the checks at start, the completion in editors (config/schema.json) and the table in
docs/configuration.md. The defaults are the run d20 of nanochat, October 2025.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator

Task = Literal[
    "smoltalk",
    "mmlu",
    "gsm8k",
    "arc_easy",
    "arc_challenge",
    "identity",
    "simple_spelling",
    "spelling_bee",
    "custom",
]
ScoredTask = Literal["arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval", "spelling_bee", "open_questions"]
Dtype = Literal["auto", "bfloat16", "float32"]

# keys that decide how fast or how chatty a training is, never what comes out of it: in no specification
RUN_TIME_KEYS = ("micro_batch", "commit_every", "attention_backend", "compile", "recompute", "determinism")


def key(default: Any, meaning: str, **limits: Any) -> Any:
    return Field(default, description=meaning, **limits)


AUTO = -1  # stands for `auto` until the dial's number takes its place (`specifications.with_dial`); no key takes it as a number


def auto_or(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    return AUTO if value == "auto" else check(value)


def also_auto(schema: dict[str, Any]) -> None:
    """JSON schema of a key that takes a number or `auto`."""
    number = {name: schema.pop(name) for name in ("type", "minimum") if name in schema}
    schema["anyOf"] = [number, {"type": "string", "const": "auto"}]


AutoCount = Annotated[int, Field(ge=1, json_schema_extra=also_auto), WrapValidator(auto_or)]
AutoRate = Annotated[float, Field(ge=0, json_schema_extra=also_auto), WrapValidator(auto_or)]


class Section(BaseModel):
    """Unknown keys are errors, text is not taken for a number, and nothing changes after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Identity(Section):
    """Who the model says it is; conversations about it are generated from these lines."""

    name: str = key("nanochat", "what the model calls itself", min_length=1)
    makers: str = key("the students of a course on language models", "completes `I was made by ...`", min_length=1)
    purpose: str = key("show how a chat model is trained, from raw text on", "completes `I was made to ...`", min_length=1)
    facts: list[str] = key([], "further whole sentences in the first person")


class Download(Section):
    """Which text to learn from."""

    pretraining: str = key("fineweb-edu", "data set of the pretraining shards, as the catalogue names it")
    train_shards: int = key(239, "train on the first so many shards, the validation shard left out", ge=1)
    validation_shard: int = key(239, "index of the shard that is never trained on", ge=0)


class TokenizerSection(Section):
    """Byte-pair encoding, trained on the first shards."""

    # the lowest is the 256 bytes and 9 special tokens; the highest is what uint16 token files hold
    vocab_size: int = key(65_536, "tokens, the 9 special ones included", ge=265, le=65_536)
    shards: int = key(8, "train on the first so many training shards", ge=1)
    max_characters: int = key(2_000_000_000, "stop after so many characters", ge=1)
    document_characters: int = key(10_000, "take at most so many from the start of a document", ge=1)


class Tokens(Section):
    """Packing text and conversations into rows of equal length."""

    sequence_len: int = key(2048, "tokens that the model sees at once", ge=8, le=65_536)


class OptimizerParts(Section):
    """What the optimizer is made of, beside its rates. The defaults are those of October 2025."""

    orthogonalizer: Literal["newton_schulz", "polar_express"] = key("newton_schulz", "how Muon makes matrices orthogonal")
    equilibrate_rows: bool = key(False, "all rows of a matrix equally long before that")
    renormalize: bool = key(False, "every matrix of the same Frobenius norm after it")
    normalize_variance: bool = key(False, "each neuron's update divided by its running mean square (NorMuon)")
    momentum: list[float] = key([0.85, 0.95, 300.0], "Muon's: from, to, over so many steps", min_length=3, max_length=3)
    final_momentum: float | None = key(None, "where it falls to while the rates fall; empty = it stays", ge=0, lt=1)
    matrix_decay: AutoRate = key(0.0, "Muon's weight decay; auto = by the dial, from 0.28. Not taken over by mid_train and sft")
    cautious: bool = key(False, "only of numbers that the update moves towards zero anyway")
    matrix_decay_schedule: Literal["constant", "cosine"] = key("constant", "cosine = falls to 0 at the end")
    groups: Literal["nanochat", "speedrun"] = key(
        "nanochat", "AdamW's averages and decays: one for all tables, or (speedrun) those of July 2026, table by table"
    )
    scalar_lr: AutoRate = key(0.5, "AdamW's rate for residual_scales (a hundredth of it) and embedding_scales; auto = dial")
    comm_dtype: Literal["float32", "bfloat16"] = key(
        "float32", "in which devices exchange the gradients of matrices and tables"
    )


class Training(Section):
    """The keys that base_train, mid_train and sft share."""

    seed: int = key(
        42, "seed of the order of the rows; of the first weights (base_train), of the mixture (mid_train, sft)", ge=0
    )
    total_batch_tokens: int = key(524_288, "tokens of one step, over all devices", ge=1)
    weight_decay: float = key(0.0, "AdamW's weight decay", ge=0)
    grad_clip: float = key(1.0, "longest allowed gradient; 0 = never shortened", ge=0)
    warmup_ratio: float = key(0.0, "share of the steps in which the rate rises from 0", ge=0, le=1)
    warmdown_ratio: float = key(0.2, "share of the steps in which it falls at the end", ge=0, le=1)
    final_lr_ratio: float = key(0.0, "where it falls to, as a share of the full rate", ge=0, le=1)
    eval_every: int = key(250, "steps between evaluations of the validation loss; 0 = only at the end", ge=0)
    eval_tokens: int = key(10_485_760, "tokens of one such evaluation", ge=1)
    dtype: Dtype = key("auto", "of the activations; auto = bfloat16 where the device computes in it fast")
    micro_batch: int | None = key(None, "rows of one forward pass; empty = what fits. Changes no result but rounding", ge=1)
    commit_every: int = key(250, "steps between commits to resume from; 0 = only at evaluations", ge=0)
    attention_backend: Literal["auto", "sdpa", "blocked", "flash2", "flash3", "flex"] = key(
        "auto", "what computes attention that is not written out; auto = blocked on CPUs in bfloat16, else PyTorch's sdpa"
    )
    compile: Literal["auto", "always", "never"] = key(
        "auto", "compile the blocks (torch.compile); auto = on CPUs, for trainings of more than ten minutes"
    )
    recompute: bool = key(False, "make activations again in the backward pass instead of keeping them: less memory, slower")
    determinism: Literal["strict", "fast"] = key(
        "strict", "strict = a resumed training ends in the same bits; fast = on GPUs sums go in any order, and it ends near"
    )


class Components(Section):
    """What the model is built of; only what differs from the preset."""

    positions: Literal["rope", "learned"] = key(None, "how the model knows the order of its tokens")
    norm: Literal["rms", "layer"] = key(None, "RMSNorm without gain, or LayerNorm")
    mlp: Literal["relu2", "gelu"] = key(None, "activation inside the MLP")
    attention: Literal["sdpa", "naive"] = key(None, "fused kernel, or scores, mask and softmax written out")
    qk_norm: bool = key(None, "normalise queries and keys")
    soft_cap: float | None = key(None, "logits pass through cap * tanh(logits / cap); empty = no cap", gt=0)
    tied_head: bool = key(None, "the output layer is the embedding table")
    bias: bool = key(None, "linear layers have biases")
    norm_embedding: bool = key(None, "normalise right after the embedding")
    init: Literal["nanochat", "gpt2", "speedrun"] = key(None, "how the weights begin")
    rope_base: float = key(None, "base of the rotation frequencies", gt=1)
    window_pattern: str = key(
        None, "tiled over the blocks: L sees the whole row, S a quarter; the last one is L", pattern="^[SL]+$"
    )
    value_embedding: bool = key(None, "every second block adds a table of its own to the values, gated")
    residual_scales: bool = key(None, "the stream times a learned number before each block")
    embedding_scales: bool = key(None, "and the embedding, times another one, added to it")
    smear: bool = key(None, "the token before, mixed into the embedding")
    backout: bool = key(None, "what the first half of the blocks wrote, subtracted in part before the head")
    qk_scale: float = key(None, "queries and keys times this, after they are normalised", gt=0)


class BaseTrain(Training):
    """Pretraining: predict the next token of the text."""

    depth: int = key(20, "blocks; width, heads, horizon and rates follow from it", ge=1, le=200)
    width: int | None = key(None, "empty = 64 * depth", ge=2)
    heads: int | None = key(None, "attention heads; empty = width / 128, rounded up", ge=1)
    preset: Literal["nanochat", "textbook", "speedrun"] = key("nanochat", "the model's components, by name")
    model: Components = key(Components(), "components that differ from the preset")
    steps: int | None = key(None, "steps to train; empty = from tokens_per_parameter", ge=1)
    tokens_per_parameter: float = key(20.0, "tokens to train on for each parameter that counts", gt=0)
    counted_parameters: Literal["all", "scaling"] = key(
        "all", "which count: all, or (scaling) the blocks' matrices and the head"
    )
    total_batch_tokens: AutoCount = key(524_288, "tokens of one step, over all devices; auto = by the dial (nanochat/dial.py)")
    embedding_lr: AutoRate = key(0.2, "AdamW's rate for token embeddings, at width 768; auto = by the dial, from 0.3")
    unembedding_lr: AutoRate = key(0.004, "AdamW's rate for the output layer, at width 768; auto = by the dial, from 0.008")
    matrix_lr: AutoRate = key(0.02, "Muon's rate for the matrices of the blocks; auto = by the dial, from 0.02")
    optimizer: OptimizerParts = key(OptimizerParts(), "what the optimizer is made of")


class Part(Section):
    """A part of a mixture of conversations."""

    task: Task = key(..., "where its conversations come from")
    split: str = key("train", "which part of the data set: train, test; MMLU's training part is auxiliary_train")
    rows: int | None = key(None, "only the first so many; of identity and the spellings, how many to make", ge=1)
    epochs: float | None = key(None, "how often; 1.5 = once, and a sample of half. Empty = once, unless weighted", gt=0)
    weight: float | None = key(None, "instead of epochs: share of mixture_rows, relative to the other weights", gt=0)
    file: str | None = key(None, "custom only: a local JSONL file, one conversation a line")
    source: str | None = key(None, "custom only: the same, as a key of the catalogue")


class Finetune(Training):
    """What mid_train and sft share beside the keys of every training."""

    mixture: list[Part] = key(..., "conversations to train on", min_length=1)
    validation: list[Part] = key(..., "conversations to measure the validation loss on", min_length=1)
    mixture_rows: int | None = key(None, "conversations in all, shared out by weight", ge=1)
    mask_user: bool = key(False, "learn from the assistant's tokens only")
    epochs: float = key(1.0, "passes over the mixture", gt=0)
    lr_scale: float = key(1.0, "factor on all rates", ge=0)
    optimizer: OptimizerParts = key(OptimizerParts(), "keys in which it differs from base_train.optimizer")
    embedding_lr: float | None = key(
        None, "empty = as base_train; where that says auto, as the dial's model of 12 blocks", ge=0
    )
    unembedding_lr: float | None = key(None, "empty = as base_train", ge=0)
    matrix_lr: float | None = key(None, "empty = as base_train", ge=0)
    eval_every: int = key(150, "steps between evaluations of the validation loss; 0 = only at the end", ge=0)


class MidTrain(Finetune):
    """Midtraining: the chat format, multiple choice, tools; on conversations, at full rate."""


class Sft(Finetune):
    """Supervised fine-tuning: answer well; on few conversations, at a low rate."""

    mask_user: bool = key(True, "learn from the assistant's tokens only")
    total_batch_tokens: int = key(16_384, "tokens of one step, over all devices", ge=1)
    lr_scale: float = key(0.02, "factor on all rates", ge=0)
    warmdown_ratio: float = key(1.0, "share of the steps in which it falls at the end", ge=0, le=1)


class BaseEval(Section):
    """Bits per byte, CORE and samples of the pretrained model."""

    eval_tokens: int = key(10_485_760, "tokens for the bits per byte, of each split", ge=1)
    max_per_task: int | None = key(None, "items of each CORE task, drawn with a seed; empty = all", ge=1)
    tasks: list[str] | None = key(None, "labels of the CORE tasks to run; empty = all", min_length=1)
    samples: list[str] = key(
        ["The largest planet is", "Water boils when", "Once upon a time", "Two and two make", "In winter, the days are"],
        "beginnings that the model completes, for the report",
    )
    sample_tokens: int = key(32, "tokens of each completion", ge=1)
    seed: int = key(42, "seed of the sampled completions", ge=0)


class ChatEval(Section):
    """Scores of the chat model, after mid_train and after sft."""

    tasks: list[ScoredTask] = key(
        ["arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval", "spelling_bee"], "what to score", min_length=1
    )
    max_per_task: int | None = key(None, "items of each task; empty = all", ge=1)
    max_new_tokens: int = key(512, "longest answer", ge=1)
    temperature: float = key(0.0, "0 = always the likeliest token", ge=0)
    top_k: int | None = key(50, "sample among the so many likeliest tokens; empty = among all", ge=1)
    num_samples: int = key(1, "answers to each question answered in words; several, at a temperature, give pass@k", ge=1)
    spelling_items: int = key(256, "items of the spelling task, which are generated", ge=1)
    sandbox: Literal["limited", "filtered", "closed", "full"] = key(
        "closed", "how well programs that the model writes must be closed in (humaneval); on a machine that cannot, it fails"
    )
    seed: int = key(42, "seed of the sampling", ge=0)


MAX_PROMPT_TOKENS = 128  # that a trace shows line by line


class Trace(Section):
    """One prompt through the model, every line of it, and one step of its training, for people to look at."""

    prompt: str = key("The capital of France is", f"text to follow through the model, of at most {MAX_PROMPT_TOKENS} tokens")
    model: Literal["base_train", "mid_train", "sft"] = key("base_train", "the training whose model is traced")
    beside: str | None = key(
        None, "run whose model of that training stands beside it; empty = the other preset at these sizes, untrained"
    )
    step_tokens: int = key(256, "tokens of the training step", ge=16, le=4096)


class Report(Section):
    """The report that a run ends with."""

    title: str | None = key(None, "empty = the run's name")
    cost_per_gpu_hour: float | None = key(None, "prices the stages, in your currency", ge=0)


class Settings(Section):
    """All sections of one run."""

    identity: Identity = key(Identity(), "who the model says it is")
    download: Download = key(Download(), "which text to learn from")
    tokenizer: TokenizerSection = key(TokenizerSection(), "the vocabulary")
    tokens: Tokens = key(Tokens(), "rows of equal length")
    base_train: BaseTrain = key(BaseTrain(), "pretraining")
    base_eval: BaseEval = key(BaseEval(), "scores of the pretrained model")
    mid_train: MidTrain = key(..., "midtraining on conversations")
    sft: Sft = key(..., "supervised fine-tuning")
    chat_eval: ChatEval = key(ChatEval(), "scores of the chat model")
    trace: Trace = key(Trace(), "a prompt and a training step, number by number")
    report: Report = key(Report(), "the report")
