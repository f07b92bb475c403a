"""Facts to edit, and where they come from: worldfacts, CounterFact, zsRE."""

import os
import random

from editkit.facts import counterfact, zsre
from editkit.facts.fact import Fact, data_hash
from editkit.facts.worldfacts import interleave, worldfacts

__all__ = ["SOURCES", "Fact", "data_hash", "read_facts", "worldfacts"]

FILES = {"counterfact": counterfact, "zsre": zsre}
SOURCES = ("worldfacts", *FILES)


def read_facts(source: str, *, seed: int | None = 0, path: str | os.PathLike | None = None) -> list[Fact]:
    """Read all facts of a source, in the order of the seed.

    Args:
        source: "worldfacts" (real facts from installed packages), "counterfact" or "zsre".
        seed: 0 or None keeps the source's own order; any other shuffles it (worldfacts still takes relations in turn).
        path: path or URL of the published file; needed for counterfact and zsre.

    Raises ``ValueError`` for an unknown source, a path that is missing or not allowed, or another file layout;
    ``FileNotFoundError`` or ``ConnectionError`` where the file or URL cannot be read.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; allowed are {', '.join(SOURCES)}")
    if source == "worldfacts":
        if path is not None:
            raise ValueError(f"worldfacts is built from installed packages; path={path!r} is refused")
        facts = worldfacts()
    elif path is None:
        raise ValueError(f"{source} needs path=: a local file, or a URL such as {FILES[source].PUBLISHED}")
    else:
        facts = FILES[source].read(path)
    if seed:
        random.Random(seed).shuffle(facts)
        facts = interleave(facts) if source == "worldfacts" else facts
    return facts
