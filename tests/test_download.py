"""Downloads from servers that the tests start: the file is right, or it is not there and the message says why."""

import hashlib
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bad_server import ABSENT, BEHAVIOURS, BY_NAME, CONTENT, ETAG, RIGHT, BadServer, Behaviour, Handler, cut_at, table
from project import ROOT, wait_for

from nanochat.downloads import checks as download_checks
from nanochat.downloads import part as download_part
from nanochat.downloads.ask import next_address, redact, scrub
from nanochat.downloads.checks import UNKNOWN, Expected, Found
from nanochat.downloads.fetch import fetch
from nanochat.downloads.http import retry_after
from nanochat.downloads.limits import Clock, Limits
from nanochat.downloads.part import Part
from nanochat.downloads.progress import Progress
from nanochat.errors import UserError

DIGEST = hashlib.sha256(CONTENT).hexdigest()
KNOWN = Expected(len(CONTENT), DIGEST)
HALF = 16_000
LIMITS = Limits(tries=3, read_s=60, max_unknown_bytes=200_000)
# behaviours that only real time ends
SHORT = {name: Limits(tries=2, read_s=0.5, answer_s=60) for name in ("silent", "silent_midway")}
SHORT["silent_midway"] = Limits(tries=7, read_s=0.5)
SHORT["drip_headers"] = Limits(tries=2, answer_s=0.5)


class FakeClock(Clock):
    """Waits cost nothing; `tick_s` passes at every look at the clock."""

    def __init__(self, tick_s: float = 0.0):
        self.time, self.tick_s = 0.0, tick_s
        self.waits: list[float] = []

    def monotonic(self) -> float:
        self.time += self.tick_s
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.waits.append(seconds)

    def jitter(self) -> float:
        return 1.0


@pytest.fixture(scope="module")
def servers():
    running = BadServer()
    yield running
    running.close()


@pytest.fixture
def server(servers):
    servers.logs.clear()
    return servers


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def get(
    url: str, folder: Path, expected: Expected = KNOWN, *, name: str = "f.parquet", limits: Limits = LIMITS, **more
) -> Found:
    return fetch(url, folder / name, expected, limits=limits, clock=more.pop("clock", FakeClock()), **more)


def leave_half(
    folder: Path, url: str, *, etag: str | None = ETAG, digest: str | None = None, data: bytes = CONTENT[:HALF]
) -> None:
    """What a killed download leaves: this process takes it over, as it would from one that is gone."""
    with Part(folder / "f.parquet", address=url, digest=digest) as part:
        part.describe(etag=etag, size=len(CONTENT), digest=digest)
        part.write(data)


# -- the table of docs/downloads.md -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_resumed", [False, True], ids=["fresh", "resumed"])
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=[behaviour.name for behaviour in BEHAVIOURS])
def test_whatever_the_server_does_the_file_is_right_or_absent(server, tmp_path, caplog, behaviour, is_known, is_resumed):
    caplog.set_level(logging.DEBUG, logger="nanochat")
    url, clock = server.address(behaviour.name), FakeClock(tick_s=1.0 if behaviour.name == "drip" else 0.0)
    if is_resumed:
        leave_half(tmp_path, url, digest=DIGEST if is_known else None)
    words = ""
    try:
        get(url, tmp_path, KNOWN if is_known else UNKNOWN, limits=SHORT.get(behaviour.name, LIMITS), clock=clock)
    except UserError as error:
        words = str(error)
    outcome = behaviour.outcome(is_known=is_known, is_resumed=is_resumed)
    path = tmp_path / "f.parquet"
    if outcome == ABSENT:
        assert not path.exists()
        assert re.search(behaviour.says, words), words
        assert f"/{behaviour.name}/f.parquet" in words
    else:
        assert words == ""
        assert (path.read_bytes() == CONTENT) == (outcome == RIGHT)
        assert [left.name for left in tmp_path.iterdir()] == ["f.parquet"]
    assert sum(clock.waits) < 600
    seen = words + caplog.text + "".join(f"{file}{file.read_bytes()!r}" for file in tmp_path.iterdir())
    assert "canary" not in seen


def test_there_are_many_behaviours():
    assert len(BEHAVIOURS) == len(BY_NAME) >= 30
    assert {behaviour.known for behaviour in BEHAVIOURS} == {RIGHT, ABSENT}  # nothing goes unnoticed where the catalogue knows


def test_the_document_has_the_table_of_behaviours():
    document = ROOT / "docs" / "downloads.md"
    assert table() in document.read_text(), f"{document}: replace the table of behaviours by:\n{table()}"


def test_without_the_digest_check_altered_bytes_would_get_through(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_checks, "sha256", lambda path: DIGEST)
    get(server.address("altered"), tmp_path)
    assert (tmp_path / "f.parquet").read_bytes() != CONTENT


def test_without_the_check_for_error_pages_a_web_page_would_get_through(server, tmp_path, monkeypatch):
    for module in ("nanochat.downloads.checks.error_page", "nanochat.downloads.http.error_page"):
        monkeypatch.setattr(module, lambda *_: None)
    get(server.address("html"), tmp_path, UNKNOWN, name="words.txt")
    assert b"Sign in" in (tmp_path / "words.txt").read_bytes()


# -- going on -----------------------------------------------------------------------------------------------------------------


def test_a_resumed_download_asks_only_for_what_is_missing(server, tmp_path):
    leave_half(tmp_path, server.address("good"))
    get(server.address("good"), tmp_path, UNKNOWN)
    log = server.log_of("good")
    assert log.body_bytes == len(CONTENT) - HALF
    assert (log.questions[0]["range"], log.questions[0]["if-range"]) == (f"bytes={HALF}-", ETAG)
    assert log.questions[0]["accept-encoding"] == "identity"


def test_a_cut_costs_no_byte_twice(server, tmp_path):
    get(server.address("cut"), tmp_path, UNKNOWN)
    assert server.log_of("cut").body_bytes == len(CONTENT)


def test_cuts_at_any_byte_leave_the_same_file(server, tmp_path, monkeypatch):
    chance = random.Random(1)
    for number in range(60):
        cuts = sorted(chance.sample(range(1, len(CONTENT)), chance.randint(1, 5)))
        name = f"cut_{number}"
        monkeypatch.setitem(BY_NAME, name, Behaviour(name, "", cut_at(*cuts), RIGHT))
        found = get(server.address(name), tmp_path, UNKNOWN, limits=Limits(tries=9))
        assert (found.sha256, len(server.log_of(name).questions)) == (DIGEST, len(cuts) + 1), cuts


def test_a_whole_part_is_published_without_a_question(server, tmp_path):
    leave_half(tmp_path, server.address("good"), digest=DIGEST, data=CONTENT)
    get(server.address("good"), tmp_path)
    assert server.log_of("good").questions == []


@pytest.mark.parametrize("expected", [KNOWN, UNKNOWN], ids=["known", "unknown"])
def test_a_part_of_another_address_is_not_continued(server, tmp_path, expected):
    leave_half(tmp_path, "http://elsewhere/f", data=b"#" * HALF)
    get(server.address("good"), tmp_path, expected)
    assert server.log_of("good").body_bytes == len(CONTENT)
    assert (tmp_path / "f.parquet").read_bytes() == CONTENT


def test_a_resumed_file_with_a_wrong_sha256_is_fetched_once_more_as_a_whole(server, tmp_path):
    leave_half(tmp_path, server.address("good"), data=b"#" * HALF)
    get(server.address("good"), tmp_path)
    assert server.log_of("good").body_bytes == 2 * len(CONTENT) - HALF
    assert (tmp_path / "f.parquet").read_bytes() == CONTENT


CHILD = """
import sys
from pathlib import Path
from nanochat.downloads.fetch import fetch
from nanochat.downloads.checks import Expected
fetch(sys.argv[1], Path(sys.argv[2]), Expected(int(sys.argv[3]), sys.argv[4]))
"""


def start_child(url: str, path: Path) -> subprocess.Popen:
    words = [sys.executable, "-c", CHILD, url, str(path), str(len(CONTENT)), DIGEST]
    return subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_a_killed_download_goes_on_from_the_byte_it_had(server, tmp_path):
    child = start_child(server.address("silent_midway"), tmp_path / "f.parquet")
    wait_for(lambda: any(part.stat().st_size == 15_000 for part in tmp_path.glob(".*.part")))
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not (tmp_path / "f.parquet").exists()
    served = server.log_of("silent_midway").body_bytes
    get(server.address("silent_midway"), tmp_path)
    assert server.log_of("silent_midway").body_bytes - served == len(CONTENT) - 15_000
    assert [left.name for left in tmp_path.iterdir()] == ["f.parquet"]


def test_processes_that_fetch_the_same_file_at_once_do_no_harm(server, tmp_path):
    leave_half(tmp_path, server.address("cut"), digest=DIGEST)
    children = [start_child(server.address("cut"), tmp_path / "f.parquet") for _ in range(3)]
    assert [(child.communicate(timeout=120)[1], child.returncode) for child in children] == [("", 0)] * 3
    assert (tmp_path / "f.parquet").read_bytes() == CONTENT
    assert {left.name for left in tmp_path.iterdir() if os.getpid() != owner(left)} == {"f.parquet"}


def owner(path: Path) -> int | None:
    match = re.search(r"\.(\d+)\.part", path.name)
    return int(match[1]) if match else None


def part_of(folder: Path, host: str, pid: int, *, age_s: float = 0) -> Path:
    path = folder / f".f.parquet.{host}.{pid}.part"
    path.write_bytes(CONTENT[:HALF])
    note = {"address_sha256": hashlib.sha256(b"http://a/f").hexdigest(), "etag": ETAG, "size": len(CONTENT), "sha256": None}
    Path(f"{path}.json").write_text(json.dumps(note))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


@pytest.mark.parametrize(
    ("host", "is_ours", "age_s", "is_taken"),
    [("here", True, 0, False), ("here", False, 0, True), ("elsewhere", False, 60, False), ("elsewhere", False, 7200, True)],
)
def test_only_the_part_of_a_process_that_is_gone_is_taken_over(tmp_path, host, is_ours, age_s, is_taken):
    gone = subprocess.Popen(["true"])
    gone.wait()
    pid = os.getppid() if is_ours else gone.pid  # the parent lives
    left = part_of(tmp_path, download_part.HOST if host == "here" else host, pid, age_s=age_s)
    with Part(tmp_path / "f.parquet", address="http://a/f", digest=None) as part:
        assert part.size == (HALF if is_taken else 0)
    assert left.exists() != is_taken


def test_of_several_parts_the_largest_is_taken_and_the_rest_removed(tmp_path):
    part_of(tmp_path, "elsewhere", 1, age_s=7200).write_bytes(b"small")
    os.utime(tmp_path / ".f.parquet.elsewhere.1.part", (0, 0))
    part_of(tmp_path, "elsewhere", 2, age_s=7200)
    part_of(tmp_path, "elsewhere", 3, age_s=7200).with_name(".g.parquet.elsewhere.3.part").write_bytes(b"another file's")
    with Part(tmp_path / "f.parquet", address="http://a/f", digest=None) as part:
        assert part.size == HALF
        part.begin_anew()
    assert [left.name for left in tmp_path.iterdir()] == [".g.parquet.elsewhere.3.part"]


@pytest.mark.parametrize("note", [None, "", "[1]", '{"etag": null}', '{"address_sha256": "other", "etag": "\\"x\\""}'])
def test_a_part_of_which_nobody_knows_what_it_is_is_thrown_away(tmp_path, note):
    path = Path(f"{part_of(tmp_path, 'elsewhere', 1, age_s=7200)}.json")
    path.unlink() if note is None else path.write_text(note)
    with Part(tmp_path / "f.parquet", address="http://a/f", digest=None) as part:
        assert part.size == 0
    assert list(tmp_path.iterdir()) == []


# -- waiting ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "least", "most"), [("retry_after", 30, 30), ("retry_at", 30, 41), ("retry_nonsense", 1, 1)])
def test_the_server_says_how_long_to_wait(server, tmp_path, name, least, most):
    clock = FakeClock()
    get(server.address(name), tmp_path, clock=clock)
    assert len(clock.waits) == 1 and least <= clock.waits[0] <= most


def test_waits_double_up_to_a_minute(server, tmp_path):
    clock = FakeClock()
    with pytest.raises(UserError, match="after 9 tries"):
        get(server.address("always_busy"), tmp_path, limits=Limits(tries=9), clock=clock)
    assert clock.waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_one_file_may_take_a_limited_time(server, tmp_path):
    with pytest.raises(UserError, match=r"one file may take 0\.5 hours"):
        get(server.address("always_busy"), tmp_path, limits=Limits(tries=10_000, total_s=1800))


def test_a_date_in_the_past_means_at_once():
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT", 1e10) == 0
    assert [retry_after(text, 0) for text in ("7", "", "soon", "-3", "Wed, 99 Oct")] == [7, None, None, None, None]


# -- addresses ----------------------------------------------------------------------------------------------------------------


def test_a_redirect_never_leaves_https():
    assert next_address("http://a/b", "https://c/d", asked="http://a/b") == "https://c/d"
    for target in ("http://c/d", "file:///etc/passwd", "//[half"):
        with pytest.raises(UserError, match="https://a/b"):
            next_address("https://a/b", target, asked="https://a/b")


def test_a_login_goes_to_no_other_host(server, tmp_path, monkeypatch):
    other = BadServer()
    location = re.sub("//.*@", "//", other.address("good"))
    monkeypatch.setitem(BY_NAME, "away", Behaviour("away", "", lambda h: h.head(302, {"Location": location}), RIGHT))
    get(server.address("away"), tmp_path)
    assert server.log_of("away").questions[0]["authorization"].startswith("Basic ")
    assert "authorization" not in other.log_of("good").questions[0]
    other.close()


def test_secrets_of_an_address_are_not_shown():
    url = "https://me:pass%20word@host:8/a/b?token=abcdef&x=1#part"
    assert redact(url) == "https://***@host:8/a/b?***"
    assert scrub("GET /a/b?token=abcdef&x=1 by pass word, pass%20word", url) == "GET /a/b?*** by ***, ***"
    assert redact("http://[half") == "(not an address)"


def test_a_proxy_is_named_without_its_password(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:canary@127.0.0.1:9")
    with pytest.raises(UserError, match=r"through the proxy http://\*\*\*@127\.0\.0\.1:9") as error:
        get("http://hub.invalid/f", tmp_path)
    assert "canary" not in str(error.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/f", "http://name.invalid/f"])
def test_a_server_that_is_not_there_is_named(tmp_path, url):
    with pytest.raises(UserError, match=rf"{re.escape(url)}: no connection to .* \(.+\)"):
        get(url, tmp_path)


def test_a_server_without_encryption_is_not_taken_for_one_with_it(server, tmp_path):
    with pytest.raises(UserError, match="no secure connection"):
        get(server.address("good").replace("http:", "https:"), tmp_path)


# -- what the publisher says --------------------------------------------------------------------------------------------------


def linking(digest: str, size: int):
    def act(handler: Handler) -> None:
        if "blob" in handler.path:
            return handler.good()
        linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(size)}
        return handler.head(302, {"Location": f"/{handler.name}/blob", "Content-Length": "0", **linked})

    return act


def test_the_publishers_header_counts_where_the_catalogue_is_silent(server, tmp_path, monkeypatch):
    monkeypatch.setitem(BY_NAME, "hub", Behaviour("hub", "", linking(DIGEST, len(CONTENT)), RIGHT))
    assert "X-Linked-ETag" in str(get(server.address("hub"), tmp_path, UNKNOWN).said_by)
    monkeypatch.setitem(BY_NAME, "hub", Behaviour("hub", "", linking("0" * 64, len(CONTENT)), ABSENT))
    with pytest.raises(UserError, match="X-Linked-ETag says 000"):
        get(server.address("hub"), tmp_path, UNKNOWN)
    monkeypatch.setitem(BY_NAME, "hub", Behaviour("hub", "", linking(DIGEST, 7), ABSENT))
    with pytest.raises(UserError, match="X-Linked-ETag says 7"):
        get(server.address("hub"), tmp_path, UNKNOWN)


def test_the_catalogue_counts_more_than_the_publishers_header(server, tmp_path, monkeypatch):
    monkeypatch.setitem(BY_NAME, "hub", Behaviour("hub", "", linking("0" * 64, 7), RIGHT))
    assert get(server.address("hub"), tmp_path).said_by == "the catalogue"


def test_what_is_refused_at_the_end_is_not_published(server, tmp_path):
    def refuse(found: Found) -> None:
        raise UserError(f"not {found.sha256}")

    with pytest.raises(UserError, match=f"not {DIGEST}"):
        get(server.address("good"), tmp_path, UNKNOWN, confirm=refuse)
    assert list(tmp_path.iterdir()) == []


# -- the disk -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", [KNOWN, UNKNOWN], ids=["known", "unknown"])
def test_room_on_the_disk_is_checked_before_the_first_byte(server, tmp_path, monkeypatch, expected):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1_000))
    with pytest.raises(UserError, match="32,012 bytes needed, 1,000 bytes free"):
        get(server.address("good"), tmp_path, expected)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_keeps_what_arrived(server, tmp_path, monkeypatch):
    write = Part.write

    def write_until_full(part: Part, data: bytes) -> None:
        write(part, data[: max(0, 9_000 - part.size)])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Part, "write", write_until_full)
    with pytest.raises(
        UserError, match=r"f\.parquet: the disk is full\. Needed: [\d,]+ bytes\. Free: .*it goes on from what arrived"
    ):
        get(server.address("good"), tmp_path)
    monkeypatch.setattr(Part, "write", write)
    arrived = next(tmp_path.glob(".*.part")).stat().st_size
    get(server.address("good"), tmp_path)
    assert server.log_of("good").questions[-1]["range"] == f"bytes={arrived}-"


# -- local files and progress -------------------------------------------------------------------------------------------------


def test_a_local_file_is_copied_and_checked(tmp_path):
    source = tmp_path / "a b.txt"
    source.write_bytes(CONTENT)
    fetch(source.as_uri(), tmp_path / "f", KNOWN)
    source.write_bytes(b"#" * len(CONTENT))
    assert (tmp_path / "f").read_bytes() == CONTENT  # a copy: it does not change with its source
    for url, words in ((source.as_uri(), "sha256"), ((tmp_path / "gone").as_uri(), "no such file")):
        with pytest.raises(UserError, match=words):
            fetch(url, tmp_path / "g", KNOWN)
    assert not (tmp_path / "g").exists()


def test_progress_is_a_line_every_few_seconds(caplog):
    caplog.set_level(logging.INFO, logger="nanochat")
    progress = Progress("f", size=100_000_000, already=40_000_000, now=0)
    for now in (2, 6, 7):
        progress.add(10_000_000, now)
    assert caplog.messages == ["f  60.0 of 100.0 MB  3.3 MB/s, 12 s left"]  # 20 MB in 6 s; the first 40 were there


def test_progress_is_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress("f", size=100_000_000, already=0, now=0)
    progress.add(50_000_000, 5)
    assert capsys.readouterr().err == "\r[############............] f  50.0 of 100.0 MB  10.0 MB/s, 5 s left\033[K"
