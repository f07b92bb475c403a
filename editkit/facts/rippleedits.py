"""RippleEdits (arXiv 2307.12976; edenbiran/RippleEdits, ``src/benchmark.py`` and its README).

A record states its edit and the earlier fact as whole sentences, "The name of the capital city of France is Rome.".
What both begin with is the prompt; what a relation's wording leaves of that (``src/relation.py``) is the subject. The
file *recent* has no earlier facts: ``NO_OBJECT`` stands in their place.

A test is asked of a model that answers its conditions (``src/testrunner.py``), here as there. Each of a test's queries
is a probe; where a query has several answers, one of them is enough, while the published runner wants all of them in
one free generation.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

from editkit.config import shown
from editkit.facts.cases import Case, optional, texts_in, to_case
from editkit.facts.fact import NO_OBJECT, Fact, clean, template_of
from editkit.facts.files import field, read_records
from editkit.facts.probe import Condition, Probe

PUBLISHED = "https://github.com/edenbiran/RippleEdits/tree/main/data/benchmark"
LAYOUT = (
    "a record of rippleedits holds edit {prompt, relation} with previous_fact {prompt} where there is one, and lists "
    "of tests {test_queries, condition_queries} under the criteria Relation_Specificity, Logical_Generalization, "
    "Subject_Aliasing, Compositionality_I, Compositionality_II and Forgetfulness"
)
CRITERIA = {
    "Relation_Specificity": "relation",
    "Relation_Specifity": "relation",  # as the README has it
    "Logical_Generalization": "logical",
    "Subject_Aliasing": "alias",
    "Compositionality_I": "two_hop",
    "Compositionality_II": "two_hop_into",
    "Forgetfulness": "forgetfulness",
}
EARLIER = ("previous_fact", "original_fact")  # one release and another
KEPT = ("relation", "forgetfulness")  # kinds whose answers the edit must not change

VERB = re.compile(r" (?:is followed by|is|are|follows)(?= )")
# How the relations word their subject: a relation's own words, the subject, and its verb.
NOUN = (
    r"(?:country of citizenship|head of (?:government|state)|(?:place|date) of (?:birth|death|burial)|field of work|"
    r"[a-z]+(?: [a-z]+)?)"
)
WORDINGS = [
    re.compile(wording)
    for wording in (
        r".+ which (.+) (?:is associated with|is a member of|is part of|is the capital of|plays in) is",
        r".+ held by (.+) is",
        r".+ the award (.+) won is",
        r"The number of children (.+) has is",
        r".+ (?:currency|performed) in (.+) is",
        r"(.+) (?:follows|is followed by)",
        rf"The (?:names? of the )?(?!names? of the ){NOUN} of (.+) (?:is|are)",
    )
]


def read(path_or_url: str | os.PathLike) -> list[Fact]:
    """Read the edits alone, see :func:`read_case`."""
    return list(read_case(path_or_url).facts)


def read_case(path_or_url: str | os.PathLike) -> Case:
    """Read RippleEdits' edits and probes in the file's own order.

    Records whose sentence has no known wording are skipped with one warning. Raises what ``read_records`` and
    ``to_case`` raise.
    """
    return to_case(path_or_url, read_records(path_or_url, PUBLISHED), _case, LAYOUT)


def _case(index: int, record: dict) -> Case:
    edit = field(record, "edit", kind=dict)
    earlier = next((edit[name] for name in EARLIER if edit.get(name) is not None), None)
    sentence = clean(field(record, "edit", "prompt")).strip()
    before = None
    if earlier is not None:
        before = clean(field({"previous_fact": earlier}, "previous_fact", "prompt")).strip()
    prompt, subject = _parts(sentence, before, optional(edit, "subject", str))
    fact = Fact(
        id=f"rippleedits:{index}",
        relation=edit.get("relation") or "",
        subject=subject,
        prompt=template_of(prompt, subject),
        target_new=_object(sentence, prompt),
        target_true=_object(before, prompt) if before else NO_OBJECT,
    )
    return Case((fact,), tuple(_probes(record, fact)))


def _parts(sentence: str, before: str | None, subject: str) -> tuple[str, str]:
    """Divide a sentence into its prompt, which the earlier one has too, and the prompt's subject.

    The prompt is the longest that both begin with: a subject may hold a verb itself. Where there is no earlier
    sentence, it is the shortest: an object may hold one too.
    """
    verbs = list(VERB.finditer(sentence))
    for verb in verbs if before is None else reversed(verbs):
        prompt = sentence[: verb.end()]
        found = next((match[1] for wording in WORDINGS if (match := wording.fullmatch(prompt))), None)
        if (found or subject) and (before is None or before.startswith(f"{prompt} ")):
            return prompt, subject or found
    with_earlier = f" and {shown(before)}" if before else ""
    raise ValueError(f"no subject is found in {shown(sentence)}{with_earlier}")


def _object(sentence: str, prompt: str) -> str:
    return sentence[len(prompt) :].strip().removesuffix(".")


def _probes(record: dict, fact: Fact) -> Iterator[Probe]:
    for criterion, kind in CRITERIA.items():
        for test in optional(record, criterion, list):
            inner = {criterion: test}
            asked = _queries(field(inner, criterion, "test_queries", kind=list), f"{criterion}.test_queries")
            conditions = [
                Condition(prompt, answers)
                for prompt, answers in _queries(
                    optional(test, "condition_queries", list), f"{criterion}.condition_queries"
                )
            ]
            for prompt, (answer, *aliases) in asked:
                yield Probe(
                    kind=kind,
                    fact=fact.id,
                    prompt=prompt,
                    answer=answer,
                    aliases=tuple(aliases),
                    conditions=tuple(conditions),
                    relation=fact.relation,
                    **_earlier(kind, fact, answer, tuple(aliases)),
                )


def _earlier(kind: str, fact: Fact, answer: str, aliases: tuple[str, ...]) -> dict[str, Any]:
    """Say what is right before the edit, where that follows from the test's kind."""
    if kind in KEPT:
        rival = fact.target_new if fact.target_new != clean(answer).strip() else None
        return {"before": answer, "before_aliases": aliases, "rival": rival}
    known = kind == "alias" and fact.target_true != NO_OBJECT
    return {"before": fact.target_true if known else None}


def _queries(queries: list, where: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return the prompts of queries that have answers, each with its answers' values and aliases."""
    found = []
    for query in queries:
        inner = {where: query}
        answers = [
            text
            for one in field(inner, where, "answers", kind=list)
            for key in ("value", "aliases")
            for text in texts_in(field({f"{where}.answers": one}, f"{where}.answers", key, kind=object), key)
        ]
        if answers:
            found.append((field(inner, where, "prompt"), tuple(answers)))
    return found
