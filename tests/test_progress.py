"""Lines of progress: now and then, with the time left."""

import logging

from nanochat.progress import Progress


def test_a_line_every_so_often_tells_what_is_left(monkeypatch, caplog):
    clock = iter([0, 10, 40, 60, 71])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, logger="nanochat"):
        progress = Progress("CORE squad", 100, "options")
        for num_done in (10, 10, 15, 0):
            progress.add(num_done)
    assert caplog.messages == [
        "CORE squad: 20 of 100 options, about 160 s left",  # 40 s for 20
        "CORE squad: 35 of 100 options, about 132 s left",  # 71 s for 35
    ]
