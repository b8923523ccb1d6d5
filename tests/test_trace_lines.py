"""The line recorder: which statements it tells, when, with which values; and that it changes nothing."""

import importlib.util
import inspect
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from small_models import PRESETS, random_model

from nanochat import gpt
from nanochat.tracing.lines import Line, LineRecorder, first_sentence, read_source

GPT_FILE = Path(inspect.getsourcefile(gpt) or "")


@pytest.fixture
def watch(tmp_path):
    """Run the function `main` of a source text under a recorder; returns what it returned and the lines."""

    def run(source: str) -> tuple[object, list[Line]]:
        path = tmp_path / "sample.py"
        path.write_text(textwrap.dedent(source))
        spec = importlib.util.spec_from_file_location("sample", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        lines: list[Line] = []
        read_source.cache_clear()  # every test writes the same file anew
        with LineRecorder([path], lines.append):
            result = module.main()
        return result, lines

    return run


def told(lines: list[Line]) -> list[tuple]:
    return [(line.code.split("#")[0].strip(), *line.values.values()) for line in lines]


def test_every_statement_is_told_once_with_what_it_assigned(watch):
    result, lines = watch("""
        def main():
            a = 1
            b, (c, *d) = 2, (3, 4, 5)
            a += 10
            if (e := a + b) > 5:
                c = e
            return a
    """)
    assert result == 11
    assert told(lines) == [
        ("a = 1", 1),
        ("b, (c, *d) = 2, (3, 4, 5)", 2, 3, [4, 5]),
        ("a += 10", 11),
        ("if (e := a + b) > 5:", 13),
        ("c = e", 13),
        ("return a", 11),
    ]
    assert lines[-1].values == {"return": 11}


def test_what_a_statement_calls_comes_before_it_and_lies_deeper(watch):
    _, lines = watch("""
        def inner(x):
            return x + 1

        def main():
            y = inner(1)
    """)
    assert [(line.function, line.depth, line.line) for line in lines] == [("inner", 1, 3), ("main", 0, 6)]
    (caller,) = lines[0].callers
    assert (caller.function, caller.line, caller.number) == ("main", 6, lines[1].call)


def test_each_round_of_a_loop_is_told_anew_and_its_end_is_not(watch):
    _, lines = watch("""
        def main():
            total = 0
            for i in range(2):
                total += i
            while total < 3:
                total += 1
    """)
    assert told(lines) == [
        ("total = 0", 0),
        ("for i in range(2):", 0),
        ("total += i", 0),
        ("for i in range(2):", 1),
        ("total += i", 1),
        ("while total < 3:",),
        ("total += 1", 2),
        ("while total < 3:",),
        ("total += 1", 3),
        ("while total < 3:",),
    ]
    assert [line.taken for line in lines if line.code.startswith("while")] == [True, True, False]


def test_an_endless_loop_of_one_line_is_told_each_round(watch):
    _, lines = watch("""
        def main():
            items = iter([1, 2])
            try:
                while True:
                    x = next(items)
            except StopIteration:
                return x
    """)
    assert [line.values["x"] for line in lines if line.code == "x = next(items)"] == [1, 2]


def test_a_statement_over_several_lines_is_told_once_as_a_whole(watch):
    _, lines = watch("""
        def main():
            x = max(
                1,
                len([n for n in range(3)]),
            )  # (T, C)
            return (
                x
                + 1
            )
    """)
    assert [(line.line, line.end_line) for line in lines] == [(3, 6), (7, 10)]
    assert lines[0].values == {"x": 3}
    assert lines[0].letters == "T, C"
    assert lines[0].code == "x = max(\n    1,\n    len([n for n in range(3)]),\n)  # (T, C)"


def test_comprehensions_are_one_statement_and_their_names_stay_their_own(watch):
    _, lines = watch("""
        def double(x):
            return 2 * x

        def main():
            n = 7
            squares = [double(n) for n in range(2)]
            return squares
    """)
    assert told(lines) == [
        ("n = 7", 7),
        ("return 2 * x", 0),
        ("return 2 * x", 2),
        ("squares = [double(n) for n in range(2)]", [0, 2]),
        ("return squares", [0, 2]),
    ]


def test_a_condition_says_whether_its_lines_run(watch):
    _, lines = watch("""
        def main(flag=False):
            if flag:
                return 1
            elif not flag:
                flag = True
            if not flag:
                return 2
    """)
    assert [line.taken for line in lines] == [False, True, None, False]


def test_names_changed_in_place_count_as_assigned(watch):
    _, lines = watch("""
        import torch

        def main():
            x = torch.zeros(2)
            x.add_(1).mul_(3)
            x.sum()
    """)
    assert lines[1].values["x"].tolist() == [3, 3]
    assert lines[2].values == {}


def test_a_statement_that_an_exception_ends_is_not_told(watch):
    _, lines = watch("""
        def fails():
            raise ValueError

        def main():
            try:
                x = fails()
            except ValueError:
                x = 1
            finally:
                y = 2
    """)
    assert told(lines) == [("x = 1", 1), ("y = 2", 2)]


def test_generators_and_context_managers(watch):
    result, lines = watch("""
        import contextlib

        def count():
            n = 1
            yield n
            n = 2
            yield n

        def main():
            with contextlib.nullcontext(5) as five:
                seen = list(count())
            return seen
    """)
    assert result == [1, 2]
    assert told(lines) == [
        ("with contextlib.nullcontext(5) as five:", 5),
        ("n = 1", 1),
        ("yield n",),
        ("n = 2", 2),
        ("yield n",),
        ("seen = list(count())", [1, 2]),
        ("return seen", [1, 2]),
    ]


def test_methods_bring_their_object_and_their_full_name(watch):
    _, lines = watch("""
        class Box:
            def open(self):
                def peek():
                    return 1
                return peek()

        def main():
            Box().open()
    """)
    assert [line.function for line in lines] == ["Box.open", "Box.open.<locals>.peek", "Box.open", "main"]
    assert type(lines[0].frame_self).__name__ == "Box"


def test_shape_comments_are_read_and_other_comments_are_not(watch):
    _, lines = watch("""
        def main():
            a = 1  # (B, 1)
            b = 2  # (B, V or k), rising to almost 1
            c = 3  # (sic)
            d = 4  # a matrix (B, T)
            e = 5
    """)
    assert [line.letters for line in lines] == ["B, 1", "B, V or k", None, None, None]


def test_only_the_chosen_files_are_watched_and_only_inside_the_block():
    lines: list[Line] = []
    model = random_model()
    with LineRecorder([GPT_FILE], lines.append):
        model(torch.arange(3)[None])
    number = len(lines)
    model(torch.arange(3)[None])
    assert number == len(lines) > 0
    assert {line.file for line in lines} == {GPT_FILE}
    assert all(line.function in read_source(GPT_FILE).functions for line in lines)


def test_the_trace_function_of_before_is_there_again_even_after_an_error():
    def tracer(frame, event, argument):
        return None

    sys.settrace(tracer)
    try:
        with pytest.raises(ValueError, match="from on_line"), LineRecorder([GPT_FILE], lambda line: fail()):
            random_model()(torch.arange(3)[None])
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(None)


def fail():
    raise ValueError("from on_line")


@pytest.mark.parametrize("preset", PRESETS)
def test_recording_changes_no_bit(preset):
    model = random_model(**PRESETS[preset], attention="naive")
    ids = torch.arange(12).view(2, 6)
    plain = model(ids)
    plain.sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with LineRecorder([GPT_FILE], lambda line: None):
        recorded = model(ids)
        recorded.sum().backward()
    assert torch.equal(plain, recorded)
    assert all(torch.equal(one, parameter.grad) for one, parameter in zip(gradients, model.parameters(), strict=True))


def test_the_code_of_a_line_is_what_stands_in_the_file():
    source = read_source(GPT_FILE)
    text = GPT_FILE.read_text().splitlines()
    for function in source.functions.values():
        for statement in function.statements.values():
            stripped = [line.strip() for line in text[statement.line - 1 : statement.end_line]]
            assert [line.strip() for line in statement.code.splitlines()] == stripped


def test_a_function_explains_itself_in_one_sentence():
    functions = read_source(GPT_FILE).functions
    assert functions["MLP.forward"].explanation == "Each token by itself: widen to 4 C, bend, narrow back."  # its class's
    assert functions["rotate"].explanation.startswith("A pair is (i, i + D/2)")  # the comment it opens with
    assert functions["GPT.forward"].explanation == "Token ids (B, T) -> logits (B, T, V) in fp32."
    assert (
        first_sentence("RoPE (arXiv 2104.09864): one angle. Then more.\n\nAnd more.") == "RoPE (arXiv 2104.09864): one angle."
    )
