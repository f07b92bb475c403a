"""Records of a published JSON file, from a local path or a URL."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from editkit.cache import cache_root, download
from editkit.facts.fact import Fact


def read_records(source: str | os.PathLike, published: str) -> list[dict]:
    """Read a JSON list of records.

    Args:
        source: a path, or an http(s) URL. A URL's file is stored in the cache folder ($EDITKIT_CACHE, else
            ~/.cache/editkit) and read from there the next time.
        published: where the file can be had; errors name it.

    Raises ``FileNotFoundError`` for a file that is not there, ``ConnectionError`` for a URL that could not be read,
    ``ValueError`` for a file that is not a JSON list of records.
    """
    if str(source).startswith(("http://", "https://")):
        records = _load_url(str(source))
    else:
        records = _load_path(Path(source).expanduser(), published)
    if not isinstance(records, list) or not records:
        raise ValueError(f"{source}: a non-empty JSON list of records is needed")
    others = [i for i, record in enumerate(records) if not isinstance(record, dict)]
    if others:
        value = repr(records[others[0]])
        raise ValueError(f"{source}: record {others[0]} is {value:.80}; an object is needed")
    return records


def to_facts(source: str | os.PathLike, records: list[dict], convert: Callable[[int, dict], Fact]) -> list[Fact]:
    """Convert the records; those that state no usable edit are skipped with one warning.

    ``convert`` raises ``ValueError`` for a record to skip. Raises ``ValueError`` where no record is usable, and for
    one that lacks a key or holds the wrong type under it, which means another file layout; the message names the
    file and the record.
    """
    facts, reasons = [], []
    for index, record in enumerate(records):
        try:
            facts.append(convert(index, record))
        except KeyError as error:
            raise ValueError(f"{source}: record {index} has no key {error.args[0]!r}") from error
        except (TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{source}: record {index} has another layout: {error}") from error
        except ValueError as error:
            reasons.append(f"record {index}: {error}")
    if not facts:
        raise ValueError(f"{source}: no usable record; first reason: {reasons[0]}")
    if reasons:
        warnings.warn(
            f"{source}: skipped {len(reasons)} of {len(records)} records; first reason: {reasons[0]}",
            stacklevel=5,
        )
    return facts


def _load_path(path: Path, published: str):
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; it is published at {published}")
    return _parse(path.read_bytes(), path)


def _load_url(url: str):
    stored = cache_root() / "downloads" / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"
    was_there = stored.is_file()
    try:
        return _parse(download(url, stored).read_bytes(), stored if was_there else url)
    except ConnectionError as error:
        raise ConnectionError(f"{error}, or pass a local path") from None
    except ValueError as error:
        stored.unlink()  # damaged, or a page in the file's place: the next call must not find it
        if not was_there:
            raise
        warnings.warn(f"stored download is damaged, fetching it again: {error}", stacklevel=6)
    return _load_url(url)


def _parse(content: bytes, source):
    try:
        return json.loads(content)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
        raise ValueError(f"{source} is not JSON: {error}") from error
