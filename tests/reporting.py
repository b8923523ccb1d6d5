"""A run as its programs publish it, made up in a second: for the tests of reports, comparisons and their pages."""

import itertools
import json
from pathlib import Path

import numpy as np

from nanochat.accuracy import centered_interval, mean_interval, wilson_interval
from nanochat.manifest import publish, write_json_lines
from nanochat.reports.report import FILES, STAGES, write_report

CONFIG = {
    "vocab_size": 512, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64, "sequence_len": 128, "positions": "rope",
    "norm": "rms", "mlp": "relu2", "attention": "sdpa", "qk_norm": True, "soft_cap": 15.0, "tied_head": False, "bias": False,
    "norm_embedding": True, "init": "nanochat", "rope_base": 10000.0,
}  # fmt: skip
PARAMETERS = 2 * 512 * 64 + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 8 * 64 * 64)


class FakeRun:
    """Stage folders as the programs publish them, with small numbers that differ from stage to stage."""

    def __init__(self, root: Path):
        self.root = root
        self.manifests = {name: root / name / "manifest.json" for name in STAGES}
        self.logs = {name: Path("results/tiny/logs") / f"{name.replace('/', '_')}.log" for name in STAGES}
        self.results: dict[str, dict] = {}
        self.text = self.page = ""  # of the last report

    def publish(self, name: str, results: dict, *, files: dict | None = None, inputs=None, record=None, specification=None):
        folder = self.manifests[name].parent
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in (files or {}).items():
            if file.endswith(".html"):
                (folder / file).write_text(content)
            elif file.endswith("l"):
                write_json_lines(folder / file, content)
            else:
                (folder / file).write_text(json.dumps(content))
        common = {
            "started": "2026-01-02T03:04:05.678+00:00",
            "finished": "2026-01-02T03:09:05.678+00:00",
            "seconds": 12.3,
            "host": "node_1",
            "versions": {"python": "3.11.2", "numpy": "2.4.6"},
            "code": "0123456789abcdef0123456789abcdef01234567+",
        }
        publish(
            self.manifests[name],
            specification=specification or {"seed": 42, "of": name},
            inputs=inputs or {},
            files=sorted(files or {}),
            results=results,
            record={**common, **(record or {})},
        )
        self.results[name] = results

    def publish_all(self) -> "FakeRun":
        shards = {}
        for number in range(4):
            path = self.root / "resources" / f"shard_{number:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"text %d" % number)
            shards[f"tiny/shard_{number:05d}"] = path.with_name(path.name + ".manifest.json")
            publish(shards[f"tiny/shard_{number:05d}"], specification={}, inputs={}, files=[path.name], results={}, record={})
        bytes_per_token = {"ours_train": 3.911, "ours_val": 3.822, "gpt2_train": 4.677, "gpt2_val": 4.633}
        self.publish("tokenizer", {"vocab_size": 512, "bytes_per_token": bytes_per_token}, inputs=shards)
        self.publish(
            "tokens/pretrain",
            {
                "train": {
                    "documents": 900,
                    "tokens_in": 1_000_000,
                    "rows": 7_700,
                    "tokens_lost": 1_234,
                    "invalid_documents": 2,
                },
                "validation": {"documents": 90, "tokens_in": 90_000, "rows": 700, "tokens_lost": 0},
            },
            inputs={"tokenizer": self.manifests["tokenizer"], **shards},
        )
        for stage, tokens in (("mid_train", 400_000), ("sft", 40_000)):
            parts = [
                {"task": "smoltalk", "split": "train", "conversations": 5_432, "epochs": 1.5},
                {"task": "identity", "split": "train", "conversations": 77, "epochs": 2.0},
            ]
            train = {"conversations": 5_509, "tokens_in": tokens, "rows": 3_100, "tokens_padding": 500, "parts": parts}
            train |= {"tokens_truncated": 0, "tokens_supervised": tokens // 4, "truncated": 0, "without_target": 3}
            self.publish(f"tokens/{stage}", {"train": train, "validation": {"conversations": 9, "rows": 31}})
        prompts = {"num_items": 20, "num_available": 100, "num_fewshot": 10, "num_fewshot_asked": 10, "tokens": 4_000}
        few = {"num_items": 10, "num_available": 10, "num_fewshot": 9, "num_fewshot_asked": 10, "tokens": 3_000}
        self.publish("tokens/core", {"tasks": {"hellaswag": prompts, "winograd": few, "lambada": few}, "num_listed": 3})
        self.publish_training("base_train", steps=300, bpb=1.2345, segments=2)
        self.publish_training("mid_train", steps=40, bpb=0.5432)
        self.publish_training("sft", steps=7, bpb=0.4321)
        tasks = {
            "hellaswag": core_task("multiple_choice", 0.25, 0.55, 20, 100),
            "winograd": core_task("schema", 0.5, 0.4, 10, 10),
            "lambada": core_task("language_modeling", 0.0, 0.3, 10, 10),
        }
        core = float(np.mean([task["centered"] for task in tasks.values()]))
        samples = [{"prompt": "The capital of", "text": " Ardan is Miro."}]
        results = {"bits_per_byte": {"train": 1.1111, "validation": 1.2222}, "core": core, "tasks": tasks, "samples": samples}
        results["interval"] = mean_interval(
            *zip(*((t["centered"], t["centered_interval"]) for t in tasks.values()), strict=True)
        )
        self.publish("base_eval", results)
        self.publish_chat("mid_train", {"arc_easy": (0.25, 26, 100), "open_questions": (0.0, 40, 100)})
        self.publish_chat("sft", {"arc_easy": (0.25, 28, 100), "open_questions": (0.0, 91, 100)})
        self.publish_trace()
        return self

    def publish_trace(self, **parts):
        trace = {"forward": {}, "beside": None, "differences": [], "step": {}, "components": {}, **parts}
        pages = {"forward.html": "<!doctype html>", "step.html": "<!doctype html>"}
        self.publish("trace", {}, files={"trace.json": trace, **pages})

    def publish_training(self, name: str, *, steps: int, bpb: float, segments: int = 1, **record):
        metrics: list[dict] = []
        for step in range(steps):
            loss = 1 + bpb * (1 + 3 / (1 + step))
            metrics.append(
                {"step": step, "loss": loss, "lr_scale": 1 - step / steps, "grad_norm": 0.5, "tokens": 1024 * (step + 1)}
            )
        for step, value in ((steps // 2, bpb + 0.1), (steps, bpb)):
            metrics.append({"step": step, "validation_loss": value * 3, "validation_bpb": value})
        cuts = np.linspace(0, steps, segments + 1).astype(int).tolist()
        defaults = {
            "device": "NVIDIA A100-SXM4-80GB",
            "num_devices": 8,
            "dtype": "bfloat16",
            "seconds": 3600.0,
            "tokens_per_second": 123_456.0,
            "speeds": [[step + 1, 120_000.0 + 100 * (step % 7)] for step in range(steps)],
            "peak_memory_bytes": 3 * 2**30,
            "is_exact": True,
            "segments": [
                {
                    "started": f"2026-01-02T0{i}:00:00",
                    "finished": f"2026-01-02T0{i}:30:00",
                    "from_step": a,
                    "to_step": b,
                    "host": "n",
                }
                for i, (a, b) in enumerate(itertools.pairwise(cuts))
            ],
        }
        results = {
            "parameters": PARAMETERS,
            "steps": steps,
            "tokens": 1024 * steps,
            "flops": 1.5e12 * steps,
            "train_loss": bpb + 1,
            "validation_loss": bpb * 3,
            "validation_bpb": bpb,
        }
        self.publish(name, results, files={"config.json": CONFIG, "metrics.jsonl": metrics}, record={**defaults, **record})

    def publish_chat(self, model: str, counts: dict[str, tuple[float, int, int]], **more):
        tasks = {
            name: {
                "kind": "choice" if baseline else "generative",
                "num_items": n,
                "num_available": n,
                "accuracy": right / n,
                "baseline": baseline,
                "interval": list(wilson_interval(right, n)),
                "num_cropped": 0,
            }
            for name, (baseline, right, n) in counts.items()
        }
        chatcore = {"five": None, "six": 0.1357, "five_interval": None, "six_interval": [0.1, 0.2]}
        self.publish(f"chat_eval/{model}", {"tasks": tasks, "chatcore": chatcore, **more}, record={"sandbox": "closed"})

    def report(self, folder: str = "report", *, title: str = "tiny", **specification) -> str:
        (self.root / folder).mkdir(exist_ok=True)
        files = write_report(
            self.root / folder, stages=self.manifests, specification=specification, title=title, logs=self.logs
        )
        assert files == list(FILES)
        assert sorted(path.name for path in (self.root / folder).iterdir()) == sorted(FILES)
        self.text = (self.root / folder / "report.md").read_text(encoding="utf-8")
        self.page = (self.root / folder / "report.html").read_text(encoding="utf-8")
        return self.text


def core_task(kind: str, baseline: float, accuracy: float, num_items: int, num_available: int) -> dict:
    interval = wilson_interval(round(accuracy * num_items), num_items)
    return {
        "type": kind,
        "num_fewshot": min(10, num_items - 1),
        "num_fewshot_asked": 10,
        "num_items": num_items,
        "num_available": num_available,
        "accuracy": accuracy,
        "baseline": baseline,
        "centered": (accuracy - baseline) / (1 - baseline),
        "centered_interval": list(centered_interval(interval, baseline)),
        "interval": list(interval),
        "num_cropped": 0,
    }
