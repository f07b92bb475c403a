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
