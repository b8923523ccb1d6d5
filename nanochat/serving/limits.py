"""What one client may ask of the server, and how long it may take: so that no client can take it from the others."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of the server. All that it holds in memory for its clients is at most their product: a few megabytes."""

    # one request
    body_bytes: int = 64 * 1024  # refused before it is parsed
    messages: int = 200
    stops: int = 4
    stop_characters: int = 64

    # answers being made at the same time take turns, token by token; the others wait in a queue, or are refused
    active: int = 4
    waiting: int = 16
    wait_s: float = 60.0  # in the queue
    answer_s: float = 300.0  # from the first to the last token; what was said until then is the answer

    # connections
    connections: int = 64
    head_s: float = 10.0  # until the head of a request is there
    body_s: float = 10.0  # until its body is
    unread_s: float = 20.0  # that a client may leave what it was sent unread
    idle_s: float = 5.0  # kept open between two requests

    retry_after_s: int = 2  # told to a client that is sent away
