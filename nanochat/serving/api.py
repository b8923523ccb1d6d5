"""OpenAI's chat completions, as far as one model needs them: what a client may say, and what it is answered.

Asked       model, messages, stream, stream_options, temperature, top_k (not OpenAI's), max_tokens or max_completion_tokens,
            seed, stop. What would change the answer and is not done here (tools, n above 1, penalties ...) is refused by name.
Answered    chat.completion, chat.completion.chunk, model lists and errors. Three additions of our own, which OpenAI's clients
            skip over: `parts`, where the model used its calculator; `note`, where something was left out; `nanochat`, about the
            model.

An assistant's `content` is what it says without the calls of its calculator; `parts` has both, in the form that
nanochat.messages describes, and may be sent back as the content of that message.
"""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nanochat.dialogue import Part, join_parts, setting_problem
from nanochat.errors import UserError
from nanochat.messages import check_conversation
from nanochat.serving.limits import Limits

ROLES = {"developer": "system"}  # OpenAI's newer name


class ApiError(Exception):
    """An answer that says what is wrong, in the API's shape."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


# -- what is asked -----------------------------------------------------------------------------------------------------------


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool = False


class Fields(BaseModel):
    """The body of a request. What has a `Literal` type is understood and does nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True)

    messages: list[dict[str, Any]]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: Literal[1] | None = None
    top_p: Literal[1] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    # about the request, not about the answer
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None


@dataclass(frozen=True)
class ChatRequest:
    """What is to be answered, checked."""

    messages: list[dict[str, Any]]  # in the form of nanochat.messages; the last is the user's
    temperature: float
    top_k: int
    max_tokens: int
    seed: int
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    id: str = field(default_factory=lambda: "chatcmpl-" + secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))


def parse(body: bytes, *, model: str, defaults: Mapping[str, Any], longest: int, limits: Limits) -> ChatRequest:
    """The request in a body of JSON; an answer has at most `longest` tokens.

    Raises ApiError 400 or 404, which names the field that is wrong.
    """
    try:
        fields = Fields.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None
    if fields.model not in (None, model):
        raise ApiError(404, f"the model here is {model!r}", param="model", code="model_not_found")
    asked = {
        "temperature": fields.temperature,
        "top_k": fields.top_k,
        "max_tokens": fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens,
        "seed": fields.seed,
    }
    # without a seed, another answer every time
    settings = {"seed": secrets.randbits(31), **defaults, **{name: value for name, value in asked.items() if value is not None}}
    for name, value in settings.items():
        if problem := setting_problem(name, value):
            raise ApiError(400, problem, param=name)
    if settings["max_tokens"] > longest:
        raise ApiError(
            400, f"max_tokens must be at most {longest}, which is what this model reads at a time", param="max_tokens"
        )
    return ChatRequest(
        messages=conversation(fields.messages, limits),
        stops=stops(fields.stop, limits),
        stream=bool(fields.stream),
        include_usage=bool(fields.stream_options and fields.stream_options.include_usage),
        **settings,
    )


def invalid(error: ValidationError) -> ApiError:
    """The first thing that pydantic found wrong, in a sentence."""
    found = error.errors(include_url=False, include_input=False)[0]
    param = ".".join(map(str, found["loc"])) or None
    if found["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {found['msg'].removeprefix('Invalid JSON: ')}")
    if found["type"] == "extra_forbidden":
        return ApiError(400, f"{param} is not supported here", param=param, code="unsupported_parameter")
    if found["type"] == "literal_error":
        return ApiError(400, f"{param}: only {found['ctx']['expected']} is supported here", param=param)
    what = found["msg"][0].lower() + found["msg"][1:]
    return ApiError(400, f"{param}: {what}" if param else f"the body: {what}", param=param)


def conversation(messages: list[dict[str, Any]], limits: Limits) -> list[dict[str, Any]]:
    if len(messages) > limits.messages:
        raise ApiError(400, f"{len(messages)} messages are too many: at most {limits.messages}", param="messages")
    cleaned = [{"role": ROLES.get(str(m.get("role")), m.get("role")), "content": content(m)} for m in messages]
    try:
        check_conversation({"messages": cleaned})
    except UserError as error:
        raise ApiError(400, str(error).removeprefix("conversation: "), param="messages") from None
    if cleaned[-1]["role"] != "user":
        raise ApiError(400, "the last message must be the user's: it is what gets answered", param="messages")
    if not cleaned[-1]["content"].strip():
        raise ApiError(400, "there is no question: the last message is empty", param="messages")
    return cleaned


def content(message: Mapping[str, Any]) -> Any:
    """A message's content; OpenAI's list of text parts is one text, but for an assistant, whose parts are of several types."""
    value = message.get("content")
    if message.get("role") == "assistant" or not isinstance(value, list):
        return value
    if not all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in value):
        raise ApiError(400, "only text can be read here: a content is a text, or a list of text parts", param="messages")
    return "".join(part["text"] for part in value)


def stops(value: str | list[str] | None, limits: Limits) -> tuple[str, ...]:
    found = tuple([value] if isinstance(value, str) else value or [])
    if len(found) > limits.stops or any(not 0 < len(stop) <= limits.stop_characters for stop in found):
        raise ApiError(400, f"stop: at most {limits.stops} texts of 1 to {limits.stop_characters} characters", param="stop")
    return found


# -- what is answered --------------------------------------------------------------------------------------------------------


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def said(parts: list[Part]) -> dict[str, Any]:
    """Parts of an answer as fields of a message or a delta: `content` is the text alone, `parts` all, if there is more."""
    joined = join_parts(parts)
    if isinstance(joined, str):
        return {"content": joined}
    return {"content": "".join(part.text for part in parts if part.type == "text"), "parts": joined}


def completion(
    request: ChatRequest, model: str, parts: list[Part], *, reason: str, used: Mapping[str, int], notes: list[str]
) -> dict[str, Any]:
    return {
        "id": request.id,
        "object": "chat.completion",
        "created": request.created,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", **said(parts)}, "logprobs": None, "finish_reason": reason}],
        "usage": dict(used),
        **({"note": "; ".join(notes)} if notes else {}),
    }


def chunk(
    request: ChatRequest,
    model: str,
    delta: Mapping[str, Any] | None = None,
    *,
    reason: str | None = None,
    used: Mapping[str, int] | None = None,
    notes: list[str] | None = None,
) -> bytes:
    """One event of a stream. With `used` there is no choice in it, as in OpenAI's."""
    choice = {"index": 0, "delta": dict(delta or {}), "logprobs": None, "finish_reason": reason}
    content = {
        "id": request.id,
        "object": "chat.completion.chunk",
        "created": request.created,
        "model": model,
        "choices": [] if used else [choice],
        **({"usage": dict(used)} if used else {}),
        **({"note": "; ".join(notes)} if notes else {}),
    }
    return event(content)


def event(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
