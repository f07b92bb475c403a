"""Render executed notebooks as one self-contained HTML page.

nbconvert's Markdown parser does the text; formulas become MathML, which browsers draw by themselves, and one
embedded plotly.js draws every figure, so the page needs no network.
"""

import html
import re
import warnings
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup
from jinja2 import Environment, PackageLoader, StrictUndefined
from latex2mathml.converter import convert as to_mathml
from markupsafe import Markup
from nbconvert.filters import strip_ansi
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from plotly.offline import get_plotlyjs
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from editkit.plain import to_json
from editkit.report.execute import Chapter
from editkit.report.safety import clean, content_policy

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
TEMPLATES = Path(__file__).parent / "templates"
CODE_STYLE = HtmlFormatter(style="friendly", cssclass="highlight", wrapcode=True)
NUMBER = re.compile(r"^[-−+]?(\d[\d.,]*(e[-+]?\d+)?|inf|nan)\s*(%|±.*)?$|^[-–—]?$", re.IGNORECASE)
# What XML would take for its own, while latex2mathml passes it through; an operator it takes for a name then.
FOREIGN = {"<": ("\ue000", "&lt;"), ">": ("\ue001", "&gt;"), '"': ("\ue002", "&quot;")}
# latex2mathml knows the starred outer environments alone.
ENVIRONMENTS = {"aligned": "align*", "split": "align*", "gathered": "align*", "equation": "align*"}


@dataclass
class Section:
    """An entry of the table of contents."""

    anchor: str
    title: str


@dataclass
class Rendered:
    """A chapter as the template takes it."""

    chapter: Chapter
    anchor: str
    title: str = ""
    sections: list[Section] = field(default_factory=list)
    blocks: list[Markup] = field(default_factory=list)


def mathml(latex: str, *, display: bool) -> str:
    """Convert a LaTeX formula to MathML; one that cannot be set is shown as source, with a warning."""
    source = re.sub(
        r"\\(begin|end)\{(\w+)\*?\}",
        lambda m: f"\\{m[1]}{{{ENVIRONMENTS[m[2]]}}}" if m[2] in ENVIRONMENTS else m[0],
        latex.strip(),
    )
    for sign, (stand_in, _) in FOREIGN.items():
        source = source.replace(sign, stand_in)
    try:
        result = to_mathml(source, display="block" if display else "inline")
    except Exception as error:  # the converter has no common error class
        result, why = "", str(error)
    else:
        # What it does not know it passes on as text.
        why = "unknown command" if re.search(r">\\|>&<", result) else "a link" if " href=" in result else ""
    if why:
        warnings.warn(f"formula {latex!r} is shown as source: {why}", stacklevel=2)
        return f"<code>{html.escape(latex)}</code>"
    for stand_in, entity in FOREIGN.values():
        result = result.replace(f"<mi>{stand_in}</mi>", f"<mo>{entity}</mo>").replace(stand_in, entity)
    return result.replace("<math ", f'<math alttext="{html.escape(latex.strip())}" ', 1)


class ReportRenderer(IPythonRenderer):
    """nbconvert's renderer with MathML, unique anchors and links between chapters."""

    def __init__(self, chapter: Rendered, anchors: dict[str, str], path: str):
        super().__init__(escape=False, embed_images=True, exclude_anchor_links=True, path=path)
        self.chapter = chapter
        self.anchors = anchors

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        """Render a heading with an anchor; the first of level 1 names the chapter, others are sections."""
        title = _plain(text)
        if level == 1 and not self.chapter.title:
            self.chapter.title = title
            return f'<h1 id="{self.chapter.anchor}">{text}</h1>\n'
        taken = {section.anchor for section in self.chapter.sections}
        slug = re.sub(r"[^\w]+", "-", title.lower()).strip("-") or "section"
        base = anchor = f"{self.chapter.anchor}--{slug}"
        for count in range(2, 1000):
            if anchor not in taken:
                break
            anchor = f"{base}-{count}"
        if level <= 2:
            self.chapter.sections.append(Section(anchor, title))
            return f'<h2 id="{anchor}">{text}</h2>\n'
        return f"<h{level}>{text}</h{level}>\n"

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """Render a link; one to another notebook leads to its chapter."""
        stem = Path(url.partition("#")[0]).stem if ".ipynb" in url else ""
        return super().link(text, self.anchors.get(stem, url), title)

    def block_mermaidjs(self, code: str) -> str:
        return f"<pre><code>{html.escape(code)}</code></pre>\n"

    def block_math(self, body: str) -> str:
        return f'<div class="formula">{mathml(body, display=True)}</div>'

    def inline_math(self, body: str) -> str:
        return mathml(body, display=False)

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")


class OutputRenderer(ReportRenderer):
    """Renders Markdown that code wrote, whatever data is in it: tags are shown as text, pictures as their names."""

    def __init__(self, chapter: Rendered, anchors: dict[str, str], path: str):
        super().__init__(chapter, anchors, path)
        self._allow_harmful_protocols = False

    def block_html(self, html: str) -> str:
        return f"<p>{self.escape_html(html)}</p>\n"

    def inline_html(self, html: str) -> str:
        return self.escape_html(html)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return text


def render_report(
    title: str, facts: dict[str, str], chapters: list[Chapter], results: list[dict[str, Any]], folder: Path
) -> str:
    """Render the whole page.

    Args:
        facts: what the title block lists, name to value.
        chapters: in reading order; failed ones are shown as far as they came.
        results: entries with ``file``, ``rows`` and ``sha256`` for the index at the end.
        folder: of the run; logs are named relative to it.
    """
    anchors = {chapter.name: f"#{_anchor(chapter)}" for chapter in chapters}
    rendered = [_chapter(chapter, anchors) for chapter in chapters]
    environment = Environment(
        loader=PackageLoader("editkit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    has_plots = any('class="plot"' in block for part in rendered for block in part.blocks)
    names = (["plots.js"] if has_plots else []) + ["tables.js"]
    scripts = [get_plotlyjs()] * has_plots + [(TEMPLATES / name).read_text(encoding="utf-8") for name in names]
    return environment.get_template("report.html.j2").render(
        title=title,
        facts=facts,
        chapters=rendered,
        results=results,
        logs={chapter.name: chapter.log.relative_to(folder).as_posix() for chapter in chapters},
        code_css=Markup(CODE_STYLE.get_style_defs(".highlight")),
        scripts=list(map(Markup, scripts)),
        policy=content_policy(scripts),
    )


def _anchor(chapter: Chapter) -> str:
    return f"nb-{chapter.name}"


def _plain(fragment: str) -> str:
    return BeautifulSoup(fragment, "html.parser").get_text().strip()


def _chapter(chapter: Chapter, anchors: dict[str, str]) -> Rendered:
    part = Rendered(chapter, _anchor(chapter))
    cells = []
    if chapter.status != "not run" and chapter.executed.is_file():
        cells = nbformat.read(chapter.executed, as_version=4).cells
    elif chapter.source.is_file():
        # Its title alone, so that the contents name what is missing.
        cells = nbformat.read(chapter.source, as_version=4).cells[:1]
    own, outputs = (
        MarkdownWithMath(renderer=kind(part, anchors, str(chapter.source.parent)))
        for kind in (ReportRenderer, OutputRenderer)
    )
    for cell in cells:
        tags = set(cell.metadata.get("tags", []))
        if tags & {"remove-cell", "injected-parameters", "papermill-error-cell-tag"}:
            continue
        if cell.cell_type == "markdown":
            part.blocks.append(Markup(_tables(own.render(cell.source))))
        elif cell.cell_type == "code":
            part.blocks += [Markup(block) for block in _code_cell(cell, tags, chapter, outputs) if block]
    if not part.title:
        part.title = chapter.name
        part.blocks.insert(0, Markup(f'<h1 id="{part.anchor}">{html.escape(part.title)}</h1>'))
    return part


def _code_cell(cell: Any, tags: set[str], chapter: Chapter, markdown: MarkdownWithMath) -> list[str]:
    blocks = []
    if "parameters" in tags:
        blocks.append(_parameters(chapter))
    elif "hide-input" not in tags and cell.source.strip():
        code = highlight(cell.source, PythonLexer(), CODE_STYLE)
        blocks.append(f'<details class="code"><summary>Code</summary>{code}</details>')
    if "hide-output" not in tags:
        blocks += _outputs(cell.outputs, markdown)
    return blocks


def _parameters(chapter: Chapter) -> str:
    shown = {name: value for name, value in chapter.parameters.items() if name != "run_dir"}
    if not shown:
        return ""
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(name)}</th><td><code>{html.escape(repr(value))}</code></td></tr>"
        for name, value in shown.items()
    )
    return f'<details class="parameters"><summary>Parameters</summary><table>{rows}</table></details>'


def _outputs(outputs: list[Any], markdown: MarkdownWithMath) -> list[str]:
    blocks = []
    printed = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    if printed.strip():
        blocks.append(f'<pre class="output">{html.escape(strip_ansi(printed).strip(chr(10)))}</pre>')
    for output in outputs:
        if output.output_type == "error":
            trace = strip_ansi("\n".join(output.traceback)) or f"{output.ename}: {output.evalue}"
            blocks.append(f'<pre class="output error">{html.escape(trace)}</pre>')
        elif output.output_type in ("display_data", "execute_result") and WIDGET not in output.data:
            blocks.append(_rich(output.data, output.metadata, markdown))
    return blocks


def _rich(data: dict[str, Any], metadata: dict[str, Any], markdown: MarkdownWithMath) -> str:
    """Render the richest form of an output that needs nothing from outside."""
    if PLOTLY in data:
        return _plot(data[PLOTLY])
    if "text/html" in data:
        return _tables(clean(data["text/html"]))
    if "text/markdown" in data:
        return _tables(markdown.render(data["text/markdown"]))
    if "text/latex" in data:
        return f'<div class="formula">{mathml(data["text/latex"].strip("$ "), display=True)}</div>'
    for kind in ("image/svg+xml", "image/png", "image/jpeg"):
        if kind in data:
            alt = html.escape(metadata.get(kind, {}).get("alt") or data.get("text/plain", "Figure"))
            text = b64encode(data[kind].encode()).decode() if kind == "image/svg+xml" else data[kind]
            encoded = html.escape(text.replace("\n", ""))
            return f'<figure><img src="data:{kind};base64,{encoded}" alt="{alt}"></figure>'
    text = data.get("text/plain", "")
    return f'<pre class="output">{html.escape(strip_ansi(text))}</pre>' if text.strip() else ""


def _plot(figure: dict[str, Any]) -> str:
    layout = {"width": 760, "height": 450, **figure.get("layout", {})}
    title = layout.get("title", {})
    text = title.get("text", "") if isinstance(title, dict) else title
    label = html.escape(_plain(text.replace("<br>", ". ")) or "Figure")
    spec = to_json({"data": figure["data"], "layout": layout}).replace("<", "\\u003c")
    size = f"width:{float(layout['width']):g}px;height:{float(layout['height']):g}px"
    return (
        f'<figure class="plot-frame"><div class="plot" role="img" aria-label="{label}" style="{size}"></div>'
        f'<script type="application/json">{spec}</script></figure>'
    )


def _tables(fragment: str) -> str:
    """Style tables: numbers to the right, and a frame that scrolls."""
    if "<table" not in fragment:
        return fragment
    soup = BeautifulSoup(fragment, "html.parser")
    for table in soup.find_all("table"):
        for row in table.find_all("tr"):
            row.attrs.pop("style", None)
        for cell in table.find_all("td", string="NaN"):
            cell.string = "–"  # not measured, rather than not a number
        _align_numbers(table)
        table.wrap(soup.new_tag("div", attrs={"class": "table", "tabindex": "0"}))
    return str(soup)


def _align_numbers(table: Any) -> None:
    body = [row.find_all("td") for row in table.find_all("tr") if row.find("td")]
    # Counted from the right, because row labels span rows.
    for offset in range(1, max(map(len, body), default=0) + 1):
        column = [cells[-offset] for cells in body if len(cells) >= offset]
        texts = [cell.get_text().strip() for cell in column]
        if any(texts) and all(NUMBER.match(text) for text in texts):
            heads = [row.find_all("th") for row in table.select("thead tr")]
            column += [h[-offset] for h in heads if len(h) >= offset and not h[-offset].get("colspan")]
            for cell in column:
                cell["class"] = [*cell.get("class", []), "number"]
