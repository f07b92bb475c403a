"""Facts to edit and probes of what follows from edits, and where they come from: worldfacts, or published files."""

import os
from collections.abc import Iterable, Sequence
from typing import Literal

from editkit.facts import counterfact, easyedit, knowedit, mquake, rippleedits, zsre
from editkit.facts.fact import Fact, data_hash, part_of
from editkit.facts.order import draw, draw_in_turn
from editkit.facts.probe import KINDS, Probe
from editkit.facts.statements import statement_probes
from editkit.facts.worldfacts import worldfacts
from editkit.facts.worldprobes import World, world_probes

__all__ = [
    "KINDS",
    "PARTS",
    "SOURCES",
    "Fact",
    "Part",
    "Probe",
    "data_hash",
    "part_of",
    "read_facts",
    "read_probes",
    "worldfacts",
]

PROBED = {"mquake": mquake, "rippleedits": rippleedits, "knowedit": knowedit, "easyedit": easyedit}
FILES = {"counterfact": counterfact, "zsre": zsre, **PROBED}
SOURCES = ("worldfacts", *FILES)
PARTS = ("tune", "test", "all")
Part = Literal["tune", "test", "all"]


def read_facts(
    source: str, *, seed: int | None = 0, path: str | os.PathLike | None = None, part: Part = "test"
) -> list[Fact]:
    """Read a part of a source's facts, in the order of the seed.

    Args:
        source: "worldfacts" (real facts from installed packages), or that of a published file: "counterfact",
            "zsre", "mquake" (and Remastered), "rippleedits", "knowedit", "easyedit" (lists of its requests).
        seed: 0 or None keeps the source's own order. Seeds from 1 on start far from each other in another fixed order,
            so that they draw disjoint facts while there are enough (see :mod:`editkit.facts.order`); worldfacts takes
            relations in turn.
        path: path or URL of the published file; needed for all but worldfacts.
        part: "test" for what is reported, "tune" for choosing hyperparameters (:func:`part_of` tells which a fact is
            in; they share no subject), or "all".

    Raises ``ValueError`` for an unknown source or part, a seed below 0, a path that is missing or not allowed, or
    another file layout; ``FileNotFoundError`` or ``ConnectionError`` where the file or URL cannot be read.
    """
    _check(source, path)
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}; allowed are {', '.join(PARTS)}")
    if seed is not None and seed < 0:
        raise ValueError(f"seed is {seed}; a whole number of at least 0 is needed, or None for the source's own order")
    facts = worldfacts() if source == "worldfacts" else FILES[source].read(path)
    facts = [fact for fact in facts if part in (part_of(fact), "all")]
    if not seed:
        return facts
    return (draw_in_turn if source == "worldfacts" else draw)(facts, seed)


def read_probes(
    source: str,
    facts: Sequence[Fact],
    *,
    path: str | os.PathLike | None = None,
    kinds: Iterable[str] = tuple(KINDS),
    world: World | None = None,
) -> list[Probe]:
    """Read or make the probes of what follows from editing these facts, all of them together.

    Whatever the source, a fact's own text makes some (:mod:`editkit.facts.statements`); worldfacts' sources make more
    (:mod:`editkit.facts.worldprobes`), and so do the files that hold them. A probe that takes an edit that is not among
    the facts, or rests on a statement that another of them changes, is left out.

    Args:
        source, path: where the facts were read from (:func:`read_facts`).
        kinds: of ``KINDS``; all where not given.
        world: worldfacts' sources, where somebody holds them who asks fact after fact.

    Raises ``ValueError`` for an unknown source or kind, and what ``read_facts`` raises for a path.
    """
    _check(source, path)
    kinds = tuple(kinds)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"unknown kind of probe {unknown[0]!r}; allowed are {', '.join(KINDS)}")
    probes = [probe for fact in facts for probe in statement_probes(fact)]
    probes += world_probes(facts, world) if source == "worldfacts" else ()
    probes += PROBED[source].read_case(path).probes if source in PROBED else ()
    stands = {fact.topic: fact.id for fact in facts}  # the later of two edits about one thing
    edited = set(stands.values())
    return [
        probe
        for probe in probes
        if probe.kind in kinds
        and (own := {probe.fact, *probe.needs}) <= edited
        and all(stands.get(topic, probe.fact) in own for topic in probe.rests_on)
    ]


def _check(source: str, path: str | os.PathLike | None) -> None:
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; allowed are {', '.join(SOURCES)}")
    if source == "worldfacts" and path is not None:
        raise ValueError(f"worldfacts is built from installed packages; path={path!r} is refused")
    if source != "worldfacts" and path is None:
        raise ValueError(f"{source} needs path=: a local file, or a URL such as {FILES[source].PUBLISHED}")
