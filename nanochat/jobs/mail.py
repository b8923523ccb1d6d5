"""Mail from SLURM: options of `sbatch` from the address that a person put into .env.local.

email=name@university.edu   ->  --mail-type=BEGIN,END,FAIL --mail-user=name@university.edu
"""

import re
from pathlib import Path

from nanochat.errors import UserError

ADDRESS = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")


def mail_options(path: Path) -> list[str]:
    """Options for the address in `path`; none without the file or without an address. UserError if it is no address."""
    address = read_settings(path).get("email", "")
    if not address:
        return []
    if not ADDRESS.fullmatch(address):
        raise UserError(
            f"{path}: email={address} is no e-mail address. Write email=name@university.edu, or email= for no mail."
        )
    # Snakemake's SLURM plugin looks for sbatch's own options anywhere in the text and takes the -J of an address like
    # ada-Jones@... for --job-name. The shell, which reads it next, drops an empty pair of quotes
    quoted = address.replace("-", "-''")
    return ["--mail-type=BEGIN,END,FAIL", f"--mail-user={quoted}"]


def read_settings(path: Path) -> dict[str, str]:
    """The name=value lines of a file; {} if there is none. `export`, spaces, quotes and comments are allowed, as in a shell."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    settings = {}
    for number, line in enumerate(lines, start=1):
        text = re.sub(r"(^|\s)#.*", "", line).strip().removeprefix("export ").strip()
        if not text:
            continue
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name.isidentifier():
            raise UserError(f"{path}, line {number}: {line.strip()!r} is not name=value")
        settings[name] = value.strip("'\"")
    return settings
