"""HumanEval (arXiv 2107.03374): write a function that its header and docstring describe; its tests are run in the sandbox.

Columns: prompt, canonical_solution, entry_point, test. The prompt is the user's message as it stands.
"""

import re
from typing import Any

from nanochat.sandbox import Result, run_tests
from nanochat.tasks.common import Conversation, TableTask, check_text, exchange

CODE_BLOCK = re.compile(r"```(?:python)?[^\S\n]*\n")


class HumanEval(TableTask):
    """evaluate() starts a process for every answer: call it from several threads. `sandbox` is the lowest tier that will do."""

    kind = "generative"
    columns = ("prompt", "canonical_solution", "entry_point", "test")

    def __init__(self, name: str, *, sandbox: str = "closed", **options: Any):
        super().__init__(name, **options)
        self.sandbox = sandbox

    def from_row(self, row: dict[str, Any]) -> Conversation:
        prompt, solution, entry_point, test = (check_text(row[column], column) for column in self.columns)
        return {"messages": exchange(prompt, f"{prompt}\n{solution}"), "entry_point": entry_point, "test": test}

    def evaluate(self, conversation: Conversation, answer: str) -> bool:
        return judge(conversation, answer, sandbox=self.sandbox).passed


def judge(conversation: Conversation, answer: str, *, sandbox: str, at_most: str = "full") -> Result:
    """The answer's function against the tests, which may use what the prompt defines."""
    prompt = conversation["messages"][0]["content"]
    return run_tests(
        make_program(prompt, answer),
        setup=prompt,
        tests=conversation["test"],
        entry_point=conversation["entry_point"],
        tier=sandbox,
        at_most=at_most,
    )


def make_program(prompt: str, answer: str) -> str:
    """The answer's code, behind the imports of the prompt that it may have left out."""
    return "\n\n".join([leading_imports(prompt), find_code(answer)])


def find_code(answer: str) -> str:
    """The first block between ``` marks, or the whole answer if it has none."""
    start = CODE_BLOCK.search(answer)
    end = answer.find("\n```", start.end()) if start else -1  # one regex for both takes the square of the answer's length
    return (answer[start.end() : end] if start and end >= 0 else answer).strip()


def leading_imports(prompt: str) -> str:
    lines = []
    for line in map(str.strip, prompt.splitlines()):
        if line.startswith(("import ", "from ")):
            lines.append(line)
        elif line and not line.startswith("#"):
            break
    return "\n".join(lines)
