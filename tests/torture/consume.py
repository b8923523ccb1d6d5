"""What a consumer of artefacts does in a child of the zygote: the real program, watched for what it opens."""

import importlib
import io
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

from nanochat import manifest

ROOT = Path(__file__).resolve().parent.parent.parent
OPENED = "TRIAL_OPENED"  # the file that gets the names of what the program opens
SIZES_ONLY = "TRIAL_SIZES_ONLY"  # negative control: sha256 is not compared
STOP_AT = "TRIAL_STOP_AT"  # the question at which the program is told to stop


def run(program: str, *arguments: str) -> None:
    """A file of workflow/scripts or a module of nanochat, as from a command line."""
    manifest.PATIENCE_S = 0.0  # a manifest that is away comes back in no trial
    if SIZES_ONLY in os.environ:
        compare_sizes_only()
    if STOP_AT in os.environ:
        stop_at(int(os.environ[STOP_AT]))
    sys.argv = [program, *arguments]
    said, sys.stdout = sys.stdout, io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    opened: list[str] = []
    if OPENED in os.environ:
        sys.addaudithook(lambda event, values: opened.append(str(values[0])) if event == "open" else None)
    try:
        if program == "nanochat.serve":  # which ends by Ctrl-C when it was asked
            threading.Thread(target=ask_once, args=[sys.stdout], daemon=True).start()
        if program.endswith(".py"):
            runpy.run_path(str(ROOT / program), run_name="__main__")
        else:
            sys.exit(importlib.import_module(program).main(list(arguments)))
    except SystemExit as end:
        if program != "nanochat.serve" or end.code != 130:
            raise
    finally:
        said.write(sys.stdout.buffer.getvalue().decode(errors="replace"))
        sys.stdout = said
        if OPENED in os.environ:
            Path(os.environ[OPENED]).write_text("\n".join(opened))


def compare_sizes_only() -> None:
    def difference(path: Path, described: dict) -> str | None:
        try:
            return (
                None
                if path.stat().st_size == described["size"]
                else "has another size. Run: python -m nanochat.verify --repair"
            )
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    manifest.difference = difference


def stop_at(question: int) -> None:
    from evaluating import StopsAt

    from nanochat.jobs.attempt import Attempt

    state = Path(os.environ["NANOCHAT_STATE"])
    Attempt.from_environment = staticmethod(lambda: StopsAt(state, question))


def ask_once(output: io.TextIOWrapper) -> None:
    """Wait for the server, ask it one question, print its answer, end it as Ctrl-C does."""
    import http.client
    import json
    import re

    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.02)
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", output.buffer.getvalue().decode()):
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
            body = {
                "messages": [{"role": "user", "content": "Where does Otto live?"}],
                "temperature": 0,
                "max_tokens": 8,
                "seed": 1,
            }
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            print("ANSWER", json.dumps(answer["choices"]), file=output)
            break
    os.kill(os.getpid(), signal.SIGINT)
