"""Long evaluations: what is finished is kept, a stop costs one task, and the end is the same to the byte."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bundles import write_bundle
from evaluating import StopsAt, on_ranks
from small_models import random_model, small_tokenizer

from nanochat import core_tokens
from nanochat.checkpoint import save_model
from nanochat.distributed import Ranks
from nanochat.errors import UserError
from nanochat.jobs.attempt import Attempt, ask_to_stop
from nanochat.manifest import publish
from nanochat.partial import Parts, Stopped, Work

SCRIPTS = Path(__file__).resolve().parent.parent / "workflow" / "scripts"
IDENTITY = {"specification": {"max_per_task": 3}, "inputs": {"model": "abc"}, "numerics": {"device": "cpu", "num_devices": 1}}


def parts_in(folder, *, identity=IDENTITY, ranks=None):
    return Parts(ranks or Ranks(), stage="test", num_tasks=2, attempt=Attempt(folder), identity=identity)


def never():
    raise AssertionError("evaluated again")


# -- what is kept ------------------------------------------------------------------------------------------------------------


def test_a_finished_task_is_not_evaluated_again(tmp_path, caplog):
    rows = [{"index": 0, "losses": [0.1 + 0.2, 1e-300], "text": "\ud800 \u2028 é", "correct": True, "nothing": None}]
    assert parts_in(tmp_path).rows("squad", lambda: rows) == rows
    with caplog.at_level(logging.INFO, logger="nanochat"):
        again = parts_in(tmp_path)
    assert again.rows("squad", never) == rows
    assert "going on behind 1 tasks that are finished: squad" in caplog.text
    assert again.took("squad").startswith("kept, ")


def test_without_a_launcher_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NANOCHAT_STATE", raising=False)
    parts = Parts(Ranks(), attempt=Attempt.from_environment())
    assert parts.run("squad", lambda: (1, 2)) == [1, 2]
    parts.say_stopped()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("group", "key", "value", "named"),
    [
        ("specification", "max_per_task", 4, "specification.max_per_task"),
        ("inputs", "model", "xyz", "inputs.model"),
        ("numerics", "num_devices", 2, "numerics.num_devices"),
        ("numerics", "dtype", "bfloat16", "numerics.dtype"),
    ],
)
def test_parts_of_another_evaluation_are_removed_and_said(tmp_path, caplog, group, key, value, named):
    parts_in(tmp_path).run("squad", lambda: 1)
    other = {**IDENTITY, group: {**IDENTITY[group], key: value}}
    assert parts_in(tmp_path, identity=other).run("squad", lambda: 2) == 2
    assert f"part_squad.json: is of another evaluation, which differs in {named}; removed" in caplog.text
    assert parts_in(tmp_path, identity=other).run("squad", never) == 2


DAMAGE = {
    "truncated": lambda text: text[: len(text) // 2],
    "another digit": lambda text: text.replace("0.25", "0.75"),
    "not an object": lambda text: "[1]",
    "another object": lambda text: "{}",
    "no text": lambda text: "\0" * len(text),
    "no identity": lambda text: text.replace('"identity"', '"identify"'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_part_is_removed_and_its_task_evaluated_again(tmp_path, caplog, damage):
    parts_in(tmp_path).run("squad", lambda: 0.25)
    path = tmp_path / "part_squad.json"
    path.write_text(damage(path.read_text()))
    parts = parts_in(tmp_path)
    assert "part_squad.json: is damaged; removed" in caplog.text
    assert not path.exists()
    assert parts.run("squad", lambda: 0.5) == 0.5


def test_what_a_killed_process_left_half_written_is_swept(tmp_path):
    (tmp_path / ".part_squad.json.tmp-123").write_text('{"task"')
    assert parts_in(tmp_path).finished == {}
    assert list(tmp_path.iterdir()) == []


def test_whoever_lost_the_stage_to_another_keeps_nothing(tmp_path):
    parts = parts_in(tmp_path)
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "00000001.json").write_text("{}")
    with pytest.raises(UserError, match="taken this stage over"):
        parts.run("squad", lambda: 1)
    assert not list(tmp_path.glob("part_*"))


def test_task_names_become_file_names(tmp_path):
    parts_in(tmp_path).run("../a b", lambda: 1)
    assert [path.name for path in tmp_path.iterdir() if path.name != "status.json"] == ["part_.._a_b.json"]
    assert parts_in(tmp_path).run("../a b", never) == 1


# -- stopping ----------------------------------------------------------------------------------------------------------------


def share_of(parts, num_batches):
    """This rank's rows, one a batch."""
    rows = []
    for number in range(num_batches):
        parts.poll(number / num_batches)
        rows.append({"index": parts.ranks.rank + parts.ranks.world_size * number})
    return rows


@pytest.mark.parametrize("question", [1, 2, 3])
@pytest.mark.parametrize("asked", [0, 1, 2])
def test_a_stop_seen_by_any_rank_at_any_batch_stops_all(tmp_path, asked, question):
    def evaluate(ranks):
        attempt = StopsAt(tmp_path, question if ranks.rank == asked else 0)
        parts = Parts(ranks, attempt=attempt)
        return parts.rows("squad", lambda: share_of(parts, 5 - ranks.rank))  # so many batches, different on each

    assert [type(found) for found in on_ranks(3, evaluate)] == [Stopped] * 3
    assert not list(tmp_path.glob("part_*"))


def test_a_stop_that_comes_after_the_last_batch_loses_nothing(tmp_path):
    def evaluate(ranks):
        parts = Parts(ranks, attempt=StopsAt(tmp_path, 3))
        found = parts.rows("squad", lambda: share_of(parts, 2))
        with pytest.raises(Stopped):
            parts.rows("boolq", lambda: share_of(parts, 2))
        return found

    assert on_ranks(2, evaluate) == [[{"index": index} for index in range(4)]] * 2
    assert [path.name for path in tmp_path.glob("part_*")] == ["part_squad.json"]


def test_sums_over_the_ranks_carry_the_question_to_stop(tmp_path):
    def add(ranks, question):
        parts = Parts(ranks, attempt=StopsAt(tmp_path, question if ranks.is_main else 0))
        return parts.sum_floats(sum(parts.until_stopped([1.0, 2.0, 3.0], total=3)), 1.0)

    assert on_ranks(2, lambda ranks: add(ranks, 0)) == [[12.0, 2.0]] * 2
    assert [type(found) for found in on_ranks(2, lambda ranks: add(ranks, 2))] == [Stopped] * 2


def test_all_ranks_take_the_parts_that_the_main_one_read(tmp_path):
    parts_in(tmp_path).run("squad", lambda: [1])

    def evaluate(ranks):
        return Parts(ranks, attempt=Attempt(tmp_path if ranks.is_main else None), identity=IDENTITY).run("squad", never)

    assert on_ranks(3, evaluate) == [[1]] * 3


# -- telling -----------------------------------------------------------------------------------------------------------------


def test_time_left_follows_from_tasks_of_the_same_kind(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("nanochat.partial.time.monotonic", lambda: clock[0])
    attempt = Attempt(tmp_path)
    parts = Parts(Ranks(), stage="test", num_tasks=3, attempt=attempt)

    def take(seconds):
        clock[0] += seconds / 2
        parts.poll(0.5)
        clock[0] += seconds / 2

    parts.expect({"a": Work("read", 10), "b": Work("read", 30)})
    assert parts.run("a", lambda: take(20)) is None
    assert parts.seconds_left() is None  # one task is not known yet
    parts.expect({"c": Work("write", 5)})
    assert parts.seconds_left() is None  # nothing of its kind was done
    parts.expect({"c": Work("write", 0)})
    assert parts.took("a") == "20.0 s, 0:01:00 left"
    parts.run("b", lambda: take(40))  # faster than "a": in its middle 40 s for 10 + 15, and 15 are left
    assert attempt.status["seconds_left"] == pytest.approx(24)
    assert {key: attempt.status[key] for key in ("stage", "state", "step", "num_steps", "unit", "message")} == {
        "stage": "test",
        "state": "evaluating",
        "step": 1,
        "num_steps": 3,
        "unit": "tasks",
        "message": "b",
    }


# -- the programs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a model, packed rows, prompts of CORE and chat questions; arguments of both programs."""
    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    files = save_model(folder / "model", random_model(), small_tokenizer())
    tokenizer = {"tokenizer": folder / "model" / "tokenizer.json"}
    publish_there(folder / "model" / "manifest.json", files, inputs=tokenizer)
    (folder / "tokens").mkdir()
    for split in ("train", "validation"):
        np.save(folder / "tokens" / f"{split}.npy", random.integers(0, 256, (24, 65), dtype=np.uint16))
    publish_there(folder / "tokens" / "manifest.json", ["train.npy", "validation.npy"], inputs=tokenizer)
    (folder / "core").mkdir()
    core = core_tokens.prepare(write_bundle(folder), small_tokenizer(), max_per_task=3)
    publish_there(folder / "core" / "manifest.json", core_tokens.save(core, folder / "core"), inputs=tokenizer)
    (folder / "words.txt").write_text("pear\nplum\nfig\nkiwi\nlime\ndate\n")
    publish_there(folder / "words.txt.manifest.json", ["words.txt"], key="words")
    return folder


def publish_there(manifest, files, *, inputs=None, **specification):
    publish(manifest, specification=specification, inputs=inputs or {}, files=files, results={}, record={})


BASE_EVAL = {
    "eval_tokens": 64 * 16,
    "samples": ["The", "A"],
    "sample_tokens": 4,
    "seed": 1,
}
CHAT_EVAL = {
    "tasks": ["spelling_bee"],
    "spelling_items": 5,
    "max_per_task": None,
    "max_new_tokens": 4,
    "num_samples": 1,
    "sandbox": "closed",
    "temperature": 0.0,
    "top_k": 50,
    "seed": 1,
}


def arguments(world, program, folder):
    specification = BASE_EVAL if program == "base_eval" else CHAT_EVAL
    data = ["--tokens", world / "tokens/manifest.json", "--core", world / "core/manifest.json"]
    if program == "chat_eval":
        data = ["--data", world / "words.txt.manifest.json"]
    shared = ["--specification", json.dumps(specification), "--manifest", folder / "manifest.json", "--device", "cpu"]
    return [str(word) for word in ("--model", world / "model/manifest.json", *data, *shared)]


@pytest.fixture
def evaluate(world, monkeypatch):
    """Run a program in this process, under an attempt."""

    def evaluate(program, folder, attempt):
        specification = importlib.util.spec_from_file_location(program, SCRIPTS / f"{program}.py")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [program, *arguments(world, program, folder)])
        monkeypatch.setattr(Attempt, "from_environment", staticmethod(lambda: attempt))
        module.main()

    return evaluate


def published(folder):
    """What an evaluation published: names and bytes. The record tells of times, so it is left out."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "record.json"}


@pytest.mark.parametrize("program", ["base_eval", "chat_eval"])
def test_an_evaluation_stopped_anywhere_and_started_again_publishes_the_same_bytes(tmp_path, evaluate, program):
    evaluate(program, tmp_path / "undisturbed", Attempt())
    expected = published(tmp_path / "undisturbed")
    num_stopped = 0
    for question in range(1, 30):
        folder, state = tmp_path / f"stopped_{question}", tmp_path / f"state_{question}"
        attempt = StopsAt(state, question)
        evaluate(program, folder, attempt)
        if attempt.questions_left > 0:
            break  # all places were tried
        num_stopped += 1
        assert published(folder) == {}
        assert attempt.status["state"] == "stopped"
        evaluate(program, folder, Attempt(state))
        assert published(folder) == expected
        assert not list(state.glob("part_*"))
        assert json.loads((state / "status.json").read_text())["state"] == "finished"
    # bits per byte: two batches a split; CORE: one a task; spelling: four tokens to write, and each of five answers to check
    assert num_stopped == (2 * 2 + 3 if program == "base_eval" else 4 + 5)


def test_what_is_published_came_from_the_parts(tmp_path, evaluate):
    """Negative control of the test above: a result changed in a part is found in what is published."""
    folder, attempt = tmp_path / "evaluation", StopsAt(tmp_path / "state", 6)
    evaluate("base_eval", folder, attempt)
    (path,) = attempt.state.glob("part_choices.json")
    identity = json.loads(path.read_text())["identity"]
    changed = [{**row, "correct": False, "line": 999} for row in json.loads(path.read_text())["content"]]
    path.unlink()
    Parts(Ranks(), attempt=Attempt(attempt.state), identity=identity).run("choices", lambda: changed)
    evaluate("base_eval", folder, Attempt(attempt.state))
    assert b'"line": 999' in published(folder)["examples.jsonl"]
    record = json.loads((folder / "record.json").read_text())
    assert record["tasks_of_earlier_attempts"] == 3


def run_without_pytorch(world, program, folder):
    path = str(SCRIPTS / f"{program}.py")
    start = f"import runpy, sys; sys.modules['torch'] = None; runpy.run_path({path!r}, run_name='__main__')"
    command = [sys.executable, "-c", start, *arguments(world, program, folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("program", ["base_eval", "chat_eval"])
def test_what_is_done_is_published_again_without_pytorch(tmp_path, world, evaluate, program):
    folder, attempt = tmp_path / "evaluation", Attempt(tmp_path / "state")
    attempt.state.mkdir()
    evaluate(program, folder, attempt)
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").unlink()
    again = run_without_pytorch(world, program, folder)
    assert again.returncode == 0, again.stderr
    assert "published again" in again.stderr
    assert (folder / "manifest.json").read_bytes() == manifest
    # negative control: what is not done needs it
    (folder / "record.json").unlink()
    assert "import of torch halted" in run_without_pytorch(world, program, folder).stderr


def test_parts_left_by_a_kill_after_publishing_are_removed_by_the_next_start(tmp_path, evaluate):
    state = tmp_path / "state"
    state.mkdir()
    evaluate("chat_eval", tmp_path / "evaluation", Attempt(state))
    parts_in(state).run("spelling_bee", lambda: 1)
    evaluate("chat_eval", tmp_path / "evaluation", Attempt(state))
    assert not list(state.glob("part_*"))


def test_two_real_ranks_stop_as_asked_and_go_on(tmp_path, world):
    folder, state = tmp_path / "evaluation", tmp_path / "state"
    state.mkdir()
    environment = {**os.environ, "NANOCHAT_STATE": str(state), "NANOCHAT_CLAIM": "1", "OMP_NUM_THREADS": "1"}
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *ranks, str(SCRIPTS / "base_eval.py"), *arguments(world, "base_eval", folder)]

    def run():
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stderr, json.loads((state / "status.json").read_text())

    ask_to_stop(state, 1, reason="deadline", text="a test")
    said, status = run()
    assert "base_eval: stopped as asked; 0 of 6 tasks are finished" in said
    assert (status["state"], status["step"], status["num_steps"]) == ("stopped", 0, 6)
    assert published(folder) == {}
    (state / "stop.json").unlink()
    said, status = run()
    assert status["state"] == "finished"
    assert said.count("CORE  1/3 choices") == 1  # one rank speaks for both
    assert json.loads(published(folder)["manifest.json"])["results"]["core"] is not None
