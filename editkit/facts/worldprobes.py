"""Probes of what follows from an edit of worldfacts, made from the packages that the facts come from.

*Reverse* (arXiv 2310.10322): Paris made the capital of Italy, the capital of Italy is Paris. Most relations have many
subjects to an object, where a completion has many right answers; there the turned statement is judged true or false.
*Two hops* (MQuAKE, arXiv 2305.14795): the edit gives a city another country, so its currency, capital and continent are
the other country's. *Alias*: the subject by another name of it, one with another last word, since an edit acts at the
subject's last word. *Other relations* of the subject that the edit leaves as they are (RippleEdits, arXiv 2307.12976).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import partial

import airportsdata
from countryinfo import all_countries

from editkit.facts.countries import Country, load_countries
from editkit.facts.fact import SLOT, Fact, digest, fold, last_word
from editkit.facts.probe import Probe
from editkit.facts.sources import (
    AIRPORT,
    CAPITAL_UNCLEAR,
    Row,
    city_rows,
    is_plain,
    letters,
    load_cities,
    load_rows,
    load_states,
    subject_cities,
)
from editkit.facts.statements import judged
from editkit.facts.templates import FIRST_HOPS, KEPT, RELATIONS, REVERSED, SECOND_HOPS

ALIASES = 2  # of one subject at most
SHORTEST_ALIAS = 4  # letters; what is shorter is a code or an abbreviation
SAME_NAME = 0.75  # likeness from which on another spelling is the same name
RIVALS = 30  # a false answer is drawn from a relation's so many most frequent ones
PREFIX = "worldfacts:"
Topics = tuple[tuple[str, str], ...]  # subject and relation of statements


def world_probes(facts: Sequence[Fact], world: "World | None" = None) -> list[Probe]:
    """Make the probes that worldfacts' sources allow, fact by fact; facts of other sources have none.

    Args:
        world: the sources as read before; they are read where not given.

    Raises ``ValueError`` for a fact of an id like worldfacts' but of no relation of theirs.
    """
    own = [fact for fact in facts if fact.id.startswith(PREFIX)]
    if other := [fact for fact in own if fact.relation not in RELATIONS]:
        raise ValueError(f"{other[0].id} is of the relation {other[0].relation!r}, which worldfacts does not have")
    if not own:
        return []
    world = world or World()
    makers: tuple[Callable[[Fact], Iterable[Probe]], ...] = (world.turned, world.aliases, world.hops, world.kept)
    return [probe for fact in own for make in makers for probe in make(fact)]


class World:
    """What the packages say of all subjects, looked up by name. Reading them takes some seconds."""

    def __init__(self):
        countries, cities, states = load_countries(), load_cities(), load_states()
        self._countries = {country.full_name: country for country in countries.values()}
        self._rows: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)  # by kind and name of the subject
        rows = load_rows()
        for relation, members in rows.items():
            for row in members:
                self._rows[RELATIONS[relation].kind, row.subject][relation] = row
        clear = subject_cities(cities, countries)
        for city, country in clear:
            if city["name"] not in country.capital_names:
                self._rows["city", city["name"]] |= city_rows(city, country, states)
        self._common = {
            relation: [answer for answer, _ in Counter(row.answer for row in members).most_common(RIVALS)]
            for relation, members in rows.items()
        }
        self._scripts = {row.subject: row.answer for row in rows["language_script"]}
        self._names = _other_names(countries, [city for city, _ in clear])
        # Another name that is a place's own means that place.
        self._taken = {
            letters(place) for place in (*(c["name"] for c in cities), *(c.name for c in countries.values()))
        }

    def turned(self, fact: Fact) -> Iterator[Probe]:
        """Turn the statement round; a capital also completes it, as a country has one alone."""
        statement = partial(REVERSED[fact.relation].format, s=_article(fact) + fact.subject)
        new, true = (_capitalised(statement(o=target)) for target in (fact.target_new, fact.target_true))
        yield from judged("reverse_judged", fact, new, true)
        if fact.relation == "capital_of" and (before := self._hop("capital", fact.target_new)):
            prompt = _capitalised(SECOND_HOPS["capital"].format(o=fact.target_new))
            yield _probe("reverse", fact, prompt, fact.subject, before)

    def aliases(self, fact: Fact) -> Iterator[Probe]:
        """Ask by other names of the subject."""
        relation, answers = RELATIONS[fact.relation], (fold(fact.target_new), fold(fact.target_true))
        names = self._names.get((relation.kind, fact.subject), ())
        fit = [name for name in names if self._is_alias(name, fact.subject, answers)]
        for name in sorted(fit, key=lambda name: digest("alias", fact.subject, name))[:ALIASES]:
            yield _probe("alias", fact, relation.prompt.replace(SLOT, name), fact.target_new, fact.target_true)

    def _is_alias(self, name: str, subject: str, answers: tuple[str, str]) -> bool:
        if len(name) < SHORTEST_ALIAS:  # an airport's code
            return True
        another = last_word(name) != last_word(subject) and letters(name) not in self._taken
        alike = SequenceMatcher(None, fold(name), fold(subject)).ratio() >= SAME_NAME
        return another and not alike and not any(answer in fold(name) for answer in answers)

    def hops(self, fact: Fact) -> Iterator[Probe]:
        """Ask for what the subject has through its object, where old and new object differ in it."""
        if fact.relation not in FIRST_HOPS:
            return
        through = FIRST_HOPS[fact.relation].format(s=_article(fact) + fact.subject)
        for hop, template in SECOND_HOPS.items():
            answer, before = self._hop(hop, fact.target_new), self._hop(hop, fact.target_true)
            itself = fact.relation == "capital_of" and hop == "capital"
            if answer and before and answer != before and not itself:
                prompt, rests = _capitalised(template.format(o=through)), self._rests_on(hop, fact.target_new)
                yield _probe("two_hop", fact, prompt, answer, before, rests_on=rests)

    def _hop(self, hop: str, target: str) -> str:
        """Look up an object's capital, currency, continent or script; empty where it has none, or no clear one."""
        if hop == "script":
            return self._scripts.get(target, "")
        country: Country | None = self._countries.get(target)
        if country is None or (hop == "capital" and country.code in CAPITAL_UNCLEAR):
            return ""
        return {"capital": country.capital, "currency": country.currency, "continent": country.continent}[hop]

    def _rests_on(self, hop: str, target: str) -> Topics:
        """List the statements that say what an object's hop leads to; another edit may be about one of them."""
        if hop == "script":
            return ((target, "language_script"),)
        country = self._countries[target]
        if hop == "capital":
            return ((country.capital, "capital_of"),)
        return ((country.name, f"country_{hop}"),)

    def kept(self, fact: Fact) -> Iterator[Probe]:
        """Ask for other relations of the subject, against a false answer."""
        known = self._rows[RELATIONS[fact.relation].kind, fact.subject]
        for relation in KEPT.get(fact.relation, ()):
            if row := known.get(relation):
                prompt = RELATIONS[relation].prompt.replace(SLOT, row.article + row.subject)
                false = [other for other in self._common[relation] if other not in (row.answer, *row.also_true)]
                rival = min(false, key=lambda other: digest(relation, row.subject, other), default=None)
                rests = ((row.subject, relation),)
                yield _probe("relation", fact, prompt, row.answer, row.answer, rival, rests)


def _probe(
    kind: str, fact: Fact, prompt: str, answer: str, before: str, rival: str | None = None, rests_on: Topics = ()
) -> Probe:
    return Probe(kind, fact.id, prompt, answer, before, rival, relation=fact.relation, rests_on=rests_on)


def _article(fact: Fact) -> str:
    """Return the "the " that the subject is spoken with, which the fact's prompt has taken in."""
    before = RELATIONS[fact.relation].prompt.split(SLOT)[0]
    return fact.prompt.split(SLOT)[0].removeprefix(before)


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def _other_names(countries: dict[str, Country], cities: list[dict]) -> dict[tuple[str, str], list[str]]:
    """List other names in Western letters by kind and name of the subject: cities', countries', airports' codes."""
    # American cities' other names are how other alphabets spell them.
    names = {("city", city["name"]): city["alternatenames"] for city in cities if city["countrycode"] != "US"}
    for country in all_countries():
        info = country.info()
        if known := countries.get(info["ISO"].get("alpha2", "")):
            names["country", known.name] = info.get("altSpellings") or []
    plain = {
        subject: [name for name in others if name and len(name) >= SHORTEST_ALIAS and is_plain(name)]
        for subject, others in names.items()
    }
    for code, airport in airportsdata.load("IATA").items():
        if airport["name"].endswith(AIRPORT):
            plain["airport", airport["name"].removesuffix(AIRPORT)] = [code]
    return plain
