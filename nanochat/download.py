"""Fetch one file: whole, checked, and published at once. The only module that reaches the network.

Covered: transfers that break off, error pages in place of data, and files of another size or sha256 than the catalogue says;
none of them ever stands under the file's name. Not covered yet: resuming by byte range and honouring Retry-After.
"""

import logging
import shutil
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from nanochat.errors import UserError
from nanochat.manifest import atomic_path, sha256

log = logging.getLogger("nanochat")

CHUNK_BYTES = 1 << 20
TIMEOUT_S = (10, 60)  # to connect, and between two pieces of the answer
RETRIES = Retry(total=4, backoff_factor=1.0, status_forcelist=(408, 429, 500, 502, 503, 504), allowed_methods=("GET",))
SECONDS_BETWEEN_LINES = 5


def fetch(url: str, destination: Path, *, size: int | None = None, digest: str | None = None) -> None:
    """Put the file at `url` (http, https, file) under `destination`. UserError if it cannot be had, or is another one."""
    with atomic_path(destination) as temporary:
        if url.startswith("file:"):
            copy_local(url, temporary)
        else:
            fetch_http(url, temporary, size)
        check(temporary, url, size=size, digest=digest)


def copy_local(url: str, temporary: Path) -> None:
    source = Path(unquote(urlsplit(url).path))
    if not source.is_file():
        raise UserError(f"{url}: there is no such file")
    shutil.copyfile(source, temporary)


def fetch_http(url: str, temporary: Path, size: int | None) -> None:
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=RETRIES))
    try:
        with session.get(url, stream=True, timeout=TIMEOUT_S) as response, open(temporary, "wb") as file:
            if response.status_code != 200:
                raise UserError(f"{url}: the server answered {response.status_code} {response.reason}")
            expected = size or int(response.headers.get("Content-Length") or 0)
            progress = Progress(url, expected)
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                progress.add(len(chunk))
    except requests.RequestException as error:
        raise UserError(f"{url}: {error}; nothing was published, run the same command again") from None


def check(path: Path, url: str, *, size: int | None, digest: str | None) -> None:
    found = path.stat().st_size
    start = path.read_bytes()[:80] if found < CHUNK_BYTES else b""
    if size is not None and found != size:
        raise UserError(f"{url}: has {found:,} bytes, and the catalogue says {size:,}; it starts with {start!r}")
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{url}: the answer is a web page, not the file; it starts with {start!r}")
    if found == 0:
        raise UserError(f"{url}: the file is empty")
    if digest is not None and sha256(path) != digest:
        raise UserError(f"{url}: sha256 is {sha256(path)}, and the catalogue says {digest}")


class Progress:
    """A line every few seconds: bytes, rate, time left."""

    def __init__(self, url: str, expected: int):
        self.name, self.expected = url.rsplit("/", 1)[-1], expected
        self.done = 0
        self.began = self.last = time.monotonic()

    def add(self, num_bytes: int) -> None:
        self.done += num_bytes
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES:
            return
        self.last = now
        rate = self.done / (now - self.began)
        left = f", {(self.expected - self.done) / rate:,.0f} s left" if self.expected > self.done else ""
        of = f" of {self.expected / 1e6:,.1f}" if self.expected else ""
        log.info(f"{self.name}  {self.done / 1e6:,.1f}{of} MB  {rate / 1e6:,.1f} MB/s{left}")
