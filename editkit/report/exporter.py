"""nbconvert's exporter of a chapter: our template, our steps before it, and what writes each kind of output."""

import html
from base64 import b64encode
from pathlib import Path
from typing import Any

from jinja2 import pass_context
from nbconvert.exporters import HTMLExporter
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode
from traitlets.config import Config

from editkit.report.citations import References
from editkit.report.execute import Chapter
from editkit.report.figures import PLOTLY, Figures
from editkit.report.markdown import OutputRenderer, Renderer, formula, render
from editkit.report.preprocess import Outputs, Sections, Tags
from editkit.report.safety import clean
from editkit.report.tables import Tables

SHOWN = [PLOTLY, "text/html", "text/markdown", "text/latex", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]
DEEPER = {"front": 0, "body": 1, "appendix": 2}  # levels by which headings are lowered


class ChapterExporter(HTMLExporter):
    """Writes parts of notebooks as pieces of one page.

    Args:
        figures, tables: which number theirs through the page.
        references: what may be cited.
    """

    def __init__(self, figures: Figures, tables: Tables, references: References):
        self.figures, self.tables, self.references = figures, tables, references
        self.anchors: set[str] = set()
        super().__init__(
            template_name="templates",
            template_file="chapter.html.j2",
            extra_template_basedirs=[str(Path(__file__).parent)],
            preprocessors=[Tags(enabled=True), Outputs(enabled=True), Sections(enabled=True)],
        )

    @property
    def default_config(self) -> Config:
        """nbconvert's, with the richest form of an output that needs nothing from outside."""
        config = super().default_config
        config.NbConvertBase.display_data_priority = SHOWN
        config.HighlightMagicsPreprocessor.enabled = False
        return config

    def write(self, part: NotebookNode, chapter: Chapter, place: str = "body", notice: str = "") -> str:
        """Write a part of a chapter's notebook as HTML.

        Args:
            place: ``front``, ``body`` or ``appendix``, which says how deep its headings are.
            notice: HTML that follows the first cell.
        """
        given = {"chapter": chapter, "place": place, "notice": notice, "metadata": {}}
        return self.from_notebook_node(part, given)[0]

    def default_filters(self) -> Any:
        """nbconvert's filters, and one for each kind of cell and output."""
        yield from super().default_filters()
        yield "markdown", self._markdown(Renderer)
        yield "output_markdown", self._markdown(OutputRenderer)
        yield "tables", self.tables.style
        yield "clean", clean
        yield "figure", self._figure
        yield "formula", lambda source: formula(source.strip("$ "))
        yield "picture", _picture
        yield "traceback", _traceback

    def _markdown(self, kind: type[Renderer]) -> Any:
        @pass_context
        def write(context: Any, source: str) -> str:
            chapter, place = context["resources"]["chapter"], context["resources"]["place"]
            folder = str(chapter.source.parent)
            return render(source, kind(chapter.name, self.anchors, self.references, folder, DEEPER[place]))

        return write

    @pass_context
    def _figure(self, context: Any, output: NotebookNode) -> str:
        if PLOTLY not in output.data:  # nothing that a page could show
            return ""
        return self.figures.write(output.data[PLOTLY], context["resources"]["chapter"], context["cell"])


def _picture(output: NotebookNode, kind: str) -> str:
    """Write a picture as an element that cannot run anything."""
    data = output.data[kind]
    text = b64encode(data.encode()).decode() if kind == "image/svg+xml" else data.replace("\n", "")
    alt = output.metadata.get(kind, {}).get("alt") or output.data.get("text/plain", "Figure")
    return f'<figure><img src="data:{kind};base64,{html.escape(text)}" alt="{html.escape(alt)}"></figure>'


def _traceback(output: NotebookNode) -> str:
    return strip_ansi("\n".join(output.traceback)) or f"{output.ename}: {output.evalue}"
