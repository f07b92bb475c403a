"""Markdown of notebooks as HTML of the page: nbconvert's parser, formulas as MathML, links that stay on the page."""

import html
import re
import warnings
from pathlib import PurePosixPath
from typing import Any

from bs4 import BeautifulSoup
from latex2mathml.converter import convert as to_mathml
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from editkit.report.citations import References

# What XML would take for its own, while latex2mathml passes it through; an operator it takes for a name then.
FOREIGN = {"<": ("\ue000", "&lt;"), ">": ("\ue001", "&gt;"), '"': ("\ue002", "&quot;")}
# latex2mathml knows the starred outer environments alone.
ENVIRONMENTS = {"aligned": "align*", "split": "align*", "gathered": "align*", "equation": "align*"}
CITATION = r"\[@(?P<cite_key>[\w-]+)\]|\barXiv (?P<cite_number>\d{4}\.\d{5})"


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


def plain(fragment: str) -> str:
    """Return the text of a piece of HTML, in one line."""
    return " ".join(BeautifulSoup(fragment, "html.parser").get_text().split())


def slug(text: str) -> str:
    """Return what an anchor says of a title, or of Jupyter's own anchor to it, which has dashes in place of blanks."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-") or "section"


def anchor(stem: str) -> str:
    """Return the anchor of a chapter, by the name of its notebook."""
    return f"nb-{stem}"


def formula(latex: str) -> str:
    """Set a formula on a line of its own; where it is wider than the page, its frame scrolls, by the keyboard too."""
    return f'<div class="formula" tabindex="0" role="group" aria-label="Formula">{mathml(latex, display=True)}</div>'


class Renderer(IPythonRenderer):
    """nbconvert's renderer of a chapter.

    Args:
        stem: name of the chapter's notebook.
        taken: anchors of the page, to which a section's is added.
        references: what may be cited.
        path: folder of the notebook, for its pictures.
        deeper: levels by which headings are lowered; a title of level 1 is the report's alone.
    """

    def __init__(self, stem: str, taken: set[str], references: References, path: str, deeper: int = 1):
        super().__init__(escape=False, embed_images=True, exclude_anchor_links=True, path=path)
        self.stem, self.taken, self.references, self.deeper = stem, taken, references, deeper

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        """Render a heading, with an anchor for those of level 1 and 2: the chapter's title, and its sections."""
        lower = min(max(level + self.deeper, 2), 6)
        if level > 2:
            return f"<h{lower}>{text}</h{lower}>\n"
        base = name = anchor(self.stem) if level == 1 else f"{anchor(self.stem)}--{slug(plain(text))}"
        count = 1
        while name in self.taken:
            count += 1
            name = f"{base}-{count}"
        self.taken.add(name)
        return f'<h{lower} id="{name}">{text}</h{lower}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """Render a link; one to a notebook, or a section of one, and one to a run's picture stay on the page."""
        place, _, section = url.partition("#")
        path = PurePosixPath(place)
        if path.suffix == ".png" and path.parent.name == "figures":
            return f'<a href="#figure-{slug(path.stem)}">{text}</a>'
        if path.suffix == ".ipynb" or (section and not place):
            chapter = anchor(path.stem or self.stem)
            url = f"#{chapter}--{slug(section)}" if section else f"#{chapter}"
        return super().link(text, url, title)

    def citation(self, key: str) -> str:
        """Render a reference to an entry of the bibliography."""
        return f'<a class="cite" href="#reference-{key}">{html.escape(self.references.label(key))}</a>'

    def block_mermaidjs(self, code: str) -> str:
        return f"<pre><code>{html.escape(code)}</code></pre>\n"

    def block_math(self, body: str) -> str:
        return formula(body)

    def inline_math(self, body: str) -> str:
        return mathml(body, display=False)

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")


class OutputRenderer(Renderer):
    """Renders Markdown that code wrote, whatever data is in it: tags are shown as text, pictures as their names."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self._allow_harmful_protocols = False

    def block_html(self, html: str) -> str:
        return f"<p>{self.escape_html(html)}</p>\n"

    def inline_html(self, html: str) -> str:
        return self.escape_html(html)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return text


def render(source: str, renderer: Renderer) -> str:
    """Render Markdown with formulas and citations: ``[@key]``, or ``arXiv`` and the number of an entry."""
    markdown = MarkdownWithMath(renderer=renderer)

    def cite(inline: Any, match: re.Match[str], state: Any) -> int | None:
        key = renderer.references.find(match["cite_key"] or match["cite_number"])
        if key is None:
            return None  # it stays text
        state.append_token({"type": "citation", "raw": key})
        return match.end()

    markdown.inline.register("citation", CITATION, cite, before="link")
    return markdown.render(source)
