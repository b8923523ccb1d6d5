"""What stands beside a traced model: another trained one, or the other preset at the same sizes, untrained."""

from pathlib import Path
from typing import Any

from nanochat.checkpoint import load_model
from nanochat.errors import UserError
from nanochat.gpt import GPTConfig
from nanochat.tokenizer import Tokenizer
from nanochat.tracing.forward import counterpart, nearest_preset, trace_forward, untrained


def trace_trained(folder: Path, config: GPTConfig, prompt: str, *, name: str, is_chat: bool) -> dict[str, Any]:
    """The prompt through the model in a folder. UserError if its vocabulary is not as large as that of `config`."""
    model, tokenizer = load_model(folder, dtype="float32")
    if model.config.vocab_size != config.vocab_size:
        raise UserError(
            f"{name} has a vocabulary of {model.config.vocab_size:,} tokens, and the model that it is to stand beside "
            f"{config.vocab_size:,}: models stand beside each other only with equally many"
        )
    return trace_forward(model, tokenizer, prompt, name=name, is_chat=is_chat)


def trace_counterpart(config: GPTConfig, tokenizer: Tokenizer, prompt: str, *, is_chat: bool) -> dict[str, Any]:
    """The prompt through the other preset, as it is before its training: its numbers mean nothing, its code and shapes do."""
    other = counterpart(config)
    return trace_forward(untrained(other), tokenizer, prompt, name=nearest_preset(other), is_chat=is_chat, is_trained=False)
