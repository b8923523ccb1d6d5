"""MMLU (arXiv 2009.03300): questions of 57 subjects with four choices, and a larger set to train on (split auxiliary_train).

Columns: question, choices (a list), answer (its index), subject.
"""

from string import ascii_uppercase
from typing import Any

from nanochat.tasks.common import ChoiceTask, Conversation, check_text, multiple_choice
from nanochat.text import shown


class MMLU(ChoiceTask):
    columns = ("question", "choices", "answer", "subject")

    def from_row(self, row: dict[str, Any]) -> Conversation:
        question = check_text(row["question"], "question")
        match row["choices"], row["answer"]:
            case list(choices), int(answer) if 0 <= answer < len(choices) <= len(ascii_uppercase) and answer is not True:
                letters = ascii_uppercase[: len(choices)]
                return {**multiple_choice(question, choices, letters, letters[answer]), "subject": row["subject"]}
        raise ValueError(f"answer must be the index of one of the choices, found {shown(row['answer'])}")
