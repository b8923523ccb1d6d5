"""Time CORE as this project evaluates it, against plain evaluations of the same items, and compare the outcomes item by item.

    python benchmarks/evaluation.py --bundle eval_bundle.zip --text shard_00000.parquet
    python benchmarks/evaluation.py --bundle eval_bundle.zip --text shard_00000.parquet --nanochat ../nanochat

plain      nanochat's algorithm on the same model: an item a forward pass, its options as rows, the logits of every position,
           the prompts rendered and tokenized for each item, the fp32 weights cast where they are used
nanochat   its own evaluation of a model of its own with the same depth and vocabulary, in a process of its own; the weights
           are others, so only times are compared

Plain and ours run as a stage does on a CPU, with the memory settings of its launcher; nanochat with none, as it comes.
Model and tokenizer are made here: random weights, a vocabulary learned from --text. All take turns, task by task.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from nanochat.batching import default_batch_tokens
from nanochat.core_bundle import CoreTask, read_bundle, render_prompts
from nanochat.core_eval import evaluate_task
from nanochat.core_tokens import TokenizedTask, find_starts, prepare
from nanochat.dataset import read_documents
from nanochat.distributed import choose_device, choose_dtype
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference import make_ready
from nanochat.planning.hardware import ON_CPUS
from nanochat.tokenizer import Tokenizer

TEXT_CHARACTERS = 8_000_000
CLOSE = 1e-5  # predictions may differ where the two best options are closer than this


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="eval_bundle.zip")
    parser.add_argument("--text", type=Path, required=True, help="a shard of text to learn the vocabulary from")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--vocab-size", type=int, default=8_192)
    parser.add_argument("--items", type=int, default=24, help="of each task (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", help="labels (default: all)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--nanochat", type=Path, help="a checkout of karpathy/nanochat")
    args = parser.parse_args()
    if not ON_CPUS.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ON_CPUS})

    device = choose_device(args.device)
    tokenizer = learn(args.text, args.vocab_size)
    plain, ours = (make_model(args.depth, tokenizer, args.dtype, device) for _ in range(2))
    make_ready(ours)
    print(f"d{args.depth}, vocabulary {args.vocab_size:,}, {plain.dtype_name}, {device}, {torch.get_num_threads()} threads, "
          f"{args.items} items a task")  # fmt: skip
    began = time.perf_counter()
    core = prepare(args.bundle, tokenizer, tasks=args.tasks, max_per_task=args.items, num_threads=torch.get_num_threads())
    print(f"prompts rendered and tokenized, once: {time.perf_counter() - began:.1f} s\n")
    tasks = read_bundle(args.bundle, labels=args.tasks, max_per_task=args.items)
    batch_tokens = default_batch_tokens(device)
    totals, far, changed, num_items = np.zeros(3), 0.0, 0, 0
    nanochat = Nanochat(args, tokenizer) if args.nanochat else None
    for task, tokens in zip(tasks, core.tasks, strict=True):
        expected, plain_s = timed(partial(plain_rows, plain, tokenizer, task))
        found, ours_s = timed(partial(our_rows, ours, tokenizer, tokens, batch_tokens))
        distances, wrong = compare(expected, found)
        theirs_s = nanochat.seconds(task.label) if nanochat else 0.0
        totals += plain_s, ours_s, theirs_s
        far, changed, num_items = max(far, *distances), changed + wrong, num_items + len(found)
        print(describe(task.label, (plain_s, ours_s, theirs_s), max(distances), f"{wrong}"), flush=True)
    print(describe("all", totals, far, f"{changed} of {num_items}"))


def describe(label: str, seconds: Sequence[float], distance: float, changed: str) -> str:
    plain, ours, theirs = seconds
    nanochat = f"   nanochat {theirs:7.2f} s   x {theirs / ours:5.2f}" if theirs else ""
    return (f"{label:34} plain {plain:7.2f} s   ours {ours:6.2f} s   x {plain / ours:5.2f}{nanochat}"
            f"   losses within {distance:.1e}, {changed} predictions differ")  # fmt: skip


def learn(path: Path, vocab_size: int) -> Tokenizer:
    texts, left = [], TEXT_CHARACTERS
    for text in read_documents(path):
        texts.append(text)
        left -= len(text)
        if left < 0:
            break
    return Tokenizer.train(texts, vocab_size)


def make_model(depth: int, tokenizer: Tokenizer, dtype: str, device: torch.device) -> GPT:
    """Every matrix drawn at the scale of a trained one: as initialised, the model would say nothing."""
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_layer=depth, n_embd=64 * depth, n_head=max(1, depth // 2),
                          n_kv_head=max(1, depth // 2), sequence_len=2_048))  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.size(-1) ** -0.5)
    model.compute_dtype = choose_dtype(dtype, device)
    return model.to(device).eval()


def timed(work: Callable[[], list[dict]]) -> tuple[list[dict], float]:
    began = time.perf_counter()
    rows = work()  # plain numbers, so a GPU has finished by then
    return rows, time.perf_counter() - began


def our_rows(model: GPT, tokenizer: Tokenizer, task: TokenizedTask, batch_tokens: int) -> list[dict]:
    rows = evaluate_task(model, tokenizer, task, range(len(task)), batch_tokens=batch_tokens, poll=lambda share: None)
    return sorted(rows, key=lambda row: row["index"])


@torch.inference_mode()
def plain_rows(model: GPT, tokenizer: Tokenizer, task: CoreTask) -> list[dict]:
    """One item a forward pass: (losses of the options, whether it is right)."""
    rows = []
    for index in range(len(task.items)):
        sequences = [tokenizer.encode_array(text, bos=True) for text in render_prompts(task, index)]
        starts = find_starts(task.kind, sequences)
        options = sequences[-len(starts) :]
        longest = max(map(len, options))
        padded = torch.full((len(options), longest), tokenizer.bos_id)
        for row, tokens in zip(padded, options, strict=True):
            row[: len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        padded = padded.to(model.wte.weight.device)
        logits = model(padded)  # (B, T, V)
        losses = F.cross_entropy(logits.flatten(0, 1), padded.roll(-1, dims=1).flatten(), reduction="none").view(padded.shape)
        likeliest = logits.argmax(dim=2)
        means = [
            losses[row, start - 1 : len(tokens) - 1].mean().item()
            for row, (tokens, start) in enumerate(zip(options, starts, strict=True))
        ]
        if task.kind == "language_modeling":
            (start,), (tokens,) = starts, options
            is_correct = bool((likeliest[0, start - 1 : len(tokens) - 1] == padded[0, start : len(tokens)]).all())
        else:
            is_correct = means.index(min(means)) == task.items[index].gold
        rows.append({"losses": means, "correct": is_correct})
    return rows


def compare(expected: list[dict], found: list[dict]) -> tuple[list[float], int]:
    """How far the losses of each item are apart, and how many outcomes differ although the two best options were not close."""
    distances, wrong = [], 0
    for plain, ours in zip(expected, found, strict=True):
        distances.append(max(abs(a - b) for a, b in zip(plain["losses"], ours["losses"], strict=True)))
        best = sorted(plain["losses"])[:2]
        is_close = len(best) == 2 and best[1] - best[0] < CLOSE
        wrong += plain["correct"] != ours["correct"] and not is_close
    return distances, wrong


# -- nanochat's own ----------------------------------------------------------------------------------------------------------

NANOCHAT = """
import json, random, sys, time, zipfile
import tiktoken, torch, yaml
from nanochat.core_eval import evaluate_task
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import RustBPETokenizer
bundle, depth, items, tokens, pattern = json.loads(sys.stdin.readline())
ranks = {bytes.fromhex(token): rank for rank, token in enumerate(tokens)}
encoding = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|bos|>": len(ranks)})
tokenizer = RustBPETokenizer(encoding, "<|bos|>")
heads = max(1, depth // 2)
with torch.device("meta"):
    model = GPT(GPTConfig(sequence_len=2048, vocab_size=len(tokens) + 9, n_layer=depth, n_head=heads, n_kv_head=heads,
                          n_embd=64 * depth))
model.to_empty(device="cpu")
model.init_weights()
model.eval()
with zipfile.ZipFile(bundle) as bundle:
    entries = yaml.safe_load(bundle.read("eval_bundle/core.yaml"))["icl_tasks"]
    entries = {entry["label"]: entry for entry in entries}
    for label in sys.stdin:
        entry = entries[label.strip()]
        lines = bundle.read(f"eval_bundle/eval_data/{entry['dataset_uri']}").decode().split(chr(10))
        data = [json.loads(line) for line in lines if line.strip()]
        random.Random(1337).shuffle(data)
        meta = {"task_type": entry["icl_task_type"], "num_fewshot": entry["num_fewshot"][0],
                "continuation_delimiter": entry.get("continuation_delimiter", " ")}
        began = time.perf_counter()
        evaluate_task(model, tokenizer, data[:items], torch.device("cpu"), meta)
        print("seconds", time.perf_counter() - began, flush=True)
"""


class Nanochat:
    """Its own evaluation of a model of the same size: a process without our settings, in the dtype that it takes by itself."""

    def __init__(self, args: argparse.Namespace, tokenizer: Tokenizer):
        environment = {key: value for key, value in os.environ.items() if key not in ON_CPUS}
        environment |= {"PYTHONPATH": str(args.nanochat.resolve())}
        self.process = subprocess.Popen([sys.executable, "-c", NANOCHAT], cwd=args.nanochat, env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        asked = [str(args.bundle.resolve()), args.depth, args.items, [token.hex() for token in tokenizer.tokens],
                 tokenizer.pattern]  # fmt: skip
        self.tell(json.dumps(asked))

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def seconds(self, label: str) -> float:
        """How long it takes for a task."""
        self.tell(label)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        sys.exit(f"nanochat's evaluation ended with exit code {self.process.wait()}")


if __name__ == "__main__":
    main()
