"""Stages run without network: a jail that the kernel keeps, and a hook that names the Python caller who tried to get out.

    python -m nanochat.jobs.offline run -- python workflow/scripts/train.py --help      # what the launcher does for every stage

    method      what the kernel does                                        for
    namespace   a network namespace of the stage's own with only loopback   every stage, also of a normal user
    seccomp     a filter: no sockets but unix and netlink                   one process (torchrun's ranks meet over loopback)
    hook        nothing: only Python callers are refused, by the hook       where a site forbids both

Covered: the program, whatever it starts, in whatever language; TCP, UDP, raw sockets, IPv4 and IPv6, io_uring.
Not covered: a program that means to get out. Sockets inherited from the launcher, unix sockets of daemons outside (name
services, docker), InfiniBand verbs, a superuser who enters another namespace.
"""

import argparse
import errno
import fcntl
import ipaddress
import os
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from nanochat.errors import UserError
from nanochat.jobs.seccomp import MACHINES, install_filter, libc, socket_filter

VARIABLE = "NANOCHAT_OFFLINE"  # the method; set for every stage but download
DESCRIPTIONS = {
    "namespace": "outside connections are refused by the kernel (network namespace with loopback only)",
    "seccomp": "outside connections are refused by the kernel (seccomp: no internet sockets)",
}

# Libraries that read these fail at once with words of their own, instead of retrying against a kernel that refuses.
COURTESY = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "offline",
}
# The ranks are on one node and meet over loopback. Otherwise they look for the host's cards, which are not there inside, and
# torchrun for the host by its name, which means an address outside: it tried for 100 s and on (PET_X is its option --x).
INSIDE_NAMESPACE = {
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_IB_DISABLE": "1",
    "PET_LOCAL_ADDR": "127.0.0.1",
}


TRIAL_TIMEOUT_S = 60.0  # an interpreter on a busy shared file system may need seconds

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
HINTS = {
    errno.EPERM: "this site forbids them",
    errno.EACCES: "this site forbids them",
    errno.ENOSPC: "over the site's limit in /proc/sys/user/max_net_namespaces or max_user_namespaces",
}

OUTSIDE = [(socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1")]  # reserved for documentation

NAMES_LOOKED_UP = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
WATCHED = NAMES_LOOKED_UP | {"socket.connect", "socket.sendto", "socket.sendmsg"}
PLUMBING = {"requests", "urllib3", "httpx", "httpcore", "anyio", "aiohttp"}
STANDARD_LIBRARY = tuple(sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib"))


@dataclass(frozen=True)
class Jail:
    """How a stage is kept from the network here."""

    method: str  # namespace, seccomp or hook
    description: str  # one line for the log

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command that runs `command` inside: same process id, files, open descriptors, signals and exit code."""
        return list(command) if self.method == "hook" else inside(self.method, command)

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the wrapped command, on top of the present ones."""
        return variables(self.method)


def jail(*, ranks: int) -> Jail:
    """Find out, by trying in child processes (0.2 s), what this machine allows for a stage of so many processes."""
    no_namespace = obstacle("namespace")
    if not no_namespace:
        return Jail("namespace", DESCRIPTIONS["namespace"])
    if ranks > 1:
        why = f"{no_namespace}; a seccomp filter would take the loopback by which {ranks} ranks meet"
    elif no_filter := obstacle("seccomp"):
        why = f"{no_namespace}; {no_filter}"
    else:
        return Jail("seccomp", DESCRIPTIONS["seccomp"])
    return Jail("hook", f"not enforced by the kernel here: {why}. Python callers are refused and named")


# the jail


def inside(method: str, command: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "nanochat.jobs.offline", "run", "--method", method, "--", *command]


def variables(method: str) -> dict[str, str]:
    return {VARIABLE: method, **COURTESY, **(INSIDE_NAMESPACE if method == "namespace" else {})}


def obstacle(method: str) -> str:
    """Why this method does not work here, "" if it does: a child enters it and looks out."""
    check = [sys.executable, "-m", "nanochat.jobs.offline", "check", "--method", method]
    try:
        child = subprocess.run(inside(method, check), capture_output=True, text=True, errors="replace", timeout=TRIAL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"{method}: no answer in {TRIAL_TIMEOUT_S:.0f} s"
    if child.returncode == 0:
        return ""
    said = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
    return said[-1].removeprefix("error: ")


def enter(method: str) -> None:
    """Put this process, which must have one thread, inside. There is no way back. UserError: not allowed here."""
    if sys.platform != "linux":
        raise UserError(f"only Linux can refuse connections, and this is {sys.platform}")
    if method == "namespace":
        enter_namespace()
    else:
        refuse_sockets()


def enter_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    try:
        try:
            libc("unshare", CLONE_NEWNET)  # the superuser needs no more
        except PermissionError:
            libc("unshare", CLONE_NEWUSER | CLONE_NEWNET)
            # the same user and group inside as outside; files are judged as before, the other groups included
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        raise_loopback()
    except OSError as error:
        raise UserError(f"a network namespace is refused here ({HINTS.get(error.errno or 0, error.strerror)})") from error


def raise_loopback() -> None:
    """`ip link set lo up`, which not every node has. Without it torchrun's ranks do not find one another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh22x", b"lo", 0)
        name, flags = struct.unpack("16sh22x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", name, flags | IFF_UP))


def refuse_sockets() -> None:
    machine = os.uname().machine
    if machine not in MACHINES:
        raise UserError(f"the seccomp filter knows {' and '.join(MACHINES)}, and this is {machine}")
    try:
        install_filter(socket_filter(machine))
    except OSError as error:
        raise UserError(f"a seccomp filter is refused here ({error.strerror})") from error


def look_out(method: str) -> None:
    """UserError unless the outside is out of reach from here, and loopback is not (in a namespace). No packet is sent."""
    for family, address in OUTSIDE:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))  # looks for a route only
        except OSError:
            continue
        raise UserError(f"{method}: a route to {address} is still there")
    if method == "namespace":
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
            pass


# the hook


def name_callers() -> None:
    """In a stage (NANOCHAT_OFFLINE is set): say who tries to connect where, once per place, on stderr.

    The kernel then refuses; where it does not (method hook), the hook does. Hooks cannot be taken off again.
    """
    method = os.environ.get(VARIABLE)
    if not method:
        return
    program, own_name, told = Path(sys.argv[0]).name, socket.gethostname(), set[str]()

    def hook(event: str, arguments: tuple) -> None:
        if event not in WATCHED:
            return
        host, port = destination(event, arguments)
        if not leads_outside(event, host, own_name):
            return
        place = caller(sys._getframe(1))
        if place not in told:
            told.add(place)
            target = host if port in (None, 0, "") else f"{host}:{port}"
            print(
                f"offline: {program} tried to connect to {target} ({place}); stages other than download run without network. "
                "Every file they read is declared in config/sources.yaml",
                file=sys.stderr,
                flush=True,
            )
        if method == "hook" and event in NAMES_LOOKED_UP:
            raise socket.gaierror(socket.EAI_AGAIN, "this stage runs without network")
        if method == "hook":
            raise OSError(errno.ENETUNREACH, "this stage runs without network")

    sys.addaudithook(hook)


def destination(event: str, arguments: tuple) -> tuple[str, object]:
    """Host and port that this event is about; host "" for what is not the internet."""
    if event in NAMES_LOOKED_UP:
        host, port = (*arguments, None)[:2]
    elif arguments[0].family in (socket.AF_INET, socket.AF_INET6) and isinstance(arguments[1], tuple):
        host, port = (*arguments[1], None, None)[:2]
    else:  # unix sockets; or sendmsg on a socket that is connected
        return "", None
    return host.decode("ascii", "replace") if isinstance(host, bytes) else host or "", port


def leads_outside(event: str, host: str, own_name: str) -> bool:
    """Not so: loopback, and the host's own name, which PyTorch looks up and does not need."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host not in ("", "localhost", own_name) and not host.endswith(".localhost")
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        return False  # nothing to ask anybody; connecting will be noticed
    address = getattr(address, "ipv4_mapped", None) or address
    return not (address.is_loopback or address.is_unspecified)


def caller(frame: FrameType) -> str:
    """The innermost place outside the standard library and the libraries of HTTP, or the outermost of all."""
    place = frame
    while place.f_back and is_plumbing(place.f_code.co_filename):
        place = place.f_back
    return f"{short(place.f_code.co_filename)}:{place.f_lineno} in {place.f_code.co_name}"


def is_plumbing(file: str) -> bool:
    *_, installed = file.rpartition("-packages/")
    if installed != file:
        return installed.partition("/")[0] in PLUMBING
    return file.startswith(("<frozen ", *STANDARD_LIBRARY))


def short(file: str) -> str:
    return file.rpartition("-packages/")[2].removeprefix(f"{os.getcwd()}/")


# the command line


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a command without network.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="run a command inside; exit code and signals are the command's")
    check = verbs.add_parser("check", help="inside: fail unless the outside is out of reach")
    for verb in (run, check):
        verb.add_argument("--method", choices=list(DESCRIPTIONS), help="what the kernel does (default: what it allows)")
    run.add_argument("--loopback", action="store_true", help="the command needs loopback: only a namespace will do")
    run.add_argument("command", nargs="+", help="after --")
    args = parser.parse_args()
    try:
        if args.verb == "check":
            look_out(args.method or "namespace")
        else:
            run_inside(args.method or allowed_method(loopback=args.loopback), args.command)
    except UserError as error:
        sys.exit(f"error: {error}")


def allowed_method(*, loopback: bool) -> str:
    found = jail(ranks=2 if loopback else 1)
    if found.method == "hook":
        raise UserError(f"{found.description}. Nothing was run")
    return found.method


def run_inside(method: str, command: Sequence[str]) -> None:
    enter(method)
    os.environ.update(variables(method))
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        raise UserError(f"{command[0]} cannot be started: {error.strerror}") from error


if __name__ == "__main__":
    main()
