"""Launchers for tests: a stage program that counts, and stand-ins for SLURM's commands on the PATH."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = str(ROOT / "workflow" / "scripts" / "launch.py")

# counts its steps and commits each, as a training does; what it is to suffer is in its arguments
COUNTER = """
import argparse, os, signal, sys, time
from pathlib import Path
from nanochat.jobs.attempt import Attempt
from nanochat.errors import UserError
from nanochat.stage import run_program

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.05)
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--barren", action="store_true")
    parser.add_argument("--fail", action="store_true")
    parser.add_argument("--die", action="store_true")
    args = parser.parse_args()
    attempt = Attempt.from_environment()
    state = attempt.state or Path(".")
    (state / "counter.pid").write_text(str(os.getpid()))
    steps = sorted(int(path.name[5:]) for path in state.glob("step_????????"))
    step = steps[-1] if steps else 0
    attempt.report(state="running", step=step, num_steps=args.steps, unit="steps")
    if args.fail:
        raise UserError("the rows are upside down")
    if args.die:
        os.kill(os.getpid(), signal.SIGKILL)
    while step < args.steps:
        time.sleep(args.seconds)
        reason = attempt.stop_requested()
        if reason == "lost":
            attempt.ensure_held()
        if not args.barren:
            step += 1
            attempt.ensure_held()
            (state / f"step_{step:08d}").mkdir()
            attempt.report(step=step)
        if reason and not args.deaf:
            attempt.stopped(step, args.steps)
            return
    attempt.finished()

run_program(main)
"""

SLURM_VARIABLES = ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SLURMD_NODENAME")


def hear_signals() -> None:
    """Under nohup or in the background the tests inherit signals that are ignored, and a launcher would leave them so."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Stage:
    """A stage's state folder, and launchers for it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.state = folder / "results" / "tiny" / "resume" / "base_train"
        self.program = folder / "counter.py"
        self.program.write_text(COUNTER)
        self.bin = folder / "bin"
        self.bin.mkdir()

    def command(self, *options, ranks: int = 1, launcher_options=(), program=None) -> list[str]:
        start = [sys.executable, LAUNCH, "--ranks", str(ranks), "--state", str(self.state), "--log", "logs/base_train.log"]
        return [*start, *map(str, launcher_options), str(program or self.program), *map(str, options)]

    def environment(self, **variables) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if key not in SLURM_VARIABLES}
        path = f"{self.bin}:{os.environ['PATH']}"
        defaults = {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NANOCHAT_HEARTBEAT_S": "0.2"}
        return inherited | defaults | {key: str(value) for key, value in variables.items()}

    def start(self, *options, ranks: int = 1, launcher_options=(), program=None, **variables) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(*options, ranks=ranks, launcher_options=launcher_options, program=program),
            env=self.environment(**variables),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hear_signals,
            start_new_session=True,
        )

    def run(self, *options, timeout: float = 120, **more) -> subprocess.CompletedProcess:
        process = self.start(*options, **more)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def put(self, name: str, script: str) -> None:
        """A stand-in for a command, first on the PATH."""
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def steps(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in self.state.glob("step_????????"))

    def json(self, name: str) -> dict:
        path = self.state / name
        return json.loads(path.read_text()) if path.exists() else {}

    def attempts(self) -> list[dict]:
        return [json.loads(line) for line in (self.state / "attempts.jsonl").read_text().splitlines()]

    def counter_pid(self) -> int:
        return int((self.state / "counter.pid").read_text())


def wait_for(condition, *, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
