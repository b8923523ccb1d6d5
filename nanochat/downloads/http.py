"""Bring the bytes of an http or https address into a part file, however the server behaves.

A failure is either worth another try (TryAgain: cuts, 429, 5xx, a server that crawls) or final (UserError: 404, an error page,
another size than expected). Between tries the waits double, with jitter, or last as long as the server asks. Bounded are
silence, slowness, the number of tries without progress, bytes, and the time of the whole file.
"""

import email.utils
import itertools
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import requests
import urllib3
from requests.adapters import HTTPAdapter

from nanochat.downloads.ask import PUBLISHER, Answer, Source, ask, reason, redact, scrub, where
from nanochat.downloads.checks import HEAD_BYTES, Expected, error_page, has_end, printable, require_space, worded_size
from nanochat.downloads.limits import Clock, Limits, TryAgain
from nanochat.downloads.part import Part
from nanochat.downloads.progress import Progress
from nanochat.errors import UserError

log = logging.getLogger("nanochat")

READ_BYTES = 1 << 18
WORTH_ANOTHER_TRY = (408, 425, 429)  # of the 4xx; the others are final
FINAL_5XX = (501, 505, 511)
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
MEANINGS = {
    401: "a login is needed, or the publisher's terms must be accepted first (gated)",
    403: "forbidden: a login is needed, or the publisher's terms must be accepted first (gated)",
    404: "there is no such file: renamed or removed by its publisher, or the catalogue's address or revision is wrong",
    407: "the proxy wants a login",
    410: "the publisher removed the file",
    451: "withheld for legal reasons",
    511: "the network wants a login first (a captive portal)",
}


def transfer(url: str, part: Part, *, name: str, expected: Expected, limits: Limits, clock: Clock, deadline: float) -> Source:
    """Bring all bytes of `url` into `part`, after those it has. UserError if they cannot be had."""
    failures, most, wait_s = 0, part.size, limits.first_wait_s
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=0))
        attempt = Attempt(session, url, part, name, expected, limits, clock, deadline)
        while True:
            try:
                return attempt.run()
            except TryAgain as problem:
                failures += 1
                if part.size >= most + min(limits.progress_bytes, (attempt.size or limits.progress_bytes) // 10 + 1):
                    failures, most, wait_s = 1, part.size, limits.first_wait_s
                asked = problem.wait_s or 0
                wait = max(asked, wait_s * (0.5 + clock.jitter() / 2))
                wait_s = min(2 * wait_s, limits.longest_wait_s)
                give_up = reason_to_give_up(failures, asked, wait, limits, clock, deadline)
                if give_up:
                    raise UserError(f"{redact(url)}: {problem}; {give_up}. {what_is_kept(part)}") from None
                log.info(scrub(f"{name}: {problem}; next try in {wait:,.0f} s, from byte {part.size:,}", url))
                part.touch()
                clock.sleep(wait)


def reason_to_give_up(failures: int, asked: float, wait: float, limits: Limits, clock: Clock, deadline: float) -> str | None:
    if failures >= limits.tries:
        return f"given up after {failures} tries without progress"
    if asked > limits.longest_retry_after_s:
        return f"the server asks to wait {asked:,.0f} s, which is too long to wait here"
    if clock.monotonic() + wait > deadline:
        return f"given up: one file may take {limits.total_s / 3600:g} hours"
    return None


def what_is_kept(part: Part) -> str:
    kept = f", and goes on from the {worded_size(part.size)} that arrived" if part.size and part.can_go_on else ""
    return f"Run the same command again later: it fetches what is missing{kept}"


@dataclass
class Attempt:
    """One question and its answer, again and again. What was learned of the server is kept for the next."""

    session: requests.Session
    url: str
    part: Part
    name: str
    expected: Expected
    limits: Limits
    clock: Clock
    deadline: float
    size: int | None = None
    ranges_work: bool = True

    def run(self) -> Source:
        offset = self._offset()
        if offset and offset == (self.expected.size or self.part.total) and self.part.digest:
            return Source(self.url, self._linked())  # killed between the last byte and its check
        answer = ask(self.session, self.url, self._headers(offset), self.limits)
        with answer.response:
            return self._receive(answer, offset)

    def _offset(self) -> int:
        """Where to go on: behind what is there, unless that cannot be continued."""
        too_long = self.expected.size is not None and self.part.size > self.expected.size
        if self.part.size and (too_long or not self.ranges_work or not self.part.can_go_on):
            self.part.begin_anew()
        return self.part.size

    def _headers(self, offset: int) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "nanochat-snakemake"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if self.part.etag:
                headers["If-Range"] = self.part.etag
        return headers

    def _linked(self) -> Expected:
        return Expected(None, self.part.digest, PUBLISHER)

    def _receive(self, answer: Answer, offset: int) -> Source:
        if answer.status == 416 and offset:
            self._refuse_range("the server says that its file ends where ours goes on")
        if answer.status not in (200, 206):
            self._raise_for_status(answer)
        encoding = answer.header("Content-Encoding").lower()
        if encoding not in ("", "identity"):
            raise self._final(answer, f"the server sent it compressed ({encoding}), although it was asked not to")
        linked = answer.source.linked
        if offset and None not in (linked.sha256, self.part.digest) and linked.sha256 != self.part.digest:
            self._refuse_range("the publisher's file is another one than the one that was begun")
        announced = self._announced_size(answer, offset)
        pieces = self._pieces(answer)
        head = first_piece(pieces) if answer.status == 200 or not offset else b""
        if problem := head and error_page(head, self.name, answer.header("Content-Type")):
            raise self._final(answer, problem)
        size = self._agreed_size(answer, announced, head)
        if answer.status == 200 and offset:
            log.info(f"{self.name}: the server begins anew, or its file has changed")
            self.part.begin_anew()
        self.size = size
        if size is not None:
            require_space(self.part.path.parent, size - self.part.size)
        digest = self.expected.sha256 or linked.sha256 or self.part.digest
        self.part.describe(etag=answer.header("ETag"), size=size, digest=digest)
        self._write(answer, head, pieces, size)
        if size is not None and self.part.size < size:
            raise TryAgain(f"the answer ended after {self.part.size:,} of {size:,} bytes")
        return Source(answer.source.url, linked if linked.sha256 else self._linked())

    def _write(self, answer: Answer, head: bytes, pieces: Iterator[bytes], size: int | None) -> None:
        most = self.limits.max_unknown_bytes if size is None else size
        progress = Progress(self.name, size=size, already=self.part.size, now=self.clock.monotonic())
        try:
            for piece in itertools.chain([head], pieces):
                if self.part.size + len(piece) > most:
                    self.part.begin_anew()
                    said = "it should have" if size is not None else "an answer of unknown size may have"
                    raise self._final(answer, f"the answer goes on after the {most:,} bytes that {said}")
                self.part.write(piece)
                progress.add(len(piece), self.clock.monotonic())
        finally:
            progress.end()

    def _announced_size(self, answer: Answer, offset: int) -> int | None:
        """The whole file's size, as this answer states it."""
        length = answer.header("Content-Length")
        if answer.status == 200:
            return int(length) if length.isdigit() else None
        match = CONTENT_RANGE.fullmatch(answer.header("Content-Range").strip())
        if not match or int(match[1]) != offset:
            found = printable(answer.header("Content-Range").encode())
            self._refuse_range(f"asked for bytes from {offset:,}, the server sent the range {found}")
        if self.part.etag and answer.header("ETag") not in ("", self.part.etag):
            self._refuse_range("the file changed on the server")
        return None if match[3] == "*" else int(match[3])

    def _agreed_size(self, answer: Answer, announced: int | None, head: bytes) -> int | None:
        """The size to expect. What the catalogue says and what the server says must not differ."""
        known = self.expected if self.expected.size is not None else answer.source.linked
        if known.size is not None and announced is not None and known.size != announced:
            text = f"the server has {announced:,} bytes, and {known.said_by} says {known.size:,}"
            raise self._final(answer, text + (f"; it starts with {printable(head)}" if head else "") + known.remedy)
        size = known.size if known.size is not None else announced
        is_chunked = answer.header("Transfer-Encoding").lower() == "chunked"
        digest = self.expected.sha256 or answer.source.linked.sha256 or self.part.digest
        if size is None and not (is_chunked or digest or has_end(self.name)):
            raise self._final(
                answer,
                "nobody says how long the file is, so that a cut could not be noticed; write its size into the catalogue",
            )
        return size

    def _pieces(self, answer: Answer) -> Iterator[bytes]:
        """The body as it comes in. TryAgain if it breaks off, falls silent or crawls."""
        mark, num_bytes = self.clock.monotonic(), 0
        while True:
            try:
                piece = answer.response.raw.read1(READ_BYTES, decode_content=False)
            except urllib3.exceptions.ReadTimeoutError:
                raise TryAgain(f"no byte in {self.limits.read_s:g} s") from None
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise TryAgain(f"the connection broke ({reason(error)})") from None
            if not piece:
                return
            yield piece
            num_bytes += len(piece)
            now = self.clock.monotonic()
            if now > self.deadline:
                raise TryAgain("the time is up")
            if now - mark >= self.limits.slow_s:
                if num_bytes < self.limits.slow_bytes_per_s * (now - mark):
                    raise TryAgain(f"the server is too slow: {num_bytes:,} bytes in {now - mark:,.0f} s")
                mark, num_bytes = now, 0

    def _refuse_range(self, why: str) -> NoReturn:
        """Begin anew without ranges: this server's cannot be relied on for this file."""
        self.ranges_work = False
        self.part.begin_anew()
        raise TryAgain(f"{why}; beginning anew")

    def _raise_for_status(self, answer: Answer) -> NoReturn:
        status = answer.status
        text = f"the server answered {status} {answer.response.reason}"
        if status in WORTH_ANOTHER_TRY or (status >= 500 and status not in FINAL_5XX):
            raise TryAgain(text, wait_s=retry_after(answer.header("Retry-After"), self.clock.now()))
        meaning = f": {MEANINGS[status]}" if status in MEANINGS else ""
        raise self._final(answer, f"{text}{meaning}{start_of(answer)}")

    def _final(self, answer: Answer, problem: str) -> UserError:
        return UserError(f"{where(self.url, answer.source.url)}: {problem}")


def first_piece(pieces: Iterator[bytes]) -> bytes:
    """Enough bytes to tell what they are, however small the pieces."""
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= HEAD_BYTES:
            break
    return head


def start_of(answer: Answer) -> str:
    """The beginning of an error's body, if it has one."""
    try:
        body = answer.response.raw.read1(HEAD_BYTES, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError):
        body = b""
    return f"; it says {printable(body)}" if body else ""


def retry_after(text: str, now: float) -> float | None:
    """Seconds to wait: the header gives them, or a date. None if it gives neither."""
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError):
        return None
