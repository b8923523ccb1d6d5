"""The one thread that works with the model. Answers take turns in it, token by token; the others wait in a bounded queue.

So a long answer keeps nobody waiting, and the thread is free again whatever a client does: it never writes to one. What it
makes is handed over as events, of which there are no more than an answer has tokens.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator

from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.serving.answer import Event, Failed, events
from nanochat.serving.api import ChatRequest
from nanochat.serving.limits import Limits
from nanochat.serving.logs import log_failure

CLOSING_S = 5.0
ENDED = object()


class Busy(Exception):
    """The queue is full."""


class Job:
    """A request on its way: `emit` is called in the worker's thread with each event of its answer."""

    def __init__(self, request: ChatRequest, emit: Callable[[Event], None]):
        self.request = request
        self.emit = emit
        self.is_cancelled = False


class Worker:
    """Answers jobs. `engine` is used in its thread only."""

    def __init__(self, engine: Engine, *, continues: bool, limits: Limits):
        self.engine = engine
        self.continues = continues
        self.limits = limits
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._active: deque[tuple[Job, Iterator[Event | None]]] = deque()
        self._is_closed = False
        # a daemon: a model in the midst of a long prompt does not hold up the end of the process
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def num_active(self) -> int:
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Put a job in the queue. Raises Busy if it has no place for it."""
        with self._changed:
            if self._is_closed or len(self._active) + len(self._waiting) >= self.limits.active + self.limits.waiting:
                raise Busy
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody wants this answer any more. Of a job that has ended: nothing happens."""
        with self._changed:
            job.is_cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self) -> bool:
        """Give up everything; whether the thread has ended, which it does after the step that it is in."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(CLOSING_S)
        return not self._thread.is_alive()

    # -- in the thread -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        goes_on = True
        while True:
            with self._changed:
                # the first has said a token: it goes to the end of the row, or away
                if goes_on:
                    self._active.rotate(-1)
                else:
                    self._active.popleft()
                while not (self._waiting or self._active or self._is_closed):
                    self._changed.wait()
                if self._is_closed:
                    return
                while self._waiting and len(self._active) < self.limits.active:
                    job = self._waiting.popleft()
                    self._active.append((job, events(self.engine, job.request, self.limits, continues=self.continues)))
            goes_on = self._step(*self._active[0])

    def _step(self, job: Job, steps: Iterator[Event | None]) -> bool:
        """One step of an answer; whether it goes on."""
        if job.is_cancelled:
            steps.close()  # type: ignore[attr-defined]
            return False
        try:
            event = next(steps, ENDED)
        except UserError as error:
            event = Failed(400, str(error))
        except Exception as error:
            log_failure("an answer", error)
            event = Failed(500, f"the model failed ({type(error).__name__}); the server's log says where")
        if event is None:
            return True
        if event is ENDED:
            return False
        job.emit(event)  # type: ignore[arg-type]
        return not isinstance(event, Failed)
