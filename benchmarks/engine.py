"""How fast the engine writes: time to first token, tokens/s by batch, and both against what this machine's memory allows.

    python benchmarks/engine.py                      # d6 and d20, random weights
    python benchmarks/engine.py --depths 6 --text shard_00000.parquet --gsm8k test-00000-of-00001.parquet

At batch 1 every token reads every matrix once, so tokens/s is at most bandwidth / bytes. The bandwidth is measured between
these steps, by adding up numbers of 256 MB. Figures are medians.

Questions are answered in three ways: all together; one at a time by the same engine; and one at a time by the model as it was
trained, whose weights are cast at each use, as nanochat evaluates.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from nanochat import tasks
from nanochat.dataset import read_documents
from nanochat.distributed import choose_device, choose_dtype
from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference import ReadyLinear, make_ready
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer

VOCABULARIES = {6: 8_192, 20: 65_536}
PROMPT, NEW = 256, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[6, 20])
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 256, 1_024], help="lengths for the time to first token")
    parser.add_argument("--text", type=Path, help="a shard of text to learn the vocabulary from (default: pairs of bytes)")
    parser.add_argument("--gsm8k", type=Path, help="the test file of GSM8K")
    parser.add_argument("--questions", type=int, default=64, help="of GSM8K (default: %(default)s)")
    args = parser.parse_args()
    device = choose_device(args.device)
    numbers = torch.ones(64 * 2**20, device=device)
    print(f"{device}, {torch.get_num_threads()} threads")
    for depth in args.depths:
        tokenizer = (
            learn(args.text, VOCABULARIES.get(depth, 65_536)) if args.text else byte_pairs(VOCABULARIES.get(depth, 65_536))
        )
        engine = make_engine(depth, tokenizer, args.dtype, device)
        tell(engine, f"d{depth}", args.prompts, args.batches, numbers)
        if args.gsm8k and depth == args.depths[0]:
            plain = make_engine(depth, tokenizer, args.dtype, device, is_ready=False)
            compare_on_questions(engine, plain, args.gsm8k, args.questions)


def tell(engine: Engine, name: str, lengths: list[int], batches: list[int], numbers: Tensor) -> None:
    model = engine.model
    weights = sum(module.num_bytes for module in model.modules() if isinstance(module, ReadyLinear))
    print(f"\n{name}, vocabulary {model.config.vocab_size:,}, {model.dtype_name}, matrices of {weights / 1e6:,.0f} MB")
    for length in lengths:
        first = median(partial(engine.generate_batch, [prompt_of(length)], max_new_tokens=1))
        print(f"  prompt of {length:5,}: first token after {first * 1e3:7.1f} ms, {length / first:8,.0f} tokens/s read")
    for batch in batches:
        step, bandwidth = median_step(engine, batch, numbers)
        line = f"  batch {batch:3}: {step * 1e3:7.2f} ms a step, {batch / step:7,.1f} tokens/s"
        if batch == 1:
            read = weights + (PROMPT + NEW / 2) * engine.token_bytes
            line += f"; {bandwidth / 1e9:.1f} GB/s allow {bandwidth / read:,.1f}: {read / bandwidth / step:.0%} of it"
        print(line, flush=True)


def learn(path: Path, vocab_size: int) -> Tokenizer:
    return Tokenizer.train(islice(read_documents(path), 1_500), vocab_size)


def byte_pairs(vocab_size: int) -> Tokenizer:
    return Tokenizer([bytes([i // 256, i % 256]) for i in range(vocab_size - 256 - len(SPECIAL_TOKENS))])


def make_engine(depth: int, tokenizer: Tokenizer, dtype: str, device: torch.device, *, is_ready: bool = True) -> Engine:
    heads = max(1, depth // 2)
    model = GPT(GPTConfig(tokenizer.vocab_size, n_layer=depth, n_embd=64 * depth, n_head=heads, n_kv_head=heads))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.size(-1) ** -0.5)
    model.compute_dtype = choose_dtype(dtype, device)
    model.to(device).eval()
    engine = Engine(make_ready(model) if is_ready else model, tokenizer)
    engine.stop_ids = set()  # every answer has its full length
    return engine


def prompt_of(length: int) -> list[int]:
    return [i % 250 for i in range(length)]


def median_step(engine: Engine, batch: int, numbers: Tensor) -> tuple[float, float]:
    """Seconds between two tokens of every row, and bytes/s of reading memory, measured in turns."""
    steps: list[float] = []
    reads: list[float] = []
    began = time.perf_counter()

    def poll(share: float) -> None:
        nonlocal began
        steps.append(time.perf_counter() - began)
        reads.append(seconds(lambda: numbers.sum().item()))
        began = time.perf_counter()

    engine.generate_batch([prompt_of(PROMPT)] * batch, max_new_tokens=NEW, poll=poll, keys=list(range(batch)))
    return statistics.median(steps[3:]), 4 * len(numbers) / statistics.median(reads)  # the first steps read the prompts


def compare_on_questions(engine: Engine, plain: Engine, path: Path, number: int) -> None:
    task = tasks.build("gsm8k", split="test", files={"gsm8k/test": path})
    prompts = [engine.tokenizer.render_prompt(task[index]) for index in range(number)]

    def one_at_a_time(engine: Engine) -> list[list[int]]:
        return [engine.generate_batch([prompt], max_new_tokens=128)[0] for prompt in prompts]

    engine.generate_batch(prompts[:2], max_new_tokens=4)
    together_s = seconds(lambda: engine.generate_batch(prompts, max_new_tokens=128))
    alone_s, plain_s = seconds(lambda: one_at_a_time(engine)), seconds(lambda: one_at_a_time(plain))
    print(f"  {number} questions of GSM8K of {sum(map(len, prompts)) / number:.0f} tokens, 128 new tokens each:\n"
          f"    together                          {together_s:7.1f} s\n"
          f"    one at a time                     {alone_s:7.1f} s   x {alone_s / together_s:.1f}\n"
          f"    one at a time, as it was trained  {plain_s:7.1f} s   x {plain_s / together_s:.1f}")  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def median(work: Callable[[], object], repetitions: int = 5) -> float:
    work()
    return statistics.median(seconds(work) for _ in range(repetitions))


if __name__ == "__main__":
    main()
