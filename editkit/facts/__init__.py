"""Facts to edit, and where they come from: worldfacts, CounterFact, zsRE."""

import os
from typing import Literal

from editkit.facts import counterfact, zsre
from editkit.facts.fact import Fact, data_hash, part_of
from editkit.facts.order import draw, draw_in_turn
from editkit.facts.worldfacts import worldfacts

__all__ = ["PARTS", "SOURCES", "Fact", "Part", "data_hash", "part_of", "read_facts", "worldfacts"]

FILES = {"counterfact": counterfact, "zsre": zsre}
SOURCES = ("worldfacts", *FILES)
PARTS = ("tune", "test", "all")
Part = Literal["tune", "test", "all"]


def read_facts(
    source: str, *, seed: int | None = 0, path: str | os.PathLike | None = None, part: Part = "test"
) -> list[Fact]:
    """Read a part of a source's facts, in the order of the seed.

    Args:
        source: "worldfacts" (real facts from installed packages), "counterfact" or "zsre".
        seed: 0 or None keeps the source's own order. Seeds from 1 on start far from each other in another fixed order,
            so that they draw disjoint facts while there are enough (see :mod:`editkit.facts.order`); worldfacts takes
            relations in turn.
        path: path or URL of the published file; needed for counterfact and zsre.
        part: "test" for what is reported, "tune" for choosing hyperparameters (:func:`part_of` tells which a fact is
            in; they share no subject), or "all".

    Raises ``ValueError`` for an unknown source or part, a seed below 0, a path that is missing or not allowed, or
    another file layout; ``FileNotFoundError`` or ``ConnectionError`` where the file or URL cannot be read.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; allowed are {', '.join(SOURCES)}")
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}; allowed are {', '.join(PARTS)}")
    if seed is not None and seed < 0:
        raise ValueError(f"seed is {seed}; a whole number of at least 0 is needed, or None for the source's own order")
    if source == "worldfacts":
        if path is not None:
            raise ValueError(f"worldfacts is built from installed packages; path={path!r} is refused")
        facts = worldfacts()
    elif path is None:
        raise ValueError(f"{source} needs path=: a local file, or a URL such as {FILES[source].PUBLISHED}")
    else:
        facts = FILES[source].read(path)
    facts = [fact for fact in facts if part in (part_of(fact), "all")]
    if not seed:
        return facts
    return (draw_in_turn if source == "worldfacts" else draw)(facts, seed)
