"""Records that hold edits and the probes of them, as benchmarks of consequences publish them."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from editkit.config import shown
from editkit.facts.fact import Fact
from editkit.facts.files import convert_records, field
from editkit.facts.probe import Probe

T = TypeVar("T")


class Case(NamedTuple):
    """What one record states: edits, and probes of them."""

    facts: tuple[Fact, ...]
    probes: tuple[Probe, ...]


def to_case(source: str | os.PathLike, records: list[dict], convert: Callable[[int, dict], Case], layout: str) -> Case:
    """Convert the records of a file and put them together.

    An edit that several records state is one fact, with the probes of all of them; a record that adds neither a fact
    nor a probe is skipped. Facts that share an id are told apart by their places from the second one on. Raises what
    ``convert_records`` raises.
    """
    known, ids, asked = {}, Counter[str](), set()

    def fresh(index: int, record: dict) -> Case:
        case, names, new = convert(index, record), {}, []
        for fact in case.facts:
            if (stated := replace(fact, id="")) not in known:
                ids[fact.id] += 1
                known[stated] = f"{fact.id}:{index}" if ids[fact.id] > 1 else fact.id
                new.append(replace(fact, id=known[stated]))
            names[fact.id] = known[stated]
        renamed = (
            replace(probe, fact=names[probe.fact], needs=tuple(names[name] for name in probe.needs))
            for probe in case.probes
        )
        probes = [probe for probe in dict.fromkeys(renamed) if probe not in asked]
        if not new and not probes:
            raise ValueError(f"{case.facts[0].id} is there already, word for word")
        asked.update(probes)
        return Case(tuple(new), tuple(probes))

    cases = convert_records(source, records, fresh, layout)
    return Case(
        tuple(fact for case in cases for fact in case.facts),
        tuple(probe for case in cases for probe in case.probes),
    )


def texts_in(value: Any, name: str) -> tuple[str, ...]:
    """List the texts of a value that is a text, a list of texts or a list of such lists; blank ones are left out.

    Raises ``TypeError`` for anything else, with the value and what it was called.
    """
    parts = [value]
    for _ in range(2):
        parts = [one for part in parts for one in (part if isinstance(part, list) else [part])]
    if not all(isinstance(part, str) for part in parts):
        raise TypeError(f"{name} is {shown(value)}; a text or a list of texts is needed")
    return tuple(part for part in parts if part.strip())


def one_text(value: Any, name: str) -> str:
    """Return the first text of :func:`texts_in`; raises ``ValueError`` where there is none."""
    if not (texts := texts_in(value, name)):
        raise ValueError(f"{name} is {shown(value)}; a non-empty text is needed")
    return texts[0]


def optional(record: dict, name: str, kind: type[T]) -> T:
    """Return what lies under a key, empty where it is missing or null; raises ``TypeError`` for another kind."""
    return kind() if record.get(name) is None else field(record, name, kind=kind)
