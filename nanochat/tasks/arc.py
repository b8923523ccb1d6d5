"""ARC (arXiv 1803.05457): science questions of school tests, easy and challenging, mostly with four choices.

Columns: question, choices {text, label}, answerKey. Labels are letters, in some old tests the figures 1 to 4.
"""

from typing import Any

from nanochat.tasks.common import ChoiceTask, Conversation, check_text, multiple_choice


class ARC(ChoiceTask):
    columns = ("question", "choices", "answerKey")

    def from_row(self, row: dict[str, Any]) -> Conversation:
        question = check_text(row["question"], "question")
        match row["choices"]:
            case {"text": [_, *_] as texts, "label": list(letters)} if len(texts) == len(letters):
                return multiple_choice(question, texts, letters, row["answerKey"])
        raise ValueError("choices must hold as many texts as labels")
