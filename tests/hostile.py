"""Text that tries to be more than text, and a check that a page shows it as text.

Whoever writes a page puts HOSTILE into every place that foreign text can reach, and asks `active_parts` what of the page a
browser would obey. The check is an allow-list: of tags, of attributes, of addresses.
"""

import base64
import hashlib
import re
from html.parser import HTMLParser

HOSTILE = [
    "<script>hacked=1</script>",
    "</script><script>hacked=1</script>",
    "</SCRIPT\t><svg/onload=hacked=1>",
    "<img src=x onerror=hacked=1>",
    '"><img src=x onerror="hacked=1">',
    "'><svg onload=hacked=1>",
    "<!--<script>hacked=1</script>",
    "--><script>hacked=1</script><!--",
    "]]><script>hacked=1</script>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'>",
    '<a href="javascript:hacked=1">click</a>',
    "[click](javascript:hacked=1)",
    "[click](data:text/html,<script>hacked=1</script>)",
    "![x](http://tracker.example/x.png)",
    "<http://tracker.example/> www.tracker.example http://tracker.example",
    "[x]: http://tracker.example\n\n[x]",
    "&lt;script&gt;hacked=1&lt;/script&gt; &#60;b&#62; &amp;lt;",
    "&#x3c;img src=x onerror=hacked=1&#x3e;",
    "${hacked=1} {{ hacked }} {% raw %} {{7*7}} #{hacked}",
    "%{customdata[0]} %{x:.4f} <b>bold</b><br><sup>up</sup>",
    "\x1b]0;new title\x07\x1b[31mred\x1b[0m\x9b2J\x00\x08",
    "right \u202eto left\u202c, zero\u200bwidth, \u2066isolated\u2069",
    "line\u2028separator\u2029paragraph, next\u0085line",
    "plain ``` fence\n```\n# heading\n````\nlonger",
    "~~~\n~~~\n<b>bold</b>",
    "| a | b |\n|---|---|\n| *c* | _d_ | ~~e~~ $x^2$ $$y$$ \\",
    "</details></code></pre></div></body></html><b>bold</b>",
    "<style>*{display:none}</style><link rel=stylesheet href=http://tracker.example/x.css>",
    "<meta http-equiv=refresh content=0;url=http://tracker.example><base href=http://tracker.example>",
    "'; hacked=1; //\\u003cscript\\u003e \\x3cb\\x3e \\",
]

KNOWN_TAGS = """
    html head meta link title style script body header main nav a span button details summary ol ul li article section div h1
    h2 h3 h4 p dl dt dd table thead tbody tr th td code pre strong em figure figcaption br hr kbd mark small
    math mrow mi mo mn msup msub msubsup mfrac msqrt mroot mover munder munderover mtext mspace mstyle mtable mtr mtd mpadded
    mphantom menclose
"""
KNOWN_ATTRIBUTES = """
    id class lang charset name content http-equiv rel href type tabindex role scope hidden open start title
    aria-label aria-labelledby aria-pressed aria-hidden aria-current data-plot data-variant data-label
    xmlns display mathvariant stretchy fence form separator columnalign rowspacing linethickness width height lspace rspace
    accent depth voffset displaystyle scriptlevel largeop movablelimits minsize maxsize symmetric
"""
TAGS, ATTRIBUTES = set(KNOWN_TAGS.split()), set(KNOWN_ATTRIBUTES.split())


class Page(HTMLParser):
    """A page read back: its tags, its visible text, its scripts."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.problems: list[str] = []
        self.tags: list[str] = []
        self.scripts: list[tuple[str | None, str]] = []  # type, content
        self.texts: list[str] = []
        self.policy = ""
        self._inside: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        if tag not in TAGS:
            self.problems.append(f"<{tag}>")
        for name, value in attrs:
            if name not in ATTRIBUTES:
                self.problems.append(f"<{tag} {name}={value}>")
            if name == "href" and not re.fullmatch(r"#[\w-]*|data:,|(?!\w+:|/)[\w./%-]+", value or ""):
                self.problems.append(f"<{tag} href={value}>")
        if tag == "meta" and attributes.get("http-equiv"):
            if attributes["http-equiv"] != "Content-Security-Policy" or self.policy:
                self.problems.append(f"<meta http-equiv={attributes['http-equiv']}>")
            self.policy = attributes["content"]
        if tag == "script":
            self.scripts.append((attributes.get("type"), ""))
        self._inside = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._inside is None:
            self.texts.append(data)

    def handle_comment(self, data):
        self.problems.append(f"<!--{data}-->")

    def handle_decl(self, decl):
        if decl.lower() != "doctype html":
            self.problems.append(f"<!{decl}>")

    def unknown_decl(self, data):
        self.problems.append(f"<![{data}]>")

    def handle_pi(self, data):
        self.problems.append(f"<?{data}>")

    @property
    def text(self) -> str:
        """What a reader sees, with its spaces as one."""
        return re.sub(r"\s+", " ", " ".join(self.texts))


def active_parts(html: str) -> list[str]:
    """What of a page a browser would obey and that is not on the list, scripts that its policy does not name among it."""
    page = Page(html)
    problems = list(page.problems)
    for kind, content in page.scripts:
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        if kind == "application/json":
            problems += [f"{sign!r} in data" for sign in "<>&\u2028\u2029" if sign in content]
        elif f"'sha256-{digest}'" not in page.policy:
            problems.append(f"a script that the policy does not name: {content[:60]}")
    controls = re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]", "".join(page.texts))
    return problems + [f"control character {sign!r}" for sign in controls]
