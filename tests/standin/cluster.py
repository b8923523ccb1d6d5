"""A stand-in for Ptolemy on one machine: a real SLURM whose compute nodes have stand-in GPUs and no internet.

    sudo python tests/standin/cluster.py start /tmp/ptolemy     make it and start it
    sudo python tests/standin/cluster.py shell /tmp/ptolemy     a shell on its devel node: sbatch, squeue, snakemake
    sudo python tests/standin/cluster.py stop /tmp/ptolemy      end all of it; the folder stays

    devel   munged, mariadbd, slurmdbd, slurmctld; here people type, and Snakemake runs     10.99.0.1, 10.98.0.1
    gpu1 …  slurmd, 16 CPUs, 300 GB, 8 x a100 each, none of it real; sees devel alone       10.99.0.11 …
    hub     serves FOLDER/hub over http://hub.example/, and only devel has a way to it      10.98.0.2

Every machine is a network namespace with a host name of its own, a compute node a process namespace too: it is switched off by
killing one process, and what it ran is gone with it. Configuration, keys and sockets lie in the folder and are mounted over
/etc/slurm, /run/munge and /etc/hosts in a mount namespace that only this cluster's processes share, so that several can run at
once, beside a real one even. Needs root, util-linux, iproute2 and Debian's slurm-wlm, slurmdbd, munge, mariadb-server.

Covered: accounts and limits, queues, requeueing, preemption, time limits, mail, node failure, who can reach whom.
Not covered: memory limits (no cgroup enforces them), GPUs that compute, a shared file system with delays.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ACCOUNT = "class-cse8990"
NUM_GPUS = 8
DEVEL, HUB = "10.99.0.1", "10.98.0.2"
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sacctmgr")
TOOLS = ("unshare", "nsenter", "ip", "mount")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MOUNTS = {"etc_slurm": "/etc/slurm", "run_munge": "/run/munge", "hosts": "/etc/hosts"}

SLURM_CONF = """\
ClusterName=standin
SlurmctldHost=devel({devel})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# a requeued job may start again only when its old credential has expired: 2 minutes by default
AuthInfo=cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/logs/slurmctld.log
SlurmdLogFile={folder}/logs/%n.log
MailProg={folder}/mail

SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# 16 CPUs and 300 GB are believed, whatever this machine has
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
GresTypes=gpu

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
AccountingStoreFlags=job_comment

SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=5
MessageTimeout=5
SlurmctldTimeout=30
SlurmdTimeout=10
MinJobAge=300

{nodes}
PartitionName=gpu-a100 Nodes=ALL Default=YES MaxTime=12:00:00 PriorityTier=10 PreemptMode=OFF
# jobs in these give way to those in gpu-a100
PartitionName=requeued Nodes=ALL MaxTime=12:00:00 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=cancelled Nodes=ALL MaxTime=12:00:00 PriorityTier=1 PreemptMode=CANCEL
"""
NODE_CONF = "NodeName={name} NodeAddr={address} CPUs=16 RealMemory=300000 Gres=gpu:a100:{gpus} State=UNKNOWN"
SLURMDBD_CONF = """\
AuthType=auth/munge
DbdHost=localhost
SlurmUser=root
LogFile={folder}/logs/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=3306
StorageUser=root
StorageLoc=slurm_acct_db
"""


class ClusterError(RuntimeError):
    """The stand-in cannot be started; the message says which part, and ends with that part's log."""


def missing() -> str | None:
    """Why this machine cannot run a stand-in, or None."""
    absent = [name for name in PROGRAMS + TOOLS if shutil.which(name, path=SYSTEM_PATH) is None]
    if absent:
        return f"SLURM's programs are not installed: {', '.join(absent)} (apt install slurm-wlm slurmdbd munge mariadb-server)"
    if os.geteuid() != 0:
        return "a stand-in cluster needs root: it makes namespaces and device files"
    done = subprocess.run(["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    return None if done.returncode == 0 else f"namespaces cannot be made here: {done.stderr.strip()}"


class Cluster:
    """A stand-in whose state, keys, logs and process ids are all in `folder`."""

    def __init__(self, folder: Path, *, num_nodes: int = 2):
        self.folder = folder.absolute()
        self.nodes = {f"gpu{number}": f"10.99.0.{10 + number}" for number in range(1, num_nodes + 1)}
        self.hub = self.folder / "hub"

    # -- start and stop ------------------------------------------------------------------------------------------------

    def start(self, *, owner: int | None = None) -> None:
        """Start everything, or raise ClusterError and leave nothing running. With `owner`, all ends with that process."""
        if reason := missing():
            raise ClusterError(reason)
        if self._running("devel"):
            raise ClusterError(f"{self.folder}: already running; stop it first")
        try:
            self._write_files()
            self._start_devel(owner)
            self._start_hub()
            for name in self.nodes:
                self.boot(name)
            self.wait_for(lambda: self.node_states() == dict.fromkeys(self.nodes, "idle"), "slurmctld", "idle nodes")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process of the cluster. Harmless if none is there."""
        for record in sorted(self._records(), key=lambda record: record["number"], reverse=True):
            # the parent of a process namespace ignores anything gentler
            hard = (signal.SIGKILL,) if record["name"] in self.nodes else (signal.SIGTERM, signal.SIGKILL)
            end_process(record["pid"], record["started"], signals=hard)
            (self.folder / "processes" / f"{record['name']}.json").unlink(missing_ok=True)

    def _write_files(self) -> None:
        for name in ("state", "spool", "logs", "dev", "hub", "processes", "database", "etc_slurm", "run_munge"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        nodes = "\n".join(NODE_CONF.format(name=name, address=address, gpus=NUM_GPUS) for name, address in self.nodes.items())
        etc = self.folder / "etc_slurm"
        (etc / "slurm.conf").write_text(SLURM_CONF.format(devel=DEVEL, folder=self.folder, nodes=nodes))
        (etc / "gres.conf").write_text(f"Name=gpu Type=a100 File={self.folder}/dev/gpu[0-{NUM_GPUS - 1}]\n")
        (etc / "cgroup.conf").write_text("ConstrainRAMSpace=no\n")
        (etc / "slurmdbd.conf").write_text(SLURMDBD_CONF.format(folder=self.folder))
        (etc / "slurmdbd.conf").chmod(0o600)
        hosts = {"127.0.0.1": "localhost", DEVEL: "devel", HUB: "hub.example"}
        hosts |= {address: name for name, address in self.nodes.items()}
        (self.folder / "hosts").write_text("".join(f"{address} {name}\n" for address, name in hosts.items()))
        key = self.folder / "munged.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        mail = self.folder / "mail"
        mail.write_text(f'#!/bin/sh\n# SLURM calls it as: mail -s SUBJECT ADDRESS\necho "$*" >> {self.folder}/logs/mail.log\n')
        mail.chmod(0o755)
        for number in range(NUM_GPUS):
            gpu = self.folder / "dev" / f"gpu{number}"
            if not gpu.exists():
                os.mknod(gpu, 0o666 | 0o020000, os.makedev(1, 3))  # a second /dev/null

    def _start_devel(self, owner: int | None) -> None:
        here = [sys.executable, str(Path(__file__).absolute())]
        watch = [] if owner is None else ["--owner", str(owner)]
        (self.folder / "devel.ready").unlink(missing_ok=True)
        self._spawn("devel", ["unshare", "--mount", "--net", "--uts", *here, "hold", str(self.folder), *watch])
        self.wait_for((self.folder / "devel.ready").exists, "devel", "namespaces")

        files = [f"--{kind}-file={self.folder}/munged.{kind}" for kind in ("key", "pid", "seed")]
        self._spawn("munged", self.command(["munged", "--foreground", "--force", *files]))
        data = self.folder / "database"
        own = ["--no-defaults", f"--datadir={data}", "--user=root"]
        if not (data / "mysql").exists():
            self._run_logged("mariadbd", ["mariadb-install-db", *own, "--auth-root-authentication-method=normal"])
        network = ["--socket=mariadb.sock", "--bind-address=127.0.0.1", f"--pid-file={self.folder}/mariadbd.pid"]
        # anybody who reaches it may do anything: only the devel node does
        quick = ["--skip-grant-tables", "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0"]
        self._spawn("mariadbd", self.command(["mariadbd", *own, *network, *quick]))
        self.wait_for(lambda: self._listens(3306), "mariadbd", "its port")
        self.wait_for(lambda: self.ask("munge", "--no-input") is not None, "munged", "a credential")
        self._spawn("slurmdbd", self.command(["slurmdbd", "-D"]))
        self.wait_for(lambda: self._listens(6819), "slurmdbd", "its port")
        for words in (
            ["add", "cluster", "standin"],
            ["add", "account", ACCOUNT, "Description=class", "Organization=university"],
            ["add", "user", "root", f"Account={ACCOUNT}"],
            ["modify", "qos", "normal", "set", "MaxWall=12:00:00", "MaxTRESPerJob=node=1", "Flags=DenyOnLimit"],
        ):
            self._run_logged("sacctmgr", ["sacctmgr", "--immediate", *words])
        self._spawn("slurmctld", self.command(["slurmctld", "-D"]))
        self.wait_for(lambda: self.ask("scontrol", "ping", says="is UP"), "slurmctld", "an answer to scontrol ping")

    def _start_hub(self) -> None:
        here = [sys.executable, str(Path(__file__).absolute())]
        self._spawn("hub", ["unshare", "--net", "--uts", *here, "machine", str(self.folder), "hub"])
        # until it has left this machine's network, a cable to it would end here
        ours = os.readlink("/proc/self/ns/net")
        self.wait_for(lambda: os.readlink(f"/proc/{self._pid('hub')}/ns/net") != ours, "hub", "a network of its own")
        self._link("hub", "10.98.0.1", self._pid("hub"))
        self.wait_for(lambda: self._listens(80, HUB), "hub", "its port")

    # -- compute nodes -------------------------------------------------------------------------------------------------

    def boot(self, name: str) -> None:
        """Switch a compute node on."""
        namespaces = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--net", "--uts"]
        here = [sys.executable, str(Path(__file__).absolute())]
        self._spawn(name, self.command(["unshare", *namespaces, *here, "machine", str(self.folder), name]))
        self._link(name, DEVEL, self._node_process(name))

    def power_off(self, name: str) -> None:
        """Switch a compute node off: everything on it is gone at once, and nobody is told."""
        record = self._record(name)
        end_process(record["pid"], record["started"], signals=(signal.SIGKILL,))
        subprocess.run(self.command(["ip", "link", "delete", f"to-{name}"]), capture_output=True)

    def node_states(self) -> dict[str, str]:
        """Node -> idle, mixed, allocated, down* ..."""
        text = self.ask("sinfo", "--noheader", "--Node", "--partition=gpu-a100", "--format=%N %T") or ""
        return dict(line.split() for line in text.splitlines())

    def _node_process(self, name: str) -> int:
        """The first process of a compute node, as numbered outside of it."""
        parent = self._pid(name)
        found: list[int] = []
        self.wait_for(lambda: bool(found.extend(children(parent)) or found), name, "a first process")
        return found[0]

    def _link(self, name: str, address: str, pid: int) -> None:
        """A cable from the devel node to another machine, which waits for its end of it."""
        peer = HUB if name == "hub" else self.nodes[name]
        for words in (
            ["ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "cable", "netns", str(pid)],
            ["ip", "address", "add", address, "peer", peer, "dev", f"to-{name}"],
            ["ip", "link", "set", f"to-{name}", "up"],
        ):
            self._run_logged(name, words)

    # -- commands ------------------------------------------------------------------------------------------------------

    def command(self, words: Sequence[str], *, folder: Path | None = None) -> list[str]:
        """The command that runs `words` on the devel node. It becomes that program: same process id, same exit status."""
        # entering a mount namespace loses the working folder
        inner = ["sh", "-c", 'cd "$0" && exec "$@"', str(folder or self.folder), *words]
        return ["nsenter", "--target", str(self._pid("devel")), "--mount", "--net", "--uts", "--", *inner]

    def on_node(self, name: str, words: Sequence[str]) -> list[str]:
        """The command that runs `words` on a compute node."""
        target = ["--target", str(self._node_process(name))]
        return ["nsenter", *target, "--mount", "--net", "--uts", "--pid", "--", *words]

    def run(self, *words: str, folder: Path | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command on the devel node."""
        return subprocess.run(
            self.command(words, folder=folder),
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment(),
            stdin=subprocess.DEVNULL,
        )

    def ask(self, *words: str, says: str = "") -> str | None:
        """What a command answers; None if it fails, takes more than 10 s, or does not say `says`."""
        try:
            done = self.run(*words, timeout=10)
        except subprocess.TimeoutExpired:
            return None
        return done.stdout if done.returncode == 0 and says in done.stdout else None

    def jobs(self) -> list[dict[str, str]]:
        """Every job that slurmctld remembers, oldest first."""
        fields = {"id": "%i", "state": "%T", "comment": "%k", "node": "%N", "partition": "%P", "reason": "%r"}
        text = self.ask("squeue", "--noheader", "--states=all", "--sort=i", "--format=" + "|".join(fields.values())) or ""
        return [dict(zip(fields, line.split("|"), strict=True)) for line in text.splitlines()]

    def log(self, name: str, *, num_characters: int = 2_000) -> str:
        """The end of what a part of the cluster has said."""
        text = ""
        for suffix in (".out", ".log"):
            path = self.folder / "logs" / f"{name}{suffix}"
            if path.exists():
                text += path.read_text(errors="replace")[-num_characters:]
        return text

    def wait_for(self, condition: Callable[[], object], part: str, what: str, *, timeout_s: float = 60) -> None:
        """Wait until `condition` holds. ClusterError with the log of `part` if it does not, or if the part has ended."""
        end = time.monotonic() + timeout_s
        while not condition():
            if part in self._names() and not self._running(part):
                raise ClusterError(f"{part} ended before there was {what}:\n{self.log(part)}")
            if time.monotonic() > end:
                raise ClusterError(f"{part}: {what} did not come in {timeout_s:.0f} s:\n{self.log(part)}")
            time.sleep(0.1)

    def _listens(self, port: int, host: str = "127.0.0.1") -> bool:
        probe = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"
        return self.ask(sys.executable, "-S", "-c", probe, host, str(port)) is not None

    def _run_logged(self, part: str, words: Sequence[str]) -> None:
        done = self.run(*words)
        with open(self.folder / "logs" / f"{part}.out", "a") as file:
            file.write(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}")
        is_there = any(words in done.stdout + done.stderr for words in ("already exists", "Nothing new added"))
        if done.returncode != 0 and not is_there:
            raise ClusterError(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")

    # -- processes -----------------------------------------------------------------------------------------------------

    def _spawn(self, name: str, words: Sequence[str]) -> None:
        with open(self.folder / "logs" / f"{name}.out", "a") as log:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(), start_new_session=True
            )
        record = {"name": name, "pid": process.pid, "started": started(process.pid), "number": time.monotonic_ns()}
        (self.folder / "processes" / f"{name}.json").write_text(json.dumps(record))

    def _names(self) -> list[str]:
        return [path.stem for path in (self.folder / "processes").glob("*.json")]

    def _record(self, name: str) -> dict:
        try:
            return json.loads((self.folder / "processes" / f"{name}.json").read_text())
        except FileNotFoundError:
            raise ClusterError(f"{self.folder}: {name} is not running") from None

    def _records(self) -> list[dict]:
        return [self._record(name) for name in self._names()]

    def _pid(self, name: str) -> int:
        return self._record(name)["pid"]

    def _running(self, name: str) -> bool:
        return name in self._names() and started(self._pid(name)) == self._record(name)["started"]


# -- inside the machines -----------------------------------------------------------------------------------------------------


def hold(folder: Path, owner: int | None) -> None:
    """Be the devel node: make its mounts, then keep its namespaces until somebody ends it, or until `owner` is gone."""
    # slurmdbd does not start where loopback has the only address
    shell = ["mount --make-rprivate /", "hostname devel", "ip link set lo up", f"ip address add {DEVEL}/32 dev lo"]
    for name, target in MOUNTS.items():
        if name != "hosts":
            Path(target).mkdir(parents=True, exist_ok=True)  # a mount point, empty
        shell.append(f"mount --bind {folder}/{name} {target}")
    subprocess.run(["sh", "-ec", "\n".join(shell)], check=True)
    (folder / "devel.ready").touch()
    owner_started = owner and started(owner)
    while owner is None or started(owner) == owner_started:
        time.sleep(1)
    Cluster(folder).stop()


def machine(folder: Path, name: str) -> None:
    """Be a compute node or the hub: wait for the cable, then run its one service."""
    cluster = Cluster(folder, num_nodes=99)
    address, gateway = (HUB, "10.98.0.1") if name == "hub" else (cluster.nodes[name], DEVEL)
    end = time.monotonic() + 20
    while subprocess.run(["ip", "link", "show", "cable"], capture_output=True).returncode != 0:
        if time.monotonic() > end:
            sys.exit(f"{name}: no cable")
        time.sleep(0.05)
    # no default route: whatever is not the devel node is unreachable, at once
    setup = [
        f"hostname {name}",
        "ip link set lo up",
        f"ip address add {address} peer {gateway} dev cable",
        "ip link set cable up",
    ]
    subprocess.run(["sh", "-ec", "\n".join(setup)], check=True)
    if name == "hub":
        hub = ["-m", "http.server", "80", "--bind", HUB, "--directory", str(folder / "hub")]
        os.execv(sys.executable, [sys.executable, *hub])
    slurmd = subprocess.Popen(["slurmd", "-D", "-N", name])
    while True:  # the first process of a process namespace inherits orphans
        pid, status = os.wait()
        if pid == slurmd.pid:
            sys.exit(f"slurmd ended with status {status}")


# -- processes of this machine -----------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """This process's environment as on a cluster: SLURM's programs on the PATH, its configuration in /etc/slurm."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    return {**kept, "PATH": f"{kept.get('PATH', '')}:{SYSTEM_PATH}", "USER": "root", "LC_ALL": "C.UTF-8"}


def started(pid: int) -> int | None:
    """When a process started, in ticks since the machine did: with its number, this names a process. None = not there."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def end_process(pid: int, since: int | None, *, signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGKILL)) -> None:
    """End a process, if it still is the one that was started then: politely for 5 s."""
    for number in signals:
        if since is None or started(pid) != since:
            break
        os.kill(pid, number)
        end = time.monotonic() + 5
        while started(pid) == since and time.monotonic() < end:
            time.sleep(0.02)
    try:
        os.waitpid(pid, os.WNOHANG)  # ours to reap if we started it
    except ChildProcessError:
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["start", "stop", "shell", "hold", "machine"])
    parser.add_argument("folder", type=Path, help="where all of the cluster is; made if it does not exist")
    parser.add_argument("name", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--owner", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--nodes", type=int, default=2, help="compute nodes (start)")
    args = parser.parse_args()
    cluster = Cluster(args.folder, num_nodes=args.nodes)
    if args.action == "hold":
        hold(args.folder, args.owner)
    elif args.action == "machine":
        machine(args.folder, args.name)
    try:
        if args.action == "start":
            cluster.start()
            print(f"running: python {sys.argv[0]} shell {args.folder}")
        elif args.action == "stop":
            cluster.stop()
        elif args.action == "shell":
            words = cluster.command([os.environ.get("SHELL", "bash")], folder=Path.cwd())
            os.execvpe(words[0], words, environment())
    except ClusterError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
