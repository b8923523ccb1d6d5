"""The application: a page, what the page is made of, and the API that it talks to.

    GET  /                        the page; its styles and scripts beside it, shared with the pages of reports
    GET  /health                  {"status": "ok", "active": 0, "waiting": 0}
    GET  /v1/models               the model, and what the page must know of it
    POST /v1/chat/completions     an answer, whole or as a stream of events

Nothing of a conversation is kept or logged: a client sends all of it every time.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from nanochat.serving.answer import Done, Event, Failed, Piece, Started
from nanochat.serving.api import DONE, ApiError, ChatRequest, chunk, completion, event, parse, said, usage
from nanochat.serving.guard import ClientGone
from nanochat.serving.limits import Limits
from nanochat.serving.worker import Busy, Job, Worker

Found = TypeVar("Found")

# what is given out, by address: all of it, so that no address can name another file
STATIC = {
    "/": ("nanochat.serving", "page.html", "text/html"),
    "/chat.css": ("nanochat.serving", "chat.css", "text/css"),
    "/chat.js": ("nanochat.serving", "chat.js", "text/javascript"),
    "/base.css": ("nanochat.pages", "base.css", "text/css"),
    "/base.js": ("nanochat.pages", "base.js", "text/javascript"),
}


def make_app(worker: Worker, *, model: dict[str, Any], limits: Limits) -> FastAPI:
    """`model`: its entry in the list of models, see `model_entry`."""
    app = FastAPI(openapi_url=None)  # no pages of its own, which would load scripts from elsewhere
    app.add_exception_handler(ApiError, answer_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(Exception, answer_failure)
    for path, (package, name, media_type) in STATIC.items():
        add_file(app, path, (files(package) / "static" / name).read_bytes(), f"{media_type}; charset=utf-8")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "active": worker.num_active, "waiting": worker.num_waiting}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body must be JSON: Content-Type: application/json")
        about = model["nanochat"]
        asked = parse(
            await request.body(), model=model["id"], defaults=about["defaults"], longest=about["context"], limits=limits
        )
        answer = Answer(worker, asked, limits)
        try:
            started = await unless_gone(request, answer.start)
            if asked.stream:
                return EventStream(answer, as_stream(answer, started, model["id"]))
            return await unless_gone(request, lambda: as_whole(answer, started, model["id"]))
        except ClientGone:
            answer.give_up()
            return Response(status_code=499)  # which nobody reads
        except BaseException:
            answer.give_up()
            raise

    return app


def model_entry(
    name: str, *, created: int, parameters: int, context: int, device: str, continues: bool, defaults: dict[str, Any]
) -> dict[str, Any]:
    """What /v1/models says; `nanochat` is our own addition, for the page."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "nanochat",
        "nanochat": {
            "kind": "base" if continues else "chat",
            "parameters": parameters,
            "context": context,
            "device": device,
            "defaults": defaults,
        },
    }


def add_file(app: FastAPI, path: str, content: bytes, media_type: str) -> None:
    @app.get(path)
    async def give() -> Response:
        return Response(content, media_type=media_type)


async def answer_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def answer_http_error(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: unknown paths, wrong methods."""
    assert isinstance(error, HTTPException)
    wrong = ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path}")
    return JSONResponse(wrong.body, wrong.status, error.headers)


async def answer_failure(_: Request, error: Exception) -> Response:
    """A mistake of ours; the guard logs where."""
    wrong = ApiError(500, "the server failed; its log says where")
    return JSONResponse(wrong.body, wrong.status)


# -- answers -----------------------------------------------------------------------------------------------------------------


class Answer:
    """A job of the worker as seen from the event loop."""

    def __init__(self, worker: Worker, request: ChatRequest, limits: Limits):
        self.worker = worker
        self.request = request
        self.limits = limits
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server is ending
                loop.call_soon_threadsafe(self.events.put_nowait, event)

        self.job = Job(request, emit)

    async def start(self) -> Started:
        """Wait for a place, and for the prompt to be read. Raises ApiError 503 if there is none, 400 for a wrong prompt."""
        try:
            self.worker.submit(self.job)
            async with asyncio.timeout(self.limits.wait_s):
                first = await self.next()
        except (Busy, TimeoutError):
            raise ApiError(
                503,
                "the server is busy with other answers; try again in a moment",
                code="busy",
                retry_after=str(self.limits.retry_after_s),
            ) from None
        assert isinstance(first, Started)
        return first

    async def next(self) -> Event:
        event = await self.events.get()
        if isinstance(event, Failed):
            raise ApiError(event.status, event.message)
        return event

    def give_up(self) -> None:
        self.worker.cancel(self.job)


async def unless_gone(request: Request, work: Callable[[], Awaitable[Found]]) -> Found:
    """What the work gives; ClientGone as soon as the client has closed its connection."""
    working = asyncio.ensure_future(work())
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def as_whole(answer: Answer, started: Started, model: str) -> Response:
    parts = []
    while True:
        event = await answer.next()
        if isinstance(event, Piece):
            parts.append(event.part)
        elif isinstance(event, Done):
            used = usage(started.prompt_tokens, event.completion_tokens)
            notes = started.notes + event.notes
            return JSONResponse(completion(answer.request, model, parts, reason=event.reason, used=used, notes=notes))


async def as_stream(answer: Answer, started: Started, model: str) -> AsyncIterator[bytes]:
    request = answer.request
    yield chunk(request, model, {"role": "assistant", "content": ""}, notes=started.notes)
    while True:
        try:
            found = await answer.next()
        except ApiError as error:  # too late for a status
            yield event(error.body)
            return
        if isinstance(found, Piece):
            yield chunk(request, model, said([found.part]))
        elif isinstance(found, Done):
            yield chunk(request, model, reason=found.reason, notes=found.notes)
            if request.include_usage:
                yield chunk(request, model, used=usage(started.prompt_tokens, found.completion_tokens))
            yield DONE
            return


class EventStream(StreamingResponse):
    """A stream whose answer is given up when it ends, however it does."""

    def __init__(self, answer: Answer, content: AsyncIterator[bytes]):
        super().__init__(content, media_type="text/event-stream")
        self.answer = answer

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.answer.give_up()
