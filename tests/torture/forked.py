"""Functions run in processes that are forked from one which has imported PyTorch: alone, or as the ranks of one training.

    answers = run(train_a_little, folder, 7, world_size=2)   # what train_a_little(ranks, folder, 7) returns on each rank

Milliseconds to start where torchrun takes seconds. Each rank speaks through gloo, as in a training on CPUs. A function is one
of a module, and what it takes and returns can be sent from process to process. An exception comes back as a `Failed`.
"""

import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
IMPORTED = [
    "torch",
    "torch.distributed",
    "nanochat.train",
    "nanochat.chat_eval",
    "nanochat.core_eval",
    "nanochat.conversations",
]
TIMEOUT_S = 240


@dataclass(frozen=True)
class Failed:
    """An exception on a rank, or a process that said nothing."""

    kind: str
    message: str
    trace: str = ""


def run(function: Callable, *arguments: Any, world_size: int = 1, joins: bool = True) -> list[Any]:
    """What `function(ranks, *arguments)` returns on each rank, or how it failed there.

    Without `joins` the ranks do not meet yet: the function is a program that joins them by itself.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory() as meeting:
        pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
        processes = [
            context.Process(
                target=child, args=(send, function, arguments, rank, world_size, f"{meeting}/store" if joins else None)
            )
            for rank, (_, send) in enumerate(pipes)
        ]
        for process, (_, send) in zip(processes, pipes, strict=True):
            process.start()
            send.close()
        answers = receive([answer for answer, _ in pipes])
        for process in processes:
            process.kill()
            process.join()
    return answers


def receive(connections: list[Connection]) -> list[Any]:
    """One answer from each, in the order in which they end; what is silent for too long has failed."""
    answers: dict[int, Any] = {}
    while len(answers) < len(connections):
        waited_for = [connection for number, connection in enumerate(connections) if number not in answers]
        ready = wait(waited_for, TIMEOUT_S)
        for connection in ready or waited_for:
            number = connections.index(connection)
            try:
                answers[number] = connection.recv() if ready else Failed("Timeout", f"silent for {TIMEOUT_S} s")
            except EOFError:
                answers[number] = Failed("Died", "the process ended without an answer")
    return [answers[number] for number in range(len(connections))]


def child(send: Connection, function: Callable, arguments: tuple, rank: int, world_size: int, store: str | None) -> None:
    import torch
    import torch.distributed as dist

    from nanochat.distributed import Ranks

    os.environ.pop("NANOCHAT_LAUNCHER", None)
    torch.set_num_threads(1)
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    try:
        if world_size > 1 and store:
            meeting = dist.FileStore(store, world_size)
            dist.init_process_group(
                "gloo", store=meeting, rank=rank, world_size=world_size, timeout=timedelta(seconds=TIMEOUT_S / 4)
            )
        answer = function(Ranks(rank, world_size), *arguments)
    except BaseException as error:
        answer = Failed(type(error).__name__, str(error), traceback.format_exc())
    send.send(answer)
    send.close()
    os._exit(0)  # without a farewell to the other ranks, which may wait for this one elsewhere


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
