"""The words of the report, explained in one place and marked where a chapter first uses them."""

import re
from pathlib import Path

import yaml
from bs4 import BeautifulSoup, NavigableString, Tag

from editkit.report.markdown import Renderer, render, slug

FILE = Path(__file__).parent / "templates" / "glossary.yaml"
PROSE = ["p", "li", "dd"]  # where a term is marked; not inside:
SKIPPED = {"a", "code", "pre", "math", "script", "table", "figure", "h2", "h3", "h4", "summary", "nav"}


class Glossary:
    """Terms of a YAML file: name, the words that stand for it, and its meaning in Markdown."""

    def __init__(self, path: Path = FILE):
        self.terms: dict[str, dict] = yaml.safe_load(path.read_text(encoding="utf-8"))
        self._terms = {word: name for name, term in self.terms.items() for word in term["words"]}
        words = "|".join(map(re.escape, sorted(self._terms, key=len, reverse=True)))
        self._pattern = re.compile(rf"(?<![\w-])({words})(?![\w-])")

    def meanings(self, renderer: Renderer) -> dict[str, tuple[str, str]]:
        """Write the entries as HTML: name to anchor and meaning, in the order of the file."""
        return {
            name: (f"term-{slug(name)}", render(term["means"], renderer).strip()) for name, term in self.terms.items()
        }

    def mark(self, chapter: Tag) -> None:
        """Make a link of each term where a chapter's prose first has it."""
        left = set(self.terms)
        for paragraph in chapter.find_all(PROSE):
            for text in list(paragraph.find_all(string=True)):
                if text.parent and not {parent.name for parent in text.parents} & SKIPPED:
                    self._mark(text, left)
            if not left:
                return

    def _mark(self, text: NavigableString, left: set[str]) -> None:
        pieces: list[str | Tag] = []
        for place, piece in enumerate(self._pattern.split(str(text))):
            name = self._terms.get(piece) if place % 2 else None
            if name in left:
                left.remove(name)
                attributes = {"class": "term", "href": f"#term-{slug(name)}"}
                link = BeautifulSoup().new_tag("a", attrs=attributes)
                link.string = piece
                pieces.append(link)
            elif piece:
                pieces.append(NavigableString(piece))
        if any(isinstance(piece, Tag) for piece in pieces):
            text.replace_with(*pieces)
