"""A server to reach, and commands that try to as root and as a normal user: for the tests of running without network.

The only servers are a test's own, on an address of this host that is not loopback; nothing leaves the machine.
"""

import http.server
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import skip_or_fail

from nanochat.jobs import offline

ROOT = Path(__file__).resolve().parent.parent
PROBE = str(ROOT / "tests" / "probe.py")
USERS = ["root", "nobody"] if os.geteuid() == 0 else ["a normal user"]

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534"]


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter and write to."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="offline-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


def runner(staging: Path):
    """run(command, user=...): in the repository or another folder, as that user."""
    view = view_for_nobody(staging)

    def run(
        command,
        *,
        user=USERS[0],
        folder=ROOT,
        groups="--clear-groups",
        before=(),
        timeout=60,
        environment=None,
        **options,
    ):
        if user == "nobody":
            command = ["unshare", "-m", "sh", "-ec", f'{view}\ncd {folder}\nexec "$@"', "sh", *NOBODY, groups, *command]
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}
        return subprocess.run(
            [*before, *command],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **options,
        )

    return run


def view_for_nobody(staging: Path) -> str:
    """Shell lines for a mount namespace where nobody may enter the repository and Python, which may lie in root's home."""
    needed = sorted({ROOT, Path(sys.prefix), Path(sys.base_prefix)})
    shut = [next((above for above in reversed(path.parents) if not above.stat().st_mode & 0o001), None) for path in needed]
    lines = []
    for number, path in enumerate(needed):
        lines.append(f"mkdir -p {staging}/{number}; mount --bind {path} {staging}/{number}")
    lines += [f"mount -t tmpfs -o mode=755 none {above}" for above in sorted({above for above in shut if above})]
    for number, (path, above) in enumerate(zip(needed, shut, strict=True)):
        if above:
            lines.append(f"mkdir -p {path}; mount --bind {staging}/{number} {path}")
    return "\n".join(lines)


@contextmanager
def canary_server() -> Iterator[list[str]]:
    """Host and port of a web server on an address of this host that is not loopback. It answers "canary"."""

    class Canary(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"canary")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer((own_address(), 0), Canary) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield [str(part) for part in found.server_address[:2]]
        found.shutdown()


def own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((offline.OUTSIDE[0][1], 9))  # a route is looked up, nothing is sent
        except OSError:
            skip_or_fail("this host has no address but loopback")
        return probe.getsockname()[0]
