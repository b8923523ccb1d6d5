"""GSM8K (arXiv 2110.14168): word problems of primary school, solved with a calculator.

Columns: question, answer. An answer calls the calculator as <<48/2=24>> and ends with the result: "#### 72".
"""

import re
from typing import Any

from nanochat.tasks.common import Conversation, TableTask, check_text, exchange, same_final_number

# without `<` inside a call: no call of the data has one, and a text of many `<` and no `>` would take its length squared
CALL = re.compile(r"<<([^<>]+)>>")


class GSM8K(TableTask):
    kind = "generative"
    columns = ("question", "answer")

    def from_row(self, row: dict[str, Any]) -> Conversation:
        parts = answer_parts(check_text(row["answer"], "answer"))
        return {"messages": exchange(check_text(row["question"], "question"), parts)}

    def evaluate(self, conversation: Conversation, answer: str) -> bool:
        """Numbers are compared, not texts: 1,000 is 1000 and 5.0 is 5."""
        return same_final_number(conversation, answer)


def answer_parts(answer: str) -> list[dict[str, str]]:
    """ "He had 2*3=<<2*3=6>>6."  ->  text "He had 2*3=", python "2*3", python_output "6", text "6.\""""
    parts = []
    for i, piece in enumerate(CALL.split(answer)):
        if i % 2 == 0:
            parts.append({"type": "text", "text": piece})
        else:
            expression, _, result = piece.rpartition("=") if "=" in piece else (piece, "", "")
            parts.append({"type": "python", "text": expression})
            parts.append({"type": "python_output", "text": result})
    return [part for part in parts if part["text"] or part["type"] == "python_output"]
