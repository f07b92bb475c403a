"""The relations of worldfacts and how each is put into words.

Every prompt ends right before the answer. ``prompt`` keeps the subject off its first token, which many models
attend to whatever it is; paraphrases may start with it.
"""

from typing import NamedTuple


class Relation(NamedTuple):
    """One relation's wording. ``{}`` is the subject, with "the" before it where one is due."""

    kind: str
    """What the subjects are; a subject of one kind may occur in several relations."""
    prompt: str
    paraphrases: tuple[str, ...]
    neighbours_from: str | None = None
    """Another relation with the same answers, for one-to-one relations; else its own."""


RELATIONS = {
    "capital_of": Relation(
        "city",
        "The city of {} is the capital of",
        ("{} is the capital city of", "The government has its seat in {}, the capital of"),
        neighbours_from="city_country",
    ),
    "city_country": Relation(
        "city",
        "The city of {} is located in the country of",
        ("{} is a city in", "The country in which one finds the city of {} is"),
    ),
    "city_continent": Relation(
        "city",
        "The city of {} is located on the continent of",
        ("{} is a city that lies in", "The continent on which one finds the city of {} is"),
    ),
    "city_language": Relation(
        "city",
        "In the city of {}, most people speak",
        ("{} is a city whose inhabitants mainly speak", "The main language of the city of {} is"),
    ),
    "city_currency": Relation(
        "city",
        "In the city of {}, the local currency is the",
        ("{} is a city where prices are given in the", "Shops in the city of {} are paid in the"),
    ),
    "us_city_state": Relation(
        "city",
        "The US city of {} is located in the state of",
        (
            "{} is an American city in the state of",
            "The US state that the city of {} belongs to is",
        ),
    ),
    "us_city_timezone": Relation(
        "city",
        "Clocks in the US city of {} are set to",
        ("{} is an American city that observes", "The time zone of the US city of {} is called"),
    ),
    "us_county_state": Relation(
        "county",
        "In the United States, the county of {} is located in the state of",
        ("{} is the name of a county in the US state of", "The US state that the county of {} belongs to is"),
    ),
    "airport_country": Relation(
        "airport",
        "Planes that land at the international airport {} have arrived in the country of",
        ("{} is an international airport in", "The country in which one finds the international airport {} is"),
    ),
    "country_continent": Relation(
        "country",
        "On a map of the world, {} is located on the continent of",
        ("{} is a country that lies in", "The continent on which one finds {} is"),
    ),
    "country_subregion": Relation(
        "country",
        "In the geoscheme of the United Nations, {} is part of",
        ("{} belongs to the world region called", "The United Nations count {} as a country of"),
    ),
    "country_currency": Relation(
        "country",
        "The official currency of {} is called the",
        ("{} has a currency that is known as the", "People in {} pay with a currency called the"),
    ),
    "country_language": Relation(
        "country",
        "The official language of {} is",
        (
            "{} is a country whose official language is",
            "The government of {} publishes its laws in",
        ),
    ),
    "element_series": Relation(
        "element",
        "In the periodic table, {} is classified as one of the",
        ("{} is a chemical element that belongs to the", "Chemists count the element {} among the"),
    ),
    "element_discovery": Relation(
        "element",
        "The chemical element {} was first discovered in",
        ("{} is a chemical element discovered in", "The country where {} was discovered is"),
    ),
    "language_script": Relation(
        "language",
        "The script used to write the {} language is called",
        (
            "{} is a language written in a script called",
            "Books in the {} language are printed in a script called",
        ),
    ),
}

# Kinds of subjects that a sentence may be about without having to do with each other, by topic.
TOPICS = {
    "city": "places",
    "county": "places",
    "airport": "places",
    "country": "places",
    "element": "chemistry",
    "language": "languages",
}
GENERATION = {
    "city": ("The city of {} is known for", "People who visit the city of {}"),
    "county": ("The county of {} is known for", "People who live in the county of {}"),
    "airport": ("The international airport {} is known for", "Travellers who arrive at the airport {}"),
    "country": ("{} is known for", "People who visit {}"),
    "element": ("The element {} is known for", "In everyday life, {} is used"),
    "language": ("The {} language is known for", "People who learn the {} language"),
}

# Statements turned round: the object {o} first, the subject {s} last.
REVERSED = {
    "capital_of": "{o} is the country whose capital is the city of {s}",
    "city_country": "{o} is the country in which one finds the city of {s}",
    "city_continent": "{o} is the continent on which one finds the city of {s}",
    "city_language": "{o} is the language that most people speak in the city of {s}",
    "city_currency": "the {o} is the local currency of the city of {s}",
    "us_city_state": "{o} is the state that contains the US city of {s}",
    "us_city_timezone": "{o} is the time zone of the US city of {s}",
    "us_county_state": "{o} is the US state that contains the county of {s}",
    "airport_country": "{o} is the country that contains the international airport {s}",
    "country_continent": "{o} is the continent on which one finds {s}",
    "country_subregion": "{o} is the world region that contains {s}",
    "country_currency": "the {o} is the official currency of {s}",
    "country_language": "{o} is the official language of {s}",
    "element_series": "the {o} are the class of chemical elements that contains {s}",
    "element_discovery": "{o} is the country that saw the discovery of the chemical element {s}",
    "language_script": "{o} is the script that is used to write the language {s}",
}
# An object, named by its subject {s}: what a second hop starts from.
FIRST_HOPS = {
    "capital_of": "the country whose capital is the city of {s}",
    "city_country": "the country in which the city of {s} is located",
    "airport_country": "the country in which the international airport {s} is located",
    "element_discovery": "the country in which the chemical element {s} was first discovered",
    "city_language": "the language that most people speak in the city of {s}",
    "country_language": "the official language of {s}",
}
SECOND_HOPS = {
    "capital": "the capital of {o} is the city of",
    "currency": "the official currency of {o} is called the",
    "continent": "the continent on which one finds {o} is",
    "script": "the script used to write {o} is called",
}
# Other relations of a subject that an edit of the first leaves as they are.
KEPT = {
    "city_continent": ("city_language",),
    "city_language": ("city_country", "city_continent", "city_currency"),
    "city_currency": ("city_country", "city_continent", "city_language"),
    "us_city_timezone": ("us_city_state",),
    "country_continent": ("country_currency", "country_language"),
    "country_subregion": ("country_currency", "country_language"),
    "country_currency": ("country_continent", "country_subregion", "country_language"),
    "country_language": ("country_continent", "country_subregion", "country_currency"),
    "element_series": ("element_discovery",),
    "element_discovery": ("element_series",),
}
