"""Time training steps of this project, and of nanochat given a checkout, in turns: tokens/s, utilisation, memory and loss.

    python benchmarks/training.py --text shard_00000.parquet
    python benchmarks/training.py --text shard_00000.parquet --nanochat ../nanochat

Each way is a process of its own, which makes its model, steps until it is warm (nanochat compiles for a minute) and then waits.
Then they take turns, a step each, so that what else the machine does falls on all of them; medians and ratios are printed. All
train a model of the same depth, width, heads and vocabulary on the same tokens; the architectures are those of their recipes.

ours       as a stage trains on this device: its dtype, attention, micro-batch and memory settings
nanochat   its model and optimizer as base_train.py calls them, compiled, in the dtype that it takes by itself and in bfloat16;
           with its 32 rows a forward pass, and with as many as ours, where that is faster

Peak memory is that of the process, above what it held before the model was made. Utilisation is the arithmetic of the step
(6 operations a multiplied parameter and token, and attention's) over what a large bf16 product reaches here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WARM_UP = 2  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a shard of text to train on")
    parser.add_argument("--nanochat", type=Path, help="a checkout of karpathy/nanochat")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--preset", nargs="+", default=["nanochat"], help="of our models (default: nanochat)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--vocab-size", type=int, default=32_768)
    parser.add_argument("--batch-tokens", type=int, default=16_384, help="of a step")
    parser.add_argument("--rows", type=int, nargs="+", default=[0], help="of ours in a forward pass (0: as a stage chooses)")
    parser.add_argument("--nanochat-rows", type=int, nargs="+", default=[32, 8], help="of nanochat's")
    parser.add_argument("--compile", nargs="+", default=["always"], choices=["always", "never"], help="our blocks")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        step_when_asked(json.loads(args.child))
    elif args.text is None:
        parser.error("--text is needed")
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(args, Path(folder))
        shared = {
            "depth": args.depth,
            "length": args.length,
            "vocab_size": args.vocab_size,
            "batch_rows": args.batch_tokens // args.length,
            "tokens": str(rows),
            "warm_up": WARM_UP,
        }
        contestants = [
            Contestant(f"ours, {preset}, compiled: {compiled}, {number or 'chosen'} rows",
                       {**shared, "preset": preset, "compile": compiled, "rows": number})
            for preset in args.preset for compiled in args.compile for number in args.rows
        ]  # fmt: skip
        if args.nanochat:
            contestants += [
                Contestant(f"nanochat, {dtype}, {number} rows", {**shared, "rows": number}, checkout=args.nanochat, dtype=dtype)
                for dtype in ("float32", "bfloat16") for number in args.nanochat_rows
            ]  # fmt: skip
        for contestant in contestants:
            contestant.start()
            print(f"{contestant.name}: warm after {contestant.warm_s:.0f} s", flush=True)
        for _ in range(args.turns):
            for contestant in contestants:
                contestant.step()
        peak = bf16_peak()
        print(f"\nd{args.depth}, {args.length} tokens a row, vocabulary {args.vocab_size:,}, steps of {args.batch_tokens:,}, "
              f"{args.turns} turns; a large bf16 product: {peak / 1e9:.0f} GFLOP/s\n")  # fmt: skip
        first = contestants[0]
        for contestant in contestants:
            speed = args.batch_tokens / statistics.median(contestant.seconds)
            ratio = statistics.median(theirs / ours for ours, theirs in zip(first.seconds, contestant.seconds, strict=True))
            print(f"{contestant.name:44} {speed:8,.0f} tokens/s   first is x {ratio:5.2f}   "
                  f"utilisation {speed * contestant.flops / peak:4.0%}   peak {contestant.peak_bytes / 1e9:5.2f} GB "
                  f"({first.peak_bytes / contestant.peak_bytes:4.2f})   loss {contestant.loss:.3f}")  # fmt: skip
            contestant.stop()


def write_rows(args: argparse.Namespace, folder: Path) -> Path:
    """Rows of real text, as many as all steps need, with a tokenizer learned from it."""
    from nanochat.dataset import read_documents
    from nanochat.tokenizer import Tokenizer

    texts, characters = [], 0
    for text in read_documents(args.text):
        texts.append(text)
        characters += len(text)
        if characters > 20_000_000:
            break
    tokenizer = Tokenizer.train(texts, args.vocab_size)
    num_rows = (WARM_UP + args.turns) * args.batch_tokens // args.length
    wanted = num_rows * (args.length + 1)
    tokens: list[np.ndarray] = []
    for text in texts:
        tokens.append(tokenizer.encode_array(text, bos=True))
        wanted -= len(tokens[-1])
        if wanted <= 0:
            break
    rows = np.concatenate(tokens)[: num_rows * (args.length + 1)].reshape(num_rows, args.length + 1)
    np.save(folder / "rows.npy", rows.astype(np.int64))
    return folder / "rows.npy"


class Contestant:
    """A process that makes a step whenever it is asked."""

    def __init__(self, name: str, what: dict, *, checkout: Path | None = None, dtype: str = ""):
        self.name, self.what, self.checkout, self.dtype = name, what, checkout, dtype
        self.seconds: list[float] = []

    def start(self) -> None:
        from nanochat.planning.hardware import ON_CPUS

        plain = {key: value for key, value in os.environ.items() if key not in ON_CPUS}
        if self.checkout:
            command = [sys.executable, "-c", NANOCHAT, json.dumps(self.what)]
            environment = {**plain, "PYTHONPATH": str(self.checkout.resolve()), "NANOCHAT_DTYPE": self.dtype}
        else:
            command = [sys.executable, __file__, "--child", json.dumps(self.what)]
            environment = {**plain, **ON_CPUS}
        began = time.perf_counter()
        self.process = subprocess.Popen(
            command, cwd=self.checkout, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        ready = self.answer()
        self.warm_s, self.flops = time.perf_counter() - began, ready["flops"]

    def step(self) -> None:
        assert self.process.stdin is not None
        print("step", file=self.process.stdin, flush=True)
        done = self.answer()
        self.seconds.append(done["seconds"])
        self.loss, self.peak_bytes = done["loss"], done["peak_bytes"]

    def answer(self) -> dict:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"{self.name} ended with exit code {self.process.wait()}")

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def answer_steps(step, flops: int, before: int, memory) -> None:
    """Warm up, say so, and make a step for each line that comes in."""
    for number in range(WARM_UP):
        step(number)
    print(json.dumps({"flops": flops}), flush=True)
    for number, _ in enumerate(sys.stdin, start=WARM_UP):
        began = time.perf_counter()
        loss = step(number)
        print(json.dumps({"seconds": time.perf_counter() - began, "loss": loss, "peak_bytes": memory() - before}), flush=True)


def step_when_asked(what: dict) -> None:
    """Our side: what `workflow/scripts/train.py` does for a step."""
    import torch

    from nanochat.attention import choose_attention, use_attention
    from nanochat.casts import Casts
    from nanochat.compiling import compile_blocks
    from nanochat.dataloader import Loader
    from nanochat.distributed import Ranks, choose_device, choose_dtype
    from nanochat.gpt import GPT, GPTConfig
    from nanochat.optimizer import build_optimizer
    from nanochat.schedule import flops_per_token
    from nanochat.train import Numerics, choose_micro_batch, peak_memory_bytes, update

    class Rows(Loader):
        """The steps' batches in the order of the file, as the other side reads them."""

        def __init__(self, array: np.ndarray, batch_rows: int):
            self.array, self.batch_rows = torch.from_numpy(array), batch_rows

        def batch(self, step: int, rank: int = 0, world_size: int = 1):
            rows = self.array[step * self.batch_rows : (step + 1) * self.batch_rows]
            return rows[:, :-1], rows[:, 1:]

        def supervised_tokens(self, step: int) -> int:
            return self.batch_rows * (self.array.size(1) - 1)

    device = choose_device("auto")
    ranks = Ranks(device=device)
    torch.zeros(1, device=device)
    before = peak_memory_bytes(ranks)
    depth = what["depth"]
    heads = max(1, depth // 2)
    config = GPTConfig.preset(
        what["preset"], vocab_size=what["vocab_size"], n_layer=depth, n_embd=64 * depth, n_head=heads, n_kv_head=heads,
        sequence_len=what["length"],
    )  # fmt: skip
    model = GPT(config).init_weights(0).to(device)
    model.compute_dtype = choose_dtype("auto", device)
    use_attention(model, choose_attention("auto", model, device))
    if what["compile"] == "always":
        compile_blocks(model)
    micro_batch = choose_micro_batch(
        what["rows"], rows=what["batch_rows"], model=config.as_dict(), dtype=model.dtype_name, memory_bytes=ranks.memory_bytes()
    )
    numerics = Numerics(device.type, 1, model.dtype_name, micro_batch)
    optimizer = build_optimizer(model, matrix_lr=0.02, embedding_lr=0.2, unembedding_lr=0.004)
    loader, casts = Rows(np.load(what["tokens"]), what["batch_rows"]), Casts(model)

    def step(number: int) -> float:
        loss, _, _ = update(
            model,
            optimizer,
            loader,
            step=number,
            lr_scale=1.0,
            progress=0.0,
            grad_clip=1.0,
            numerics=numerics,
            ranks=ranks,
            casts=casts,
        )
        return loss

    answer_steps(step, flops_per_token(config.as_dict()), before, lambda: peak_memory_bytes(ranks))


# what nanochat's scripts/base_train.py does for a step, without its text, its files and its log
NANOCHAT = """
import json, resource, sys, time
import numpy as np, torch
from nanochat.gpt import GPT, GPTConfig
what = json.loads(sys.argv[1])
is_cuda = torch.cuda.is_available()
device = torch.device("cuda" if is_cuda else "cpu")
def memory():
    return torch.cuda.max_memory_allocated() if is_cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = memory()
depth, heads = what["depth"], max(1, what["depth"] // 2)
with torch.device("meta"):
    model = GPT(GPTConfig(sequence_len=what["length"], vocab_size=what["vocab_size"], n_layer=depth, n_head=heads,
                          n_kv_head=heads, n_embd=64 * depth))
model.to_empty(device=device)
model.init_weights()
plain, flops = model, model.estimate_flops()
optimizer = model.setup_optimizer()
model = torch.compile(model, dynamic=False)
rows = torch.from_numpy(np.load(what["tokens"]))
def step(number):
    batch = rows[number * what["batch_rows"] : (number + 1) * what["batch_rows"]].to(device)
    parts = batch.split(what["rows"])
    for part in parts:
        loss = model(part[:, :-1].contiguous(), part[:, 1:].contiguous())
        (loss / len(parts)).backward()
    optimizer.step()
    plain.zero_grad(set_to_none=True)
    return loss.item()
for number in range(what["warm_up"]):
    step(number)
print(json.dumps({"flops": flops}), flush=True)
for number, _ in enumerate(sys.stdin, start=what["warm_up"]):
    began = time.perf_counter()
    loss = step(number)
    done = {"seconds": time.perf_counter() - began, "loss": loss, "peak_bytes": memory() - before}
    print(json.dumps(done), flush=True)
"""


def bf16_peak() -> float:
    """FLOP/s of a large product in bf16: the best of a few."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8_192 if device == "cuda" else 2_048
    a = torch.randn(size, size, device=device).bfloat16()
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


if __name__ == "__main__":
    main()
