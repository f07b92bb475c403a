"""Facts to edit, and where they come from: worldfacts, CounterFact, zsRE."""

import logging
import os
import random
import warnings
from collections.abc import Sequence

from editkit import scoring

from . import counterfact, zsre
from .fact import Fact, data_hash
from .worldfacts import interleave, worldfacts

__all__ = ["SOURCES", "Fact", "data_hash", "known_facts", "load_facts", "worldfacts"]

FILES = {"counterfact": counterfact, "zsre": zsre}
SOURCES = ("worldfacts", *FILES)
CHUNK = 64

logger = logging.getLogger("editkit")


def load_facts(
    source: str,
    *,
    n: int | None = None,
    seed: int | None = 0,
    path: str | os.PathLike | None = None,
    known_only=None,
) -> list[Fact]:
    """Load facts to edit.

    Args:
        source: "worldfacts" (real facts from installed packages), "counterfact" or "zsre".
        n: how many facts; None loads all.
        seed: 0 or None keeps the source's own order; any other draws a shuffle (of
            worldfacts one that still takes relations in turn).
        path: path or URL of the published file; needed for counterfact and zsre.
        known_only: a language model; only facts it completes correctly now are kept.

    Raises:
        ValueError: unknown source, a path missing or out of place, n below 1 or larger than
            the source, or another file layout.
        FileNotFoundError, ConnectionError: the file or URL cannot be read.
    """
    facts = _read(source, path)
    _check_count(source, n, len(facts))
    if seed:
        random.Random(seed).shuffle(facts)
        facts = interleave(facts) if source == "worldfacts" else facts
    if known_only is None:
        return facts[:n]
    known, tried = known_facts(known_only, facts, n)
    logger.info("known_only: kept %d of %d facts tried", len(known), tried)
    if n is not None and len(known) < n:
        warnings.warn(
            f"known_only: the model knows {len(known)} of {tried} {source} facts, fewer than the {n} asked for",
            stacklevel=2,
        )
    return known


def known_facts(lm, facts: Sequence[Fact], n: int | None = None) -> tuple[list[Fact], int]:
    """Keep the first n facts that the model completes correctly, in their order.

    Facts are tried in chunks until n are found; n=None tries them all.

    Returns:
        The known facts, and how many facts were looked at up to the last one kept (all of
        them where fewer than n are known), so that their ratio is the model's hit rate.
    """
    known: list[Fact] = []
    for start in range(0, len(facts), CHUNK):
        chunk = facts[start : start + CHUNK]
        for offset, (fact, is_known) in enumerate(zip(chunk, scoring.knows(lm, chunk), strict=True)):
            if is_known:
                known.append(fact)
            if len(known) == n:
                return known, start + offset + 1
    return known, len(facts)


def _read(source: str, path: str | os.PathLike | None) -> list[Fact]:
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; allowed are {', '.join(SOURCES)}")
    if source == "worldfacts":
        if path is not None:
            raise ValueError(f"worldfacts is built from installed packages; path={path!r} is refused")
        return worldfacts()
    if path is None:
        raise ValueError(f"{source} needs path=: a local file, or a URL such as {FILES[source].PUBLISHED}")
    return FILES[source].read(path)


def _check_count(source: str, n: int | None, available: int) -> None:
    if n is None:
        return
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n is {n!r}; a whole number of at least 1 is needed, or None for all")
    if n > available:
        raise ValueError(f"n is {n}, but {source} has {available} facts")
