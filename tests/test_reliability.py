"""The scoreboard: what it says is what was found, and nothing that is broken looks whole."""

import sys
import types

import pytest
from torture import __main__ as torture
from torture import scoreboard
from torture.board import Row, row


def test_a_promise_holds_without_failures_and_a_control_with_them():
    assert row("kills", "a", [None, None]).holds and not row("kills", "a", [None, "other bits"]).holds
    assert not row("kills", "a", []).holds, "nothing tried is nothing shown"
    assert row("kills", "a", [None, "other bits"], is_control=True).holds
    assert not row("kills", "a", [None, None], is_control=True).holds


def test_the_table_of_the_page_is_that_of_the_json_file():
    page = scoreboard.PAGE.read_text()
    assert scoreboard.with_table(page, scoreboard.read()) == page, "make torture WRITE=1 writes both"


def test_every_part_is_on_the_board_with_promises_that_hold_and_a_control_that_was_noticed():
    board = scoreboard.read()
    assert {entry["part"] for entry in board} == set(torture.PARTS)
    for part in torture.PARTS:
        entries = [entry for entry in board if entry["part"] == part]
        assert {entry["is_control"] for entry in entries} == {True, False}, part
    assert [entry["promise"] for entry in board if not entry["holds"]] == []


@pytest.mark.parametrize(("failures", "code"), [([None], 0), (["other bits"], 1)])
def test_a_broken_promise_ends_in_exit_code_1_and_keeps_its_folder(monkeypatch, capsys, tmp_path, failures, code):
    part = types.ModuleType("torture.broken")
    part.rows = lambda size, seed, folder, say: [row("broken", "nothing breaks", failures)]
    monkeypatch.setitem(sys.modules, "torture.broken", part)
    monkeypatch.setattr(torture, "PARTS", {"broken": "for this test"})
    monkeypatch.setattr(sys, "argv", ["torture", "broken", "--size", "1"])
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(SystemExit) as ended:
        torture.main()
    assert ended.value.code == code and len(list(tmp_path.iterdir())) == code
    assert ("does not hold" in capsys.readouterr().out) == bool(code)


def test_a_part_that_ends_in_an_error_is_a_broken_promise(monkeypatch, tmp_path):
    part = types.ModuleType("torture.broken")
    part.rows = lambda size, seed, folder, say: 1 / 0
    monkeypatch.setitem(sys.modules, "torture.broken", part)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (found,) = torture.run("broken", types.SimpleNamespace(size=1, seed=1))
    assert not found["holds"] and "ZeroDivisionError" in found["examples"][0]


def test_rows_of_other_parts_stay_when_one_part_is_written(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{scoreboard.BEGIN}\nold\n{scoreboard.END}\nafter\n")
    monkeypatch.setattr(scoreboard, "PAGE", page)
    monkeypatch.setattr(scoreboard, "BOARD", tmp_path / "board.json")

    def entry(part, promise):
        return scoreboard.entry(Row(part, promise, 3, 0), size=3, seed=1, seconds=1.0)

    scoreboard.write([entry("stamps", "second"), entry("kills", "first")])
    scoreboard.write([entry("kills", "third | with a bar")])
    assert [found["promise"] for found in scoreboard.read()] == ["third | with a bar", "second"], "in the order of the parts"
    assert page.read_text().startswith("before\n") and page.read_text().endswith("after\n")
    assert "| third \\| with a bar | 3 | 0 |" in page.read_text() and "first" not in page.read_text()
