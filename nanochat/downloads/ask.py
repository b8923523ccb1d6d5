"""Ask for an http or https address: redirects, proxies and certificates, up to the headers of the answer.

At most 5 redirects, never from https to http, never to anything else; a login in an address goes to no other host.
No address is shown with its password or query: `redact` is for an address, `scrub` for a text of others that may repeat it.
"""

import queue
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import requests

from nanochat.downloads.checks import Expected
from nanochat.downloads.limits import Limits, TryAgain
from nanochat.errors import UserError

REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 5
PUBLISHER = "the publisher's header X-Linked-ETag"
SHA256_ETAG = re.compile(r'"?([0-9a-f]{64})"?')


@dataclass(frozen=True)
class Source:
    """Where the bytes came from in the end, and what the publisher said of the file on the way."""

    url: str
    linked: Expected


@dataclass
class Answer:
    """A response that is not a redirect."""

    response: requests.Response
    source: Source

    @property
    def status(self) -> int:
        return self.response.status_code

    def header(self, name: str) -> str:
        return self.response.headers.get(name) or ""


def ask(session: requests.Session, url: str, headers: dict[str, str], limits: Limits) -> Answer:
    """The answer to a GET, behind all redirects. TryAgain or UserError if there is none."""

    def follow() -> Answer:
        place, linked = url, Expected()
        for _ in range(MAX_REDIRECTS + 1):
            response = get(session, place, headers, limits, asked=url)
            linked = linked_digest(response, place, url) or linked
            if response.status_code not in REDIRECTS or "Location" not in response.headers:
                return Answer(response, Source(place, linked))
            response.close()
            place = next_address(place, response.headers["Location"], asked=url)
        raise UserError(f"{where(url, place)}: more than {MAX_REDIRECTS} redirects")

    return within(limits.answer_s, follow)


def get(session: requests.Session, url: str, headers: dict[str, str], limits: Limits, *, asked: str) -> requests.Response:
    try:
        return session.get(url, headers=headers, stream=True, allow_redirects=False, timeout=(limits.connect_s, limits.read_s))
    except requests.exceptions.SSLError as error:
        if "CERTIFICATE" not in str(error):  # a handshake that broke off
            raise TryAgain(f"no secure connection to {host_of(url)} ({reason(error)}){via_proxy(url)}") from None
        raise UserError(f"{where(asked, url)}: no trusted connection ({reason(error)}){via_proxy(url)}") from None
    except requests.exceptions.ReadTimeout:
        raise TryAgain(f"{host_of(url)} did not answer in {limits.read_s:g} s{via_proxy(url)}") from None
    except requests.exceptions.ConnectionError as error:
        raise TryAgain(f"no connection to {host_of(url)} ({reason(error)}){via_proxy(url)}") from None
    except (requests.RequestException, ValueError) as error:
        problem = f"this, or where it redirects to, is not an address ({type(error).__name__})"
        raise UserError(f"{where(asked, url)}: {problem}{via_proxy(url)}") from None


def within(seconds: float, function: Callable[[], Answer]) -> Answer:
    """The function's result, or TryAgain if it takes longer.

    A socket's time limit counts from byte to byte: a server that drips headers, or a name server that does not answer, would
    hold us for hours. The thread that is left behind ends with its socket or the program.
    """
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put(function())
        except Exception as error:  # carried over to the thread that waits
            results.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        result = results.get(timeout=seconds)
    except queue.Empty:
        raise TryAgain(f"no complete answer in {seconds:g} s") from None
    if isinstance(result, Exception):
        raise result
    return result


def next_address(place: str, location: str, *, asked: str) -> str:
    """Where a redirect leads. UserError if it leaves http, or leaves https for http."""
    try:
        target = urljoin(place, location)
        scheme, before = urlsplit(target).scheme, urlsplit(place).scheme
    except ValueError:
        raise UserError(f"{where(asked, place)}: redirects to something that is not an address") from None
    if scheme not in ("http", "https") or (before == "https" and scheme == "http"):
        raise UserError(
            f"{where(asked, place)}: redirects to {redact(target)}, and a redirect from {before} to {scheme} is refused"
        )
    return target


def linked_digest(response: requests.Response, place: str, asked: str) -> Expected | None:
    """Size and sha256 as Hugging Face gives them beside the redirect to its storage; no other host is believed."""
    match = SHA256_ETAG.fullmatch(response.headers.get("X-Linked-ETag") or "")
    if not match or urlsplit(place).netloc != urlsplit(asked).netloc:
        return None
    size = response.headers.get("X-Linked-Size") or ""
    return Expected(int(size) if size.isdigit() else None, match[1], PUBLISHER)


# -- words -------------------------------------------------------------------------------------------------------------------


def where(asked: str, place: str) -> str:
    return redact(asked) if place == asked else f"{redact(asked)} (answered by {redact(place)})"


def redact(url: str) -> str:
    """An address as it may be shown: no user, no password, no query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not an address)"
    host = parts.netloc.rpartition("@")[2]
    netloc = f"***@{host}" if "@" in parts.netloc else host
    return urlunsplit((parts.scheme, netloc, parts.path, "***" if parts.query else "", ""))


def scrub(text: str, url: str) -> str:
    """A text of others without the secrets of an address."""
    for secret in secrets_of(url):
        text = text.replace(secret, "***")
    return text


def secrets_of(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return []
    values = [pair.partition("=")[2] or pair for pair in parts.query.split("&")]
    words = {parts.query, *values, *parts.netloc.rpartition("@")[0].split(":")}
    return sorted({form for word in words for form in (word, unquote(word)) if len(form) >= 4}, key=len, reverse=True)


def host_of(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def via_proxy(url: str) -> str:
    proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    return f" through the proxy {redact(proxy)}, which the environment sets" if proxy else ""


def reason(error: BaseException) -> str:
    """The innermost cause, without addresses."""
    while True:
        inner = getattr(error, "reason", None) or (error.args[-1] if error.args else None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = str(error).rpartition(": ")[2] or type(error).__name__
    return "".join(letter if letter.isprintable() else "." for letter in re.sub(r"https?://\S+", "...", text))[:200]
