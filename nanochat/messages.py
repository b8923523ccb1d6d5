"""The form of a conversation, and the check that one has it.

    {"messages": [{"role": "system",    "content": "Be brief."},          at most one, and first
                  {"role": "user",      "content": "2+2?"},
                  {"role": "assistant", "content": "4"}, ...]}            user and assistant alternate

An assistant's content may also be a list of parts: {"type": "text" | "python" | "python_output", "text": "..."}.
"""

from collections.abc import Mapping
from typing import Any

from nanochat.errors import UserError
from nanochat.text import shown

Conversation = Mapping[str, Any]
Turn = tuple[str, list[tuple[str, str]]]  # role, [(kind of part, text), ...]


def check_conversation(conversation: Conversation) -> list[Turn]:
    """The turns of a conversation, user and assistant alternating, the system message merged into the first.

    UserError names the message, and the part of it, that is wrong.
    """
    messages = conversation.get("messages") if isinstance(conversation, Mapping) else None
    if not isinstance(messages, list) or not messages:
        raise UserError('conversation: "messages" must be a list with at least one message')
    system, first = "", 0
    if _role(messages[0]) == "system":
        system, first = _text(messages[0], 0) + "\n\n", 1
        if len(messages) == 1:
            raise UserError("conversation: message 0 is from the system and no user message follows it")
    turns: list[Turn] = []
    for index in range(first, len(messages)):
        expected = "user" if (index - first) % 2 == 0 else "assistant"
        if _role(messages[index]) != expected:
            found = f"the role {shown(_role(messages[index]))}" if isinstance(messages[index], Mapping) else "no message"
            raise UserError(
                f"conversation: message {index} has {found}, expected {expected!r} (user and assistant alternate, user "
                "first; one system message may come before)"
            )
        if expected == "user":
            turns.append((expected, [("text", system + _text(messages[index], index))]))
            system = ""
        else:
            turns.append((expected, _parts(messages[index], index)))
    return turns


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def _text(message: Conversation, index: int) -> str:
    content = message.get("content")
    if not isinstance(content, str):
        raise UserError(f"conversation: the content of message {index} must be a text, found {type(content).__name__}")
    return content


def _parts(message: Conversation, index: int) -> list[tuple[str, str]]:
    """The parts of an assistant message: one text, or a list of text, python and python_output parts."""
    content = message.get("content")
    if not isinstance(content, list):
        return [("text", _text(message, index))]
    parts = []
    for number, part in enumerate(content):
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, Mapping) else (None, None)
        if kind not in ("text", "python", "python_output") or not isinstance(text, str):
            raise UserError(
                f'conversation: part {number} of message {index} must be {{"type": "text" | "python" | '
                f'"python_output", "text": "..."}}, found {shown(part)}'
            )
        parts.append((kind, text))
    return parts
