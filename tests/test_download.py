"""Downloads from a server that the test starts: the file is right, or it is not there and the message says why."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from urllib3.util.retry import Retry

from nanochat import download
from nanochat.download import fetch
from nanochat.errors import UserError

CONTENT = b"PAR1" + bytes(range(256)) * 100
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Answers by the name of the path."""

    failures: ClassVar[dict] = {}

    def do_GET(self):
        kind = self.path.removeprefix("/")
        if kind == "twice_busy" and self.failures.setdefault(kind, 0) < 2:
            self.failures[kind] += 1
            return self.answer(503, b"busy")
        bodies = {"html": b"<!DOCTYPE html><title>Sign in</title>", "empty": b"", "flipped": b"X" + CONTENT[1:]}
        if kind == "cut":
            return self.answer(200, CONTENT[:1000], length=len(CONTENT))
        if kind == "missing":
            return self.answer(404, b"not here")
        return self.answer(200, bodies.get(kind, CONTENT))

    def answer(self, status, body, length=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download, "RETRIES", Retry(total=4, backoff_factor=0, status_forcelist=(503,)))


def test_a_good_file_arrives_whole(address, tmp_path):
    fetch(f"{address}/good", tmp_path / "f", size=len(CONTENT), digest=DIGEST)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(address, tmp_path):
    fetch(f"{address}/twice_busy", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


BAD = [
    ("html", {}, "web page"),
    ("empty", {}, "empty"),
    ("flipped", {"digest": DIGEST}, "sha256"),
    ("good", {"size": 7}, "catalogue says 7"),
    ("cut", {}, "IncompleteRead"),
    ("missing", {}, "404"),
]


@pytest.mark.parametrize(("kind", "expected", "words"), BAD, ids=[kind for kind, _, _ in BAD])
def test_a_bad_answer_leaves_nothing_and_says_why(address, tmp_path, kind, expected, words):
    with pytest.raises(UserError, match=words) as error:
        fetch(f"{address}/{kind}", tmp_path / "f", **expected)
    assert f"{address}/{kind}" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/f"):
        fetch("http://127.0.0.1:9/f", tmp_path / "f")


def test_a_local_file_is_copied_and_checked(tmp_path):
    (tmp_path / "a b.txt").write_bytes(CONTENT)
    fetch((tmp_path / "a b.txt").as_uri(), tmp_path / "f", digest=DIGEST)
    assert (tmp_path / "f").read_bytes() == CONTENT
    with pytest.raises(UserError, match="no such file"):
        fetch((tmp_path / "gone").as_uri(), tmp_path / "g")
