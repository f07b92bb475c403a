"""The page of a run: executed notebooks as one HTML document that needs nothing beside itself.

Its order: title and first screen, contents, chapters, glossary, references, and an appendix with what was set and
written.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup, Tag
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from nbformat import NotebookNode
from plotly.offline import get_plotlyjs

from editkit.report.citations import REPORT, References
from editkit.report.execute import Chapter
from editkit.report.exporter import ChapterExporter
from editkit.report.figures import Figures
from editkit.report.glossary import Glossary
from editkit.report.markdown import Renderer
from editkit.report.preprocess import parts
from editkit.report.safety import content_policy
from editkit.report.tables import Tables

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("cards.js", "tables.js")
BRIEFLY = ("Date", "Parameters", "Device")  # of the facts about a run, which one line says


@dataclass
class Section:
    """An entry of the table of contents."""

    anchor: str
    title: str


@dataclass
class Rendered:
    """A chapter as the template takes it."""

    chapter: Chapter
    front: Tag
    body: Tag
    appendix: Tag
    anchor: str = ""
    title: str = ""
    sections: list[Section] = field(default_factory=list)

    def __post_init__(self) -> None:
        title, *_ = self.body.find_all("h2")
        self.anchor, self.title = str(title["id"]), title.get_text()
        self.sections = [Section(str(h["id"]), h.get_text()) for h in self.body.find_all("h3", id=True)]


@dataclass(frozen=True)
class Made:
    """How a run was made, for a reader who wants to make it again."""

    folder: Path
    parameters: str
    """The parameter file, as the command was given it."""
    results: list[dict[str, Any]]
    """Entries with ``file``, ``rows`` and ``sha256``."""

    def command(self, chapter: Chapter) -> str:
        """Return what makes a chapter again: the whole run, for one that reads what others wrote."""
        only = f" --only {chapter.name}" if chapter.measures else ""
        return f"python -m editkit report {self.parameters}{only}"


def render_report(
    title: str, facts: dict[str, str], chapters: list[Chapter], made: Made, browser: str | None = None
) -> str:
    """Render the whole page.

    Args:
        facts: about the run, name to value; some stand below the title, all of them behind it.
        chapters: in reading order; failed ones are shown as far as they came.
        browser: that draws still pictures of the figures; without one they need JavaScript.
    """
    environment = Environment(
        loader=PackageLoader("editkit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["repr"] = repr
    hashes = {entry["file"]: entry["sha256"] for entry in made.results}
    commands = {chapter.name: made.command(chapter) for chapter in chapters}
    figures, references, glossary = Figures(environment, browser, hashes, commands), References(), Glossary()
    exporter = ChapterExporter(figures, Tables(), references)
    rendered = _chapters(exporter, chapters, environment, made.folder)
    for part in rendered:
        glossary.mark(part.body)
    meanings = glossary.meanings(Renderer("glossary", exporter.anchors, references, ""))
    cited = _resolve(rendered, {place for place, _ in meanings.values()})
    names = ["plots.js"] * figures.any + [*SCRIPTS]
    scripts = [get_plotlyjs()] * figures.any + [(TEMPLATES / name).read_text(encoding="utf-8") for name in names]
    return environment.get_template("page.html.j2").render(
        title=title,
        briefly=[facts[name] for name in BRIEFLY if name in facts],
        facts=facts,
        chapters=rendered,
        glossary={name: (place, Markup(text)) for name, (place, text) in meanings.items()},
        references={key: (label, Markup(text)) for key, (label, text) in references.listed(cited).items()},
        bibtex=references.bibtex(REPORT),
        results=made.results,
        heads={part.anchor: _css(part.title) for part in rendered},
        scripts=list(map(Markup, scripts)),
        policy=content_policy(scripts),
    )


def _chapters(
    exporter: ChapterExporter, chapters: list[Chapter], environment: Environment, folder: Path
) -> list[Rendered]:
    """Render all chapters, what stands on the first screen first: figures and tables are numbered as they are read."""
    notice = environment.get_template("notice.html.j2")
    split = {chapter.name: parts(_notebook(chapter), chapter.name) for chapter in chapters}

    def write(place: str) -> list[Tag]:
        pieces: list[Tag] = []
        for chapter in chapters:
            told = notice.render(chapter=chapter, log=chapter.log.relative_to(folder).as_posix())
            text = exporter.write(split[chapter.name][place], chapter, place, told if place == "body" else "")
            pieces.append(BeautifulSoup(text, "html.parser"))
        return pieces

    written = [write(place) for place in ("front", "body", "appendix")]
    return [Rendered(*given) for given in zip(chapters, *written, strict=True)]


def _notebook(chapter: Chapter) -> NotebookNode:
    if chapter.status != "not run" and chapter.executed.is_file():
        return nbformat.read(chapter.executed, as_version=4)
    if not chapter.source.is_file():
        return nbformat.v4.new_notebook()
    notebook = nbformat.read(chapter.source, as_version=4)
    title = notebook.cells[:1]  # so that the contents name what is missing
    return NotebookNode(notebook | {"cells": title})


def _resolve(rendered: list[Rendered], more: set[str]) -> set[str]:
    """Let every link on the page lead somewhere; returns the keys of what is cited."""
    pieces = [piece for part in rendered for piece in (part.front, part.body, part.appendix)]
    numbers = {tag["id"]: tag["data-number"] for piece in pieces for tag in piece.select("figure[data-number]")}
    known = {tag["id"] for piece in pieces for tag in piece.find_all(id=True)} | more
    cited = set()
    for link in (link for piece in pieces for link in piece.select("a[href^='#']")):
        target = str(link["href"])[1:]
        if "cite" in (link.get("class") or ""):
            cited.add(target.removeprefix("reference-"))
        elif target in numbers and not link.get_text():
            link.string = f"Figure {numbers[target]}"
        elif target not in known:
            chapter = target.partition("--")[0]
            link.replace_with(link.get_text()) if chapter not in known else link.attrs.update(href=f"#{chapter}")
    return cited


def _css(text: str) -> Markup:
    """Write a text as a string of CSS, of which nothing can be anything else."""
    return Markup("".join(sign if sign.isascii() and sign.isalnum() else f"\\{ord(sign):x} " for sign in text))
