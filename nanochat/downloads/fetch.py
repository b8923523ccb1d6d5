"""Fetch one file: whole, checked, and published at once. With the modules beside it, the only code that reaches the network.

    this one              fetch(): from an address to a file that is right, or to a sentence that says why there is none
    http.py               bytes from an address: ranges, retries, waits
    ask.py                one question and the headers of its answer: redirects, proxies
    part.py               the bytes of a file that is not whole yet; a later start goes on from them
    checks.py             whether these bytes can be the file: size, sha256, error pages, marks of the format
    lock.py               what was found the first time, where the catalogue does not know
    limits.py             how long, how often, how much
    progress.py           bytes, rate, time left

Covered: transfers that break off or crawl, servers that answer something else, files that changed, disks that fill up, two
processes that fetch the same file; docs/downloads.md has the table. Under the file's name is always a whole, checked file.
Not covered: a first download without any digest whose bytes were altered on the way.
"""

import errno
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nanochat.downloads.ask import redact, scrub
from nanochat.downloads.checks import UNKNOWN, Expected, Found, check, require_space, worded_size
from nanochat.downloads.http import transfer
from nanochat.downloads.limits import CLOCK, LIMITS, Clock, Limits
from nanochat.downloads.part import Part
from nanochat.errors import UserError
from nanochat.storage import StorageError, atomic_path, storage_errors

log = logging.getLogger("nanochat")

FULL = (errno.ENOSPC, errno.EDQUOT)
REMEDIES = {
    errno.EROFS: "the folder is read-only; if it is shared, ask its owner to run the download, or use a folder of your own",
    errno.EACCES: "you may not write there; if the folder is shared, ask its owner to run the download, or use one of your own",
}


def fetch(
    url: str,
    destination: Path,
    expected: Expected = UNKNOWN,
    *,
    confirm: Callable[[Found], None] = lambda found: None,
    limits: Limits = LIMITS,
    clock: Clock = CLOCK,
) -> Found:
    """Put the file at `url` (http, https, file) under `destination`. UserError if it cannot be had, or is another one.

    `confirm` is told size and sha256 after all checks and before the file is published; it refuses with a UserError.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        if url.startswith("file:"):
            return fetch_local(url, destination, expected, confirm)
        return fetch_http(url, destination, expected, confirm, limits, clock)
    except UserError as error:
        raise UserError(scrub(in_words(error, destination), url)) from None
    except OSError as error:
        raise UserError(f"{destination}: cannot be written ({error.strerror or error}); run the same command again") from None


def in_words(error: UserError, destination: Path) -> str:
    """What went wrong, and where the storage is to blame, what to do here."""
    code = error.errno if isinstance(error, StorageError) else None
    if code in FULL:
        return f"{error}: it goes on from what arrived"
    return f"{destination}: {REMEDIES[code]}" if code in REMEDIES else str(error)


def fetch_local(url: str, destination: Path, expected: Expected, confirm: Callable[[Found], None]) -> Found:
    """Copy: a link would change with its source, after it was checked."""
    source = Path(unquote(urlsplit(url).path))
    if not source.is_file():
        raise UserError(f"{url}: there is no such file")
    require_space(destination.parent, source.stat().st_size)
    with atomic_path(destination, size=source.stat().st_size) as temporary:
        shutil.copyfile(source, temporary)
        found = check(temporary, url, expected, name=destination.name)
        confirm(found)
    return found


def fetch_http(
    url: str, destination: Path, expected: Expected, confirm: Callable[[Found], None], limits: Limits, clock: Clock
) -> Found:
    began = clock.monotonic()
    with storage_errors(destination) as needs, Part(destination, address=url, digest=expected.sha256) as part:
        already = part.size
        try:
            found = fetch_whole(url, part, destination.name, expected, limits, clock)
        finally:
            needs.num_bytes = part.missing
        try:
            confirm(found)
        except StorageError:
            raise
        except UserError:
            part.begin_anew()  # or the next start would go on from bytes that were refused
            raise
        part.publish(destination)
    resumed = f", {worded_size(already)} of it from an earlier start" if already else ""
    log.info(
        f"{destination.name}: {worded_size(found.size)} in {clock.monotonic() - began:,.0f} s{resumed}; sha256 {found.sha256}"
    )
    return found


def fetch_whole(url: str, part: Part, name: str, expected: Expected, limits: Limits, clock: Clock) -> Found:
    """Fill `part` with the checked file. If bytes of several answers do not fit together, everything is fetched once more."""
    deadline = clock.monotonic() + limits.total_s
    while True:
        source = transfer(url, part, name=name, expected=expected, limits=limits, clock=clock, deadline=deadline)
        try:
            return check(part.path, redact(source.url), expected.or_else(source.linked), name=name)
        except UserError as error:
            pieced_together = part.is_pieced_together
            part.begin_anew()
            if not pieced_together:
                raise
            log.warning(scrub(f"{error}; it was put together from several answers, so it is fetched once more as a whole", url))
