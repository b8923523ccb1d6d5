"""The terminal chat: what it shows, what it forgets, and what it says when there is no model."""

import subprocess
import sys

import pytest
import torch
from small_models import random_model, small_tokenizer

from nanochat import chat
from nanochat.checkpoint import load_model, save_model
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.manifest import publish

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


def test_without_a_model_the_command_that_makes_one_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert chat.main(["results/tiny/sft", "-p", "hello"]) == 1
    message = capsys.readouterr().err
    assert "results/tiny/sft: no model here" in message
    assert "make demo" in message
    assert "snakemake results/tiny/sft/manifest.json --profile profiles/laptop --configfile config/tiny.yaml" in message


def test_of_another_run_the_command_names_its_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
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
