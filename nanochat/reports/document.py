"""A document as a page: sections of Markdown, their pictures as interactive plots, a table of contents beside them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from nanochat.pages.markdown import markdown_to_html, slug
from nanochat.pages.page import template, write_page
from nanochat.reports.charts import Chart
from nanochat.text import Markdown, visible


@dataclass(frozen=True)
class Plot:
    """A drawing in a figure. `chart` is one chart, or charts by the name of the variant that a reader may choose."""

    key: str
    title: str
    chart: Chart | Mapping[str, Chart | None] | None
    is_wide: bool = False
    empty: str = "Nothing to show yet."  # what stands there instead


@dataclass(frozen=True)
class Figure:
    """What stands in a page in the place of a picture: plots, and buttons to choose among their variants."""

    caption: str
    plots: Sequence[Plot]
    variants: Mapping[str, str] = field(default_factory=dict)  # key -> what its button says
    choose: str = "Which one"

    def html(self) -> str:
        variants = [{"key": key, "title": visible(title)} for key, title in self.variants.items()]
        return template("figure.html").render(caption=self.caption, plots=self.plots, variants=variants, choose=self.choose)

    def data(self) -> dict[str, dict]:
        """What draws the plots, for the page's script."""
        return {plot.key: chart_data(plot, self.variants) for plot in self.plots}


def chart_data(plot: Plot, variants: Mapping[str, str]) -> dict:
    if not variants:
        return {"empty": plot.empty, **(plot.chart or {})}
    return {"empty": plot.empty, "variants": dict(plot.chart or {})}


@dataclass(frozen=True)
class Card:
    """A headline number."""

    title: str
    value: str
    note: str = ""


def cards_html(cards: Sequence[Card]) -> str:
    return template("cards.html").render(cards=cards)


def write_document(
    path: Path,
    *,
    title: str,
    notice: Sequence[Markdown],
    sections: Mapping[str, Sequence[Markdown]],
    figures: Mapping[str, Figure | str],
    folded: Collection[str] = (),
) -> None:
    """Write the page. `notice` is what a reader must know first; `sections` have their headings as keys, those in `folded` are
    closed until somebody opens them; `figures` are by the file of the picture that they stand for, strings being HTML.
    """
    html = {file: figure.html() if isinstance(figure, Figure) else figure for file, figure in figures.items()}
    data = {key: chart for figure in figures.values() if isinstance(figure, Figure) for key, chart in figure.data().items()}
    parts = [
        {
            "heading": heading,
            "key": slug(heading),
            "html": Markup(markdown_to_html("\n\n".join(blocks), figures=html, prefix=f"{slug(heading)}-")),
            "is_folded": heading in folded,
        }
        for heading, blocks in sections.items()
    ]
    first = markdown_to_html("\n\n".join(notice), prefix="notice-")
    lead = f'<div class="panel notice">{first}</div>' if notice else ""
    body = template("report.html").render(title=visible(title), lead=Markup(lead), sections=parts)
    has_plots = any("traces" in chart or any(chart.get("variants", {}).values()) for chart in data.values())
    write_page(
        path,
        title=visible(title),
        body=body,
        data={"charts": data},
        scripts=["report.js"],
        styles=["report.css"],
        plotly=has_plots,
    )
