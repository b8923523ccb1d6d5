"""A chat server whose model says what a test needs, as a program: python tests/chat_server.py LIMITS FOLDER [options of serve]

LIMITS is JSON: the fields of nanochat.serving.limits.Limits that differ. Everything is the real program but for what the model
says:

    endless ...      words without end, however many it is allowed: only who stops it ends it
    calculate        uses its calculator
    settings         the settings that it was asked with
    prompt           what it was given to read
    fail             raises an error that quotes what was said
    anything else    the same again
"""

import contextlib
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from small_models import random_model, small_tokenizer

from nanochat import serve
from nanochat.checkpoint import save_model
from nanochat.engine import Engine
from nanochat.manifest import publish
from nanochat.serving.limits import Limits
from nanochat.tokenizer import Tokenizer

START_S = 60
CHAT = "/v1/chat/completions"
TOKENIZER = small_tokenizer()


def talkative_engine(**sizes) -> Engine:
    """A random model that says no special token at temperature 0, and so never ends an answer by itself."""
    model = random_model(**sizes)
    engine = Engine(model, TOKENIZER)
    model.lm_head.weight.data[list(TOKENIZER.specials.values())] = 0
    return engine


def talkative_folder(results: Path, stage: str = "sft") -> Path:
    """Such a model that reads 2,048 tokens, in a published folder."""
    path = results / "tiny" / stage
    files = save_model(path, talkative_engine(sequence_len=2048).model, TOKENIZER)
    publish(path / "manifest.json", specification={}, inputs={}, files=files, results={}, record={})
    return path


def user(text) -> dict:
    return {"role": "user", "content": text}


def eventually(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


def stream(engine: Engine, prompt: list[int], *, max_new_tokens: int, **settings) -> Iterator[int]:
    """Engine.stream, as far as anybody sees."""
    whole = engine.tokenizer.decode(prompt)
    question = whole.rpartition("<|user_start|>")[2].partition("<|user_end|>")[0]
    if question.startswith("endless"):
        for word in itertools.cycle(engine.tokenizer.encode(" word")):
            yield word
            time.sleep(0.002)
    yield from itertools.islice(say(engine.tokenizer, whole, question, settings), max_new_tokens)


def say(tokenizer: Tokenizer, whole: str, question: str, settings: dict) -> Iterator[int]:
    if question == "calculate":
        for part in ("It is ", "<|python_start|>", "12*4", "<|python_end|>", "<|output_start|>", "48", "<|output_end|>", "48."):
            yield from [tokenizer.special_id(part)] if part.startswith("<|") else tokenizer.encode(part)
    elif question == "fail":
        raise ValueError(f"somebody said {question}")
    else:
        answers = {"settings": json.dumps(settings, sort_keys=True), "prompt": whole}
        yield from tokenizer.encode(answers.get(question, question))


class Started:
    """A server that runs: its address, its process, and what it has printed."""

    def __init__(self, process: subprocess.Popen):
        self.process = process
        self.printed: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address = self._address()
        self.port = int(re.search(r":(\d+)", self.address).group(1))

    def _read(self) -> None:
        self.printed.extend(iter(self.process.stdout.readline, ""))

    def _address(self) -> str:
        deadline = time.monotonic() + START_S
        while "Ctrl-C ends it.\n" not in self.printed:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"the server did not start:\n{''.join(self.printed)}{self.process.stderr.read()}")
            time.sleep(0.02)
        return next(line.strip() for line in self.printed if line.startswith("    http"))

    def end(self, signal: int) -> tuple[int, str]:
        """Send a signal; (exit code, what was written to stderr)."""
        self.process.send_signal(signal)
        code = self.process.wait(timeout=30)
        return code, self.process.stderr.read()


@contextlib.contextmanager
def started(folder: Path, *options: str, limits: dict | None = None, program: str | None = None, env: dict | None = None):
    """A server process on a free port of the loopback, with the model above; `program` `nanochat.serve` is the real one."""
    call = ["-m", program] if program else [__file__, json.dumps(limits or {})]
    process = subprocess.Popen(
        [sys.executable, *call, str(folder), "--port", "0", "--device", "cpu", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    try:
        yield Started(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            pipe.close()


if __name__ == "__main__":
    Engine.stream = stream  # type: ignore[method-assign]
    sys.exit(serve.main(sys.argv[2:], Limits(**json.loads(sys.argv[1]))))
