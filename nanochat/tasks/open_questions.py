"""Questions with a short known answer among known candidates, asked openly: no choices are shown, the model writes freely.

Columns: question, answer, candidates (a list of texts). A reply is right if it names the answer and no other candidate.
"""

import re
from collections.abc import Sequence
from typing import Any

from nanochat.tasks.common import Conversation, TableTask, check_text, exchange


class OpenQuestions(TableTask):
    kind = "generative"
    columns = ("question", "answer", "candidates")

    def from_row(self, row: dict[str, Any]) -> Conversation:
        answer = check_text(row["answer"], "answer")
        if not words(answer):
            raise ValueError("the answer has no words")
        if not isinstance(row["candidates"], list | None):
            raise ValueError(f"candidates must be a list of texts, found {type(row['candidates']).__name__}")
        candidates = [check_text(candidate, "a candidate") for candidate in row["candidates"] or []]
        return {"messages": exchange(check_text(row["question"], "question"), answer), "candidates": candidates}

    def evaluate(self, conversation: Conversation, answer: str) -> bool:
        wanted = conversation["messages"][-1]["content"]
        return mentioned(answer, [wanted, *conversation["candidates"]]) == {words(wanted)}


def mentioned(reply: str, candidates: Sequence[str]) -> set[str]:
    """The candidates that occur in the reply as whole words, whatever their case and spacing.

    The longest wins where they overlap: "New York" is not a mention of "York".
    """
    known = sorted({words(candidate) for candidate in candidates} - {""}, key=len, reverse=True)
    pattern = "|".join(rf"(?<!\w){re.escape(candidate)}(?!\w)" for candidate in known)
    return set(re.findall(pattern, words(reply))) if known else set()


def words(text: str) -> str:
    return " ".join(text.casefold().split())
