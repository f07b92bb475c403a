"""Plain text: text and JSON as people bring them, JSON that every other program reads, and text inside Markdown.

Bytes become text here alone: UTF-8, with or without a mark in front. A line ends at a line feed, a carriage return or
both, never at another separator (U+2028, U+0085, …), which JSON allows inside a string.
"""

import codecs
import html
import json
import math
import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

OTHERS = {  # marks at the beginning of a file, the longer ones first
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
MARKS = re.compile(r"[`*|~$]|(?<=\])\(|(?<![^\W_])_|_(?![^\W_])")  # what Markdown would take for its own


def decode(content: bytes, source: str | PathLike, kind: str = "text") -> str:
    r"""Read bytes as UTF-8, every end of line as ``\n``; raises ``ValueError`` that names source, kind and line."""
    for name, marks in OTHERS.items():
        if content.startswith(marks):
            raise ValueError(f"{source} is not {kind}: it is {name} from line 1 on; save it as UTF-8")
    wrong, text = content.find(b"\0"), ""  # every second byte of UTF-16 without a mark
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong >= 0:
        line = _lines(content[:wrong].decode("latin-1")).count("\n") + 1
        raise ValueError(
            f"{source} is not {kind}: byte 0x{content[wrong]:02x} in line {line} is not UTF-8 text; save it as UTF-8"
        )
    return _lines(text)


def parse_json(content: bytes, source: str | PathLike) -> Any:
    """Read one JSON value; raises ``ValueError`` that names the source and the line."""
    return _parse(decode(content, source, "JSON"), source, 1)


def parse_lines(content: bytes, source: str | PathLike) -> list[tuple[int, Any]]:
    """Read JSON lines: the number of each line (from 1) and its value, without blank lines.

    Raises ``ValueError`` that names the source and the line.
    """
    lines = enumerate(decode(content, source, "JSON").split("\n"), start=1)
    return [(number, _parse(line, source, number)) for number, line in lines if line.strip()]


def is_text(value: Any) -> bool:
    r"""Say whether a value is text that can be written: JSON also allows halves of a character, such as "\ud83d"."""
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def as_markdown(text: str) -> str:
    """Write a text, whatever it holds, so that Markdown shows it as it is, in one line."""
    line = html.escape(" ".join(text.splitlines()), quote=False).replace("\\", "&#92;")  # \\( would open a formula
    return MARKS.sub(r"\\\g<0>", line)


def to_json(value: Any, **options: Any) -> str:
    """Write a value as JSON, ``null`` for what is no finite number: neither NaN nor Infinity is JSON.

    Args:
        options: of ``json.dumps``.
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _parse(text: str, source: str | PathLike, first: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first + error.lineno - 1
        raise ValueError(f"{source} is not JSON: line {line}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # numbers too long, values too deep
        raise ValueError(f"{source} is not JSON that can be read: from line {first} on: {error}") from None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
