"""SmolTalk (arXiv 2502.02737), the selection for small models: general conversations, some with a system message.

Column: messages, a list of {role, content}. Only to train on; its loss is the validation of mid_train and sft.
"""

from typing import Any

from nanochat.tasks.common import Conversation, TableTask, check_messages


class SmolTalk(TableTask):
    columns = ("messages",)

    def from_row(self, row: dict[str, Any]) -> Conversation:
        return {"messages": check_messages(row["messages"])}
