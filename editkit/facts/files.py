"""Records of a published JSON file or of JSON lines, from a local path or a URL."""

import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from editkit.cache import cache_root, download
from editkit.facts.fact import Fact
from editkit.plain import parse_json, parse_lines

T = TypeVar("T")
LINES = re.compile(rb"\s*(\xef\xbb\xbf)?\s*\{.*\}\s*\n\s*\{")  # two objects, a line each: no one JSON value begins so
KINDS = {str: "a text", list: "a list", dict: "an object", int | str: "a number or a text"}


def read_records(source: str | os.PathLike, published: str) -> list[dict]:
    """Read a JSON list of records, or JSON lines, a record a line, whatever the file's ending.

    Args:
        source: a path, or an http(s) URL. A URL's file is stored in the cache folder ($EDITKIT_CACHE, else
            ~/.cache/editkit) and read from there the next time.
        published: where the file can be had; errors name it.

    Raises ``FileNotFoundError`` for a file that is not there, ``ConnectionError`` for a URL that could not be read,
    ``ValueError`` for a file that is not a JSON list of records, or not UTF-8; it names file and line or record.
    """
    if str(source).startswith(("http://", "https://")):
        records = _load_url(str(source))
    else:
        records = _load_path(Path(source).expanduser(), published)
    if not isinstance(records, list) or not records:
        raise ValueError(f"{source}: a non-empty JSON list of records is needed, or a record a line")
    others = [i for i, record in enumerate(records) if not isinstance(record, dict)]
    if others:
        value = repr(records[others[0]])
        raise ValueError(f"{source}: record {others[0]} is {value:.80}; an object is needed")
    return records


def field(record: dict, *names: str, kind: Any = str) -> Any:
    """Return what lies under a key of a record, under a key of that, and so on.

    Raises ``KeyError`` for a key that is missing, and ``TypeError`` for a value of another kind; both name the whole
    way to it.
    """
    value: Any = record
    for depth, name in enumerate(names):
        if not isinstance(value, dict):
            raise TypeError(f"{'.'.join(names[:depth])} is {value!r:.80}; an object is needed")
        if name not in value:
            raise KeyError(".".join(names[: depth + 1]))
        value = value[name]
    if not isinstance(value, kind):
        raise TypeError(f"{'.'.join(names)} is {value!r:.80}; {KINDS[kind]} is needed")
    return value


def to_facts(
    source: str | os.PathLike, records: list[dict], convert: Callable[[int, dict], Fact], layout: str
) -> list[Fact]:
    """Convert the records to facts; one that is stated again is skipped as well (:func:`convert_records`).

    Facts that share an id, as in files that were joined, are told apart by their places from the second one on.
    """
    seen, ids = set(), Counter[str]()

    def fresh(index: int, record: dict) -> Fact:
        fact = convert(index, record)
        if (stated := replace(fact, id="")) in seen:
            raise ValueError(f"{fact.id} is there already, word for word")
        seen.add(stated)
        ids[fact.id] += 1
        return replace(fact, id=f"{fact.id}:{index}") if ids[fact.id] > 1 else fact

    return convert_records(source, records, fresh, layout)


def convert_records(
    source: str | os.PathLike, records: list[dict], convert: Callable[[int, dict], T], layout: str
) -> list[T]:
    """Convert the records; those that state no usable edit are skipped with one warning.

    Args:
        convert: raises ``ValueError`` for a record to skip.
        layout: what a record holds, in words for an error.

    Raises ``ValueError`` where no record is usable, and for one that lacks a key or holds the wrong type under it,
    which means another file layout; the message names the file and the record.
    """
    found, reasons = [], []
    for index, record in enumerate(records):
        try:
            found.append(convert(index, record))
        except KeyError as error:
            raise ValueError(f"{source}: record {index} has no key {error.args[0]!r}; {layout}") from None
        except TypeError as error:
            raise ValueError(f"{source}: record {index} has another layout: {error}; {layout}") from None
        except ValueError as error:
            reasons.append(f"record {index}: {error}")
    if not found:
        raise ValueError(f"{source}: no usable record; first reason: {reasons[0]}; {layout}")
    if reasons:
        warnings.warn(
            f"{source}: skipped {len(reasons)} of {len(records)} records; first reason: {reasons[0]}",
            stacklevel=6,
        )
    return found


def _load_path(path: Path, published: str):
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; it is published at {published}")
    return _parse(path.read_bytes(), path, path.suffix)


def _load_url(url: str):
    stored = cache_root() / "downloads" / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"
    was_there, kind = stored.is_file(), Path(urlsplit(url).path).suffix
    try:
        return _parse(download(url, stored).read_bytes(), stored if was_there else url, kind)
    except ConnectionError as error:
        raise ConnectionError(f"{error}, or pass a local path") from None
    except ValueError as error:
        stored.unlink()  # damaged, or a page in the file's place: the next call must not find it
        if not was_there:
            raise
        warnings.warn(f"stored download is damaged, fetching it again: {error}", stacklevel=6)
    return _load_url(url)


def _parse(content: bytes, source: str | os.PathLike, kind: str):
    if kind.lower() == ".jsonl" or LINES.match(content):
        return [value for _, value in parse_lines(content, source)]
    return parse_json(content, source)
