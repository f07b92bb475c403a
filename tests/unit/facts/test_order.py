"""The order in which seeds draw facts: places on a circle, starts far apart, relations in turn."""

from collections import Counter

import pytest
from scipy.stats import qmc

from editkit.facts import Fact
from editkit.facts.order import SEEDS, draw, draw_in_turn, take_in_turn, van_der_corput


def fact(subject: str, relation: str = "a") -> Fact:
    return Fact(f"{relation}:{subject}", relation, subject, "{} is", "new", "true")


SMALL = [fact(f"s{i}", "small") for i in range(24)]
LARGE = [fact(f"l{i}", "large") for i in range(2400)]


def test_starts_are_the_van_der_corput_sequence():
    published = qmc.Halton(1, scramble=False).random(33).ravel().tolist()  # scipy's, base 2
    assert [van_der_corput(index) for index in range(33)] == published


@pytest.mark.parametrize("order", [draw, draw_in_turn])
def test_seeds_are_disjoint_until_they_reach_each_other(order):
    n = len(LARGE) // SEEDS // 2
    taken = [fact for seed in range(1, SEEDS) for fact in order(LARGE, seed)[:n]]
    assert len(set(taken)) == len(taken) == (SEEDS - 1) * n
    # Three seeds lie a quarter of the circle apart.
    taken = [fact for seed in (1, 2, 3) for fact in order(LARGE, seed)[: len(LARGE) // 5]]
    assert len(set(taken)) == len(taken)


@pytest.mark.parametrize("order", [draw, draw_in_turn])
def test_an_order_is_the_seeds_own_and_that_of_no_list(order):
    facts = SMALL + LARGE
    assert Counter(order(facts, 3)) == Counter(facts)
    assert order(facts, 3) == order(facts[::-1], 3) != order(facts, 4)


def test_a_small_relation_gives_each_seed_other_facts():
    draws = [draw_in_turn(SMALL + LARGE, seed)[:100] for seed in range(1, SEEDS)]
    taken = [fact for found in draws for fact in found]
    assert len(set(taken)) == len(taken)
    assert sum(fact in SMALL for fact in taken) >= len(SMALL) // 2, "in turn, while there are such facts"


def test_own_order_takes_relations_in_turn():
    assert take_in_turn([*SMALL[:3], *LARGE[:2]]) == [SMALL[0], LARGE[0], SMALL[1], LARGE[1], SMALL[2]]


@pytest.mark.parametrize("order", [take_in_turn, lambda facts: draw(facts, 1), lambda facts: draw_in_turn(facts, 1)])
def test_further_facts_of_a_subject_come_last(order):
    again = [fact(name, "other") for name in ("S1", "s2", "s3")]  # "S1" is the subject "s1"
    found = order([*SMALL, *again])
    subjects = [one.subject.casefold() for one in found]
    assert len(set(subjects[: len(SMALL)])) == len(SMALL)
    assert {one.relation for one in found[: len(SMALL)]} == {"small", "other"}, "neither relation is always the later"
