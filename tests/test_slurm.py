"""On a real SLURM whose compute nodes have no internet (tests/standin/cluster.py): the whole DAG with the Ptolemy profile.

The profile is used as it is but for 2 ranks instead of 8, with 2 threads: a stage's processes share this machine's cores.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import skip_or_fail
from project import ROOT, Project, kill_all, wait_for
from standin.cluster import ACCOUNT, Cluster, missing

from nanochat.tiny_world import make_file

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

HUB = "http://hub.example"
# `long` trains for long enough to be hit by a fault; everything before that it shares with `tiny`
RUNS = {
    "base_train.steps": 3,
    "runs": {"tiny": {}, "long": {"tokenizer": "tiny", "base_train": {"steps": 100, "commit_every": 5, "eval_every": 0}}},
}
LONG = "results/long/base_train/manifest.json"
TARGETS = ["results/tiny/report/manifest.json", LONG]
GPU_STAGES = ["base_train", "base_eval", "mid_train", "sft", "chat_eval"]
PROBE = "import sys, urllib.request; print(len(urllib.request.urlopen(sys.argv[1], timeout=10).read()))"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The cluster, with the files of the tiny world on its hub."""
    if reason := missing():
        skip_or_fail(reason)
    folder = Path(tempfile.mkdtemp(prefix="ptolemy-"))
    cluster = Cluster(folder)
    try:
        cluster.start(owner=os.getpid())
        write_hub(cluster.hub)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def write_hub(folder: Path) -> None:
    """The tiny world as files to download, and catalogue.yaml, which lists them with their sizes and digests."""
    catalogue = yaml.safe_load((ROOT / "config/tiny_sources.yaml").read_text())
    for entry in [*catalogue["files"].values(), *catalogue["families"].values()]:
        name = entry["url"].removeprefix("generated:")
        files = [folder / name.format(index=index) for index in range(entry.get("count", 1))]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            make_file(str(file.relative_to(folder)), file)
        sizes = [file.stat().st_size for file in files]
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        known = {"sizes": sizes, "sha256s": digests} if "count" in entry else {"size": sizes[0], "sha256": digests[0]}
        entry |= {"url": f"{HUB}/{name}", **known}
    (folder / "catalogue.yaml").write_text(yaml.safe_dump(catalogue))


class ClusterProject(Project):
    """A project whose Snakemake runs on the devel node."""

    def __init__(self, folder: Path, cluster: Cluster):
        super().__init__(folder)
        self.cluster = cluster
        self.drivers: list[subprocess.Popen] = []
        self.variables: dict[str, str] = {}  # of Snakemake's environment, which jobs inherit
        shutil.copy(cluster.hub / "catalogue.yaml", folder / "sources.yaml")
        self.profile()

    def configure(self, changes: dict | None = None) -> None:
        super().configure({"catalogue": "sources.yaml", **(changes or {})})

    def profile(self, **changes: dict) -> None:
        """Write test-profile/: Ptolemy's, with 2 ranks of 1 thread, and with other resources of single stages."""
        profile = yaml.safe_load((ROOT / "profiles/ptolemy/config.yaml").read_text())
        for stage, resources in profile["set-resources"].items():
            resources |= {"ranks": 2, **changes.get(stage, {})}
        profile["set-threads"] = dict.fromkeys(profile["set-threads"], 2)
        (self.folder / "test-profile").mkdir(exist_ok=True)
        (self.folder / "test-profile/config.yaml").write_text(yaml.safe_dump(profile))

    def start(self, *arguments: str) -> subprocess.Popen:
        self.drivers.append(super().start(*arguments))
        return self.drivers[-1]

    def signal_ranks(self, name: str, *options: str) -> None:
        """Send a signal to the processes that train, not to their launcher."""
        words = ["pkill", f"-{name}", *options, "-f", r"^\S*python\S* (-u )?workflow/scripts/train\.py"]
        assert subprocess.run(self.cluster.on_node(self.lease()["host"], words), timeout=30).returncode == 0

    def lease(self) -> dict:
        """Who trains the long run's base_train."""
        return json.loads((self.folder / "results/long/resume/base_train/lease.json").read_text())

    def attempts(self, run: str, stage: str) -> list[dict]:
        path = self.folder / "results" / run / "resume" / stage / "attempts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def train_log(self) -> str:
        return (self.folder / "results/long/logs/base_train.log").read_text()

    def slurm_logs(self) -> str:
        return "".join(path.read_text() for path in (self.folder / ".snakemake/slurm_logs").rglob("*.log"))

    def output(self) -> str:
        """What the Snakemake that was started last has said so far."""
        return (self.folder / "killed.log").read_text()

    def command(self, *arguments: str, config: str = "my.yaml") -> list[str]:
        # tests/conftest.py sets SLURM_CONF, for tests that have no cluster
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        quick = [
            "env",
            "-u",
            "SLURM_CONF",
            *variables,
            sys.executable,
            str(ROOT / "tests/standin/quick_snakemake.py"),
            *arguments,
        ]
        quick += ["--nocolor", "--profile", "test-profile", "--max-status-checks-per-second", "5", "--configfile", config]
        return self.cluster.command(quick, folder=self.folder)


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory) -> ClusterProject:
    """The whole DAG of the tiny world, run on the cluster."""
    project = ClusterProject(tmp_path_factory.mktemp("cluster") / "project", cluster)
    (project.folder / ".env.local").write_text("email=ada-Jones@msstate.edu\n")
    project.configure(RUNS)
    project.run(*TARGETS)
    return project


# -- the whole DAG -------------------------------------------------------------------------------------------------------------


def test_the_whole_dag_runs_and_its_report_misses_nothing(finished):
    text = (finished.folder / "results/tiny/report/report.md").read_text()
    assert "## Chat evaluation" in text and "has not finished" not in text


def test_every_stage_was_one_job_of_the_class_account(finished, cluster):
    fields = "JobIDRaw,State,Account,Partition,AllocTRES,Comment"
    text = cluster.ask("sacct", "-X", "--noheader", "--parsable2", f"--format={fields}", "--starttime=now-1hour")
    jobs = {line.split("|")[5]: line.split("|") for line in text.splitlines()}
    for stage in GPU_STAGES:
        own = [words for comment, words in jobs.items() if comment.startswith(f"rule_{stage}_wildcards_tiny")]
        assert len(own) == (2 if stage == "chat_eval" else 1), stage
        for words in own:
            assert words[1:4] == ["COMPLETED", ACCOUNT, "gpu-a100"] and "gres/gpu=8" in words[4], words


def test_downloads_ran_on_the_devel_node_and_stages_on_compute_nodes(finished):
    assert finished.record("base_train")["host"] in ("gpu1", "gpu2")
    assert finished.record("tokenizer")["host"] in ("gpu1", "gpu2")
    record = json.loads(next((finished.folder / "resources").rglob("*.record.json")).read_text())
    assert record["host"] == "devel" and record["url"].startswith(HUB)


def test_gpu_stages_ran_with_two_ranks(finished):
    log = (finished.folder / "results/tiny/logs/base_train.log").read_text()
    assert "on 2 x cpu" in log


def test_mail_was_sent_at_begin_and_end_of_gpu_stages(finished, cluster):
    mails = (cluster.folder / "logs/mail.log").read_text()
    assert "ada-Jones@msstate.edu" in mails
    assert mails.count("Began") >= 6 and mails.count("COMPLETED") >= 6


def test_a_second_run_has_nothing_to_do(finished):
    assert "Nothing to be done" in finished.run(*TARGETS)


def test_only_the_devel_node_reaches_the_hub(cluster):
    url = f"{HUB}/words.txt"
    reached = cluster.run(sys.executable, "-c", PROBE, url)
    assert reached.returncode == 0 and int(reached.stdout) > 1000
    for node in cluster.nodes:
        probe = subprocess.run(
            cluster.on_node(node, [sys.executable, "-c", PROBE, url]), capture_output=True, text=True, timeout=60
        )
        assert probe.returncode != 0 and "Network is unreachable" in probe.stderr, node


# -- several jobs for one training ---------------------------------------------------------------------------------------------


def test_trainings_of_several_jobs_end_in_the_same_bits_as_those_of_one(finished, cluster, tmp_path):
    """base_train and sft get 1 minute, and 90 s before the wall they are to stop: each job makes a step or two."""
    project = untrained(finished, tmp_path)
    project.profile(base_train={"runtime": "1m"}, sft={"runtime": "1m"})
    project.variables["NANOCHAT_MARGIN_S"] = "90"
    output = project.run("results/tiny/sft/manifest.json")
    for stage in ("base_train", "sft"):
        starts = [line for line in project.attempts("tiny", stage) if line["event"] == "start"]
        assert len(starts) >= 2 and len({line["job"] for line in starts}) == 1, "several runs of one job"
        assert [line["restart"] for line in starts] == list(range(len(starts)))
        assert project.manifest(stage) == finished.manifest(stage)
    assert project.manifest("mid_train") == finished.manifest("mid_train")
    assert "retries" not in output and "Error in rule" not in output


# -- faults --------------------------------------------------------------------------------------------------------------------


def untrained(finished: ClusterProject, folder: Path) -> ClusterProject:
    """A copy of the finished project that has its data and tokens, and no model yet."""
    project = ClusterProject(folder / "project", finished.cluster)
    project.configure(RUNS)
    shutil.copytree(finished.folder / "resources", project.folder / "resources")
    shutil.copytree(finished.folder / ".snakemake/metadata", project.folder / ".snakemake/metadata")
    for path in ("tiny/tokenizer", "tiny/tokens", "tiny/preflight", "long/tokens", "long/preflight"):
        shutil.copytree(finished.folder / "results" / path, project.folder / "results" / path)
    return project


@pytest.fixture
def project(finished, cluster, tmp_path) -> Iterator[ClusterProject]:
    """An untrained project of its own, and whole, idle nodes; whatever the test leaves behind is ended."""
    project = untrained(finished, tmp_path)
    try:
        yield project
    finally:
        for driver in project.drivers:
            if driver.poll() is None:
                kill_all(driver)
        cluster.run("scancel", "--user=root")
        for node in cluster.nodes:
            cluster.run("scontrol", "update", f"nodename={node}", "state=resume")
        wait_for(lambda: set(cluster.node_states().values()) == {"idle"})


def begin(project: ClusterProject) -> subprocess.Popen:
    """Start the long training and wait until something of it is committed."""
    driver = project.start(LONG)
    commits = project.folder / "results/long/resume/base_train"
    wait_for(lambda: any(commits.glob("step_*")) or driver.poll() is not None)
    assert driver.poll() is None, project.output()
    return driver


def finish(project: ClusterProject, driver: subprocess.Popen) -> str:
    """Wait for Snakemake, which is to succeed; what it said."""
    assert driver.wait(300) == 0, project.output()
    return project.output()


def fail(project: ClusterProject, driver: subprocess.Popen) -> str:
    """Wait for Snakemake, which is to fail; what it said."""
    assert driver.wait(300) != 0, project.output()
    return project.output()


def same_bits(project: ClusterProject, finished: ClusterProject) -> bool:
    return project.manifest("base_train", "long") == finished.manifest("base_train", "long")


def hog(cluster: Cluster, node: str) -> str:
    """A job that wants all of a node, for a minute at most."""
    done = cluster.run(
        *("sbatch", "--parsable", "--account", ACCOUNT, "--partition=gpu-a100", "--nodelist", node, "--gres=gpu:a100:8"),
        *("--mem=256G", "--time=1", "--output=/dev/null", "--wrap", "sleep 60"),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def state_of(cluster: Cluster, job: str) -> str:
    return next(row["state"] for row in cluster.jobs() if row["id"] == job)


def test_scancel_stops_with_a_message_and_the_next_start_goes_on(project, finished, cluster):
    driver = begin(project)
    job = project.lease()["job"]
    cluster.run("scancel", job)
    assert f"SLURM-job '{job}' failed, SLURM status is: 'CANCELLED'" in fail(project, driver)
    assert "run the same command again to go on" in project.train_log()
    project.run(LONG)
    assert "going on from step" in project.train_log()
    assert same_bits(project, finished)


def test_a_node_that_fails_costs_a_restart_on_another(project, finished, cluster):
    """Its power is cut: slurmd and the training are gone at once, and nobody is told."""
    driver = begin(project)
    lease = project.lease()
    cluster.power_off(lease["host"])
    try:
        finish(project, driver)
    finally:
        cluster.boot(lease["host"])
        wait_for(lambda: cluster.node_states().get(lease["host"]) == "idle")
    starts = [line for line in project.attempts("long", "base_train") if line["event"] == "start"]
    assert [line["job"] for line in starts] == [lease["job"]] * 2 and starts[0]["host"] != starts[1]["host"]
    assert starts[1]["step"] > 0 and same_bits(project, finished)


def test_an_out_of_memory_kill_names_memory_and_the_next_start_goes_on(project, finished, cluster):
    """No cgroup limits memory here: one rank gets the signal that the kernel's out-of-memory killer sends."""
    driver = begin(project)
    project.signal_ranks("KILL", "--newest")
    fail(project, driver)
    assert "killed by signal 9" in project.train_log() and "memory" in project.train_log()
    project.run(LONG)
    assert same_bits(project, finished)


@pytest.mark.parametrize("partition", ["requeued", "cancelled"])
def test_a_preempted_training_goes_on_when_there_is_room_again(project, finished, cluster, partition):
    """A job of a partition that comes first wants the same node; SLURM requeues, or cancels, what runs there."""
    project.profile(base_train={"slurm_partition": partition})
    driver = begin(project)
    lease = project.lease()
    first = hog(cluster, lease["host"])
    wait_for(lambda: state_of(cluster, first) == "RUNNING")
    cluster.run("scancel", first)
    output = finish(project, driver)
    starts = [line for line in project.attempts("long", "base_train") if line["event"] == "start"]
    assert [line["job"] for line in starts] == [lease["job"]] * 2
    assert ("back in the queue" in output) == (partition == "cancelled")
    assert same_bits(project, finished)


def test_a_killed_snakemake_leaves_a_job_that_hands_over_to_the_next_ones(project, finished, cluster):
    """SIGKILL to Snakemake: its job trains on, and nobody waits for it. Then the same command again.

    The ranks of the first job are held until the second has asked for the stage, or they might have finished before.
    """
    first = begin(project)
    orphan = project.lease()["job"]
    kill_all(first)
    project.signal_ranks("STOP")
    second = project.start(LONG)
    wait_for(lambda: (project.folder / "results/long/resume/base_train/stop.json").exists() or second.poll() is not None)
    project.signal_ranks("CONT")
    finish(project, second)
    starts = [line for line in project.attempts("long", "base_train") if line["event"] == "start"]
    assert [line["job"] == orphan for line in starts] == [True, False] and starts[1]["step"] > 0
    assert f"SLURM job {orphan}, " in project.train_log() and "asked it to commit and let go" in project.train_log()
    wait_for(lambda: state_of(cluster, orphan) not in ("RUNNING", "COMPLETING"))
    assert same_bits(project, finished)


def test_a_configuration_edited_while_its_job_waits_stops_that_job(project, cluster):
    hogs = [hog(cluster, node) for node in cluster.nodes]
    wait_for(lambda: all(state_of(cluster, job) == "RUNNING" for job in hogs))
    driver = project.start(LONG)
    wait_for(lambda: any(row["state"] == "PENDING" and "base_train" in row["comment"] for row in cluster.jobs()))
    project.configure({**RUNS, "sft.seed": 7})
    cluster.run("scancel", *hogs)
    fail(project, driver)
    assert "my.yaml was edited after this job was submitted" in project.slurm_logs()
    assert not (project.folder / "results/long/resume/base_train").exists(), "nothing was done"
