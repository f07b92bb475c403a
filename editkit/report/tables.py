"""Tables of the page: numbers to the right and no longer than they are read, a frame that scrolls, captions numbered.

Frames arrive as pandas writes them; Python's ways of writing (True, NaN, peak_memory_mb) are put as people do.
"""

import math
import re
from collections.abc import Callable
from itertools import count
from typing import Any

from bs4 import BeautifulSoup

VALUE = r"[-−+]?(?:\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?|inf|nan)"
NUMBER = re.compile(rf"^{VALUE}\s*(%|±.*|\[.*\](?: of [\d,]+)?)?$|^[-–—]?$", re.IGNORECASE)
DECIMAL = re.compile(r"(?<![\w.])([-−+]?)(\d+\.\d+)(?![\w.])")
MINUS = re.compile(r"(?<![\w.])-(?=\d)")
PLAIN = {"NaN": "–", "True": "yes", "False": "no"}  # NaN: not measured, rather than not a number
UNITS = {"mb": "(MB)", "gb": "(GB)"}
SAMPLE = ("n", "seeds", "clusters")  # columns for which one line stands where every row has the same
SHORT, LONG = 8, 16  # letters of a cell of words that need no room of their own in a line, and that have it at most
WIDE, TIGHT = 10, 11  # columns from which on a table shrinks on paper, and letters that then have room
MANY = 3  # rows from which it does


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
            _write_plainly(table)
            _join_heads(table)
            _drop_count(table)
            sample = _take_sample(table)
            for head, cells in _columns(table):
                _shorten(head, cells)
            if table.caption:
                number = soup.new_tag("b")
                number.string = f"Table {next(self._numbers)}. "
                table.caption.insert(0, number)
            label = table.caption.get_text() if table.caption else "Table"
            frame = {"class": "table", "tabindex": "0", "role": "group", "aria-label": label}
            framed = table.wrap(soup.new_tag("div", attrs=frame))
            if sample:
                said = soup.new_tag("p", attrs={"class": "sample"})
                said.string = f"In every row {', '.join(f'{name} = {value}' for name, value in sample.items())}."
                framed.insert_after(said)
        return str(soup)


def _write_plainly(table: Any) -> None:
    """Write cells and heads as people do, and leave words room to stand beside one another."""
    columns = max((len(row.find_all(["th", "td"])) for row in table.find_all("tr")), default=0)
    most = TIGHT if columns >= WIDE else LONG
    for cell in table.select("tbody td, tbody th"):
        _rewrite(cell, lambda text: re.sub(r"(\s*\\n)+", " ↵ ", PLAIN.get(text.strip(), text)))
        said = cell.get_text().strip()
        if len(said) > SHORT and re.search(r"[\s-]", said) and not NUMBER.match(said):  # no column of single words
            cell["style"] = f"min-width:{min(len(said), most)}ch"
    for head in table.select("thead th"):
        if head.string and re.fullmatch(r"[a-zA-Z]+(_[a-zA-Z0-9]+)+", head.string):
            *words, last = head.string.split("_")
            head.string = " ".join([*words, UNITS.get(last, last)])


def _rewrite(cell: Any, write: Callable[[str], str]) -> None:
    """Write the texts of a cell anew, inside whatever markup they have; formulas are left as they are."""
    for text in cell.find_all(string=True):
        if not text.find_parent("math") and (new := write(str(text))) != text:
            text.replace_with(new)


def _join_heads(table: Any) -> None:
    """Write an index's names into the row above where pandas gives them one of their own; empty heads are no heads.

    A name of the columns in the same corner stays: "split / label".
    """
    rows = [row.find_all(["th", "td"]) for row in table.select("thead tr")]
    if len(rows) > 1 and len(rows[-1]) == len(rows[-2]):
        texts = [[cell.get_text().strip() for cell in row] for row in rows[-2:]]
        over = [place for place, text in enumerate(texts[1]) if text]  # the index
        if over == list(range(len(over))) and not any(texts[0][: len(over) - 1]):
            for cell, *words in zip(rows[-2], *reversed(texts), strict=True):
                cell.string = " / ".join(filter(None, words))
            rows[-1][0].find_parent("tr").decompose()
    for head in table.select("thead th"):
        if not head.get_text().strip():
            head.name = "td"
        elif not head.get("scope"):
            head["scope"] = "colgroup" if head.get("colspan") else "col"
    if table.thead and not table.thead.get_text().strip():
        table.thead.decompose()


def _drop_count(table: Any) -> None:
    """Leave out a first column that has no head and only counts the rows."""
    firsts = [row.find(["th", "td"]) for row in table.select("tbody tr")]
    corners = [row.find(["th", "td"]) for row in table.select("thead tr")]
    if not corners or any(cell.get_text().strip() or cell.get("colspan") for cell in corners):
        return
    if [cell.get_text().strip() for cell in firsts] == [str(number) for number in range(len(firsts))]:
        for cell in (*corners, *firsts):
            cell.decompose()


def _columns(table: Any) -> list[tuple[Any, list[Any]]]:
    """List the columns of values with their heads (or None), from the right, because labels span rows."""
    body = [row.find_all("td") for row in table.select("tbody tr")]
    heads: list[Any] = next((row.find_all(["th", "td"]) for row in reversed(table.select("thead tr"))), [])
    found = []
    for offset in range(1, max(map(len, body), default=0) + 1):
        head = heads[-offset] if len(heads) >= offset and not heads[-offset].get("colspan") else None
        found.append((head, [cells[-offset] for cells in body if len(cells) >= offset]))
    return found


def _take_sample(table: Any) -> dict[str, str]:
    """Take out of a table the columns that say of every row the same sample, and return what they say."""
    said = {}
    if len(table.select("thead tr")) == 1:
        for head, cells in _columns(table):
            name, values = head.get_text().strip() if head else "", {cell.get_text().strip() for cell in cells}
            if name in SAMPLE and len(values) == 1 and len(cells) >= MANY:
                said[name] = values.pop()
                for cell in (head, *cells):
                    cell.decompose()
    return {name: said[name] for name in SAMPLE if said.get(name)}


def _shorten(head: Any, cells: list[Any]) -> None:
    """Set a column of numbers to the right, with no more decimals than are read and a minus that is one."""
    texts = [cell.get_text().strip() for cell in cells]
    if not any(texts) or not all(NUMBER.match(text) for text in texts):
        return
    for cell in (*cells, *([head] if head else [])):
        cell["class"] = [*cell.get("class", []), "number"]
    chance = bool(head and re.match(r"p\b", head.get_text()))
    digits = 3 if chance else _digits(texts)

    def short(text: str) -> str:
        if chance and re.fullmatch(r"0\.000\d*", text.strip()):
            return "< 0.001"
        return MINUS.sub("−", DECIMAL.sub(lambda found: _rounded(found[1], found[2], digits), text))

    for cell in cells:
        _rewrite(cell, short)


def _digits(texts: list[str]) -> int:
    """Return the decimals of a column: two figures of its largest number and of any from 1 on, one of any other.

    Beside an interval a small number may be rounded to nothing.
    """
    written = [(float(value), "[" in text) for text in texts for _, value in DECIMAL.findall(text)]
    if not any(value for value, _ in written):
        return 2
    if max(written)[0] > 1 and all(value.is_integer() for value, _ in written):
        return 0
    most = _magnitude(max(written)[0])
    enough = max(0, 2 - most - (most < 0))
    alone = [value for value, within in written if value and not within]
    whole = [1 - _magnitude(value) for value in alone if value >= 1]
    return max([enough, *whole, *(-_magnitude(value) for value in alone if value < 0.5 / 10**enough)])


def _magnitude(value: float) -> int:
    return math.floor(math.log10(value))


def _rounded(sign: str, value: str, digits: int) -> str:
    """Round a number that is written with more decimals; what is rounded to nothing has no sign."""
    digits = min(digits, len(value.partition(".")[2]))
    short = f"{float(value):.{digits}f}"
    return short if float(short) == 0 else sign + short
