"""Stages run without network: every way out is open without the jail and shut inside, for root and for a normal user."""

import errno
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest
from conftest import skip_or_fail
from reaching import PROBE, ROOT, USERS, canary_server, open_folder, runner

from nanochat.errors import UserError
from nanochat.jobs import offline, seccomp

KERNEL_METHODS = list(offline.DESCRIPTIONS)

# Sites that forbid one thing or the other.
WITHOUT_NAMESPACES = ["unshare", "-Ur", "sh", "-c", 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"', "sh"]
REFUSING = """
import errno, os, sys
from nanochat.jobs.seccomp import *
NUMBERS = {"x86_64": {"unshare": 272, "prctl": 157}, "aarch64": {"unshare": 97, "prctl": 167}}[os.uname().machine]
first = {"unshare": 0, "prctl": PR_SET_SECCOMP}
code = []
for name in sys.argv[1].split(","):
    code += [instruction(LOAD, NUMBER), instruction(IF_EQUAL, NUMBERS[name], 0, 3)]
    code += [instruction(LOAD, FIRST_ARGUMENT), instruction(IF_AT_LEAST, first[name], 0, 1)]
    code += [instruction(RETURN, refusal(errno.EPERM))]
install_filter([*code, instruction(RETURN, ALLOW)])
os.execvp(sys.argv[2], sys.argv[2:])
"""


def site_refusing(calls: str) -> list[str]:
    return [sys.executable, "-c", REFUSING, calls]


@pytest.fixture(scope="module")
def place():
    with open_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def run(place):
    return runner(place / "bound")


@pytest.fixture(scope="module")
def server():
    with canary_server() as found:
        yield found


def decision(run, site: list[str], *, ranks: int) -> offline.Jail:
    """What jail() decides on such a site."""
    program = f"from nanochat.jobs.offline import jail; found = jail(ranks={ranks}); print(found.method, found.description)"
    found = run([*site, sys.executable, "-c", program])
    assert found.returncode == 0, found.stderr
    method, _, description = found.stdout.removesuffix("\n").partition(" ")
    return offline.Jail(method, description)


@cache
def obstacle(method: str) -> str:
    return offline.obstacle(method) if method in KERNEL_METHODS else ""


def inside(method: str, *command: str) -> list[str]:
    if why := obstacle(method):
        skip_or_fail(f"this machine has no {method}: {why}")
    return offline.Jail(method, "").wrap(command)


def probed(run, command: list[str], **options) -> dict[str, str]:
    found = run(command, **options)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


# the jail


@pytest.mark.parametrize("user", USERS)
def test_without_the_jail_every_way_out_is_open(run, server, user):
    ways = probed(run, [sys.executable, PROBE, *server], user=user)
    assert len(ways) >= 5 and set(ways.values()) == {"through"}, ways


@pytest.mark.parametrize("method", KERNEL_METHODS)
@pytest.mark.parametrize("user", USERS)
def test_inside_every_way_out_is_shut(run, server, user, method):
    ways = probed(run, inside(method, sys.executable, PROBE, *server), user=user)
    assert len(ways) >= 5 and set(ways.values()) == {"refused"}, ways


def test_where_the_kernel_refuses_nothing_the_command_stays_as_it_is(run, server):
    command = [sys.executable, PROBE, *server]
    assert inside("hook", *command) == command
    assert set(probed(run, inside("hook", *command)).values()) == {"through"}
    assert offline.Jail("hook", "").environment["NANOCHAT_OFFLINE"] == "hook"


@pytest.mark.parametrize("user", USERS)
def test_the_user_and_what_he_may_do_with_files_stay(run, place, user):
    command = ["sh", "-c", f"id -u; id -g; umask; > {place}/made && stat -c %u:%g {place}/made; rm {place}/made"]
    found = run(inside("namespace", *command), user=user)
    assert found.stdout == run(command, user=user).stdout and found.stdout.count("\n") == 4, found.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to a group")
def test_files_of_further_groups_stay_readable(run, place):
    file = place / "of-a-group"
    file.write_text("for the group")
    os.chown(file, 0, 54_321)
    file.chmod(0o640)
    command = inside("namespace", "cat", str(file))
    assert run(command, user="nobody", groups="--groups=54321").stdout == "for the group"
    assert "Permission denied" in run(command, user="nobody").stderr


@pytest.mark.parametrize("user", USERS)
def test_loopback_is_there_in_the_namespace_and_not_under_the_filter(run, user):
    program = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname()); print('met')"
    )
    assert run(inside("namespace", sys.executable, "-c", program), user=user).stdout == "met\n"
    assert "Network is unreachable" in run(inside("seccomp", sys.executable, "-c", program), user=user).stderr


@pytest.mark.parametrize("method", KERNEL_METHODS)
def test_exit_codes_signals_and_open_files_are_the_commands(run, method):
    assert run(inside(method, "sh", "-c", "exit 7")).returncode == 7
    assert run(inside(method, "sh", "-c", "kill -TERM $$")).returncode == -signal.SIGTERM
    assert run(inside(method, "sh", "-c", "kill -PIPE $$")).returncode == -signal.SIGPIPE  # Python had ignored it
    with tempfile.TemporaryFile("w+") as file:
        program = f"import os; os.write({file.fileno()}, b'kept')"
        run(inside(method, sys.executable, "-c", program), pass_fds=[file.fileno()])
        file.seek(0)
        assert file.read() == "kept"


@pytest.mark.parametrize("method", KERNEL_METHODS)
def test_the_command_has_the_process_id_that_the_launcher_sees(method):
    with subprocess.Popen(inside(method, "sh", "-c", "echo $$"), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.read() == f"{process.pid}\n"


@pytest.mark.parametrize("method", KERNEL_METHODS)
@pytest.mark.parametrize("user", USERS)
def test_a_wish_to_die_with_the_parent_survives_entering(run, user, method):
    """The launcher asks the kernel for it (PR_SET_PDEATHSIG), and the kernel forgets it when privileges change."""
    program = (
        "import ctypes, subprocess, sys, os\n"
        "libc = ctypes.CDLL(None)\n"
        "child = subprocess.Popen(sys.argv[1:], preexec_fn=lambda: libc.prctl(1, 9), stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    command = inside(method, "sh", "-c", "echo ready; exec sleep 60")
    child = int(run([sys.executable, "-c", program, *command], user=user).stdout)
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


RANKS = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
os.write(1, f"sum {total.item()}\\n".encode())  # in one piece, beside the other rank's
dist.destroy_process_group()
"""


# on a cluster the host's name means an address outside the namespace, or is known to a name server only
HOST_WITH_A_NAME = ["unshare", "-u", "sh", "-c", 'hostname node-17.cluster.invalid && exec "$@"', "sh"]


@pytest.mark.parametrize("user", USERS)
def test_two_ranks_meet_inside_the_namespace(run, place, user):
    (place / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(place / "ranks.py")]
    before = HOST_WITH_A_NAME if os.geteuid() == 0 else []
    found = run(inside("namespace", *command), user=user, before=before)
    assert found.stdout.count("sum 3.0") == 2, found.stderr


# the filter, instruction by instruction

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003}


def verdict(machine: str, *, architecture: str, number: int, argument: int = 0) -> int:
    """Run the filter as the kernel would; the error it answers with, 0 for none."""
    data = {seccomp.ARCHITECTURE: ARCHITECTURES[architecture], seccomp.NUMBER: number, seccomp.FIRST_ARGUMENT: argument}
    code = [struct.unpack("=HBBI", line) for line in seccomp.socket_filter(machine)]
    at = loaded = 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        if operation == seccomp.LOAD:
            loaded = data[value]
        elif operation == seccomp.RETURN:
            return 0 if value == seccomp.ALLOW else value & 0xFFFF
        else:
            holds = loaded == value if operation == seccomp.IF_EQUAL else loaded >= value
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", list(seccomp.MACHINES))
def test_the_filter_allows_unix_and_netlink_sockets_only(machine):
    number = seccomp.MACHINES[machine][1]
    errors = {family: verdict(machine, architecture=machine, number=number, argument=family) for family in range(64)}
    assert {family for family, error in errors.items() if not error} == {socket.AF_UNIX, socket.AF_NETLINK}
    assert set(errors.values()) == {0, errno.ENETUNREACH}


@pytest.mark.parametrize("machine", list(seccomp.MACHINES))
def test_the_filter_refuses_the_ways_around_and_nothing_else(machine):
    refused = {number for number in range(1000) if verdict(machine, architecture=machine, number=number)}
    # number 0 of the argument is AF_UNSPEC, which socket() may not be called with
    assert refused == {seccomp.MACHINES[machine][1], seccomp.IO_URING_SETUP}
    assert verdict(machine, architecture="i386", number=4) == errno.ENOSYS
    assert verdict(machine, architecture=machine, number=0x40000029) == errno.ENOSYS


def test_under_the_filter_there_is_no_io_uring(run):
    program = (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True); "
        "print(libc.syscall(425, 8, ctypes.create_string_buffer(120)), ctypes.get_errno())"
    )
    assert run(inside("seccomp", sys.executable, "-c", program)).stdout == "-1 1\n"


# what a site allows


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_namespace_is_the_first_choice(run, ranks):
    found = decision(run, [], ranks=ranks)
    assert found.method == "namespace"
    assert found.description == "outside connections are refused by the kernel (network namespace with loopback only)"
    assert found.environment["GLOO_SOCKET_IFNAME"] == found.environment["NCCL_SOCKET_IFNAME"] == "lo"
    assert found.environment["NANOCHAT_OFFLINE"] == "namespace" and found.environment["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("site", [WITHOUT_NAMESPACES, site_refusing("unshare")], ids=["limit of zero", "refused"])
def test_where_namespaces_are_forbidden_one_process_gets_the_filter(run, server, site):
    found = decision(run, site, ranks=1)
    assert found.method == "seccomp"
    assert found.description == "outside connections are refused by the kernel (seccomp: no internet sockets)"
    assert "GLOO_SOCKET_IFNAME" not in found.environment
    ways = probed(run, [*site, *found.wrap([sys.executable, PROBE, *server])])
    assert set(ways.values()) == {"refused"}, ways
    assert set(probed(run, [*site, sys.executable, PROBE, *server]).values()) == {"through"}


@pytest.mark.parametrize(
    ("site", "why"),
    [(WITHOUT_NAMESPACES, "max_net_namespaces"), (site_refusing("unshare"), "this site forbids them")],
    ids=["limit of zero", "refused"],
)
def test_where_namespaces_are_forbidden_several_ranks_are_told_so(run, site, why):
    found = decision(run, site, ranks=8)
    assert found.method == "hook"
    assert found.description.startswith("not enforced by the kernel here: a network namespace is refused here (")
    assert why in found.description and "the loopback by which 8 ranks meet" in found.description
    assert "\n" not in found.description


def test_where_both_are_forbidden_it_says_so(run):
    found = decision(run, site_refusing("unshare,prctl"), ranks=1)
    assert found.method == "hook"
    assert re.match(
        r"not enforced by the kernel here: .*namespace is refused.*; a seccomp filter is refused", found.description
    )


def test_an_address_outside_that_is_still_in_reach_is_no_jail(server):
    with pytest.raises(UserError, match=r"namespace: a route to 198\.51\.100\.1 is still there"):
        offline.look_out("namespace")


def test_only_linux_can(monkeypatch):
    monkeypatch.setattr(offline.sys, "platform", "darwin")
    with pytest.raises(UserError, match="only Linux can refuse connections, and this is darwin"):
        offline.enter("namespace")


def test_the_command_line_runs_nothing_where_nothing_keeps_it_in(run):
    command = [sys.executable, "-m", "nanochat.jobs.offline", "run", "--", "echo", "ran"]
    assert run(command).stdout == "ran\n"
    found = run([*site_refusing("unshare,prctl"), *command])
    assert found.returncode == 1 and found.stdout == ""
    assert found.stderr.startswith("error: not enforced by the kernel here") and "Nothing was run" in found.stderr
    found = run([*site_refusing("unshare"), *command[:4], "--loopback", *command[4:]])
    assert found.returncode == 1 and found.stdout == ""


def test_a_command_that_is_not_there_is_named(run):
    found = run(inside("seccomp", "no-such-program"))
    assert (found.returncode, found.stderr) == (1, "error: no-such-program cannot be started: No such file or directory\n")


# the hook

REACHING = """
import sys
sys.argv[0] = "some_stage.py"
from nanochat.jobs.offline import name_callers
name_callers()
import http.client, socket
def fetch(host, port):
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror}"
    finally:
        connection.close()
for _ in range(3):
    print(fetch(sys.argv[1], int(sys.argv[2])))
print(fetch("hub.example.invalid", 443))
"""


def stage(run, place, program: str, *arguments: str, method: str | None, wrap: str = "hook") -> subprocess.CompletedProcess:
    file = place / "stage.py"
    file.write_text(program)
    variables = {"NANOCHAT_OFFLINE": method} if method else {}
    return run(inside(wrap, sys.executable, str(file), *arguments), environment=variables)


def test_the_hook_refuses_python_callers_and_names_each_place_once(run, place, server):
    found = stage(run, place, REACHING, *server, method="hook")
    assert found.stdout.splitlines()[:3] == ["OSError: this stage runs without network"] * 3
    assert found.stdout.splitlines()[3] == "gaierror: this stage runs without network"
    assert found.stderr == (
        f"offline: some_stage.py tried to connect to {server[0]}:{server[1]} ({place}/stage.py:10 in fetch); stages other than "
        "download run without network. Every file they read is declared in config/sources.yaml\n"
    )


@pytest.mark.parametrize("method", KERNEL_METHODS)
def test_inside_the_caller_is_named_and_the_kernel_refuses(run, place, server, method):
    found = stage(run, place, REACHING, *server, method=None, wrap=method)  # entering sets the variable
    assert found.stdout.splitlines()[:3] == ["OSError: Network is unreachable"] * 3
    assert found.stderr.count("offline: some_stage.py tried to connect to") == 1


def test_outside_a_stage_there_is_no_hook(run, place, server):
    found = stage(run, place, REACHING, *server, method=None)
    assert found.stdout.splitlines()[:3] == ["canary"] * 3
    assert found.stderr == ""


def test_the_hook_stops_python_only(run, place, server):
    """Why it is no proof, and why the log says that nothing is enforced."""
    program = "import subprocess, sys\nfrom nanochat.jobs.offline import name_callers\nname_callers()\n"
    program += f"print(subprocess.run([sys.executable, {PROBE!r}, *sys.argv[1:]], capture_output=True, text=True).stdout)"
    found = stage(run, place, program, *server, method="hook")
    assert set(json.loads(found.stdout).values()) == {"through"}


QUIET = """
import os, socket, sys, tempfile
from nanochat.jobs.offline import name_callers
name_callers()
with socket.create_server(("127.0.0.1", 0)) as server:
    for host in ("127.0.0.1", "localhost", "::ffff:127.0.0.1", "0.0.0.0"):
        socket.create_connection((host, server.getsockname()[1]), timeout=5).close()
socket.getaddrinfo(None, 80)
socket.getaddrinfo("192.0.2.1", 80)
socket.gethostbyname("192.0.2.1")
socket.getfqdn()
with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
    server.bind(folder + "/socket")
    server.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(folder + "/socket")
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first:
    pass
left, right = socket.socketpair()
left.sendmsg([b"hello"])
print("met")
"""


def test_loopback_and_unix_sockets_are_not_the_hooks_business(run, place):
    found = stage(run, place, QUIET, method="hook")
    assert (found.stdout, found.stderr) == ("met\n", "")


LIBRARY = """
import sys
from nanochat.jobs.offline import name_callers
name_callers()
import requests
def load_tokenizer():
    try:
        requests.get("http://hub.example.invalid/tokenizer.json", timeout=5)
    except requests.RequestException as error:
        print(type(error).__name__)
load_tokenizer()
"""


def test_who_called_a_library_of_http_is_named_rather_than_the_library(run, place):
    found = stage(run, place, LIBRARY, method="hook")
    assert found.stdout == "ConnectionError\n"
    assert "tried to connect to hub.example.invalid:80 (" in found.stderr
    assert "/stage.py:8 in load_tokenizer)" in found.stderr


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("/usr/lib/python3.11/site-packages/tiktoken/load.py", True),
        ("/usr/lib/python3.11/site-packages/urllib3/connection.py", False),
        ("/usr/lib/python3/dist-packages/requests/api.py", False),
        (socket.__file__, False),
        ("<frozen importlib._bootstrap>", False),
        ("<string>", True),
        (str(ROOT / "nanochat" / "dataset.py"), True),
    ],
)
def test_the_standard_library_and_http_libraries_are_plumbing(file, named):
    assert offline.is_plumbing(file) is not named


def test_a_stage_program_names_its_callers(run, place, server):
    program = (
        "import sys, urllib.request\nfrom nanochat.stage import run_program\n"
        "def main():\n    urllib.request.urlopen(f'http://{sys.argv[1]}:{sys.argv[2]}/', timeout=5)\nrun_program(main)\n"
    )
    found = stage(run, place, program, *server, method="hook")
    assert f"offline: stage.py tried to connect to {server[0]}:{server[1]} ({place}/stage.py:4 in main)" in found.stderr
