"""Our own Markdown as HTML: CommonMark with tables and $formulas$.

Covered: HTML in the text is shown, not obeyed; a link leads to a part of this page, a file beside it or a web page, and to
    nothing else (no javascript:, no data:); no picture is loaded. Foreign text goes through `nanochat.text` first.
Not covered: formulas are for text that we wrote: `inline` and `code` keep a foreign dollar sign from starting one.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from mdit_py_plugins.dollarmath import dollarmath_plugin

from nanochat.pages.math import mathml


def markdown_to_html(text: str, *, figures: Mapping[str, str] | None = None, prefix: str = "") -> str:
    """Trusted HTML. A picture whose file is in `figures` becomes that trusted HTML; any other becomes a link to its file.

    Headings get an id made of their words, after `prefix`: `## Base evaluation` -> id="base-evaluation". A table is in a box
    that scrolls by itself (class "scroll"), its columns of numbers have class "num".
    """
    return parser().render(text, {"figures": dict(figures or {}), "prefix": prefix})


@functools.cache
def parser() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False}, renderer_cls=Renderer).enable("table")
    markdown.validateLink = is_harmless_link  # type: ignore[method-assign, assignment]
    return markdown.use(dollarmath_plugin, allow_labels=False, allow_space=False, allow_digits=False, renderer=formula)


def formula(latex: str, options: Mapping[str, Any]) -> str:
    return mathml(latex.strip(), display=options["display_mode"])


def is_harmless_link(address: str) -> bool:
    scheme = re.match(r"\s*([^/?#]*?):", address)
    return scheme is None or scheme.group(1).lower() in ("http", "https")


class Renderer(RendererHTML):
    """markdown-it's, with ids for headings, boxes around tables, and figures in the place of pictures."""

    def heading_open(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        used = env.setdefault("ids", set())
        wanted = name = env["prefix"] + slug(tokens[index + 1].content)
        number = 2
        while name in used:
            name, number = f"{wanted}-{number}", number + 1
        used.add(name)
        tokens[index].attrSet("id", name)
        return self.renderToken(tokens, index, options, env)

    def paragraph_open(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        return "" if is_figure(tokens[index + 1], env) else self.renderToken(tokens, index, options, env)

    def paragraph_close(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        return "\n" if is_figure(tokens[index - 1], env) else self.renderToken(tokens, index, options, env)

    def image(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        file = str(tokens[index].attrs["src"])
        if file in env["figures"]:
            return env["figures"][file]
        description = tokens[index].content or file
        return f'<a href="{escape(file)}">{escape(description)}</a>'

    def table_open(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        return '<div class="scroll"><table>\n'

    def table_close(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        return "</table></div>\n"

    def th_open(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        return cell(tokens[index])

    td_open = th_open


def cell(token: Token) -> str:
    scope = ' scope="col"' if token.tag == "th" else ""
    return f'<{token.tag}{scope} class="num">' if "right" in str(token.attrGet("style")) else f"<{token.tag}{scope}>"


def is_figure(token: Token, env: EnvType) -> bool:
    """Whether a paragraph is one picture that a figure stands for: a figure is no part of a paragraph."""
    children = token.children or []
    return len(children) == 1 and children[0].type == "image" and children[0].attrs["src"] in env["figures"]


def slug(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
