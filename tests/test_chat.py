"""The terminal chat: what it shows, what it forgets, what it keeps, and what it says when there is no model."""

import fcntl
import json
import os
import pty
import re
import select
import stat
import struct
import subprocess
import sys
import termios
import time

import pytest
import torch
from conftest import REPOSITORY
from small_models import random_model, small_tokenizer

from nanochat import chat
from nanochat.checkpoint import load_model, save_model
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.manifest import publish
from nanochat.messages import check_conversation
from nanochat.terminal import private_file

TOKENIZER = small_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published model folder, as `sft` makes it."""
    path = tmp_path_factory.mktemp("results") / "tiny" / "sft"
    files = save_model(path, random_model(), TOKENIZER)
    publish(path / "manifest.json", specification={}, inputs={}, files=files, results={}, record={})
    return path


def new_chat(**options):
    return chat.Chat(
        Engine(random_model(), TOKENIZER), **{"temperature": 0.0, "top_k": 50, "max_tokens": 8, "seed": 0, **options}
    )


def typed(monkeypatch, *lines):
    """What a person types; at the end of the lines, Ctrl-D."""
    waiting = iter(lines)

    def read(prompt=""):
        line = next(waiting, EOFError)
        if isinstance(line, type):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)


# -- from the command line ---------------------------------------------------------------------------------------------------


def test_one_prompt_gets_one_answer_on_stdout(folder, capsys):
    arguments = [str(folder), "-p", "hello", "--max-tokens", "8", "--device", "cpu"]
    assert chat.main([*arguments, "--temperature", "0"]) == 0
    out = capsys.readouterr().out
    engine = Engine(*load_model(folder))
    prompt = TOKENIZER.render_prompt({"messages": [{"role": "user", "content": "hello"}]})
    screen = chat.Screen(TOKENIZER)
    (tokens,) = engine.generate_batch([prompt], max_new_tokens=8)
    assert out == "".join(screen.show(token) for token in tokens) + screen.flush() + "\n"


def test_the_same_seed_gives_the_same_answer(folder, capsys):
    def answer(seed):
        chat.main([str(folder), "-p", "hello", "--max-tokens", "20", "--temperature", "1", "--seed", seed, "--device", "cpu"])
        return capsys.readouterr().out

    assert answer("1") == answer("1") != answer("2")


def test_a_conversation_goes_on_until_quit(folder, capsys, monkeypatch):
    typed(monkeypatch, "hello", "", "/help", "/clear", "hello", "/quit", "never read")
    assert chat.main([str(folder), "--temperature", "0", "--max-tokens", "8", "--device", "cpu"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second  # /clear forgot the first


@pytest.mark.parametrize("ending", [EOFError, KeyboardInterrupt])
def test_ctrl_d_and_ctrl_c_at_the_prompt_leave(folder, monkeypatch, ending):
    typed(monkeypatch, ending)
    assert chat.main([str(folder), "--device", "cpu"]) == 0


def test_ctrl_c_stops_an_answer_and_not_the_chat(monkeypatch, capsys):
    talk = new_chat()
    stream = talk.engine.stream

    def interrupted(*arguments, **options):
        for number, token in enumerate(stream(*arguments, **options)):
            if number == 3:
                raise KeyboardInterrupt
            yield token

    monkeypatch.setattr(talk.engine, "stream", interrupted)
    typed(monkeypatch, "hello")
    chat.converse(talk)
    assert "(stopped)" in capsys.readouterr().err
    ((*_, end),) = talk.turns
    assert end == TOKENIZER.special_id("<|assistant_end|>")
    question = TOKENIZER.render_prompt({"messages": [{"role": "user", "content": "hello"}]})[1:]
    assert len(talk.turns[0]) == len(question) + 3 + 1


# -- no model ----------------------------------------------------------------------------------------------------------------


def enter_project(folder, monkeypatch):
    (folder / "Snakefile").touch()
    monkeypatch.chdir(folder)


def test_in_another_folder_than_the_projects_that_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert chat.main(["results/tiny/sft"]) == 1
    message = capsys.readouterr().err
    assert f"{tmp_path} is not the project's folder: it has no Snakefile" in message and "make demo" not in message


def test_a_misspelt_run_is_taken_for_the_one_that_is_there(tmp_path, monkeypatch, capsys):
    enter_project(tmp_path, monkeypatch)
    for name in ("sft/model.safetensors", "sft/manifest.json", "mid_train/model.safetensors"):
        (tmp_path / "results/tiny" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "results/tiny" / name).touch()
    chat.main(["results/tyny/sft"])
    message = capsys.readouterr().err
    assert "Did you mean results/tiny/sft?" in message
    assert "Models that are here: results/tiny/sft\n" in message, "mid_train has no manifest: it is to be made again"


def test_without_a_model_the_command_that_makes_one_is_told(tmp_path, monkeypatch, capsys):
    enter_project(tmp_path, monkeypatch)
    assert chat.main(["results/tiny/sft", "-p", "hello"]) == 1
    message = capsys.readouterr().err
    assert "results/tiny/sft: no model here" in message
    assert "make demo" in message
    assert "snakemake results/tiny/sft/manifest.json --profile profiles/laptop --configfile config/tiny.yaml" in message


def test_of_another_run_the_command_names_its_configuration(tmp_path, monkeypatch, capsys):
    enter_project(tmp_path, monkeypatch)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "small.yaml").touch()
    chat.main(["results/small/sft"])
    message = capsys.readouterr().err
    assert (
        "Make it with:  snakemake results/small/sft/manifest.json --profile profiles/laptop --configfile config/small.yaml"
        in message
    )
    chat.main(["results/d20/sft"])
    assert "snakemake results/d20/sft/manifest.json --profile profiles/laptop" in capsys.readouterr().err


def test_models_that_are_there_are_named(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent.parent.parent)
    results = folder.parent.parent
    results = results.rename(results.parent / "results")
    try:
        chat.main(["results/tiny/mid_train"])
        assert "Models that are here: results/tiny/sft" in capsys.readouterr().err
        chat.main(["results/tiny"])
        assert "Models inside it: results/tiny/sft" in capsys.readouterr().err
    finally:
        results.rename(folder.parent.parent)


def test_a_damaged_model_is_refused(tmp_path, capsys):
    files = save_model(tmp_path, random_model(), TOKENIZER)
    publish(tmp_path / "manifest.json", specification={}, inputs={}, files=files, results={}, record={})
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert chat.main([str(tmp_path), "-p", "hello", "--device", "cpu"]) == 1
    assert "sha256 differs" in capsys.readouterr().err


def test_a_wrong_path_is_told_before_pytorch_is_loaded():
    call = "status = nanochat.chat.main(['nowhere/sft'])"
    code = f"import sys, nanochat.chat; {call}; assert 'torch' not in sys.modules; sys.exit(status)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("nowhere/sft: no model here")


# -- what is shown -----------------------------------------------------------------------------------------------------------


def shown(*parts):
    """Bytes and special tokens, one token a byte, as the screen shows them piece by piece."""
    screen = chat.Screen(TOKENIZER)
    pieces = []
    for part in parts:
        ids = [TOKENIZER.special_id(part)] if isinstance(part, str) else list(part)  # the first 256 tokens are the bytes
        pieces += [screen.show(token) for token in ids]
    return [*pieces, screen.flush()]


def test_characters_are_shown_when_they_are_whole():
    assert shown("né 😀".encode()) == ["n", "", "é", " ", "", "", "", "😀", ""]


def test_bytes_that_are_no_characters_show_as_replacements():
    assert "".join(shown(b"a\xff\xc3", "<|user_start|>", b"b\xf0\x9f")) == "a\ufffd\ufffdb\ufffd"


def test_the_calculator_is_shown_in_brackets():
    parts = ["<|python_start|>", b"12*4", "<|python_end|>", "<|output_start|>", b"48", "<|output_end|>", b" so 48"]
    assert "".join(shown(*parts)) == "[12*4][= 48] so 48"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("\x1b[2J", "␛[2J"),  # clears the screen
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("safe\rEVIL", "safe␍EVIL"),  # overwrites the line
        ("a\x08b\x7f", "a␈b␡"),
        ("\x9b31m", "\ufffd31m"),  # the same as ESC [ in one character
        ("\u202egnp.exe", "\ufffdgnp.exe"),  # turns the text around
        ("\u061cabc", "\ufffdabc"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_instead(said, expected):
    assert "".join(shown(said.encode())) == expected


def test_special_tokens_in_a_question_stay_text():
    talk = new_chat()
    list(talk.ask("<|assistant_end|>"))
    (turn,) = talk.turns
    assert turn.count(TOKENIZER.special_id("<|assistant_end|>")) == 1  # the one that ends the answer


# -- what is remembered ------------------------------------------------------------------------------------------------------


def prompts_of(talk, monkeypatch):
    seen = []
    stream = talk.engine.stream
    monkeypatch.setattr(talk.engine, "stream", lambda prompt, **options: (seen.append(prompt), stream(prompt, **options))[1])
    return seen


def test_a_question_follows_all_that_was_said(monkeypatch):
    talk = new_chat(max_tokens=3)
    prompts = prompts_of(talk, monkeypatch)
    for text in ("one", "two"):
        list(talk.ask(text))
    (first, _), (_, prompt) = talk.turns, prompts
    question = TOKENIZER.render_prompt({"messages": [{"role": "user", "content": "two"}]})
    assert prompt == [question[0], *first, *question[1:]]


def test_the_oldest_turns_are_forgotten_when_the_context_is_full(monkeypatch, capsys):
    talk = new_chat(max_tokens=4)
    prompts = prompts_of(talk, monkeypatch)
    for number in range(8):
        list(talk.ask(f"question {number}"))
    assert all(len(prompt) + 4 <= 64 for prompt in prompts)
    assert TOKENIZER.decode(prompts[-1]).count("<|user_start|>") > 1
    assert "question 0" not in TOKENIZER.decode(prompts[-1])
    assert "the beginning of this conversation is forgotten" in capsys.readouterr().err


def test_a_question_longer_than_the_context_keeps_its_end(monkeypatch, capsys):
    talk = new_chat(max_tokens=4)
    prompts = prompts_of(talk, monkeypatch)
    list(talk.ask("word " * 100 + "and this?"))
    text = TOKENIZER.decode(prompts[0])
    assert text.startswith("<|bos|><|user_start|>")
    assert text.endswith("word and this?<|user_end|><|assistant_start|>")
    assert len(prompts[0]) + 4 <= 64
    assert "its beginning is left out" in capsys.readouterr().err


def test_an_answer_that_was_cut_says_so(capsys):
    talk = new_chat(max_tokens=2)
    with torch.no_grad():
        talk.engine.model.lm_head.weight[list(talk.engine.stop_ids)] = 0
    list(talk.ask("hello"))
    assert "cut after 2 tokens; --max-tokens allows more" in capsys.readouterr().err


def test_an_empty_question_is_an_error():
    with pytest.raises(UserError, match="no question"):
        next(new_chat().ask("  "))


# -- commands ----------------------------------------------------------------------------------------------------------------


def said_by(talk, text):
    return "".join(chat.obey(talk, text) or [])


def test_reset_and_clear_forget_everything():
    for command in ("/reset", "/clear"):
        talk = new_chat()
        first = said_by(talk, "hello")
        said_by(talk, "more")
        said_by(talk, command)
        assert (talk.turns, talk.messages, talk.num_asked) == ([], [], 0)
        assert said_by(talk, "hello") == first


def test_settings_change_and_are_told(capsys):
    talk = new_chat()
    for line in ("/temperature 1.5", "/top-k 7", "/max-tokens 3", "/seed 11", "/seed"):
        assert said_by(talk, line) == ""
    assert (talk.temperature, talk.top_k, talk.max_tokens, talk.seed) == (1.5, 7, 3, 11)
    told = capsys.readouterr().err.splitlines()
    assert told == ["(temperature is 1.5)", "(top-k is 7)", "(max-tokens is 3)", "(seed is 11)", "(seed is 11)"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("/temperature hot", "temperature must be 0, or a number from 0.01 to 10, found 'hot'"),
        ("/temperature nan", "temperature must be"),
        ("/temperature -1", "temperature must be"),
        ("/top-k 1.5", "top_k must be a whole number from 0"),
        ("/max-tokens 0", "max_tokens must be a whole number from 1 to 4,096"),
        ("/seed x", "seed must be"),
        ("/temp 1", "/temp is no command. Did you mean /temperature?"),
        ("/rest", "Did you mean /reset?"),
        ("/etc/passwd", "/help lists the commands. To say something that begins with a /, begin with //"),
        ("/save", "ends in .md or .json"),
        ("/save talk.txt", "ends in .md or .json"),
        ("/save talk.md", "nothing was said yet"),
        ("/regenerate", "there is no answer yet"),
    ],
)
def test_a_wrong_command_is_told_and_changes_nothing(folder, monkeypatch, capsys, line, problem):
    talk = new_chat()
    before = chat.settings(talk)
    typed(monkeypatch, line, "/seed")
    chat.converse(talk)  # which goes on
    told = capsys.readouterr().err
    assert problem in told and told.endswith("(seed is 0)\n")
    assert chat.settings(talk) == before


def test_wrong_options_are_told_with_their_range(folder, capsys):
    with pytest.raises(SystemExit):
        chat.main([str(folder), "--temperature", "nan"])
    assert "temperature must be 0, or a number from 0.01 to 10, found 'nan'" in capsys.readouterr().err


def test_two_slashes_say_one(monkeypatch):
    talk = new_chat()
    said_by(talk, "//help")
    assert talk.messages[0]["content"] == "/help"


def test_a_regenerated_answer_replaces_the_last_one(monkeypatch):
    talk = new_chat(temperature=1.0, max_tokens=12)
    said_by(talk, "one")
    first = said_by(talk, "two")
    prompts = prompts_of(talk, monkeypatch)
    others = {said_by(talk, "/regenerate") for _ in range(3)}
    assert len(others | {first}) == 4
    assert prompts[0] == prompts[1] == prompts[2]
    assert len(talk.turns) == 2 and [m["content"] for m in talk.messages[::2]] == ["one", "two"]
    again = new_chat(temperature=1.0, max_tokens=12)
    said_by(again, "one")
    assert said_by(again, "two") == first  # and everything follows from the seed
    assert {said_by(again, "/regenerate") for _ in range(3)} == others


def test_at_temperature_zero_regenerating_says_why_nothing_changes(capsys):
    talk = new_chat()
    assert said_by(talk, "one") == said_by(talk, "/regenerate")
    assert "at temperature 0 there is only one answer" in capsys.readouterr().err


def test_a_base_model_continues_the_text(monkeypatch):
    talk = new_chat(continues=True)
    prompts = prompts_of(talk, monkeypatch)
    said_by(talk, "Once upon")
    said_by(talk, " a time")
    assert prompts[0] == TOKENIZER.encode("Once upon", bos=True)
    assert prompts[1][: len(prompts[0])] == prompts[0] and prompts[1][-len(TOKENIZER.encode(" a time")) :] == TOKENIZER.encode(
        " a time"
    )


# -- keeping it --------------------------------------------------------------------------------------------------------------


def scripted(talk, monkeypatch, *parts):
    ids = [i for part in parts for i in ([TOKENIZER.special_id(part)] if part.startswith("<|") else TOKENIZER.encode(part))]
    monkeypatch.setattr(talk.engine, "stream", lambda prompt, **options: iter(ids))


CALCULATED = ("It is ", "<|python_start|>", "12*4", "<|python_end|>", "<|output_start|>", "48", "<|output_end|>", "48.")


def test_a_saved_conversation_is_the_project_s_own_form(tmp_path, monkeypatch, capsys):
    talk = new_chat(max_tokens=60)
    scripted(talk, monkeypatch, *CALCULATED)
    assert said_by(talk, "12 times 4?") == "It is [12*4][= 48]48."
    said_by(talk, f"/save {tmp_path}/talk.json")
    assert "saved" in capsys.readouterr().err
    content = json.loads((tmp_path / "talk.json").read_text())
    assert check_conversation(content)[1][1] == [
        ("text", "It is "),
        ("python", "12*4"),
        ("python_output", "48"),
        ("text", "48."),
    ]
    assert content["settings"]["max_tokens"] == 60
    ids, _ = TOKENIZER.render_conversation(content)
    assert ids == [TOKENIZER.bos_id, *talk.turns[0]]


def test_a_conversation_saved_as_markdown_holds_only_text(tmp_path, monkeypatch):
    talk = new_chat(max_tokens=200)
    scripted(talk, monkeypatch, "```\n<script>alert(1)</script>\n# no heading\x1b[2J")
    said_by(talk, "**hello**")
    said_by(talk, f"/save {tmp_path}/talk.md")
    text = (tmp_path / "talk.md").read_text()
    assert text == (
        "# Conversation with model\n\n"
        "Settings at the end: temperature 0.0, top-k 50, max-tokens 200, seed 0.\n\n"
        "## You\n\n```text\n**hello**\n```\n\n"
        "## Model\n\n````text\n```\n<script>alert(1)</script>\n# no heading␛[2J\n````\n"
    )


def test_a_file_is_replaced_only_when_asked_for(tmp_path, monkeypatch, capsys):
    talk = new_chat()
    said_by(talk, "hello")
    path = tmp_path / "talk.md"
    path.write_text("mine")
    capsys.readouterr()
    typed(monkeypatch, f"/save {path}", f"/save --replace {path}")
    chat.converse(talk)
    refused, replaced = capsys.readouterr().err.splitlines()
    assert "is there already and was left as it is" in refused and f"/save --replace {path}" in refused
    assert replaced == f"(replaced {path}: 2 messages)"
    assert path.read_text().startswith("# Conversation")


def test_a_place_that_cannot_be_written_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    talk = new_chat()
    said_by(talk, "hello")
    typed(monkeypatch, f"/save {tmp_path}/file/talk.md")
    chat.converse(talk)
    assert "cannot be written" in capsys.readouterr().err


def test_an_answer_that_was_stopped_is_kept_as_far_as_it_went(monkeypatch):
    talk = new_chat(max_tokens=60)
    scripted(talk, monkeypatch, "one two three")
    pieces = talk.ask("count")
    shown = next(pieces) + next(pieces)
    pieces.close()
    assert [m["content"] for m in talk.messages] == ["count", shown]


# -- a real terminal ---------------------------------------------------------------------------------------------------------

UP, ALT_ENTER, CTRL_C, CTRL_D = "\x1b[A", "\x1b\r", "\x03", "\x04"


class Terminal:
    """The program in a terminal of its own, and what a person would see there."""

    def __init__(self, *arguments, cwd):
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "PYTHONPATH": str(REPOSITORY)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nanochat.chat", *map(str, arguments), "--device", "cpu"],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, cwd=cwd, env=environment,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""
        self.place = 0

    def wait_for(self, text):
        """Until the text is on the screen, behind what was waited for before."""
        deadline = time.monotonic() + 60
        while text not in self.seen[self.place :]:
            assert time.monotonic() < deadline, f"{text!r} did not come:\n{self.seen[self.place :]}"
            if select.select([self.ours], [], [], 0.1)[0]:
                try:
                    self.seen += re.sub(r"\x1b(\[[?\d;]*[A-Za-z]|[=>])", "", os.read(self.ours, 65536).decode(errors="replace"))
                except OSError:
                    assert text in self.seen[self.place :], f"it ended:\n{self.seen[self.place :]}"
        self.place = self.seen.index(text, self.place) + len(text)

    def type(self, text):
        os.write(self.ours, text.encode())

    def say(self, text, then):
        """A line, what comes after it, and the next prompt: only from there on is what is typed read key by key."""
        self.type(text + "\r")
        self.wait_for(then)
        self.wait_for("you:")

    def end(self):
        code = self.process.wait(timeout=60)
        os.close(self.ours)
        return code


@pytest.fixture
def terminal(folder, tmp_path):
    opened = []

    def start(*options):
        opened.append(Terminal(folder, "--temperature", "0", "--max-tokens", "6", *options, cwd=tmp_path))
        opened[-1].wait_for("/help lists the commands")
        opened[-1].wait_for("you:")
        return opened[-1]

    yield start
    for made in opened:
        if made.process.poll() is None:
            made.process.kill()
            made.process.wait()


def saved_questions(path):
    return [message["content"] for message in json.loads(path.read_text())["messages"][::2]]


def test_a_person_at_a_terminal(terminal, tmp_path):
    screen = terminal()
    screen.type(f"one{ALT_ENTER}two")
    screen.say("", "model:")
    screen.type("three\\\r")
    screen.say("four", "model:")
    screen.say("/temperature 0.5", "(temperature is 0.5)")
    screen.say("/tmperature", "Did you mean /temperature?")
    screen.say("/help", "Alt+Enter")
    for _ in range(4):  # past the commands, to the second line of the message before them
        screen.type(UP)
    screen.say("", "model:")
    screen.say("/save talk.json", "saved talk.json")
    assert saved_questions(tmp_path / "talk.json") == ["one\ntwo", "three\nfour", "three\nfour"]
    screen.type(CTRL_D)
    assert screen.end() == 0
    assert "Traceback" not in screen.seen


def test_ctrl_c_empties_the_line_and_leaves_the_empty_one(terminal):
    screen = terminal()
    screen.type("a mistake" + CTRL_C)
    screen.say("/seed", "(seed is 0)")  # not "a mistake/seed"
    screen.type(CTRL_C)
    assert screen.end() == 0
    assert "Traceback" not in screen.seen


def test_pasted_lines_are_one_message(terminal, tmp_path):
    screen = terminal()
    screen.type("\x1b[200~first\nsecond\x1b[201~")
    screen.say("", "model:")
    screen.say("/save talk.json", "saved")
    assert saved_questions(tmp_path / "talk.json") == ["first\nsecond"]


def test_history_is_kept_only_in_a_private_file_that_was_asked_for(terminal, tmp_path):
    screen = terminal("--history", "history")
    screen.say("remember me", "model:")
    screen.type("/quit\r")
    assert screen.end() == 0
    assert stat.S_IMODE((tmp_path / "history").stat().st_mode) == 0o600
    screen = terminal("--history", "history")
    screen.type(UP + UP)
    screen.say("", "model:")
    screen.say("/save talk.json", "saved")
    assert saved_questions(tmp_path / "talk.json") == ["remember me"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history", "talk.json"]


def test_a_history_that_is_somebody_s_file_is_refused(tmp_path):
    mine = tmp_path / "notes.md"
    mine.write_text("my notes")
    with pytest.raises(UserError, match="holds something else than a history"):
        private_file(mine)
    with pytest.raises(UserError, match="cannot be used as history"):
        private_file(tmp_path)
    assert mine.read_text() == "my notes"
    old = tmp_path / "old"
    old.write_text("\n# 2026-01-01\n+hello\n")
    old.chmod(0o644)
    assert stat.S_IMODE(private_file(old).stat().st_mode) == 0o600


def test_from_a_pipe_every_line_is_a_message(folder, tmp_path):
    lines = "one\\\ntwo\n/save talk.json\nthree\n"
    command = [sys.executable, "-m", "nanochat.chat", str(folder), "--temperature", "0", "--max-tokens", "4", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(command, input=lines, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert run.returncode == 0 and "Traceback" not in run.stderr
    assert saved_questions(tmp_path / "talk.json") == ["one\ntwo"]
    assert "you:" not in run.stdout and "model:" not in run.stdout
    assert "\x1b" not in run.stdout
