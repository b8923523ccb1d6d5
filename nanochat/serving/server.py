"""The server around the application: one listening socket, and connections that cannot be held for nothing.

uvicorn answers whoever behaves. What it lacks is here: it waits for ever for the head of a request and for a client that does
not read, and has no bound on open connections.
"""

import asyncio
import errno
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nanochat.errors import UserError
from nanochat.serving.guard import Application
from nanochat.serving.limits import Limits

BACKLOG = 128
SEND_BUFFER_BYTES = 64 * 1024


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. UserError if the address is not this machine's, or the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except socket.gaierror:
        raise UserError(f"--host {host}: there is no such name. 127.0.0.1 is this machine for itself") from None
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: f"port {port} is in use, by another server perhaps; choose one with --port, or --port 0 for any",
            errno.EADDRNOTAVAIL: f"--host {host} is no address of this machine",
            errno.EACCES: f"port {port} is not for normal users; take one above 1023",
        }
        raise UserError(reasons.get(error.errno or 0, f"cannot listen on {host}, port {port}: {error.strerror}")) from None
    # of each connection; the kernel would take megabytes for a client that does not read
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    return listener


def serve(application: Application, listener: socket.socket, limits: Limits) -> None:
    """Answer until Ctrl-C or SIGTERM, which are raised again when everything is closed."""
    config = uvicorn.Config(
        application,
        http=patient(limits),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # its errors quote what came
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=round(limits.idle_s),
        timeout_graceful_shutdown=0,  # answers that are being made are given up
    )
    uvicorn.Server(config).run(sockets=[listener])


def patient(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol with bounded patience."""

    class Connection(H11Protocol):
        """One alarm a connection: for what it must do next. When it rings, the connection is cut."""

        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(*arguments, **options)
            self.alarm: asyncio.TimerHandle | None = None
            self.unread: asyncio.TimerHandle | None = None
            self.since = self.loop.time()

        @property
        def is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            if len(self.connections) >= limits.connections:
                # who has asked for nothing makes room, the one that is silent for longest first
                idle = [other for other in self.connections if isinstance(other, Connection) and other.is_idle]
                if not idle:
                    transport.abort()
                    self.transport = transport
                    return
                min(idle, key=lambda other: other.since).cut()
            super().connection_made(transport)
            self.ring_in(limits.head_s)

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self.alarm, self.unread):
                if timer:
                    timer.cancel()
            if self.flow is not None:  # else it was never let in
                super().connection_lost(exc)

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                self.ring_in(limits.body_s + limits.wait_s + limits.answer_s + limits.unread_s)

        def on_response_complete(self) -> None:
            self.since = self.loop.time()
            # what is left to send, and the head of the next request
            self.ring_in(limits.head_s + limits.idle_s)
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.unread = self.loop.call_later(limits.unread_s, self.cut)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.unread:
                self.unread.cancel()

        def ring_in(self, seconds: float) -> None:
            if self.alarm:
                self.alarm.cancel()
            self.alarm = self.loop.call_later(seconds, self.cut)

        def cut(self) -> None:
            self.connections.discard(self)
            self.transport.abort()

    return Connection
