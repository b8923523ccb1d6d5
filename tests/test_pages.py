"""A page is one file that asks nobody for anything, runs no script but ours, and says the same in the same bytes."""

import base64
import hashlib
import json
import re

import pytest
from browser import no_sideways_scroll, visit
from hostile import HOSTILE, Page, active_parts
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

from nanochat.pages import page as page_module
from nanochat.pages.markdown import markdown_to_html
from nanochat.pages.math import mathml
from nanochat.pages.page import environment, template, write_page
from nanochat.text import inline, table, visible


@pytest.fixture
def written(tmp_path):
    def write(**options) -> str:
        write_page(tmp_path / "page.html", **{"title": "A page", "body": "<h1>A page</h1>", **options})
        return (tmp_path / "page.html").read_text(encoding="utf-8")

    return write


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Puts a script of one's own among those that pages may name."""
    for path in page_module.STATIC.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.setattr(page_module, "STATIC", tmp_path)
    page_module.read_static.cache_clear()

    def add(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return name

    yield add
    page_module.read_static.cache_clear()


# -- the file ----------------------------------------------------------------------------------------------------------------


def test_same_input_gives_the_same_bytes(written):
    options = {"data": {"b": {"z": 1, "a": [1.5, None]}, "a": "x"}, "scripts": ["report.js"], "styles": ["report.css"]}
    assert written(**options) == written(**options)


def test_a_page_names_no_address_outside_itself(written):
    text = written(scripts=["report.js"], styles=["report.css"])
    assert active_parts(text) == []
    assert not re.findall(r'(?:src|href)="(?!data:,|#)', text)
    assert not re.search(r"@import|url\(", text)
    assert "viewport" in text and '<html lang="en">' in text


def test_the_policy_names_each_script_by_its_hash_and_nothing_else(written):
    page = Page(written(scripts=["report.js"], plotly=True))
    scripts = [content for kind, content in page.scripts if kind is None]
    assert len(scripts) == 3
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert re.findall(r"'sha256-([^']+)'", page.policy) == hashes
    rest = re.sub(r" 'sha256-[^']+'", "", page.policy)
    assert rest == (
        "default-src 'none'; script-src; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_titles_and_data_stay_text(written, hostile):
    text = written(title=hostile, data={"rows": {hostile: [hostile]}})
    assert active_parts(text) == []
    page = Page(text)
    assert re.sub(r"\s+", " ", visible(hostile)).strip() in page.text
    [data] = [content for kind, content in page.scripts if kind == "application/json"]
    assert json.loads(data) == {hostile: [hostile]}


def test_the_check_for_hostile_text_finds_it(written):
    found = [hostile for hostile in HOSTILE if active_parts(written(body=hostile))]
    assert len(found) >= 18, "what is put into a body as it is must be found"
    assert active_parts(written().replace("</body>", "<script>hacked=1</script></body>"))
    assert active_parts(written(body='<a href="javascript:hacked=1">x</a>'))


def test_numbers_that_are_none_are_refused_in_data(written):
    with pytest.raises(ValueError, match="not JSON compliant"):
        written(data={"x": [float("nan")]})
    with pytest.raises(ValueError, match="letters, digits"):
        written(data={'x"><script>': 1})


@pytest.mark.parametrize("text", ["a('</script>')", "a('<!-- <script>')", "a\0", "a\r\n"])
def test_a_script_that_would_end_its_element_is_refused(script, written, text):
    with pytest.raises(ValueError, match="cannot stand inside"):
        page_module.unended(text, "script")
    assert page_module.unended("if (a < b && c) { x = '<b>' }", "script")


def test_a_failed_page_leaves_the_old_one(written, tmp_path):
    before = written()
    with pytest.raises(ValueError):
        written(data={"x": float("inf")})
    assert (tmp_path / "page.html").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_templates_escape_and_insist_on_every_name():
    made = environment().from_string("<p title='{{ x }}'>{{ x }}</p>").render(x="'<b>&\"")
    assert made == "<p title='&#39;&lt;b&gt;&amp;&#34;'>&#39;&lt;b&gt;&amp;&#34;</p>"
    with pytest.raises(UndefinedError):
        template("cards.html").render()


# -- Markdown ----------------------------------------------------------------------------------------------------------------


def test_markdown_becomes_html_with_formulas_tables_and_ids():
    made = markdown_to_html("## Base evaluation\n\nNow $x^2$, `a` and **b**.\n\n" + table(["name", "number"], [["a|b", "1"]]))
    assert '<h2 id="base-evaluation">' in made and "<msup>" in made and "<strong>b</strong>" in made
    assert '<div class="scroll"><table>' in made and '<th scope="col" class="num">number</th>' in made
    assert "<td>a|b</td>" in made and '<td class="num">1</td>' in made
    assert "\n<p><math" not in markdown_to_html("costs 5 and 6\n\nno \\$x\\$")


def test_ids_of_equal_headings_differ_and_carry_the_prefix():
    made = markdown_to_html("## A\n\n## A\n\n## a!\n\n## §", prefix="x-")
    assert re.findall(r'id="([^"]*)"', made) == ["x-a", "x-a-2", "x-a-3", "x-section"]


def test_a_figure_stands_in_the_place_of_its_picture_and_no_picture_is_loaded():
    text = "before\n\n![Curves](loss.png)\n\n![Other](other.png) ![](https://a.example/x.png)"
    made = markdown_to_html(text, figures={"loss.png": "<figure>drawn</figure>"})
    assert "<p>before</p>\n<figure>drawn</figure>\n" in made
    assert '<a href="other.png">Other</a>' in made and "<img" not in made


@pytest.mark.parametrize(
    ("address", "is_link"),
    [
        ("../trace/forward.html", True),
        ("#summary", True),
        ("https://arxiv.org/abs/2406.11794", True),
        ("javascript:hacked=1", False),
        ("JavaScript:hacked=1", False),
        ("&#106;avascript:hacked=1", False),
        ("java%73cript:hacked=1", False),
        ("vbscript:x", False),
        ("data:text/html,x", False),
        ("file:///etc/passwd", False),
    ],
)
def test_links_lead_to_pages_only(address, is_link):
    assert ("<a " in markdown_to_html(f"[x]({address})")) == is_link


@pytest.mark.parametrize("hostile", HOSTILE)
def test_html_in_markdown_is_shown(written, hostile):
    made = written(body=markdown_to_html(f"# A\n\nsaid: {inline(hostile)}\n\n{table(['a'], [[hostile]])}"))
    assert active_parts(made) == []
    assert Page(made).text.count(re.sub(r"\s+", " ", visible(hostile, keep="\n\t")).strip()) == 2


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("`*_[]()<>&|~$\\\n:/!#\"'"))))
def test_no_text_gets_out_of_a_sentence(text):
    made = markdown_to_html(f"said: {inline(text)}.")
    tags = set(re.findall(r"<\s*/?\s*([a-zA-Z!?]+)", made))
    assert tags == {"p"}


def test_formulas_are_mathml():
    assert mathml("a_1") != mathml("a_1", display=True)
    assert 'display="block"' in mathml("a_1", display=True)
    made = markdown_to_html(r"$\mathrm{softmax}\left(\frac{q k^\top}{\sqrt{d}}\right)v$" + "\n\n$$\\sum_i x_i^2$$")
    assert not {tag for tag in re.findall(r"<(m[a-z]+)", made)} - {"math", "mrow", "mi", "mo", "mn", "mfrac", "msqrt", "msup",
                                                                "msubsup", "msub", "munder", "munderover"}  # fmt: skip


# -- in a browser ------------------------------------------------------------------------------------------------------------


DRAW = """
page.plot(document.getElementById("a"), [
  { x: [1, 2, 3], y: [3, 1, 2], name: "<b>one</b>" },
  { x: [1, 2, 3], y: [1, 2, 2], name: "two", type: "bar", customdata: ["<a href='https://a.example'>x</a>"] },
], { height: 300, yaxis: { ticktext: ["<a href='https://a.example'>tick</a>"], tickvals: [2] } });
"""


def test_a_page_in_the_browser(browser, script, tmp_path):
    path = tmp_path / "page.html"
    body = '<div class="wrap"><h1>Plots</h1><div id="a"></div><div class="scroll"><table><tr><td>'
    body += "a_very_long_word " * 60 + "</td></tr></table></div></div>"
    name = script("draw.js", DRAW)
    write_page(path, title="Plots", body=body.replace("a_very", "a&nbsp;very"), scripts=[name], plotly=True)
    for width in (400, 1400):
        with visit(browser, path, width=width) as (page, problems):
            page.wait_for_selector(".plot svg.main-svg .trace")
            no_sideways_scroll(page)
            assert page.locator(".plot svg .scatterlayer .trace").count() == 1
            assert page.locator(".plot svg a, .plot svg b").count() == 0
            assert "<a href='https://a.example'>tick</a>" in page.locator(".ytick text").first.text_content()
            assert page.get_by_role("button", name="<b>one</b>").count() == 1
            # the legend hides and shows
            bars = page.locator(".plot svg .barlayer .trace").first
            page.get_by_role("button", name="two").click()
            bars.wait_for(state="detached")
            page.get_by_role("button", name="two").press("Enter")
            bars.wait_for(state="attached")
            # nothing that sends data away
            titles = page.locator(".modebar-btn").evaluate_all("all => all.map(b => b.dataset.title ?? b.ariaLabel)")
            assert titles and not [title for title in titles if "loud" in title or "hare" in title or "dit" in title]
            assert problems == []


def test_the_theme_follows_the_system_and_then_the_reader(browser, script, tmp_path):
    path = tmp_path / "page.html"
    name = script("note.js", "page.onTheme((theme) => { document.title = theme; });")
    write_page(path, title="x", body="<h1>x</h1>", scripts=[name])

    def background(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    with visit(browser, path, dark=True) as (page, problems):
        assert page.title() == "dark"
        dark = background(page)
        button = page.get_by_role("button", name="Theme")
        assert button.inner_text() == "Theme: auto"
        button.press("Enter")
        assert button.inner_text() == "Theme: light" and page.title() == "light"
        assert background(page) != dark
        page.reload()
        assert page.title() == "light" and background(page) != dark
        button.click()
        assert page.title() == "dark" and background(page) == dark
        page.emulate_media(color_scheme="light")
        assert page.title() == "dark"
        button.click()
        assert button.inner_text() == "Theme: auto" and page.title() == "light"
        assert problems == []


def test_elements_made_by_scripts_take_text_and_refuse_code(browser, tmp_path):
    path = tmp_path / "page.html"
    write_page(path, title="x", body="<h1>x</h1><div id='a'></div>", data={"rows": ["</script>", 1.5, None]})
    with visit(browser, path) as (page, problems):
        assert page.evaluate("page.data('rows')") == ["</script>", 1.5, None]
        made = "page.el('p', {class: 'muted', title: '<b>'}, '<b>', page.el('i', {}, 'x'), null, ['y']).outerHTML"
        assert page.evaluate(made) == '<p class="muted" title="&lt;b&gt;">&lt;b&gt;<i>x</i>y</p>'
        assert page.evaluate("page.el('svg:rect', {x: 1}).namespaceURI") == "http://www.w3.org/2000/svg"
        clicked = "(() => { let n = 0; page.el('button', {onclick: () => n++}).click(); return n; })()"
        assert page.evaluate(clicked) == 1
        for attributes in (
            "{onclick: 'hacked=1'}",
            "{href: 'javascript:hacked=1'}",
            "{HREF: ' JavaScript:x'}",
            "{srcdoc: 'x'}",
        ):
            refused = (
                f"(() => {{ try {{ page.el('a', {attributes}); return ''; }} catch (error) {{ return error.message; }} }})()"
            )
            assert "page.el" in page.evaluate(refused), attributes
        assert problems == []


@pytest.mark.parametrize("attack", ["<script>hacked=1</script>", "<img src=x onerror=hacked=1>", "<svg onload=hacked=1></svg>"])
def test_even_what_gets_into_a_body_does_not_run(browser, tmp_path, attack):
    path = tmp_path / "page.html"
    write_page(path, title="x", body=f"<h1>x</h1>{attack}")
    with visit(browser, path) as (page, problems):
        assert page.evaluate("typeof hacked") == "undefined"
    assert any("content security policy" in problem for problem in problems)


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_enough_contrast(browser, tmp_path, dark):
    """At least 4.5 to 1 (WCAG 2.2, AA), for each colour of text on each colour behind it."""
    path = tmp_path / "page.html"
    write_page(path, title="x", body="<h1>x</h1>")
    names = ["--bg", "--panel", "--code-bg", "--fg", "--muted", "--accent", "--accent2", "--good", "--bad"]
    with visit(browser, path, dark=dark) as (page, _):
        colours = {name: page.evaluate(f"page.colour('{name}')") for name in names}
    for behind in names[:3]:
        for text in names[3:]:
            assert contrast(colours[behind], colours[text]) >= 4.5, (behind, text, contrast(colours[behind], colours[text]))


def contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)
