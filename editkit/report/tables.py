"""Tables of the page: numbers to the right, a frame that scrolls, empty heads filled in, captions numbered."""

import re
from itertools import count
from typing import Any

from bs4 import BeautifulSoup

NUMBER = re.compile(r"^[-−+]?(\d[\d.,]*(e[-+]?\d+)?|inf|nan)\s*(%|±.*)?$|^[-–—]?$", re.IGNORECASE)


class Tables:
    """Styles the tables of a page, which are numbered through it where they have a caption."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def style(self, fragment: str) -> str:
        """Return a piece of HTML with its tables styled."""
        if "<table" not in fragment:
            return fragment
        soup = BeautifulSoup(fragment, "html.parser")
        for table in soup.find_all("table"):
            for row in table.find_all("tr"):
                row.attrs.pop("style", None)
            for cell in table.find_all("td", string="NaN"):
                cell.string = "–"  # not measured, rather than not a number
            _join_heads(table)
            _align_numbers(table)
            if table.caption:
                number = soup.new_tag("b")
                number.string = f"Table {next(self._numbers)}. "
                table.caption.insert(0, number)
            label = table.caption.get_text() if table.caption else "Table"
            frame = {"class": "table", "tabindex": "0", "role": "group", "aria-label": label}
            table.wrap(soup.new_tag("div", attrs=frame))
        return str(soup)


def _join_heads(table: Any) -> None:
    """Make one row of the two that pandas writes where an index has a name; heads left empty are no heads."""
    rows = [row.find_all(["th", "td"]) for row in table.select("thead tr")]
    if len(rows) == 2 and len(rows[0]) == len(rows[1]):
        pairs = list(zip(*rows, strict=True))
        if all(not (above.get_text().strip() and below.get_text().strip()) for above, below in pairs):
            for above, below in pairs:
                if not above.get_text().strip():
                    above.string = below.get_text().strip()
            rows[1][0].find_parent("tr").decompose()
    for head in table.select("thead th"):
        if not head.get_text().strip():
            head.name = "td"
        elif not head.get("scope"):
            head["scope"] = "colgroup" if head.get("colspan") else "col"
    if table.thead and not table.thead.get_text().strip():
        table.thead.decompose()


def _align_numbers(table: Any) -> None:
    body = [row.find_all("td") for row in table.select("tbody tr")]
    # Counted from the right, because row labels span rows.
    for offset in range(1, max(map(len, body), default=0) + 1):
        column = [cells[-offset] for cells in body if len(cells) >= offset]
        texts = [cell.get_text().strip() for cell in column]
        if any(texts) and all(NUMBER.match(text) for text in texts):
            heads = [row.find_all(["th", "td"]) for row in table.select("thead tr")]
            column += [h[-offset] for h in heads if len(h) >= offset and not h[-offset].get("colspan")]
            for cell in column:
                cell["class"] = [*cell.get("class", []), "number"]
