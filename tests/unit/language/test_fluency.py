"""GE and consistency: printed formulas by hand, and the protocol of the texts."""

import math
import re
from collections import Counter
from dataclasses import replace

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from editkit.language.fluency import consistency, fit_vectorizer, fluency, n_gram_entropy, words

# A text, and how often each of its bigrams and of its trigrams occurs, counted by hand.
COUNTED = [
    ("", [], []),
    ("Paris", [], []),
    ("Paris lies", [1], []),
    ("a b c d", [1, 1, 1], [1, 1]),
    ("a a a a a", [4], [3]),
    ("a b a b a b", [3, 2], [2, 2]),
    ("a b c a b c a", [2, 2, 2], [2, 2, 1]),
    ("Rome, Rome, Rome", [2, 2], [2, 1]),
    ("It lies here. It lies here.", [2, 2, 2, 1], [2, 2, 1, 1]),
    ("the city of the city of the city", [3, 2, 2], [2, 2, 2]),
]
COLLECTION = [
    "Paris is the capital of France",
    "Rome is a city in Italy",
    "The city of Rome lies in Italy",
    "the the the",
]


def by_hand(counts):
    total = sum(counts)
    return -sum(count / total * math.log2(count / total) for count in counts)


@pytest.mark.parametrize(("text", "bigrams", "trigrams"), COUNTED)
def test_entropy_is_the_printed_formula(text, bigrams, trigrams):
    expected = (2 / 3 * by_hand(bigrams) + 4 / 3 * by_hand(trigrams)) / 2
    assert n_gram_entropy(text) == pytest.approx(expected, abs=1e-12)


def test_words_are_those_of_nltk():
    """As its documentation prints them for ``word_tokenize``, which needs data that is not here."""
    text = "Good muffins cost $3.88\nin New York.  Please buy me\ntwo of them.\n\nThanks."
    expected = "Good muffins cost $ 3.88 in New York . Please buy me two of them . Thanks ."
    assert words(text) == expected.split()


def tf_idf(text):
    """The vector of scikit-learn's guide: counts times ln((1 + n) / (1 + documents with it)) + 1, of known words."""
    found = Counter(re.findall(r"\w\w+", text.lower()))
    documents = [set(re.findall(r"\w\w+", one.lower())) for one in COLLECTION]
    holds = {word: sum(word in one for one in documents) for word in found}
    n = len(COLLECTION)
    return {word: found[word] * (math.log((1 + n) / (1 + held)) + 1) for word, held in holds.items() if held}


TEXTS = [text for text, *_ in COUNTED[1:]] + ["Rome is the capital of Italy, and Rome is a city."]


@pytest.mark.parametrize("text", TEXTS)
def test_consistency_is_the_cosine_of_the_printed_vectors(text):
    references = COLLECTION[1:3]
    one, other = tf_idf(text), tf_idf(" ".join(references))
    norms = math.sqrt(sum(v * v for v in one.values()) * sum(v * v for v in other.values()))
    expected = sum(value * other.get(word, 0) for word, value in one.items()) / norms if norms else 0
    assert consistency([text], references, fit_vectorizer([COLLECTION])) == pytest.approx(expected, abs=1e-12)


def test_texts_are_joined_before_they_are_compared():
    vectorizer = fit_vectorizer([COLLECTION])
    assert consistency(COLLECTION[:2], COLLECTION[:2], vectorizer) == pytest.approx(1)
    assert consistency(["Rome", "Italy"], ["Italy Rome"], vectorizer) == pytest.approx(1)


def about(facts):
    return [replace(fact, generation=(f"{fact.subject} is known for", "People in Rome")) for fact in facts]


def test_facts_are_scored_by_what_the_model_writes(tiny, facts):
    lm, mine = tiny(), about(facts)
    references = {mine[0].id: COLLECTION[:2], mine[2].id: COLLECTION[2:]}
    frame = fluency(lm, [*mine, facts[0]], references, max_out_len=40)
    assert frame.fact.tolist() == [fact.id for fact in mine]
    for fact, row in zip(mine, frame.itertuples(), strict=True):
        assert [text.startswith(prompt) for text, prompt in zip(row.texts, fact.generation, strict=True)] == [True] * 2
        assert row.GE == pytest.approx(sum(map(n_gram_entropy, row.texts)) / 2)
    vectorizer = TfidfVectorizer().fit(COLLECTION)
    assert frame.RS[2] == pytest.approx(consistency(frame.texts[2], COLLECTION[2:], vectorizer))
    assert frame.RS.isna().tolist() == [False, True, False, True]
    alone = fluency(lm, mine[1:2], max_out_len=40)
    assert alone.texts[0] == frame.texts[1] and alone.RS.isna().all()
    assert fluency(lm, mine, max_out_len=40, seed=1).texts[0] != frame.texts[0]


def test_what_cannot_be_scored_is_refused(tiny, facts):
    with pytest.raises(ValueError, match="none of 4 facts has a generation prompt"):
        fluency(tiny(), facts)
    mine = about(facts)
    with pytest.raises(ValueError, match="the references of .* are 'Paris'; a list of texts is needed"):
        fluency(tiny(), mine, {mine[0].id: "Paris"})
