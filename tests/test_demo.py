"""The demo, whole: config/tiny.yaml as shipped, judged by what its model knows afterwards. And its negative control."""

import json
import subprocess
import sys

import pytest
from project import Project

from nanochat.checkpoint import load_model
from nanochat.core_eval import evaluate_core
from nanochat.core_tokens import prepare

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tiny_run):
    return Project(tiny_run)


@pytest.fixture(scope="module")
def untrained(demo, tmp_path_factory):
    """The same with learning rates of zero, up to what is looked at: nothing is learned. Few steps, since none counts."""
    project = Project(tmp_path_factory.mktemp("untrained"))
    (project.folder / "resources").symlink_to(demo.folder / "resources")
    zero = {f"base_train.{rate}": 0.0 for rate in ("matrix_lr", "embedding_lr", "unembedding_lr")}
    quick = {"base_train.steps": 2, "mid_train.epochs": 0.01, "sft.epochs": 0.01}
    project.configure_as_shipped({**zero, **quick})
    project.run("results/tiny/base_eval/manifest.json", "results/tiny/chat_eval/sft/manifest.json")
    return project


def chat(project):
    return {name: task["accuracy"] for name, task in project.manifest("chat_eval/sft")["results"]["tasks"].items()}


def core(project):
    return project.manifest("base_eval")["results"]


def choices(tasks):
    """Accuracy of choices by likelihood with four options, over all such tasks of the bundle."""
    tasks = [task for task in tasks.values() if task["type"] == "multiple_choice" and task["baseline"] == 0.25]
    return sum(task["accuracy"] * task["num_items"] for task in tasks) / sum(task["num_items"] for task in tasks)


def test_open_questions_about_people_whom_no_training_conversation_asks_about(demo):
    assert chat(demo)["open_questions"] >= 0.80


def test_choices_by_likelihood(demo):
    assert choices(core(demo)["tasks"]) >= 0.70


def test_choices_by_likelihood_after_sft(demo):
    model, tokenizer = load_model(demo.folder / "results/tiny/sft")
    bundle = demo.folder / "resources/tiny_world/eval_bundle.zip"
    results, _ = evaluate_core(model, tokenizer, prepare(bundle, tokenizer))
    assert choices(results["tasks"]) >= 0.70


def test_sums_and_spellings_are_clearly_above_zero(demo):
    assert chat(demo)["gsm8k"] >= 0.10
    assert chat(demo)["spelling_bee"] >= 0.10


def test_without_learning_everything_falls_to_chance(untrained):
    scores = chat(untrained)
    assert scores["open_questions"] <= 0.10
    assert scores["gsm8k"] == 0 and scores["spelling_bee"] <= 0.05
    assert 0.10 <= choices(core(untrained)["tasks"]) <= 0.40
    assert core(untrained)["bits_per_byte"]["validation"] > 2.5


def test_the_model_answers_in_the_terminal(demo):
    question = "Where does Otto live?"  # one of the people whom no training conversation asks about
    command = [sys.executable, "-m", "nanochat.chat", "results/tiny/sft", "-p", question, "--temperature", "0"]
    done = subprocess.run(command, cwd=demo.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Otto" in done.stdout and "Lisbon" in done.stdout


def test_every_answer_is_on_file(demo):
    answers = (demo.folder / "results/tiny/chat_eval/sft/answers.jsonl").read_text().splitlines()
    tasks = demo.manifest("chat_eval/sft")["results"]["tasks"]
    assert len(answers) == sum(task["num_items"] for task in tasks.values())
    assert {json.loads(line)["task"] for line in answers} == tasks.keys()
