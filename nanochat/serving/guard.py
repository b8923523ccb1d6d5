"""What every request passes before it reaches the application: who may ask, from where, and how much.

Host        only names of this machine are answered, or another site could give itself our address (DNS rebinding) and read.
Origin      a page of another site cannot ask: it would need CORS, of which there is none, and is refused before.
Key         where there is one, the API wants it as `Authorization: Bearer`. The page itself holds no secret.
Body        read whole, within its limits of size and time, before anything looks into it.
Headers     a policy for the page under which no foreign script, style or address can be used.
"""

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from nanochat.serving.api import ApiError
from nanochat.serving.limits import Limits
from nanochat.serving.logs import log_failure

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware around `application`.

    `hosts`: names that are answered beside the loopback's. `any_address`: and every IP address, for a server that listens on
    them all (an address in numbers cannot be rebound).
    """

    def __init__(
        self,
        application: Application,
        *,
        limits: Limits,
        key: str | None = None,
        hosts: Iterable[str] = (),
        any_address: bool = False,
    ):
        self.application = application
        self.limits = limits
        self.key = key
        self.hosts = LOOPBACK | {host.lower() for host in hosts}
        self.any_address = any_address

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # an in-process client's start and end
            return await self.application(scope, receive, send)
        has_started = has_ended = False

        async def send_guarded(message: Message) -> None:
            nonlocal has_started, has_ended
            has_started = True
            has_ended = message["type"] == "http.response.body" and not message.get("more_body")
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self.check_host(headers.get("host", ""))
            self.check_origin(headers)
            if scope["path"].startswith("/v1/"):
                self.check_key(headers.get("authorization", ""))
            body = await self.read_body(headers, receive)
        except ApiError as error:
            return await answer_error(error, send_guarded)
        except ClientGone:
            return
        try:
            await self.application(scope, replay(body, receive), send_guarded)
        except Exception as error:
            log_failure(f"{scope['method']} {scope['path']!r:.40}", error)
            if not has_started:
                await answer_error(ApiError(500, "the server failed; its log says where"), send_guarded)
            elif not has_ended:
                raise  # and the server breaks the answer off

    # -- who asks ------------------------------------------------------------------------------------------------------------

    def check_host(self, header: str) -> None:
        name = host_name(header)
        if name in self.hosts or (self.any_address and is_address(name)):
            return
        raise ApiError(403, "this server is not called so; open it as localhost, or start it with --host and its name")

    def check_origin(self, headers: dict[str, str]) -> None:
        origin = headers.get("origin")
        # browsers name the site that a script is from; other clients name none
        if origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower():
            raise ApiError(403, "pages of other sites may not ask this server")

    def check_key(self, header: str) -> None:
        scheme, _, given = header.partition(" ")
        if self.key is None or (scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.key.encode())):
            return
        raise ApiError(
            401,
            "a key is needed: `Authorization: Bearer KEY`, with the one that the server printed when it started",
            code="invalid_api_key",
            www_authenticate="Bearer",
        )

    # -- how much ------------------------------------------------------------------------------------------------------------

    async def read_body(self, headers: dict[str, str], receive: Receive) -> bytes:
        limit = self.limits.body_bytes
        too_large = ApiError(413, f"the body is larger than {limit // 1024} KiB; leave out the beginning of the conversation")
        announced = headers.get("content-length", "")
        if announced.isdecimal() and (len(announced) > 12 or int(announced) > limit):
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {self.limits.body_s:.0f} s", connection="close") from None


class ClientGone(Exception):
    """The other end has closed the connection."""


def host_name(header: str) -> str:
    """The name in a Host header.  "localhost:8000" -> "localhost", "[::1]:8000" -> "::1" """
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def replay(body: bytes, receive: Receive) -> Receive:
    """Receive the body that was read already, and then what comes after it: that the client is gone."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


async def answer_error(error: ApiError, send: Send) -> None:
    headers = {"content-type": "application/json", **error.headers}
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": json.dumps(error.body).encode()})
