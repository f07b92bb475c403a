"""MQuAKE (arXiv 2305.14795; princeton-nlp/MQuAKE) and MQuAKE-Remastered (henryzhongsc/MQuAKE-Remastered).

A record chains two to four statements, edits one or more of them, and asks what the chain then ends in. Its edits are
facts of their own, and its questions probes that take all of them. The published evaluation shows examples before a
question; here it stands alone, in the examples' form "Q: … A:". An edit is in a part by its subject, so that a
record's edits may be in both; ``part="all"`` keeps every question.

Remastered is about edits of other records that change a question's answer unforeseen. Each probe therefore names the
statements that it rests on (:attr:`editkit.facts.probe.Probe.rests_on`), and is not asked where another edit is about
one of them.
"""

import os
from typing import Any

from editkit.facts.cases import Case, optional, texts_in, to_case
from editkit.facts.fact import Fact, clean, template_of
from editkit.facts.files import field, read_records
from editkit.facts.probe import Probe

PUBLISHED = "https://github.com/princeton-nlp/MQuAKE/tree/main/datasets"
LAYOUT = (
    "a record of mquake holds case_id, the list requested_rewrite of {subject, prompt, target_new {str}, "
    "target_true {str}}, the list questions, answer, new_answer, and may hold answer_alias, new_answer_alias, "
    "single_hops, and triples under orig"
)


def read(path_or_url: str | os.PathLike) -> list[Fact]:
    """Read the edits alone, see :func:`read_case`."""
    return list(read_case(path_or_url).facts)


def read_case(path_or_url: str | os.PathLike) -> Case:
    """Read MQuAKE's edits and probes in the file's own order; raises what ``read_records`` and ``to_case`` raise."""
    return to_case(path_or_url, read_records(path_or_url, PUBLISHED), _case, LAYOUT)


def _case(index: int, record: dict) -> Case:
    name = f"mquake:{field(record, 'case_id', kind=int | str)}"
    rewrites = field(record, "requested_rewrite", kind=list)
    if not rewrites:
        raise ValueError("requested_rewrite is empty")
    facts = [_fact(f"{name}:{number}", rewrite) for number, rewrite in enumerate(rewrites)]
    hops = len(optional(record, "single_hops", list) or _triples(record, "triples"))
    answers = (field(record, "new_answer"), field(record, "answer"))
    aliases = (_aliases(record, "new_answer_alias"), _aliases(record, "answer_alias", "answer_extended"))
    probes = [
        Probe(
            kind="multi_hop" if hops > 2 else "two_hop",
            fact=facts[0].id,
            prompt=f"Q: {question.strip()} A:",
            answer=answers[0],
            before=answers[1],
            aliases=aliases[0],
            before_aliases=aliases[1],
            needs=tuple(fact.id for fact in facts[1:]),
            rests_on=_statements(record),
            relation=facts[0].relation,
        )
        for question in texts_in(field(record, "questions", kind=list), "questions")
    ]
    return Case(tuple(facts), tuple(probes))


def _fact(name: str, rewrite: Any) -> Fact:
    inner = {"requested_rewrite": rewrite}
    subject, prompt = (clean(field(inner, "requested_rewrite", key)).strip() for key in ("subject", "prompt"))
    return Fact(
        id=name,
        relation=rewrite.get("relation_id") or "",
        subject=subject,
        prompt=template_of(prompt, subject),
        target_new=_target(inner, "target_new"),
        target_true=_target(inner, "target_true"),
        paraphrases=texts_in(rewrite.get("question") or [], "requested_rewrite.question"),
    )


def _target(inner: dict, name: str) -> str:
    """Read an object: under ``str`` in MQuAKE, flat in Remastered's rows."""
    flat = f"{name}_str"
    keys = (flat,) if flat in inner["requested_rewrite"] else (name, "str")
    return field(inner, "requested_rewrite", *keys)


def _aliases(record: dict, *names: str) -> tuple[str, ...]:
    return tuple(text for name in names for text in texts_in(record.get(name) or [], name))


def _statements(record: dict) -> tuple[tuple[str, str], ...]:
    """List the (subject, relation) of the chain as it is after the edits, where the record says it."""
    relations, labels = _triples(record, "new_triples"), _triples(record, "new_triples_labeled")
    if len(relations) != len(labels):
        raise TypeError(f"new_triples and new_triples_labeled hold {len(relations)} and {len(labels)} triples")
    return tuple((clean(label[0]).strip(), relation[1]) for relation, label in zip(relations, labels, strict=True))


def _triples(record: dict, name: str) -> list[list[str]]:
    """Read triples, under ``orig`` in MQuAKE, beside the rest in Remastered's rows."""
    found = record[name] if name in record else optional(record, "orig", dict).get(name)
    whole = isinstance(found or [], list) and all(isinstance(one, list) and len(one) == 3 for one in found or [])
    if not whole or not all(isinstance(part, str) for one in found or [] for part in one):
        raise TypeError(f"{name} is {found!r:.80}; a list of triples of texts is needed")
    return found or []
