"""A server on this machine that misbehaves in every way that we know, by the name of the path.

BEHAVIOURS is the list: what the server does, whether the file arrives (if the catalogue knows its size and sha256, or if nobody
does), and the words of the message if not. docs/downloads.md prints it; tests/test_download.py plays it, fresh and with half of
the file there.
"""

import gzip
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# bytes that begin and end as a parquet file does; long enough to be cut in the middle
BODY = b"".join(f"{number:07d}\n".encode() for number in range(4_000))
CONTENT = b"PAR1" + BODY + struct.pack("<I", len(BODY) - 100) + b"PAR1"
ALTERED = CONTENT[:9_000] + b"#" + CONTENT[9_001:]
ETAG = '"the-first"'
USER, PASSWORD, TOKEN = "canary-user", "canary-password", "canary%2Dtoken"
HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"

RIGHT, ABSENT, WRONG = "right", "absent", "not noticed"


class Stop(Exception):
    """Close the connection now."""


@dataclass
class Log:
    """What the server saw and sent, by the name of the behaviour."""

    questions: list[dict[str, str]] = field(default_factory=list)
    body_bytes: int = 0


class Handler(BaseHTTPRequestHandler):
    server: "BadServer"
    protocol_version = "HTTP/1.1"
    close_connection: bool

    def do_GET(self) -> None:
        self.name = re.split(r"[/?.]", self.path.lstrip("/"))[0]
        self.log = self.server.log_of(self.name)
        self.log.questions.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
        self.number = len(self.log.questions)
        self.close_connection = True
        try:
            BY_NAME[self.name].act(self)
            self.wfile.flush()
        except (Stop, BrokenPipeError, ConnectionResetError):
            self.connection.close()

    def log_message(self, *_: object) -> None:
        pass

    # -- what behaviours are made of

    @property
    def offset(self) -> int | None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        return int(match[1]) if match else None

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def body(self, data: bytes) -> None:
        self.wfile.write(data)
        self.log.body_bytes += len(data)

    def whole(self, data: bytes = CONTENT, status: int = 200, **headers: str) -> None:
        """The whole of some bytes, whatever was asked for."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.head(status, {"Content-Length": str(len(data)), **named})
        self.body(data)

    def good(self, data: bytes = CONTENT, *, stop: int | None = None, etag: str | None = ETAG, **headers: str) -> None:
        """As a good server answers, ranges and If-Range too; cut before byte `stop`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()} | ({"ETag": etag} if etag else {})
        offset = self.offset
        if offset is None or self.headers.get("If-Range") not in (None, etag):
            offset, status = 0, 200
        elif offset >= len(data):
            return self.head(416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
        else:
            status, named["Content-Range"] = 206, f"bytes {offset}-{len(data) - 1}/{len(data)}"
        self.head(status, {"Content-Length": str(len(data) - offset), **named})
        self.body(data[offset:stop])
        if stop is not None:
            raise Stop
        return None

    def chunks(self, *pieces: bytes, finish: bool = True, **headers: str) -> None:
        self.head(200, {"Transfer-Encoding": "chunked", **headers})
        for piece in pieces:
            self.body(b"%x\r\n%s\r\n" % (len(piece), piece))
        if finish:
            self.wfile.write(b"0\r\n\r\n")


class BadServer(ThreadingHTTPServer):
    """Answers until it is closed. `logs` tells what it was asked, `stopping` ends those that would drip for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.logs: dict[str, Log] = {}
        self.stopping = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def address(self, name: str) -> str:
        """Of a file, with two secrets in it."""
        return f"http://{USER}:{PASSWORD}@127.0.0.1:{self.server_port}/{name}/f.parquet?token={TOKEN}"

    def log_of(self, name: str) -> Log:
        return self.logs.setdefault(name, Log())

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that gives up on us is what we want

    def close(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()


@dataclass(frozen=True)
class Behaviour:
    """One way to answer. `known` and `unknown`: what becomes of the file if the catalogue knows size and sha256, or nothing."""

    name: str
    does: str
    act: Callable[[Handler], object]
    known: str
    unknown: str = ""  # empty: as `known`
    says: str = ""  # in the message, where the file is absent
    resumed_known: str = ""  # empty: as when fresh
    resumed_unknown: str = ""

    def outcome(self, *, is_known: bool, is_resumed: bool) -> str:
        fresh = self.known if is_known else self.unknown or self.known
        return ((self.resumed_known if is_known else self.resumed_unknown) or fresh) if is_resumed else fresh


# -- behaviours that take more than a line -------------------------------------------------------------------------------------


def busy(times: int, status: int, **headers: str) -> Callable[[Handler], None]:
    def act(handler: Handler) -> None:
        if handler.number <= times:
            handler.whole(b"busy", status=status, **headers)
        else:
            handler.good()

    return act


def retry_at(handler: Handler) -> None:
    """Retry-After as a date, 40 s from now."""
    if handler.number > 1:
        return handler.good()
    return handler.whole(b"", status=429, Retry_After=handler.date_time_string(time.time() + 40))


def cut_at(*places: int) -> Callable[[Handler], None]:
    """Answer number n is cut before byte places[n]; later ones are whole."""

    def act(handler: Handler) -> None:
        handler.good(stop=places[handler.number - 1] if handler.number <= len(places) else None)

    return act


def cut_without_ranges(handler: Handler) -> None:
    handler.head(200, {"Content-Length": str(len(CONTENT))})
    handler.body(CONTENT[:20_000])
    raise Stop


def reset(handler: Handler) -> None:
    """Half, then a TCP reset, the first time."""
    if handler.number > 1:
        return handler.good()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return handler.good(stop=15_000)


def wrong_range(shift: int) -> Callable[[Handler], None]:
    """Asked for a range, it says 206 and sends another one."""

    def act(handler: Handler) -> None:
        if handler.offset is None:
            return handler.good(stop=18_000 if handler.number == 1 else None)
        first = handler.offset + shift
        handler.head(206, {"Content-Range": f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}", "ETag": ETAG})
        return handler.body(CONTENT[first:])

    return act


def lying_range(handler: Handler) -> None:
    """206 with the right Content-Range and other bytes."""
    if handler.offset is None:
        return handler.good(stop=18_000 if handler.number == 1 else None)
    data = CONTENT[handler.offset :]
    headers = {"Content-Range": f"bytes {handler.offset}-{len(CONTENT) - 1}/{len(CONTENT)}", "ETag": ETAG}
    handler.head(206, headers | {"Content-Length": str(len(data))})
    return handler.body(b"#" * (len(data) - 8) + data[-8:])


def no_content_range(handler: Handler) -> None:
    if handler.offset is None:
        return handler.good(stop=18_000 if handler.number == 1 else None)
    return handler.whole(CONTENT[handler.offset :], status=206)


def multipart_range(handler: Handler) -> None:
    if handler.offset is None:
        return handler.good(stop=18_000 if handler.number == 1 else None)
    return handler.whole(b"--x\r\n\r\nPAR1\r\n--x--", status=206, Content_Type="multipart/byteranges; boundary=x")


def range_refused(handler: Handler) -> None:
    if handler.offset is None:
        return handler.good(stop=18_000 if handler.number == 1 else None)
    return handler.head(416, {"Content-Range": f"bytes */{len(CONTENT)}", "Content-Length": "0"})


def changes_midway(handler: Handler) -> None:
    """The file changes between two answers; If-Range is honoured."""
    if handler.number == 1 and handler.offset is None:
        return handler.good(data=ALTERED, stop=18_000, etag='"older"')
    return handler.good()


def changes_unsaid(handler: Handler) -> None:
    """The same, from a server that ignores If-Range and names the new ETag."""
    if handler.offset is None:
        return handler.good(
            data=ALTERED if handler.number == 1 else CONTENT, stop=18_000 if handler.number == 1 else None, etag='"older"'
        )
    data = CONTENT[handler.offset :]
    headers = {"Content-Range": f"bytes {handler.offset}-{len(CONTENT) - 1}/{len(CONTENT)}", "ETag": '"newer"'}
    handler.head(206, headers | {"Content-Length": str(len(data))})
    return handler.body(data)


def endless(handler: Handler) -> None:
    """A body without size that never ends."""
    handler.head(200, {})
    while not handler.server.stopping.is_set():
        handler.body(CONTENT)


def endless_chunks(handler: Handler) -> None:
    handler.head(200, {"Transfer-Encoding": "chunked"})
    while not handler.server.stopping.is_set():
        handler.body(b"%x\r\n%s\r\n" % (len(CONTENT), CONTENT))


def drip(handler: Handler) -> None:
    """A few bytes at a time, for ever."""
    handler.head(200, {"Content-Length": str(len(CONTENT)), "ETag": ETAG})
    for place in range(0, len(CONTENT), 4):
        handler.body(CONTENT[place : place + 4])
        if handler.server.stopping.wait(0.002):
            raise Stop


def drip_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    number = 0
    while not handler.server.stopping.wait(0.05):
        handler.wfile.write(b"X-%d: y\r\n" % (number % 7))
        handler.wfile.flush()
        number += 1


def silent(handler: Handler) -> None:
    handler.server.stopping.wait(20)


def silent_midway(handler: Handler) -> None:
    """Half the file, then nothing, the first time."""
    if handler.number > 1:
        return handler.good()
    handler.head(200, {"Content-Length": str(len(CONTENT)), "ETag": ETAG})
    handler.body(CONTENT[:15_000])
    handler.wfile.flush()
    handler.server.stopping.wait(20)
    return None


def garbage(handler: Handler) -> None:
    handler.wfile.write(b"\x00\xff this is not HTTP\r\n\r\n")


def one_redirect(handler: Handler) -> None:
    if "moved" in handler.path:
        return handler.good()
    return handler.head(302, {"Location": f"/{handler.name}/moved", "Content-Length": "0"})


def redirect_loop(handler: Handler) -> None:
    handler.head(302, {"Location": f"/{handler.name}/again/{handler.number}", "Content-Length": "0"})


def redirect_to(location: str) -> Callable[[Handler], None]:
    return lambda handler: handler.head(302, {"Location": location, "Content-Length": "0"})


def redirect_to_login(handler: Handler) -> None:
    if "sign-in" in handler.path:
        return handler.whole(HTML, Content_Type="text/html")
    return handler.head(302, {"Location": f"/{handler.name}/sign-in", "Content-Length": "0"})


def one_byte_each(handler: Handler) -> None:
    """One more byte an answer."""
    handler.good(stop=(handler.offset or 0) + 1)


def arrives(name: str, does: str, act: Callable[[Handler], object], **more: str) -> Behaviour:
    return Behaviour(name, does, act, RIGHT, **more)


def refused(name: str, does: str, says: str, act: Callable[[Handler], object], **more: str) -> Behaviour:
    return Behaviour(name, does, act, ABSENT, says=says, **more)


BEHAVIOURS = [
    arrives("good", "answers as it should", lambda h: h.good()),
    arrives("no_etag", "sends no ETag", lambda h: h.good(etag=None)),
    arrives("weak_etag", "sends a weak ETag", lambda h: h.good(etag='W/"x"')),
    arrives("chunked", "sends chunks, and no size", lambda h: h.chunks(CONTENT[:20_000], CONTENT[20_000:])),
    arrives("until_close", "sends no size, and closes at the end", lambda h: (h.head(200, {}), h.body(CONTENT))[0]),
    # busy
    arrives("busy_503", "answers 503 twice, then the file", busy(2, 503)),
    arrives("busy_500", "answers 500 twice, then the file", busy(2, 500)),
    arrives("busy_408", "answers 408 once, then the file", busy(1, 408)),
    arrives("busy_425", "answers 425 once, then the file", busy(1, 425)),
    arrives("retry_after", "answers 429 with `Retry-After: 30`, then the file", busy(1, 429, Retry_After="30")),
    arrives("retry_at", "answers 429 with a date in `Retry-After`, then the file", retry_at),
    arrives("retry_nonsense", "answers 503 with `Retry-After: soon`", busy(1, 503, Retry_After="soon")),
    refused("retry_tomorrow", "answers 429 with `Retry-After: 86400`", "86,400 s", busy(99, 429, Retry_After="86400")),
    refused("always_busy", "answers 503, always", "without progress", busy(10**9, 503)),
    # final answers
    refused("401", "answers 401", "gated", lambda h: h.whole(b"log in", status=401)),
    refused("403", "answers 403", "gated", lambda h: h.whole(b"no", status=403)),
    refused("404", "answers 404", "renamed or removed", lambda h: h.whole(b"not here", status=404)),
    refused("410", "answers 410", "removed the file", lambda h: h.whole(b"", status=410)),
    refused("451", "answers 451", "legal reasons", lambda h: h.whole(b"", status=451)),
    refused("400", "answers 400", "400", lambda h: h.whole(b"what?", status=400)),
    refused("501", "answers 501", "501", lambda h: h.whole(b"", status=501)),
    refused("204", "answers 204, no content", "204", lambda h: h.head(204, {})),
    # cuts
    arrives("cut", "cuts the connection twice on the way", cut_at(12_000, 25_000)),
    arrives("cut_reset", "resets the connection once on the way", reset),
    refused("cut_always", "cuts the connection at the same byte, and has no ranges", "broke", cut_without_ranges),
    refused("one_byte_each", "cuts the connection after one more byte, always", "without progress", one_byte_each),
    refused("cut_chunks", "ends in the middle of the chunks", "broke", lambda h: h.chunks(CONTENT[:9_000], finish=False)),
    refused(
        "cut_unsaid",
        "sends no size, and closes in the middle",
        "ended after|breaks off",
        lambda h: (h.head(200, {}), h.body(CONTENT[:9_000]))[0],
    ),
    refused("closes", "closes without a word", "no connection", lambda h: h.connection.shutdown(socket.SHUT_RDWR)),
    refused("garbage", "answers something that is not HTTP", "no connection", garbage),
    # ranges
    arrives("no_ranges", "ignores ranges: 200 and the whole file", lambda h: h.whole()),
    arrives("range_early", "sends a range that begins earlier than asked", wrong_range(-100)),
    arrives("range_late", "sends a range that begins later than asked", wrong_range(+100)),
    arrives("range_unnamed", "sends 206 without Content-Range", no_content_range),
    arrives("range_multipart", "sends 206 in several parts", multipart_range),
    arrives("range_lies", "sends other bytes under the right Content-Range", lying_range, unknown=WRONG),
    arrives("range_refused", "answers 416 to every range", range_refused),
    arrives("changes", "has another file after a cut, and honours If-Range", changes_midway),
    arrives("changes_unsaid", "has another file after a cut, and ignores If-Range", changes_unsaid),
    # sizes
    refused(
        "too_long_said", "announces more bytes than it sends", "catalogue says|broke", lambda h: h.whole(Content_Length="40000")
    ),
    refused(
        "too_short_said",
        "announces fewer bytes than it has",
        "catalogue says|breaks off",
        lambda h: h.whole(Content_Length="9000"),
    ),
    refused("other_size", "has a file of another size", "catalogue says|breaks off", lambda h: h.whole(CONTENT[:-9])),
    refused("endless", "sends for ever", "goes on after", endless),
    refused("endless_chunks", "sends chunks for ever", "goes on after", endless_chunks),
    refused("empty", "sends an empty file", "catalogue says|is empty", lambda h: h.whole(b"")),
    # other things in the file's place
    refused("html", "sends a web page with 200", "web page.*Sign in", lambda h: h.whole(HTML)),
    refused("html_chunked", "sends a web page in chunks", "web page.*Sign in", lambda h: h.chunks(HTML)),
    refused("login", "redirects to a login page", "answered by .*sign-in.*web page", redirect_to_login),
    refused("json", "sends a JSON error with 200", 'error message.*"quota', lambda h: h.whole(b'{"error": "quota"}')),
    refused(
        "xml",
        "sends an XML error with 200",
        "AccessDenied",
        lambda h: h.whole(b"<?xml version='1.0'?><Error><Code>AccessDenied"),
    ),
    refused("other_format", "sends a file of another format", "not a .parquet", lambda h: h.whole(b"PK\x03\x04" + CONTENT[4:])),
    refused(
        "altered",
        "sends the file with one byte altered",
        "sha256",
        lambda h: h.good(ALTERED),
        unknown=WRONG,
        resumed_known=RIGHT,
        resumed_unknown=RIGHT,
    ),
    refused(
        "compressed",
        "compresses although asked not to",
        "compressed",
        lambda h: h.whole(gzip.compress(CONTENT), Content_Encoding="gzip"),
    ),
    # time
    refused("drip", "sends a few bytes at a time", "too slow", drip),
    refused("drip_headers", "sends headers for ever", "no complete answer|no connection", drip_headers),
    refused("silent", "takes the question and says nothing", "did not answer", silent),
    arrives("silent_midway", "falls silent on the way, once", silent_midway),
    # redirects
    arrives("redirect", "redirects once", one_redirect),
    refused("redirect_loop", "redirects for ever", "more than 5 redirects", redirect_loop),
    refused("redirect_file", "redirects to a file of this machine", "is refused", redirect_to("file:///etc/passwd")),
    refused("redirect_ftp", "redirects to ftp", "is refused", redirect_to("ftp://127.0.0.1/f")),
    refused("redirect_nowhere", "redirects without an address", "302", lambda h: h.head(302, {"Content-Length": "0"})),
    refused("redirect_nonsense", "redirects to nonsense", "not an address", redirect_to("http://[half")),
]
BY_NAME = {behaviour.name: behaviour for behaviour in BEHAVIOURS}


def table() -> str:
    """BEHAVIOURS as a table in Markdown."""
    rows = ["| the server | size and sha256 known | nothing known | the message says |", "| --- | --- | --- | --- |"]
    for behaviour in BEHAVIOURS:
        known, unknown = (behaviour.outcome(is_known=is_known, is_resumed=False) for is_known in (True, False))
        says = ", or ".join(f"“{words.replace('.*', ' … ')}”" for words in behaviour.says.split("|")) if behaviour.says else ""
        rows.append(f"| {behaviour.does} | {known} | {unknown} | {says} |")
    return "\n".join(rows)
