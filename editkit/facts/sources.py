"""True statements (subject, answer) by relation, from the installed packages."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import airportsdata
from babel import Locale, localedata
from babel.core import get_global

from editkit.facts.countries import Country, Geonames, load_countries
from editkit.facts.fact import fold


class Row(NamedTuple):
    """One true statement."""

    subject: str
    answer: str
    fame: int
    """Better-known subjects have more: names in other languages, inhabitants, countries."""
    also_true: tuple[str, ...] = ()
    """Other answers that would be true, or arguably so."""
    article: str = ""
    """"the " where the subject is spoken with one."""


Rows = dict[str, list[Row]]  # by relation

# Cities down to this size are subjects; down to the second, they are rivals for a name.
SMALLEST_SUBJECT, SMALLEST_RIVAL = 25_000, 5_000
RIVAL_RATIO = 5
# Fewest other spellings of a city's name; suburbs and new districts have none.
SMALLEST_FAME = 2
# Turns that a country's cities take, best known first, so that no city is in two relations.
CITY_TURNS = (
    "city_country", "city_continent", "city_country", "city_language",
    "city_country", "city_currency",
)  # fmt: skip
US_CITY_TURNS = ("us_city_state", "us_city_state", "us_city_state", "us_city_timezone")
US_TIMEZONES = {
    "America/New_York": "Eastern Time",
    "America/Detroit": "Eastern Time",
    "America/Chicago": "Central Time",
    "America/Denver": "Mountain Time",
    "America/Los_Angeles": "Pacific Time",
}
TIMEZONE_AREAS = {
    "Africa": ("Africa",),
    "America": ("North America", "South America"),
    "Asia": ("Asia",),
    "Australia": ("Oceania",),
    "Europe": ("Europe",),
    "Pacific": ("Oceania",),
}
# Places that two governments claim, by country and geonames' first-level region or time zone:
# Crimea and occupied Ukraine, Abkhazia, Transnistria, Somaliland, Kashmir, northern Cyprus.
DISPUTED_REGIONS = {
    "GE": ("02",),
    "IN": ("12",),
    "MD": ("58", "62"),
    "PK": ("06", "07"),
    "SO": ("18", "19", "20", "21", "22"),
    "UA": ("05", "08", "11", "14", "20", "26"),
}
DISPUTED_TIMEZONES = frozenset({"Asia/Famagusta", "Europe/Simferopol"})
# Several capitals, a moved or a contested one.
CAPITAL_UNCLEAR = frozenset(["BI", "BJ", "BO", "CI", "GQ", "ID", "IL", "LK", "MM", "MY", "NL", "SZ", "TZ", "YE", "ZA"])
# Claimed from several countries, though the source names one.
DISCOVERY_UNCLEAR = frozenset(
    {"dubnium", "lawrencium", "livermorium", "lutetium", "nobelium", "rutherfordium", "vanadium"}
)
# What every airport's and county's name ends in. An edit acts at a subject's last word, so subjects do without.
AIRPORT, COUNTY = " International Airport", " County"
SERIES_NAMES = {"poor metals": "post-transition metals"}
# Classes that share members in one usage or another.
SERIES_OVERLAP = {
    "halogens": ("nonmetals",),
    "noble gases": ("nonmetals",),
    "nonmetals": ("metalloids",),
    "metalloids": ("nonmetals", "post-transition metals"),
    "post-transition metals": ("metalloids", "transition metals"),
    "transition metals": ("post-transition metals",),
    "lanthanides": ("transition metals",),
    "actinides": ("transition metals",),
}


def load_rows() -> dict[str, list[Row]]:
    """Collect true statements by relation; names that mean several things are left out."""
    countries, cities = load_countries(), load_cities()
    rows: Rows = defaultdict(list)
    _add_cities(rows, cities, countries)
    # An airport or county that is called like a city would be asked about under the city's name.
    taken = {letters(city["name"]) for city in cities}
    _add_airports(rows, cities, countries, taken)
    _add_counties(rows, taken)
    _add_countries(rows, countries)
    _add_elements(rows)
    _add_scripts(rows)
    return dict(rows)


def load_cities() -> list[dict]:
    """Load geonames' records of all cities that are subjects, or rivals for a subject's name."""
    return list(Geonames(min_city_population=SMALLEST_RIVAL).get_cities().values())


def subject_cities(cities: list[dict], countries: dict[str, Country]) -> list[tuple[dict, Country]]:
    """Pick the cities that a statement may be about, best known first, each with its country."""
    clear = sorted(_unambiguous(cities), key=lambda city: (-_fame(city), city["geonameid"]))
    found = [(city, countries.get(city["countrycode"])) for city in clear]
    return [(city, country) for city, country in found if country and _is_subject(city)]


def city_rows(city: dict, country: Country, states: dict[str, str]) -> dict[str, Row]:
    """State all that is known of a city that is no capital, by relation.

    Args:
        states: names of the United States' states by their codes (:func:`load_states`).
    """
    if country.code == "US":
        answers = {name: _us_answer(name, city, states) for name in dict.fromkeys(US_CITY_TURNS)}
    else:
        answers = {name: _city_answer(name, city, country) for name in dict.fromkeys(CITY_TURNS)}
    return {
        name: Row(city["name"], answer, _fame(city), country.languages if name == "city_language" else ())
        for name, answer in answers.items()
        if answer
    }


def load_states() -> dict[str, str]:
    """Load the names of the United States' states by their codes."""
    return {code: row["name"] for code, row in Geonames().get_us_states().items()}


def is_plain(name: str) -> bool:
    """Tell whether a name is capitalised, in Western European letters, and free of numbers and brackets."""
    return name[0].isupper() and all(ord(c) < 256 and (c.isalpha() or c in " -'.") for c in name)


def letters(name: str) -> str:
    """Keep only letters, so that "Val-d'Or" and "Val Dor" are one name."""
    return "".join(filter(str.isalpha, fold(name)))


def _unambiguous(cities: list[dict]) -> list[dict]:
    """Keep the cities that a bare name means: no namesake, or only far smaller ones."""
    namesakes = defaultdict(list)
    for city in cities:
        namesakes[letters(city["name"])].append(city)
    clear = []
    for group in namesakes.values():
        group.sort(key=lambda city: (-city["population"], city["geonameid"]))
        rival = group[1]["population"] if len(group) > 1 else 0
        if group[0]["population"] > RIVAL_RATIO * rival:
            clear.append(group[0])
    return clear


def _is_subject(city: dict) -> bool:
    is_known = city["population"] >= SMALLEST_SUBJECT and _fame(city) >= SMALLEST_FAME
    # A single letter at the end marks one of several parts of a city.
    is_name = is_plain(city["name"]) and len(city["name"].split()[-1]) > 1
    return is_known and is_name and not _is_disputed(city)


def _is_disputed(city: dict) -> bool:
    regions = DISPUTED_REGIONS.get(city["countrycode"], ())
    return city["admin1code"] in regions or city["timezone"] in DISPUTED_TIMEZONES


def _fame(city: dict) -> int:
    return len(city["alternatenames"])


def _add_cities(rows: Rows, cities: list[dict], countries: dict[str, Country]) -> None:
    states = load_states()
    turns = Counter[str]()  # by country
    for city, country in subject_cities(cities, countries):
        if city["name"] in country.capital_names:
            if city["name"] == country.capital and country.code not in CAPITAL_UNCLEAR:
                rows["capital_of"].append(Row(city["name"], country.full_name, _fame(city)))
            continue
        possible = city_rows(city, country, states)
        # A state or time zone that is not known passes its turn; elsewhere such a relation has none.
        order = [name for name in CITY_TURNS if name in possible] if country.code != "US" else US_CITY_TURNS
        relation = order[turns[country.code] % len(order)]
        turns[country.code] += 1
        if relation in possible:
            rows[relation].append(possible[relation])


def _city_answer(relation: str, city: dict, country: Country) -> str:
    if relation == "city_continent":
        # Islands may lie off another continent than their country.
        area = TIMEZONE_AREAS.get(city["timezone"].split("/")[0], ())
        return country.continent if country.continent in area else ""
    answers = {
        "city_country": country.full_name,
        "city_language": country.spoken_language,
        "city_currency": country.currency,
    }
    return answers[relation]


def _us_answer(relation: str, city: dict, states: dict[str, str]) -> str:
    if relation == "us_city_timezone":
        return US_TIMEZONES.get(city["timezone"], "")
    is_state = city["admin1code"] != "DC"
    return states.get(city["admin1code"], "") if is_state else ""


def _add_airports(rows: Rows, cities: Iterable[dict], countries: dict[str, Country], taken: set[str]) -> None:
    fame, disputed = defaultdict[tuple[str, str], int](int), set()
    for city in cities:
        key = (city["countrycode"], fold(city["name"]))
        if _is_disputed(city):
            disputed.add(key)
        fame[key] = max(fame[key], _fame(city))
    airports = [row for row in airportsdata.load("IATA").values() if row["name"].endswith(AIRPORT)]
    count = Counter(letters(airport["name"]) for airport in airports)
    for airport in airports:
        name, country = airport["name"].removesuffix(AIRPORT), countries.get(airport["country"])
        usable = count[letters(airport["name"])] == 1 and is_plain(name) and letters(name) not in taken
        key = (airport["country"], fold(airport["city"]))
        if usable and country and airport["tz"] not in DISPUTED_TIMEZONES and key not in disputed:
            rows["airport_country"].append(Row(name, country.full_name, fame[key]))


def _add_counties(rows: Rows, taken: set[str]) -> None:
    geonames = Geonames()
    states = geonames.get_us_states()
    counties = [row for row in geonames.get_us_counties() if row["name"].endswith(COUNTY)]
    count = Counter(county["name"] for county in counties)
    for county in counties:
        name = county["name"].removesuffix(COUNTY)
        usable = count[county["name"]] == 1 and is_plain(name) and letters(name) not in taken
        if usable and county["state"] in states:
            rows["us_county_state"].append(Row(name, states[county["state"]]["name"], 0))


def _add_countries(rows: Rows, countries: dict[str, Country]) -> None:
    for country in countries.values():
        answers = {
            "country_continent": country.continent,
            "country_subregion": country.subregion,
            "country_currency": country.currency,
            "country_language": country.official_language,
        }
        for relation, answer in answers.items():
            if answer:
                also = country.languages if relation == "country_language" else ()
                row = Row(country.name, answer, country.population, also, country.article)
                rows[relation].append(row)


def _add_elements(rows: Rows) -> None:
    from mendeleev.fetch import fetch_table  # takes a second, which most who import this do not need

    series = {row.id: row.name.lower() for row in fetch_table("series").itertuples()}
    for element in fetch_table("elements").itertuples():
        name, fame = element.name.lower(), 1000 - element.atomic_number
        group = series[element.series_id]
        group = SERIES_NAMES.get(group, group)
        also = SERIES_OVERLAP.get(group, ())
        rows["element_series"].append(Row(name, group, fame, also))
        place = element.discovery_location
        is_clear = isinstance(place, str) and "/" not in place  # a slash joins rival claims
        if is_clear and name not in DISCOVERY_UNCLEAR:
            place = "the United States" if place == "United States" else place
            rows["element_discovery"].append(Row(name, place, fame))


def _add_scripts(rows: Rows) -> None:
    """Add the languages that have one script in CLDR's likely subtags and locales."""
    locales = localedata.locale_identifiers()
    scripts, countries = defaultdict[str, set[str]](set), Counter[str]()
    for tag, likely in get_global("likely_subtags").items():
        scripts[tag.split("_")[0]].add(likely.split("_")[1])
    for tag in locales:
        parts = tag.split("_")
        countries[parts[0]] += 1
        if len(parts) > 1 and len(parts[1]) == 4:
            scripts[parts[0]].add(parts[1])
    english = Locale("en")
    for code in sorted(countries):
        name = english.languages.get(code, "")
        if name and is_plain(name) and len(scripts[code]) == 1:
            script = english.scripts[min(scripts[code])]
            rows["language_script"].append(Row(name, script, countries[code]))
