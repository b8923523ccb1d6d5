"""Try to reach a server in every way that a program may: prints {"way": "through" or "refused"} as JSON.

python tests/probe.py HOST PORT      (an HTTP server that answers "canary"; the standard library only, for any user)
"""

import ctypes
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import urllib.request

REQUEST = "GET / HTTP/1.0\r\n\r\n"


def python(host: str, port: str) -> bool:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{host}:{port}/", timeout=5) as answer:
        return answer.read() == b"canary"


def child_python(host: str, port: str) -> bool:
    return answers(sys.executable, "-c", f"import probe; assert probe.python({host!r}, {port!r}); print('canary')")


def curl(host: str, port: str) -> bool:
    return answers("curl", "-sS", "--noproxy", "*", "--max-time", "5", f"http://{host}:{port}/")


def bash(host: str, port: str) -> bool:
    return answers("bash", "-c", f"exec 3<>/dev/tcp/{host}/{port} && printf '{REQUEST}' >&3 && cat <&3")


def native(host: str, port: str) -> bool:
    """As a library in C does: no hook of Python sees it."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
    address = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(int(port)), socket.inet_aton(host))
    if descriptor < 0 or libc.connect(descriptor, address, len(address)) < 0:
        raise OSError(ctypes.get_errno(), "refused")
    os.write(descriptor, REQUEST.encode())
    with os.fdopen(descriptor, "rb") as answer:
        return answer.read().endswith(b"canary")


def datagram(host: str, port: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        return sender.sendto(b"canary", (host, int(port))) == 6


def answers(*command: str) -> bool:
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.abspath(__file__))}
    found = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment, check=False)
    return "canary" in found.stdout


WAYS = {"python": python, "child python": child_python, "bash": bash, "native": native, "datagram": datagram}
if shutil.which("curl"):
    WAYS["curl"] = curl


def outcome(way, host: str, port: str) -> str:
    try:
        return "through" if way(host, port) else "refused"
    except OSError:
        return "refused"


if __name__ == "__main__":
    print(json.dumps({name: outcome(way, *sys.argv[1:]) for name, way in WAYS.items()}))
