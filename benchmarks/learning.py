"""What a model learns from the same tokens: our recipes and nanochat's, at several rates and seeds, in bits per byte.

    python benchmarks/learning.py --train shard_00000.parquet --validation shard_00006.parquet --results learning.jsonl
    python benchmarks/learning.py ... --nanochat ../nanochat

Each training is a line of --results. Those that are there already are not made again, so a comparison that takes hours can be
stopped and gone on with. In the end a table: for each recipe and scale of its rates the mean over the seeds and its standard
error. `--scales` multiply the rates; 1 is what the recipe itself takes for this depth and batch.

ours       the components of --presets, the optimizer of config/speedrun.yaml for `speedrun` and of October 2025 for others
nanochat   its model, optimizer and schedules as base_train.py calls them, on the same rows in the same order

All see the same rows, packed by this project, and are judged by the same sum over the same validation rows.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="a shard of text")
    parser.add_argument("--validation", type=Path, help="another one")
    parser.add_argument("--results", type=Path, default=Path("learning.jsonl"), help="where each training leaves its line")
    parser.add_argument("--nanochat", type=Path, help="a checkout of karpathy/nanochat")
    parser.add_argument("--presets", nargs="*", default=["speedrun", "nanochat"])
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="of our rates")
    parser.add_argument("--nanochat-scales", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=3_000_000)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=8_192)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--rows", type=int, default=8, help="in a forward pass")
    parser.add_argument("--validation-rows", type=int, default=256)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(train_ours(json.loads(args.child))))
    elif not (args.train and args.validation):
        parser.error("--train and --validation are needed")
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    done = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        what = write_rows(args, Path(folder))
        for job in jobs(args):
            key = {**job, **{name: value for name, value in what.items() if name != "folder"}}
            if any(line["job"] == key for line in done):
                continue
            began = time.perf_counter()
            bpb = run({**job, **what}, args.nanochat)
            done.append({"job": key, "bpb": bpb, "minutes": round((time.perf_counter() - began) / 60, 1)})
            with open(args.results, "a") as file:
                print(json.dumps(done[-1]), file=file)
            print(f"{job['recipe']:20} rates x {job['scale']:<5g} seed {job['seed']}   {bpb:.4f} bits per byte   "
                  f"{done[-1]['minutes']} minutes", flush=True)  # fmt: skip
    print(f"\nd{args.depth}, {args.tokens:,} tokens in batches of {args.batch_tokens:,}, vocabulary {args.vocab_size:,}\n")
    table: dict[tuple[str, float], list[float]] = {}
    for line in done:
        table.setdefault((line["job"]["recipe"], line["job"]["scale"]), []).append(line["bpb"])
    for (recipe, scale), found in sorted(table.items()):
        error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
        print(f"{recipe:20} rates x {scale:<5g} {statistics.mean(found):.4f} +- {error:.4f} ({len(found)} seeds)")


def jobs(args: argparse.Namespace) -> Iterator[dict]:
    """Seed by seed, so that every recipe has its first one early."""
    for seed in range(args.seeds):
        for preset in args.presets:
            for scale in args.scales:
                yield {"recipe": preset, "scale": scale, "seed": seed}
        for scale in args.nanochat_scales if args.nanochat else []:
            yield {"recipe": "nanochat, July 2026", "scale": scale, "seed": seed}


def write_rows(args: argparse.Namespace, folder: Path) -> dict:
    """The rows that all trainings see, and what they share."""
    from nanochat.dataset import read_documents
    from nanochat.tokenizer import Tokenizer

    texts = []
    for text in read_documents(args.train):
        texts.append(text)
        if sum(map(len, texts[-1:])) and len(texts) * 3_000 > 8 * args.tokens:
            break
    tokenizer = Tokenizer.train(texts, args.vocab_size)
    num_steps = args.tokens // args.batch_tokens
    for name, path, num_rows in [
        ("train", args.train, num_steps * args.batch_tokens // args.length),
        ("validation", args.validation, args.validation_rows),
    ]:
        flat: list[np.ndarray] = []
        wanted = num_rows * (args.length + 1)
        for text in read_documents(path):
            flat.append(tokenizer.encode_array(text, bos=True))
            wanted -= len(flat[-1])
            if wanted <= 0:
                break
        if wanted > 0:
            sys.exit(f"{path} has too little text for {num_rows:,} rows of {args.length:,} tokens")
        rows = np.concatenate(flat)[: num_rows * (args.length + 1)].reshape(num_rows, args.length + 1)
        np.save(folder / f"{name}.npy", rows.astype(np.int64))
    np.save(folder / "token_bytes.npy", np.asarray(tokenizer.token_bytes()))
    return {
        "folder": str(folder), "depth": args.depth, "length": args.length, "vocab_size": tokenizer.vocab_size,
        "batch_rows": args.batch_tokens // args.length, "num_steps": num_steps, "rows": args.rows,
        "validation_rows": args.validation_rows,
    }  # fmt: skip


def run(what: dict, checkout: Path | None) -> float:
    """One training, in a process of its own: its bits per byte."""
    from nanochat.planning.hardware import ON_CPUS

    environment = {**os.environ, **ON_CPUS}
    if what["recipe"].startswith("nanochat, "):
        assert checkout is not None
        command = [sys.executable, "-c", NANOCHAT, json.dumps(what)]
        environment |= {"PYTHONPATH": str(checkout.resolve()), "NANOCHAT_DTYPE": "bfloat16"}
    else:
        command = [sys.executable, __file__, "--child", json.dumps(what)]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{what['recipe']} failed:\n{done.stderr[-3_000:]}")
    nats, num_bytes = json.loads(done.stdout.splitlines()[-1])
    return nats / math.log(2) / num_bytes


def shuffled(rows: np.ndarray, seed: int) -> np.ndarray:
    return rows[np.random.default_rng(seed).permutation(len(rows))]


def train_ours(what: dict) -> tuple[float, float]:
    import torch
    import torch.nn.functional as F
    import yaml

    from nanochat.attention import choose_attention, use_attention
    from nanochat.casts import Casts
    from nanochat.compiling import compile_blocks
    from nanochat.config import load_config
    from nanochat.distributed import Ranks, choose_device, choose_dtype
    from nanochat.gpt import GPT, GPTConfig
    from nanochat.optimizer import Parts, build_optimizer
    from nanochat.train import Numerics, Schedule, update

    device = choose_device("auto")
    document = yaml.safe_load((ROOT / "config/speedrun.yaml").read_text())
    document["base_train"] |= {"depth": what["depth"], "total_batch_tokens": what["batch_rows"] * what["length"]}
    document["tokens"]["sequence_len"] = what["length"]
    document["tokenizer"]["vocab_size"] = what["vocab_size"]
    if what["recipe"] != "speedrun":
        document["base_train"] = {"preset": what["recipe"], "depth": what["depth"]}
    config = load_config(document, source="config/speedrun.yaml", root=ROOT)
    specification = json.loads(config.specification("speedrun", "base_train"))
    model = GPT(GPTConfig(**config.gpt_config("speedrun"))).init_weights(what["seed"]).to(device)
    model.compute_dtype = choose_dtype("auto", device)
    use_attention(model, choose_attention("auto", model, device))
    compile_blocks(model)
    rates = {key: specification[key] * what["scale"] for key in ("matrix_lr", "embedding_lr", "unembedding_lr")}
    parts = Parts(**specification.get("optimizer", {}))
    optimizer = build_optimizer(
        model, **rates, weight_decay=specification["weight_decay"], parts=parts, warmdown_ratio=specification["warmdown_ratio"]
    )
    schedule = Schedule(
        what["num_steps"],
        **{key: specification[key] for key in ("warmup_ratio", "warmdown_ratio", "final_lr_ratio")},
    )
    rows = torch.from_numpy(shuffled(np.load(f"{what['folder']}/train.npy"), what["seed"]))
    casts, numerics = Casts(model), Numerics(device.type, 1, model.dtype_name, what["rows"])

    class Batches:
        def batch(self, step: int, rank: int = 0, world_size: int = 1):
            batch = rows[step * what["batch_rows"] : (step + 1) * what["batch_rows"]]
            return batch[:, :-1], batch[:, 1:]

        def supervised_tokens(self, step: int) -> int:
            return what["batch_rows"] * what["length"]

    for step in range(what["num_steps"]):
        update(
            model, optimizer, Batches(), step=step, lr_scale=schedule.scale(step), progress=step / what["num_steps"],
            grad_clip=specification["grad_clip"], numerics=numerics, ranks=Ranks(device=device), casts=casts,
        )  # fmt: skip

    def losses(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none")

    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        return nats_and_bytes(what, losses, device)


def nats_and_bytes(what: dict, losses: Callable, device) -> tuple[float, float]:
    """The sum of the losses of the validation tokens that stand for bytes, and of those bytes."""
    import torch

    rows = torch.from_numpy(np.load(f"{what['folder']}/validation.npy"))
    token_bytes = torch.from_numpy(np.load(f"{what['folder']}/token_bytes.npy"))
    nats, num_bytes = 0.0, 0.0
    for part in rows.split(4):
        x, y = part[:, :-1], part[:, 1:]
        bytes_of = token_bytes[y.flatten()]
        nats += float((losses(x.to(device), y.to(device)).cpu().double() * (bytes_of > 0)).sum())
        num_bytes += float(bytes_of.sum())
    return nats, num_bytes


# what nanochat's scripts/base_train.py does, without its text, its files and its log: its dial, schedules and optimizer
NANOCHAT = """
import json, math, sys
import numpy as np, torch
from nanochat.gpt import GPT, GPTConfig
what = json.loads(sys.argv[1])
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.manual_seed(what["seed"])
def build(depth):
    heads = max(1, depth // 2)
    with torch.device("meta"):
        return GPT(GPTConfig(sequence_len=what["length"], vocab_size=what["vocab_size"], n_layer=depth, n_head=heads,
                             n_kv_head=heads, n_embd=64 * depth))
model = build(what["depth"])
model.to_empty(device=device)
model.init_weights()
def counted(model):
    found = model.num_scaling_params()
    return found["transformer_matrices"] + found["lm_head"]
batch_tokens, steps = what["batch_rows"] * what["length"], what["num_steps"]
rates = (batch_tokens / 2**19) ** 0.5
decay = 0.28 * rates * counted(build(12)) / counted(model)
scale = rates * what["scale"]
optimizer = model.setup_optimizer(unembedding_lr=0.008 * scale, embedding_lr=0.3 * scale, scalar_lr=0.5 * scale,
                                  matrix_lr=0.02 * scale, weight_decay=decay)
plain, model = model, torch.compile(model, dynamic=False)
rows = np.load(what["folder"] + "/train.npy")
rows = torch.from_numpy(rows[np.random.default_rng(what["seed"]).permutation(len(rows))])
warmdown = round(0.65 * steps)
for step in range(steps):
    batch = rows[step * what["batch_rows"] : (step + 1) * what["batch_rows"]].to(device)
    parts = batch.split(what["rows"])
    for part in parts:
        (model(part[:, :-1].contiguous(), part[:, 1:].contiguous()) / len(parts)).backward()
    if step < 40:
        multiplier = (step + 1) / 40
    else:
        left = min(1.0, (steps - step) / warmdown)
        multiplier = left + (1 - left) * 0.05
    momentum = 0.85 + 0.12 * min(step / 400, 1)
    if step >= steps - warmdown and step >= 400:
        fallen = (step - (steps - warmdown)) / warmdown
        momentum = 0.97 * (1 - fallen) + 0.90 * fallen
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * multiplier
        if group["kind"] == "muon":
            group["momentum"] = momentum
            group["weight_decay"] = decay * 0.5 * (1 + math.cos(math.pi * step / steps))
    optimizer.step()
    plain.zero_grad(set_to_none=True)
held_out = torch.from_numpy(np.load(what["folder"] + "/validation.npy"))
token_bytes = torch.from_numpy(np.load(what["folder"] + "/token_bytes.npy"))
nats, num_bytes = 0.0, 0.0
with torch.inference_mode():
    for part in held_out.split(4):
        x, y = part[:, :-1].contiguous(), part[:, 1:].contiguous()
        losses = plain(x.to(device), y.to(device), loss_reduction="none").cpu().double()
        bytes_of = token_bytes[y.flatten()]
        nats += float((losses * (bytes_of > 0)).sum())
        num_bytes += float(bytes_of.sum())
print(json.dumps([nats, num_bytes]))
"""


if __name__ == "__main__":
    main()
