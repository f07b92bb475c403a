"""The order in which facts are drawn: relations in turn, and seeds far from each other.

Every subject has a fixed place on a circle of circumference 1, by a hash. A seed starts at its own point, the van der
Corput sequence's (1/2, 1/4, 3/4, 1/8, …), and goes round. So what a seed draws depends on no other seed, and seeds
below ``SEEDS`` draw disjoint facts, and subjects, until they reach each other's points.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from editkit.facts.fact import Fact, digest, fold

# Seeds 1 to SEEDS - 1 start at least 1 / SEEDS apart.
SEEDS = 8


def take_in_turn(facts: Sequence[Fact], tier: Callable[[Fact], int] = lambda fact: 0) -> list[Fact]:
    """Take relations in turn, each in its given order.

    Facts of a lower ``tier`` come first. A subject's further facts come after all subjects' first: edits of one
    subject at once would contradict each other at its last token.
    """
    seen, turns, order = _repeats(facts), Counter[tuple[str, tuple[int, int]]](), []
    for index, fact in enumerate(facts):
        slot = seen[fact.id], tier(fact)
        order.append((*slot, turns[fact.relation, slot], index))
        turns[fact.relation, slot] += 1
    return [facts[index] for *_, index in sorted(order)]


def draw_in_turn(facts: Sequence[Fact], seed: int) -> list[Fact]:
    """Order facts by a seed, relations in turn.

    A relation that has come near another seed's point waits until all others have, so that small relations, which are
    soon exhausted, do not give the same facts to every seed. There are fewer of theirs in a draw instead.
    """
    start = van_der_corput(seed)
    return take_in_turn(
        sorted(facts, key=lambda fact: _distance(fact, start)),
        lambda fact: int(_distance(fact, start) * SEEDS).bit_length(),  # an eighth, a quarter, a half, the circle
    )


def draw(facts: Sequence[Fact], seed: int) -> list[Fact]:
    """Order facts by a seed, whatever their relations; a subject's further facts come last."""
    start, seen = van_der_corput(seed), _repeats(facts)
    return sorted(facts, key=lambda fact: (seen[fact.id], _distance(fact, start)))


def van_der_corput(index: int) -> float:
    """Mirror the binary digits of ``index`` at the point: 1/2, 1/4, 3/4, 1/8, 5/8, … from 1 on."""
    return int(f"{index:b}"[::-1], 2) / 2 ** index.bit_length()


def _distance(fact: Fact, start: float) -> float:
    """How far round the circle the fact's subject lies after ``start``."""
    return (int(digest("place", fold(fact.subject))[:13], 16) / 16**13 - start) % 1.0


def _repeats(facts: Sequence[Fact]) -> dict[str, int]:
    """Count each fact's predecessors of the same subject, by its id."""
    seen, repeats = Counter[str](), {}
    # Drawn, so that each relation has subjects whose first fact is its own.
    for fact in sorted(facts, key=lambda fact: digest("order", fact.id)):
        subject = fold(fact.subject)
        repeats[fact.id] = seen[subject]
        seen[subject] += 1
    return repeats
