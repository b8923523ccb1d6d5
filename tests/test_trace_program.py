"""The program of the stage `trace`: what it publishes, that it is the same every time, and what it refuses."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from project import ROOT
from small_models import random_model, small_tokenizer

from nanochat.checkpoint import load_model, save_model
from nanochat.errors import UserError
from nanochat.manifest import open_verified, publish, write_json_lines
from nanochat.tracing.forward import token_text

PROGRAM = ROOT / "workflow/scripts/trace.py"
SPECIFICATION = {"prompt": "the tale of a", "model": "base_train", "beside": None, "step_tokens": 24}
TRAINING = {
    **{"seed": 1, "total_batch_tokens": 256, "steps": 4, "weight_decay": 0.0, "grad_clip": 1.0},
    **{"warmup_ratio": 0.0, "warmdown_ratio": 0.5, "final_lr_ratio": 0.0},
    **{"matrix_lr": 0.02, "embedding_lr": 0.2, "unembedding_lr": 0.004},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the rows of a training and the models that it made: of this run, of another, with another vocabulary."""
    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    small_tokenizer().save(folder / "tokenizer.json")
    (folder / "tokens").mkdir()
    for split in ("train", "validation"):
        np.save(folder / "tokens" / f"{split}.npy", random.integers(0, 256, (24, 65), dtype=np.uint16))
    publish_there(folder / "tokens", ["train.npy", "validation.npy"])
    publish_model(folder / "model")
    publish_model(folder / "other", seed=1, mlp="gelu")
    publish_model(folder / "larger", vocab_size=310)
    return folder


def publish_model(folder, *, vocab_size=300, **changes):
    files = save_model(folder, random_model(vocab_size=vocab_size, **changes), small_tokenizer(vocab_size))
    rows = [{"step": step, "loss": 5.0 - step / 10, "lr_scale": 1.0, "grad_norm": 2.0, "tokens": 256} for step in range(4)]
    write_json_lines(folder / "metrics.jsonl", [*rows, {"step": 4, "validation_loss": 4.5, "validation_bpb": 3.1}])
    publish_there(folder, [*files, "metrics.jsonl"], **TRAINING)


def publish_there(folder, files, **specification):
    inputs = {"tokenizer": folder.parent / "tokenizer.json"}
    publish(folder / "manifest.json", specification=specification, inputs=inputs, files=files, results={}, record={})


def arguments(world, folder, beside=None, **changes):
    specification = {**SPECIFICATION, "beside": beside, **changes}
    words = ["--specification", json.dumps(specification), "--run", "tiny", "--manifest", folder / "manifest.json"]
    words += ["--model", world / "model/manifest.json", "--tokens", world / "tokens/manifest.json"]
    return [str(word) for word in [*words, "--beside", *([world / beside / "manifest.json"] if beside else [])]]


@pytest.fixture
def trace(world, monkeypatch, tmp_path):
    """Run the program in this process; returns what it published."""
    threads = torch.get_num_threads()

    def trace(beside=None, folder=tmp_path / "trace", **changes):
        specification = importlib.util.spec_from_file_location("trace_program", PROGRAM)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", ["trace", *arguments(world, folder, beside, **changes)])
        module.main()
        return open_verified(folder / "manifest.json")

    yield trace
    torch.set_num_threads(threads)


def published(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "record.json"}


def test_it_publishes_all_numbers_and_two_pages(trace):
    found = trace()
    assert set(found.files) == {"trace.json", "forward.html", "step.html"}
    content = found.json("trace.json")
    assert content.keys() == {"forward", "beside", "differences", "step", "components"}
    assert content["components"].keys() == {"nanochat", "textbook"}
    assert content["forward"]["prompt"] == SPECIFICATION["prompt"] and content["forward"]["name"] == "tiny"
    assert content["beside"]["config"]["positions"] == "learned", "the other preset"
    assert (content["forward"]["is_trained"], content["beside"]["is_trained"]) == (True, False)
    assert content["step"]["setting"]["num_tokens"] == 24
    for page in ("forward.html", "step.html"):
        text = found.path(page).read_text()
        assert text.startswith("<!") and "tiny" in text[:10_000]


def test_its_results_are_those_of_the_model(trace, world):
    results = trace().results
    model, tokenizer = load_model(world / "model", dtype="float32")
    with torch.no_grad():
        chances = model(torch.tensor([tokenizer.encode(SPECIFICATION["prompt"], bos=True)]))[0, -1].softmax(0)
    chance, token = chances.max(0)
    assert results["next_token_probability"] == pytest.approx(float(chance), rel=1e-4)
    assert results["next_token"] == token_text(tokenizer, int(token))
    assert 0 < results["step_loss_after"] < results["step_loss"], "a step on a text makes it likelier"


def test_the_same_bytes_in_another_process_with_more_threads(trace, world, tmp_path):
    trace(folder=tmp_path / "one")
    environment = {**os.environ, "OMP_NUM_THREADS": "3", "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    command = [sys.executable, str(PROGRAM), *arguments(world, tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert published(tmp_path / "one") == published(tmp_path / "two")


def test_what_is_done_is_published_again(trace, tmp_path, caplog):
    before = published(trace().folder)
    (tmp_path / "trace/manifest.json").unlink()
    with caplog.at_level("INFO", logger="nanochat"):
        trace()
    assert "published again" in caplog.text
    assert published(tmp_path / "trace") == before


def test_a_page_that_is_gone_is_made_again(trace, tmp_path):
    """Snakemake deletes declared outputs before a job starts, and the pages are declared."""
    before = published(trace().folder)
    for name in ("manifest.json", "forward.html", "step.html"):
        (tmp_path / "trace" / name).unlink()
    trace()
    assert published(tmp_path / "trace") == before


def test_another_run_stands_beside_it(trace):
    content = trace(beside="other").json("trace.json")
    assert content["beside"]["is_trained"] and content["beside"]["config"]["mlp"] == "gelu"
    assert [entry["component"] for entry in content["differences"]] == ["mlp"]


def test_a_run_with_another_vocabulary_is_refused(trace):
    with pytest.raises(UserError, match="larger has a vocabulary of 310 tokens, and the model that it is to stand beside 300"):
        trace(beside="larger")


def test_a_chat_model_is_asked_in_a_conversation(trace):
    content = trace(model="sft").json("trace.json")
    assert content["forward"]["is_chat"] and content["beside"]["is_chat"]
    assert any(token["is_special"] and "user_start" in token["text"] for token in content["forward"]["tokens"])


def test_a_prompt_of_too_many_tokens_is_refused_in_words(trace):
    with pytest.raises(UserError, match="at most 128 can be shown line by line"):
        trace(prompt="word " * 300)
