"""The training loop: gradients, exact resume, ranks, and what must stop it."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from small_models import random_model

from nanochat import train as module
from nanochat.checkpoint import Commits
from nanochat.distributed import Ranks
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.jobs.attempt import ask_to_stop
from nanochat.optimizer import clip_gradients
from nanochat.planning.memory import largest_micro_batch
from nanochat.train import Numerics, choose_micro_batch, sum_of_losses

PROGRAM = str(Path(__file__).with_name("training.py"))
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": "/tmp"}


def start(folder, *options, ranks=1, variables=None):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, PROGRAM, str(folder), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT | (variables or {}), timeout=180)


def finish(folder, *options, ranks=1):
    done = start(folder, *options, ranks=ranks)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def losses(training):
    return [row["loss"] for row in training["metrics"] if "loss" in row]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("undisturbed"))


def test_loss_falls(undisturbed):
    assert losses(undisturbed)[0] == pytest.approx(4.5747, abs=1e-3)  # ln 97: nothing is known at the start
    assert losses(undisturbed)[-1] < 3.5


def test_two_undisturbed_runs_agree_in_every_bit(undisturbed, tmp_path):
    again = finish(tmp_path)
    assert (again["weights"], again["metrics"]) == (undisturbed["weights"], undisturbed["metrics"])


@pytest.mark.parametrize("deaths", [[1], [7], [4, 5, 11]])
def test_a_training_killed_and_started_again_ends_in_the_same_bits(undisturbed, tmp_path, deaths):
    for step in deaths:
        assert start(tmp_path, "--die-at", step).returncode == -9
    resumed = finish(tmp_path)
    assert resumed["weights"] == undisturbed["weights"]
    assert resumed["metrics"] == undisturbed["metrics"]
    assert resumed["is_exact"]
    assert [step for step, _ in resumed["speeds"]] == list(range(1, 13)), "the speed of every step, before and after"


SPEEDRUN_PARTS = {
    "orthogonalizer": "polar_express", "equilibrate_rows": True, "renormalize": True, "normalize_variance": True,
    "momentum": [0.85, 0.97, 4], "final_momentum": 0.9, "matrix_decay": 0.1, "cautious": True,
    "matrix_decay_schedule": "cosine", "groups": "speedrun",
}  # fmt: skip
MODES = {
    "bfloat16, blocked": ["--dtype", "bfloat16", "--attention", "blocked"],
    "speedrun": ["--preset", "speedrun", "--parts", json.dumps(SPEEDRUN_PARTS)],
    "made again": ["--recompute"],
    "compiled": ["--compile", "--dtype", "bfloat16", "--attention", "blocked"],
}


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_in_every_mode_a_killed_training_ends_in_the_bits_of_an_undisturbed_one(undisturbed, tmp_path, options):
    whole = finish(tmp_path / "whole", *options)
    assert start(tmp_path / "killed", *options, "--die-at", 7).returncode == -9
    resumed = finish(tmp_path / "killed", *options)
    assert resumed["weights"] == whole["weights"] and resumed["metrics"] == whole["metrics"]
    assert losses(whole)[-1] < 3.5
    same_as_plain = options == MODES["made again"]
    assert (whole["weights"] == undisturbed["weights"]) == same_as_plain, "the mode was in force"


def test_a_long_training_records_its_speed_at_500_points_and_goes_on_with_them():
    speeds = module.Speeds([], num_steps=1_000, tokens_per_step=10)
    for step in range(1, 500):
        speeds.add(step, 0.1 if step % 2 else 0.3)
    assert speeds.points == [[step, 50.0] for step in range(2, 499, 2)]
    resumed = module.Speeds(speeds.points, num_steps=1_000, tokens_per_step=10)  # after 499 steps
    resumed.add(500, 0.5)
    assert resumed.points[-2:] == [[498, 50.0], [500, 20.0]]


def test_without_the_optimizer_state_the_bits_differ(undisturbed, tmp_path):
    """Negative control of the test above."""
    assert start(tmp_path, "--forget", "--die-at", 7).returncode == -9
    assert finish(tmp_path, "--forget")["weights"] != undisturbed["weights"]


def test_how_often_commits_and_evaluations_happen_changes_no_bit(undisturbed, tmp_path):
    assert finish(tmp_path, "--commit-every", 0, "--eval-every", 0)["weights"] == undisturbed["weights"]


@pytest.mark.parametrize("preset", ["nanochat", "textbook"])
def test_two_ranks_train_to_the_loss_of_one_and_agree_with_each_other(tmp_path, preset):
    options = ["--masked", "--preset", preset, "--micro-batch", 4]
    one, two = finish(tmp_path / "one", *options), finish(tmp_path / "two", *options, ranks=2)
    assert losses(two) == pytest.approx(losses(one), rel=2e-3)
    assert losses(two)[0] == pytest.approx(losses(one)[0], rel=1e-6)
    assert len(two["weights"]) == 2 and len(set(two["weights"])) == 1


def test_two_ranks_killed_and_started_again_end_in_the_same_bits(tmp_path):
    whole = finish(tmp_path / "whole", ranks=2)
    assert start(tmp_path / "killed", "--die-at", 7, ranks=2).returncode != 0
    assert finish(tmp_path / "killed", ranks=2)["weights"] == whole["weights"]


def test_a_resume_on_another_number_of_ranks_goes_on_and_says_that_it_is_not_exact(tmp_path):
    assert start(tmp_path, "--die-at", 7).returncode == -9
    resumed = finish(tmp_path, ranks=2)
    assert not resumed["is_exact"]
    assert [segment["from_step"] for segment in resumed["segments"]][-1] == 6


def test_with_kernels_that_sum_in_any_order_a_resume_says_that_it_is_not_exact(tmp_path):
    assert finish(tmp_path / "whole", "--determinism", "fast")["is_exact"]
    assert start(tmp_path, "--determinism", "fast", "--die-at", 7).returncode == -9
    resumed = finish(tmp_path, "--determinism", "fast")
    assert not resumed["is_exact"]
    assert resumed["segments"][-1]["changed"] == ["determinism: fast, which makes other bits each time"]


def test_commits_of_another_training_are_refused_with_what_differs(tmp_path):
    assert start(tmp_path, "--die-at", 7).returncode == -9
    refused = start(tmp_path, "--seed", 6)
    assert refused.returncode != 0
    assert "specification.seed: was 5, is 6" in refused.stderr
    assert finish(tmp_path)["is_exact"]  # the first training is untouched


def test_a_finished_training_makes_room_for_one_of_another_specification(tmp_path):
    finish(tmp_path, "--steps", 12)
    assert len(list((tmp_path / "resume").glob("step_*"))) == 2  # the last, which says finished, and the one before it
    anew = finish(tmp_path, "--steps", 7)
    assert len(losses(anew)) == 7 and anew["is_exact"]


def test_a_nan_stops_before_the_update_and_the_commits_stay_good(undisturbed, tmp_path):
    stopped = start(tmp_path, "--nan-at", 8)
    assert stopped.returncode != 0
    assert "step 8: the loss is" in stopped.stderr and "the update was not made" in stopped.stderr
    assert finish(tmp_path)["weights"] == undisturbed["weights"]


def test_a_damaged_commit_is_passed_over_for_the_one_before(undisturbed, tmp_path):
    assert start(tmp_path, "--die-at", 7).returncode == -9
    newest = sorted((tmp_path / "resume").glob("step_*"))[-1] / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    assert finish(tmp_path)["weights"] == undisturbed["weights"]


def test_loss_of_a_step_does_not_depend_on_its_micro_batches(tmp_path):
    """Rows with 1 to 13 supervised tokens: a mean of micro-batch means would differ in the first digits."""
    whole, split = (
        finish(tmp_path / "8", "--masked", "--micro-batch", 8),
        finish(tmp_path / "1", "--masked", "--micro-batch", 1),
    )
    assert losses(split)[0] == pytest.approx(losses(whole)[0], rel=1e-6)
    assert losses(split) == pytest.approx(losses(whole), rel=2e-3)


def test_sum_of_losses_is_the_cross_entropy_of_the_supervised_tokens():
    model = GPT(GPTConfig.preset("nanochat", vocab_size=50, n_layer=1, n_head=2, n_kv_head=2, n_embd=16, sequence_len=8))
    model.init_weights(0)
    x, y = torch.arange(16).view(2, 8), torch.arange(1, 17).view(2, 8).clone()
    y[0, 3:] = -1
    by_hand = sum(-F.log_softmax(model(x)[b, t], dim=0)[y[b, t]] for b in range(2) for t in range(8) if y[b, t] >= 0)
    torch.testing.assert_close(sum_of_losses(model, x, y), by_hand)


def test_gradients_are_clipped_by_their_common_norm():
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, 1.0) == pytest.approx(5.0)
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.6, 0.0]), atol=1e-5, rtol=1e-5)
    assert clip_gradients(parameters, 0) == pytest.approx(1.0)


def test_micro_batch_divides_the_rows_of_a_rank():
    def choose(requested, **changes):
        model = {"sequence_len": 2**10, "n_embd": 384}  # a stream of 1.5 million numbers has four rows
        return choose_micro_batch(requested, rows=12, model=model | changes, dtype="float32")

    assert choose(0) == 4
    assert choose(0, sequence_len=2**14) == 1
    assert choose(6) == 6
    with pytest.raises(UserError, match="does not divide"):
        choose(5)


def test_micro_batch_on_a_gpu_is_the_largest_that_fits_its_memory():
    def choose(gigabytes):
        return choose_micro_batch(
            0, rows=32, model=GPTConfig().as_dict(), dtype="bfloat16", memory_bytes=gigabytes * 10**9, world_size=8
        )

    expected = largest_micro_batch(GPTConfig().as_dict(), rows=32, memory_bytes=85 * 10**9, world_size=8)
    assert choose(85) == expected > choose(40) >= 1
    with pytest.raises(UserError, match=r"the model does not fit this GPU: with one row .* needs about \d+\.\d GB"):
        choose(8)


def test_out_of_memory_names_the_next_smaller_micro_batch():
    """A stand-in for the allocator: the error that PyTorch raises on a GPU."""

    def loss_of(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")

    model = random_model()
    x = torch.zeros(12, 4, dtype=torch.long)
    loader = SimpleNamespace(batch=lambda *_: (x, x), supervised_tokens=lambda _: 48)
    numerics = Numerics("cpu", 1, "float32", 6)
    with pytest.raises(UserError, match=r"micro_batch 6 rows\. Set micro_batch: 3") as caught:
        module.update(
            model, None, loader, step=0, lr_scale=1, progress=0, grad_clip=1, numerics=numerics, ranks=Ranks(), loss_of=loss_of
        )
    assert "more" not in str(caught.value).splitlines()[-1].split("PyTorch says")[1]


def test_a_training_asked_to_stop_commits_and_goes_on_to_the_same_bits(undisturbed, tmp_path):
    """Stopped after one step, again and again, by a request that is there from the start."""
    state = tmp_path / "resume"
    (state / "claims").mkdir(parents=True)
    (state / "claims" / "00000001.json").write_text("{}")
    variables = {"NANOCHAT_STATE": str(state), "NANOCHAT_CLAIM": "1"}
    ask_to_stop(state, 1, reason="deadline", text="test")
    for step in (1, 2):
        assert start(tmp_path, variables=variables).stdout == ""
        assert json.loads((state / "status.json").read_text())["state"] == "stopped"
        assert sorted(path.name for path in state.glob("step_*"))[-1] == f"step_{step:08d}"
    resumed = finish(tmp_path)
    assert (resumed["weights"], resumed["metrics"]) == (undisturbed["weights"], undisturbed["metrics"])


def test_a_training_whose_stage_was_taken_over_commits_nothing(tmp_path):
    state = tmp_path / "resume"
    (state / "claims").mkdir(parents=True)
    (state / "claims" / "00000002.json").write_text("{}")
    lost = start(tmp_path, variables={"NANOCHAT_STATE": str(state), "NANOCHAT_CLAIM": "1"})
    assert lost.returncode != 0 and "somebody else has taken this stage over" in lost.stderr
    assert not list(state.glob("step_*")) and not (state / "status.json").exists()


def test_what_was_chosen_at_the_start_is_found_in_the_newest_commit(tmp_path):
    assert start(tmp_path, "--micro-batch", 2, "--die-at", 7).returncode == -9
    identity = {"specification": {"seed": 5, "steps": 12}}
    assert Commits(tmp_path / "resume", identity).numerics()["micro_batch"] == 2
    assert Commits(tmp_path / "resume", {"specification": {}}).numerics() is None
    assert Commits(tmp_path / "empty", identity).numerics() is None
