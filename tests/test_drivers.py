"""Two Snakemakes on one run: the second is refused; if not, nothing is mixed. The same code at larger counts: make torture."""

import json
import os
import threading
import time
from pathlib import Path

import pytest
from project import ROOT, Project, copy_of, kill_all, wait_for
from torture import drivers
from torture.drivers import Finished, Trial, told
from torture.world import Golden, World, fingerprint

from nanochat import manifest as manifests
from nanochat.errors import UserError
from nanochat.jobs import driver
from nanochat.jobs import lease as leases
from nanochat.jobs.lease import claim, take_lease
from nanochat.manifest import open_verified
from nanochat.stage import Stage

# -- real ones ---------------------------------------------------------------------------------------------------------------


class Quick(World):
    """The quick project, as a world."""

    def __init__(self, folder: Path):
        Project.__init__(self, folder)
        self.code = ROOT
        self.configure()

    def command(self, *arguments: str, config: str = "my.yaml") -> list[str]:
        return Project.command(self, *arguments, config=config)


@pytest.fixture(scope="module")
def finished(quick_run) -> Finished:
    world = Quick.__new__(Quick)
    world.folder = quick_run
    return Finished(world, Golden(fingerprint(world)), Quick)


@pytest.mark.slow
def test_two_snakemakes_that_do_not_know_of_one_another_mix_nothing(finished, tmp_path):
    assert told(Trial(1, drivers.UNCHECKED, "sft", 0.5), finished, tmp_path, print) is None


@pytest.mark.slow
def test_the_second_snakemake_is_refused_and_the_first_goes_on_until_it_is_killed(quick_run, tmp_path):
    project = copy_of(quick_run, tmp_path / "project")
    project.configure({"sft.seed": 7})
    target = "results/tiny/sft/manifest.json"
    state = project.folder / "results/tiny/resume"
    before = len((state / "sft/attempts.jsonl").read_text().splitlines())
    first = project.start(target)
    wait_for(lambda: (state / "snakemake/lease.json").exists())
    refused = project.snakemake(target)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert f"error: another Snakemake (process {first.pid} on " in refused.stderr
    assert f"(kill {first.pid} on " in refused.stderr and "Nothing was started" in refused.stderr
    assert "localrule sft" not in refused.stdout + refused.stderr
    kill_all(first)
    project.run(target)  # nobody has to clear anything away
    starts = [json.loads(line)["event"] for line in (state / "sft/attempts.jsonl").read_text().splitlines()[before:]]
    assert starts.count("start") <= 2 and not (state / "snakemake/lease.json").exists()


def new_folder(path):
    path.mkdir()
    return path


@pytest.mark.slow
def test_a_mixture_would_be_seen(finished, tmp_path):
    """The eyes of the trials: two programs in one stage, a manifest that is not true, and bytes that differ."""
    trial = Trial(2, drivers.UNCHECKED, "trace", 0.0, has_leases=False)
    # on a busy machine the second one may come when the first one has finished
    problem = next(filter(None, (told(trial, finished, new_folder(tmp_path / str(n)), print) for n in range(3))), None)
    assert problem is not None and "two programs at once in " in problem and "trace" in problem.split("at once in ")[1]
    project = copy_of(finished.world.folder, tmp_path / "project")
    world = Quick(project.folder)
    assert list(drivers.untrue(world)) == []
    model = project.folder / "results/tiny/sft/model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    assert "model.safetensors" in "".join(drivers.untrue(world))
    assert "results/tiny/sft/model.safetensors: differs" in finished.golden.differences(world)


# -- one Snakemake a run -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURMD_NODENAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NANOCHAT_HEARTBEAT_S", "0.1")
    monkeypatch.setattr(driver, "POLL_S", 0.02)


def lost(problem: str) -> None:
    raise AssertionError(problem)


def pretend(state: Path, **fields) -> None:
    """A claim of somebody who is not seen from here."""
    (state / "claims").mkdir(parents=True)
    holder = {"claim": 1, "host": "login-2", "pid": 4711, "process_space": "elsewhere", "started": "2026-01-01", **fields}
    (state / "claims/00000001.json").write_text(json.dumps(holder))


def test_a_run_is_claimed_by_one_and_free_when_it_lets_go(tmp_path):
    lease = driver.claim_run(tmp_path, lost)
    with pytest.raises(UserError, match=rf"another Snakemake \(process {os.getpid()} on .*\) works on .* Nothing was started"):
        driver.claim_run(tmp_path, lost)
    driver.release(lease)
    driver.release(driver.claim_run(tmp_path, lost))


def test_another_run_of_the_configuration_can_be_worked_on_meanwhile(tmp_path):
    for lease in [driver.claim_run(tmp_path / run, lost) for run in ("d12", "d20")]:
        driver.release(lease)


def test_one_on_another_machine_is_refused_for_as_soon_as_its_heart_is_seen_to_beat(tmp_path):
    state = tmp_path / "resume/snakemake"
    pretend(state)
    beating = threading.Event()

    def beat() -> None:
        while not beating.wait(0.05):
            (state / "lease.json").write_text(str(time.monotonic_ns()))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match=r"process 4711 on login-2\) works on .*since 2026-01-01.*kill 4711 on login-2"):
            driver.claim_run(tmp_path, lost)
    finally:
        beating.set()
        thread.join()


def test_one_on_another_machine_whose_heart_stands_still_is_succeeded(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("NANOCHAT_SILENCE_S", "0.3")
    pretend(tmp_path / "resume/snakemake")
    lease = driver.claim_run(tmp_path, lost)
    assert lease.holder.claim == 2 and "does not run on this machine" in caplog.text
    driver.release(lease)


def test_one_that_lost_its_claim_is_told_who_has_it(tmp_path):
    told: list[str] = []
    lease = driver.claim_run(tmp_path, told.append)
    claim(lease.state, 2, name="snakemake", log_path=None)
    wait_for(lambda: told, timeout_s=30)
    assert "another Snakemake (process" in told[0]
    driver.release(lease)
    assert leases.newest_claim(lease.state) == 2, "and leaves the other's claim alone"


def test_the_lease_of_a_stage_has_nothing_to_say_when_it_is_lost(tmp_path):
    lease = take_lease(tmp_path, name="sft")
    claim(tmp_path, 2, name="sft", log_path=None)
    lease.thread.join(30)
    assert lease.is_lost and not lease.thread.is_alive()


# -- what a stage reads and publishes while others write ---------------------------------------------------------------------


def publish_input(folder: Path, text: str) -> Path:
    """What another stage makes: one file."""
    path = folder / "manifest.json"
    stage = Stage(path, specification={"text": text}, inputs={})
    (folder / "data.txt").write_text(text)
    stage.publish(["data.txt"], results={})
    return path


def test_a_stage_whose_input_was_replaced_meanwhile_is_not_published(tmp_path):
    read = publish_input(tmp_path / "read", "before")
    stage = Stage(tmp_path / "made/manifest.json", specification={}, inputs={"read": read})
    (tmp_path / "made/out.txt").write_text("made of before")
    publish_input(tmp_path / "read", "after")
    with pytest.raises(UserError, match=r"another program replaced what it reads \(.*read/manifest\.json\)"):
        stage.publish(["out.txt"], results={})
    assert not (tmp_path / "made/manifest.json").exists()


def test_a_stage_whose_input_was_published_again_is(tmp_path):
    read = publish_input(tmp_path / "read", "same")
    stage = Stage(tmp_path / "made/manifest.json", specification={}, inputs={"read": read})
    (tmp_path / "made/out.txt").write_text("made")
    publish_input(tmp_path / "read", "same")
    stage.publish(["out.txt"], results={})
    assert open_verified(tmp_path / "made/manifest.json").inputs == {"read": open_verified(read).identity}


@pytest.mark.parametrize("theirs", ["the same bytes", "other bytes"])
def test_two_that_publish_the_same_work_agree_or_both_are_refused(tmp_path, theirs):
    first, second = (Stage(tmp_path / "manifest.json", specification={"seed": 1}, inputs={}) for _ in range(2))
    (tmp_path / "out.txt").write_text(theirs)
    first.publish(["out.txt"], results={})
    (tmp_path / "out.txt").write_text("the same bytes")
    if theirs == "the same bytes":
        second.publish(["out.txt"], results={})
        assert open_verified(tmp_path / "manifest.json").path("out.txt")
        return
    with pytest.raises(UserError, match=r"out\.txt: not deterministic\. .* sha256 is \w{64} here and \w{64} there"):
        second.publish(["out.txt"], results={})
    assert not (tmp_path / "manifest.json").exists()


def test_a_page_that_another_snakemake_deletes_before_it_is_published_is_named(tmp_path):
    stage = Stage(tmp_path / "manifest.json", specification={}, inputs={})
    with pytest.raises(UserError, match=r"report\.html: vanished before this stage was published"):
        stage.publish(["report.html"], results={})
    assert not (tmp_path / "manifest.json").exists()


def take_away_for(manifest: Path, seconds: float) -> threading.Timer:
    """As the Snakemake of somebody else does, before the program that publishes it again."""
    text = manifest.read_bytes()
    manifest.unlink()
    timer = threading.Timer(seconds, lambda: manifest.write_bytes(text))
    timer.start()
    return timer


def test_a_stage_program_waits_for_a_manifest_that_is_published_again(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_STATE", str(tmp_path))
    read = publish_input(tmp_path / "read", "text")
    expected = open_verified(read).identity
    timer = take_away_for(read, 0.3)
    assert open_verified(read).identity == expected
    timer.join()


def test_it_does_not_wait_for_ever_and_says_who_took_it(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_STATE", str(tmp_path))
    monkeypatch.setattr(manifests, "PATIENCE_S", 0.2)
    read = publish_input(tmp_path / "read", "text")
    read.unlink()
    with pytest.raises(UserError, match=r"has not finished.* another Snakemake makes or publishes it again\."):
        open_verified(read)


def test_nobody_waits_for_what_was_never_published_nor_a_person_for_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(manifests.time, "sleep", lambda seconds: pytest.fail("waited"))
    read = publish_input(tmp_path / "read", "text")
    read.unlink()
    with pytest.raises(UserError, match="has not finished"):
        open_verified(read)  # no stage program
    monkeypatch.setenv("NANOCHAT_STATE", str(tmp_path))
    with pytest.raises(UserError, match=r"this stage has not finished$"):
        open_verified(tmp_path / "never/manifest.json")
