"""Lines that a person types: edited, with history and completion in a terminal; as they come from a pipe.

A line that ends in a backslash goes on in the next one. What is typed stays in memory, unless a history file is asked for.
"""

import os
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nanochat.errors import UserError

ReadLine = Callable[[str], str]  # of the prompt; raises EOFError at the end, KeyboardInterrupt when Ctrl-C asks to leave


def open_lines(commands: Sequence[str], history: Path | None = None) -> ReadLine:
    """How to read the next message: with an editor if both ends are a terminal, or line by line."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return plain_line
    return edited_lines(commands, private_file(history) if history else None)


def plain_line(prompt: str) -> str:
    text = input(prompt)
    while text.endswith("\\"):
        try:
            text = text[:-1] + "\n" + input("")
        except EOFError:
            return text[:-1]
    return text


def edited_lines(commands: Sequence[str], history: Path | None) -> ReadLine:
    # imported late: not needed for a pipe, and a tenth of a second
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    class Commands(Completer):
        def get_completions(self, document, complete_event):
            text = document.text
            for command in commands:
                if text.startswith("/") and command.startswith(text) and document.is_cursor_at_the_end:
                    yield Completion(command, start_position=-len(text))

    keys = KeyBindings()

    @keys.add("enter")
    def send_or_go_on(event) -> None:
        buffer = event.current_buffer
        if buffer.text.endswith("\\") and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")  # what terminals send for Alt+Enter
    def another_line(event) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def empty_the_line_or_leave(event) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)) if history else InMemoryHistory(),
        completer=Commands(),
        complete_while_typing=True,
        key_bindings=keys,
        multiline=True,
        prompt_continuation=lambda width, line_number, is_soft_wrap: " " * width,
        reserve_space_for_menu=0,
    )

    def read_line(prompt: str) -> str:
        *before, prompt = prompt.split("\n")
        print("\n" * len(before), end="")
        return session.prompt(prompt)

    return read_line


def private_file(path: Path) -> Path:
    """A history file that only its owner can read. UserError if it cannot be one."""
    path = path.expanduser()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path}: is no ordinary file; --history needs one")
            # what prompt_toolkit writes begins so; anything else is somebody's file that was named by mistake
            if status.st_size and not file.read(3).startswith(b"\n# "):
                raise UserError(f"{path}: holds something else than a history; name a new file after --history")
            if stat.S_IMODE(status.st_mode) & 0o077:
                os.fchmod(descriptor, 0o600)
    except OSError as error:
        raise UserError(f"{path}: cannot be used as history ({error.strerror})") from None
    return path
