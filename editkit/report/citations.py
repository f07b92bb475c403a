"""The literature of the report: entries of ``templates/references.bib``, as labels in a text and as one list.

``[@key]`` in a notebook becomes "Meng et al., 2022"; see :func:`editkit.report.markdown.render`.
"""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from string import ascii_lowercase

from pybtex.backends.html import Backend
from pybtex.database import BibliographyData, Entry, parse_file
from pybtex.style.formatting.unsrt import Style

FILE = Path(__file__).parent / "templates" / "references.bib"
REPORT = "editkit"  # key of the report's own entry


class References:
    """Entries of a BibTeX file."""

    def __init__(self, path: Path = FILE):
        self.data: BibliographyData = parse_file(str(path), bib_format="bibtex")

    @cached_property
    def _numbers(self) -> dict[str, str]:
        return {entry.fields["eprint"]: key for key, entry in self.data.entries.items() if "eprint" in entry.fields}

    def find(self, name: str) -> str | None:
        """Return the key of an entry, named by it or by its number at arXiv; None where there is none."""
        return name if name in self.data.entries else self._numbers.get(name)

    def label(self, key: str) -> str:
        """Write an entry as a text does: "Meng et al., 2022", with a letter where another entry would look alike.

        Raises ``KeyError`` for a key that is none.
        """
        own = _label(self.data.entries[key])
        alike = [other for other, entry in self.data.entries.items() if _label(entry) == own]
        return own + ascii_lowercase[alike.index(key)] * (len(alike) > 1)

    def listed(self, keys: Iterable[str]) -> dict[str, tuple[str, str]]:
        """Write the entries of some keys, sorted by their labels: key to label and HTML."""
        style, backend = Style(abbreviate_names=True), Backend()
        entries = [self.data.entries[key] for key in sorted(set(keys), key=self.label)]
        written = {entry.key: entry.text.render(backend) for entry in style.format_entries(entries, self.data)}
        return {key: (self.label(key), text) for key, text in written.items()}

    def bibtex(self, key: str, **more: str) -> str:
        """Return an entry as BibTeX, with more fields."""
        entry = self.data.entries[key]
        fields = {**entry.fields, **more}
        return BibliographyData({key: Entry(entry.type, fields, entry.persons)}).to_string("bibtex").strip()


def _label(entry: Entry) -> str:
    names = [" ".join([*person.prelast_names, *person.last_names]) for person in entry.persons["author"]]
    who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
    return f"{who.strip('{}')}, {entry.fields['year']}"
