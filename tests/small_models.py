"""Small models with random weights, and tokenizers trained on a little made-up text, for tests that need no trained model."""

import random

import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import Tokenizer

SIZES = {"vocab_size": 300, "n_layer": 2, "n_head": 4, "n_kv_head": 4, "n_embd": 32, "sequence_len": 64}

# every pair of components that differs in what a cache must get right; "grouped" has fewer heads of keys than of queries
PRESETS = {
    "nanochat": {"preset": "nanochat"},
    "nanochat, grouped": {"preset": "nanochat", "n_kv_head": 2},
    "textbook": {"preset": "textbook"},
    "textbook, grouped": {"preset": "textbook", "n_kv_head": 1},
    "speedrun": {"preset": "speedrun"},
    "speedrun, grouped, 5 blocks": {"preset": "speedrun", "n_kv_head": 2, "n_layer": 5},
}


def random_model(preset: str = "nanochat", *, seed: int = 0, **sizes) -> GPT:
    """Weights of a size at which every part of the model matters to what it says (as initialised, it says nothing)."""
    model = GPT(GPTConfig.preset(preset, **{**SIZES, **sizes}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.size(-1) ** -0.5 if parameter.dim() == 2 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def random_prompts(tokenizer: Tokenizer, lengths: list[int], *, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[tokenizer.bos_id, *(rng.randrange(256) for _ in range(length - 1))] for length in lengths]


def small_tokenizer(vocab_size: int = 300, *, texts: list[str] | None = None, seed: int = 0) -> Tokenizer:
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 6))) for _ in range(300)]
    return Tokenizer.train(texts or [" ".join(rng.choices(words, k=3000))], vocab_size)
