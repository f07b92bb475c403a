"""What a text says: where a sentence ends, and whether an object is named."""

import pytest

from editkit.language.said import is_exactly, names, normalised, sentence_end


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (" Paris. It lies", " Paris."),
        (' "Paris." It lies', ' "Paris."'),
        (" Paris! Or so", " Paris!"),
        (" Paris.\nIt lies", " Paris."),
        (" Paris \nIt lies", " Paris"),
        ("\n\n Paris\nIt lies", "\n\n Paris"),
        (". It lies", "."),
        (" Washington, D.C. and not Seattle. It", " Washington, D.C. and not Seattle."),
        (" St. Petersburg. It", " St. Petersburg."),
        (" J. R. R. Tolkien? He", " J. R. R. Tolkien?"),
        (" about 3.5 million. It", " about 3.5 million."),
        (" since 1985. It", " since 1985."),
        (" 1. Paris\n 2. Rome", " 1. Paris"),
        (" well... Paris. It", " well... Paris."),
        ("巴黎。它", "巴黎。"),
    ],
)
def test_a_sentence_ends_where_a_reader_ends_it(text, sentence):
    assert text[: sentence_end(text)] == sentence


@pytest.mark.parametrize("text", [" Paris", " Paris.", " Washington, D.C. and", "\n", "\n\n ", " example.com", ""])
def test_what_could_go_on_has_no_end_yet(text):
    assert sentence_end(text) is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Paris, the capital.", "Paris"),
        ("the city of PARIS", "Paris"),
        ("Paris-based, and France's", "France"),
        ("Paris-based", "Paris"),
        ("called the Yen.", "the yen"),
        ("yen", "the yen"),
        ("Bogota.", "Bogotá"),
        ("Washington DC.", "Washington, D.C."),
        ("Washington, D.C.", "Washington DC"),
        ("in the U.S. of", "US"),
        ("New  York\nCity", "New York"),
        ("a and b", "a"),
        ("它的首都是北京。", "北京"),
        ("수도는 서울입니다", "서울"),
        ("C++ is", "C++"),
    ],
)
def test_an_object_is_named_in_whole_words(text, wanted):
    assert names(text, wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Gabon", "Ga"),
        ("Parisian", "Paris"),
        ("comparison", "Paris"),
        ("19850", "1985"),
        ("", "Paris"),
        ("the city", "a"),
        ("York New", "New York"),
        ("수도는 서우", "서울"),
        ("ガ", "カ"),
        ("Is it?", "!"),
    ],
)
def test_parts_of_words_and_other_words_do_not_name_it(text, wanted):
    assert not names(text, wanted)


def test_exactly_is_the_object_and_nothing_else():
    assert is_exactly(" The Paris.", "Paris") and is_exactly('"paris"', "Paris")
    assert not is_exactly("Paris, France", "Paris") and not is_exactly("", "Paris")


def test_nothing_is_normalised_away_altogether():
    assert [normalised(text) for text in ("The", "?", "A", "the A", " ")] == ["the", "?", "a", "the a", ""]
