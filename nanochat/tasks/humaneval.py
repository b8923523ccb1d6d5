"""HumanEval (arXiv 2107.03374): write a function that its header and docstring describe; its tests are run in the sandbox.

Columns: prompt, canonical_solution, entry_point, test. The prompt is the user's message as it stands.
"""

import re
from typing import Any

from nanochat.sandbox import run_program
from nanochat.tasks.common import Conversation, TableTask, check_text, exchange

CODE_BLOCK = re.compile(r"```(?:python)?[^\S\n]*\n")


class HumanEval(TableTask):
    """evaluate() starts a process for every answer: call it from several threads."""

    kind = "generative"
    columns = ("prompt", "canonical_solution", "entry_point", "test")

    def from_row(self, row: dict[str, Any]) -> Conversation:
        prompt, solution, entry_point, test = (check_text(row[column], column) for column in self.columns)
        return {"messages": exchange(prompt, f"{prompt}\n{solution}"), "entry_point": entry_point, "test": test}

    def evaluate(self, conversation: Conversation, answer: str) -> bool:
        return run_program(make_program(conversation, answer)).passed


def make_program(conversation: Conversation, answer: str) -> str:
    """The answer's code, behind the imports of the prompt that it may have left out, and before the tests."""
    imports = leading_imports(conversation["messages"][0]["content"])
    call = f"check({conversation['entry_point']})"
    return "\n\n".join([imports, find_code(answer), conversation["test"], call])


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
