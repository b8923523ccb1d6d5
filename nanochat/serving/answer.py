"""One answer: from checked messages to events, a step of the model at a time.

`events` is a generator, so that whoever drives it can let several answers take turns, and give one up by closing it. It yields
None where a step gave nothing to show yet.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nanochat.dialogue import Part, Parts, fit, question_tokens
from nanochat.engine import Engine
from nanochat.serving.api import ChatRequest
from nanochat.serving.limits import Limits


@dataclass(frozen=True)
class Started:
    prompt_tokens: int
    notes: list[str]


@dataclass(frozen=True)
class Piece:
    part: Part


@dataclass(frozen=True)
class Done:
    reason: str  # stop: the model ended it, or a stop text came; length: it was cut
    completion_tokens: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Failed:
    status: int
    message: str


Event = Started | Piece | Done | Failed


def events(engine: Engine, request: ChatRequest, limits: Limits, *, continues: bool) -> Iterator[Event | None]:
    """Started, the pieces, Done. UserError if the model cannot read the prompt."""
    prompt, notes = prompt_of(engine, request, continues=continues)
    yield Started(len(prompt), notes)
    parts, stop = Parts(engine.tokenizer), StopText(request.stops)
    deadline = time.monotonic() + limits.answer_s
    longest = min(request.max_tokens, engine.limit + 1 - len(prompt))
    num_tokens, reason, late = 0, "stop", []
    stream = engine.stream(
        prompt, max_new_tokens=request.max_tokens, temperature=request.temperature, top_k=request.top_k, seed=request.seed
    )
    for token in stream:
        num_tokens += 1
        pieces = [piece for part in parts.read(token) for piece in stop.read(part)]
        yield from map(Piece, pieces)
        if stop.found:
            break
        if time.monotonic() > deadline:
            reason, late = "length", [f"cut after {limits.answer_s:.0f} s, the longest that an answer may take here"]
            break
        if not pieces:
            yield None
    if not stop.found:
        yield from map(Piece, [piece for part in parts.flush() for piece in stop.read(part)] + stop.flush())
    if not stop.found and num_tokens >= longest:
        reason = "length"
    yield Done(reason, num_tokens, late)


def prompt_of(engine: Engine, request: ChatRequest, *, continues: bool) -> tuple[list[int], list[str]]:
    """The conversation in tokens, as much of its end as the model reads, and what to tell about the rest."""
    tokenizer, config = engine.tokenizer, engine.model.config
    system, turns, question = split(request.messages)
    if continues:
        # a base model knows no roles: all that was written so far is one text
        written = "".join(text_of(message) for message in request.messages)
        fitted = fit([], question_tokens(tokenizer, written, continues=True), config, request.max_tokens, opening=0)
        return [tokenizer.bos_id, *fitted.tokens], fitted.notes

    def rendered(turn: list[dict[str, Any]]) -> list[int]:
        return tokenizer.render_conversation({"messages": turn})[0][1:]

    # what the system says stands before the first question that is still there, so it counts as part of the last one
    with_system = question_tokens(tokenizer, system + question)
    fitted = fit([rendered(turn) for turn in turns], with_system, config, request.max_tokens)
    if not fitted.turns or not system:
        return [tokenizer.bos_id, *fitted.tokens], fitted.notes
    first, *others = turns[len(turns) - len(fitted.turns) :]
    first = [{**first[0], "content": system + first[0]["content"]}, first[1]]
    tokens = [token for turn in [first, *others] for token in rendered(turn)]
    return [tokenizer.bos_id, *tokens, *question_tokens(tokenizer, question)], fitted.notes


def split(messages: list[dict[str, Any]]) -> tuple[str, list[list[dict[str, Any]]], str]:
    """(what the system says, pairs of question and answer, the last question)"""
    system = ""
    if messages[0]["role"] == "system":
        system, messages = messages[0]["content"] + "\n\n", messages[1:]
    return system, [messages[i : i + 2] for i in range(0, len(messages) - 1, 2)], messages[-1]["content"]


def text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


class StopText:
    """Ends an answer at the first of some texts, which may come in pieces: what could be the beginning of one waits."""

    def __init__(self, stops: tuple[str, ...]):
        self.stops = stops
        self.waiting = ""
        self.found = False

    def read(self, part: Part) -> list[Part]:
        """What can be shown after this part. Stops count in text only, not in what goes to the calculator."""
        if self.found:
            return []
        if not self.stops:
            return [part]
        if part.type != "text":
            return [*self.flush(), part]
        text = self.waiting + part.text
        ends = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        self.found = bool(ends)
        shown = min(ends) if ends else len(text) - self._possible_beginning(text)
        self.waiting = "" if self.found else text[shown:]
        return [Part("text", text[:shown])] if shown else []

    def flush(self) -> list[Part]:
        text, self.waiting = self.waiting, ""
        return [Part("text", text)] if text else []

    def _possible_beginning(self, text: str) -> int:
        """How many characters at the end could begin a stop."""
        longest = min(max(map(len, self.stops)) - 1, len(text))
        return next((n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in self.stops)), 0)
