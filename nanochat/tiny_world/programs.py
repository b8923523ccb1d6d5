"""Eight trivial functions in the columns of HumanEval, so that the code that runs a model's programs runs."""

# (name, arguments, what it does, one example, its result, the expression, further cases)
FUNCTIONS = [
    ("add", "a, b", "Return the sum of a and b.", "add(2, 3)", 5, "a + b", ["add(0, 0) == 0", "add(-4, 1) == -3"]),
    ("subtract", "a, b", "Return a minus b.", "subtract(7, 3)", 4, "a - b", ["subtract(1, 5) == -4"]),
    ("double", "x", "Return twice x.", "double(4)", 8, "2 * x", ["double(0) == 0", "double(-3) == -6"]),
    ("larger", "a, b", "Return the larger number.", "larger(2, 9)", 9, "max(a, b)", ["larger(5, 1) == 5"]),
    ("is_even", "n", "Return whether n is even.", "is_even(4)", True, "n % 2 == 0", ["is_even(7) is False"]),
    ("first_letter", "word", "Return the first letter.", "first_letter('cat')", "c", "word[0]",
     ["first_letter('dog') == 'd'"]),
    ("reverse", "word", "Return the word backwards.", "reverse('abc')", "cba", "word[::-1]", ["reverse('') == ''"]),
    ("count_letter", "word, letter", "Count a letter.", "count_letter('egg', 'g')", 2, "word.count(letter)",
     ["count_letter('cat', 'x') == 0"]),
]  # fmt: skip


def humaneval() -> list[dict]:
    """{"task_id", "prompt", "canonical_solution", "test", "entry_point"}; every solution passes its test."""
    rows = []
    for i, (name, arguments, purpose, example, result, expression, cases) in enumerate(FUNCTIONS):
        checks = [f"{example} == {result!r}", *cases]
        rows.append(
            {
                "task_id": f"TinyWorld/{i}",
                "prompt": f'def {name}({arguments}):\n    """{purpose}\n    >>> {example}\n    {result!r}\n    """\n',
                "canonical_solution": f"    return {expression}\n",
                "test": "def check(candidate):\n"
                + "".join(f"    assert {case.replace(name + '(', 'candidate(', 1)}\n" for case in checks),
                "entry_point": name,
            }
        )
    return rows
