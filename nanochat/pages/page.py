"""A page as one HTML file that opens from a disk, asks nobody for anything, and runs no script but ours.

    body = template("greeting.html").render(name=name)                  # escaped by Jinja2
    write_page(path, title="Greeting", body=body, data={"rows": rows}, scripts=["greeting.js"], styles=["greeting.css"])

Covered: a script runs only if its sha256 stands in the page's own Content-Security-Policy, so that text which slips through an
    escape is still not obeyed; nothing is fetched (`default-src 'none'`); data cannot end the element that it is in. The same
    input gives the same bytes.
Not covered: a body whose author put foreign text into it unescaped may still look wrong.
"""

import base64
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from nanochat.storage import atomic_path
from nanochat.text import visible

HERE = Path(__file__).parent
STATIC, TEMPLATES = HERE / "static", HERE / "templates"


def write_page(
    path: Path,
    *,
    title: str,
    body: str,
    data: Mapping[str, Any] | None = None,
    scripts: Sequence[str] = (),
    styles: Sequence[str] = (),
    plotly: bool = False,
) -> None:
    """Write a page, whole or not at all.

    `title` is plain text. `body` is trusted HTML: made by `template` or by `markdown_to_html`; it has one <h1>. Each value of
    `data` becomes JSON that a script reads with `page.data(KEY)`; it holds no NaN (ValueError). `scripts` and `styles` are
    names of files in static/, put into the page in this order, after base.js and base.css; `plotly` puts Plotly before them.
    """
    texts = [read_static("base.js"), *([plotly_script()] if plotly else []), *(read_static(name) for name in scripts)]
    page = template("page.html").render(
        title=visible(title),
        policy=policy(texts),
        style=Markup("\n".join(unended(read_static(name), "style") for name in ("base.css", *styles))),
        first_script=Markup(texts[0]),
        scripts=[Markup(text) for text in texts[1:]],
        body=Markup(body),
        data=[(key, Markup(embedded_json(value))) for key, value in named(data or {}).items()],
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def template(name: str) -> Template:
    """A template of templates/: everything put into it is escaped, a name it does not get is an error."""
    return environment().get_template(name)


@functools.cache
def environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


# -- small parts -------------------------------------------------------------------------------------------------------------


@functools.cache
def read_static(name: str) -> str:
    text = (STATIC / name).read_text(encoding="utf-8")
    return unended(text, "script") if name.endswith(".js") else text


@functools.cache
def plotly_script() -> str:
    from plotly.offline import get_plotlyjs

    return unended(get_plotlyjs(), "script")


def unended(text: str, element: str) -> str:
    """The same text, if nothing in it ends or hides the element that it is put into."""
    if found := re.search(rf"</{element}|<!--|[\0\r]", text, re.IGNORECASE):
        raise ValueError(f"{found.group()!r} cannot stand inside <{element}>")
    return text


def policy(scripts: Sequence[str]) -> str:
    """Nothing may be loaded, and only these scripts may run. Styles are ours, and Plotly writes some as it draws."""
    hashes = dict.fromkeys(base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def named(data: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in data:
        if not re.fullmatch(r"[A-Za-z][\w-]*", key):
            raise ValueError(f"data {key!r}: letters, digits, _ and - only")
    return data


def embedded_json(value: Any) -> str:
    """JSON without a sign that HTML would read: <, > and & are written as \\u003c and so on, and so is all but ASCII."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
