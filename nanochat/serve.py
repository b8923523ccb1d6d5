"""Serve a trained model: a chat page for a browser, and an API in OpenAI's shape.

    python -m nanochat.serve results/tiny/sft

Then open the address that it prints. Ctrl-C ends it. It listens on this machine only, unless --host says otherwise; how to
reach it on a GPU node, and what it guards against, is told in docs/chat.md and docs/ptolemy.md.

A key is asked for where others could reach the server: on another --host, and inside a SLURM job or over ssh, where other
people may share the machine. --key none does without, --key auto asks for one anywhere. It is new at every start and part of
the printed address.
"""

import argparse
import getpass
import os
import platform
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.dialogue import BASE_NOTE, add_arguments, describe, is_base, no_model_message, open_engine
from nanochat.errors import UserError
from nanochat.jobs import slurm
from nanochat.schedule import count_parameters
from nanochat.serving.limits import Limits
from nanochat.text import visible

if TYPE_CHECKING:
    from nanochat.engine import Engine

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")


def main(arguments: list[str] | None = None, limits: Limits = Limits()) -> int:  # noqa: B008 (frozen)
    options = parse(arguments)
    # a person's terminal or a pipe may know fewer characters than a folder's name
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        return run(options, limits)
    except UserError as error:
        print(visible(str(error), keep="\n"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nanochat.serve", description="Serve a trained model to a browser.")
    parser.add_argument("folder", type=Path, help="a model's folder, such as results/tiny/sft")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    parser.add_argument("--port", type=port, default=8000, help="0: any that is free (default: %(default)s)")
    parser.add_argument(
        "--key",
        choices=["auto", "none"],
        help="auto: a new key is needed to ask (default on other hosts, in SLURM jobs, over ssh)",
    )
    add_arguments(parser, "temperature", "top_k", "max_tokens")
    return parser.parse_args(arguments)


def port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 65_536):
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, found {text!r}")
    return int(text)


def run(options: argparse.Namespace, limits: Limits) -> int:
    if not (options.folder / "manifest.json").exists():
        raise UserError(no_model_message(options.folder))
    from nanochat.serving.server import listen, serve

    # taken before the model is loaded: a port that is in use is told at once
    with listen(options.host, options.port) as listener:
        engine = open_engine(options.folder, options.device)
        from nanochat.serving.app import make_app, model_entry
        from nanochat.serving.guard import Guard
        from nanochat.serving.worker import Worker

        continues = is_base(options.folder)
        context = engine.model.config.sequence_len
        entry = model_entry(
            name_of(options.folder),
            created=int((options.folder / "manifest.json").stat().st_mtime),
            parameters=count_parameters(engine.model.config.as_dict()),
            context=context,
            device=str(engine.device),
            continues=continues,
            defaults={
                "temperature": options.temperature,
                "top_k": options.top_k,
                "max_tokens": min(options.max_tokens, context),
            },
        )
        key = secrets.token_urlsafe(24) if needs_key(options) else None
        worker = Worker(engine, continues=continues, limits=limits)
        application = Guard(
            make_app(worker, model=entry, limits=limits),
            limits=limits,
            key=key,
            hosts=[] if options.host in LOOPBACK else [options.host, platform.node(), platform.node().partition(".")[0]],
            any_address=options.host in EVERYWHERE,
        )
        tell(engine, options, listener.getsockname()[1], key)
        try:
            serve(application, listener, limits)
        finally:
            if not worker.close():
                # in the midst of a step that takes seconds; an orderly end would wait for it
                os._exit(130)
    return 0


def needs_key(options: argparse.Namespace) -> bool:
    """Where others may reach the port: on another address, and on a cluster's or laboratory's machine even on loopback."""
    if options.key:
        return options.key == "auto"
    return options.host not in LOOPBACK or slurm.job_id() is not None or "SSH_CONNECTION" in os.environ


def name_of(folder: Path) -> str:
    """results/tiny/sft -> tiny/sft"""
    return visible("/".join(folder.absolute().parts[-2:]))


# -- what is printed ---------------------------------------------------------------------------------------------------------


def tell(engine: "Engine", options: argparse.Namespace, port: int, key: str | None) -> None:
    """Where the page is, and how to get there from elsewhere."""
    secret = f"/#key={key}" if key else ""
    lines = [f"{name_of(options.folder)}: {describe(engine)}"]
    if is_base(options.folder):
        lines.append(f"Note: {BASE_NOTE}.")
    if options.host not in LOOPBACK:
        lines.append(f"Warning: other machines can reach this server ({options.host}, port {port}), and nothing is encrypted.")
        if not key:
            lines.append("Warning: there is no key, so all of them can use it. --key auto makes one.")
    host = platform.node() if options.host in EVERYWHERE else options.host
    shown = f"[{host}]" if ":" in host else host
    lines += ["", f"    http://{shown}:{port}{secret}", ""]
    if slurm.job_id() or "SSH_CONNECTION" in os.environ:
        lines += [*from_elsewhere(options.host, port), f"    and open  http://localhost:{port}{secret}", ""]
    lines.append("Ctrl-C ends it.")
    print("\n".join(lines), flush=True)


def from_elsewhere(host: str, port: int) -> list[str]:
    node, user = slurm.host(), getpass.getuser()
    if not slurm.job_id():
        return ["From your own machine:", f"    ssh -N -L {port}:localhost:{port} {user}@{node}"]
    if host in LOOPBACK:
        # through the login node to this one, and there to its loopback
        return ["From your own machine:", f"    ssh -N -L {port}:localhost:{port} -J {user}@LOGIN_NODE {user}@{node}"]
    return ["From your own machine:", f"    ssh -N -L {port}:{node}:{port} {user}@LOGIN_NODE"]


if __name__ == "__main__":
    sys.exit(main())
