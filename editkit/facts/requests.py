"""Edits as EasyEdit asks for them, with what its *portability* and *locality* inputs say must change and must not.

The layouts are those of zjunlp/EasyEdit: a request as ``easyeditor/editors/utils.py`` (``_prepare_requests``) puts it
together, and a record of KnowEdit as ``examples/KnowEdit.md`` prints it. Both name groups of questions; a group is a
list of questions, or lists of prompts and answers side by side. Answers are texts, or lists of ways to say them.
"""

from collections.abc import Iterator
from typing import Any

from editkit.config import shown
from editkit.facts.cases import Case, one_text, optional, texts_in
from editkit.facts.fact import NO_OBJECT, Fact, clean, template_of
from editkit.facts.files import field
from editkit.facts.probe import Condition, Probe

# What EasyEdit's and KnowEdit's groups ask; others are "portability" and "locality".
GROUPS = {
    "portability": {
        "subject_aliasing": "alias",
        "synonym": "alias",
        "reasoning": "two_hop",
        "one_hop": "two_hop",
        "inverse_relation": "reverse",
        "logical_generalization": "logical",
    },
    "locality": {
        "relation_specificity": "relation",
        "forgetfulness": "forgetfulness",
        "distracting": "distracting_neighbourhood",
    },
}
NEIGHBOURS = "neighborhood"
Question = tuple[str, tuple[str, ...]]  # a prompt, and ways to say its answer


def to_request_case(name: str, record: dict, keys: dict[str, str], groups: dict[str, dict[str, Any]]) -> Case:
    """Make the fact of one request and its probes.

    A group of neighbours with one answer that is not the new object is the fact's own neighbours.

    Args:
        name: the fact's id.
        keys: what the record calls ``subject``, ``prompt`` and ``target_new``.
        groups: by "portability" and "locality", the record's groups by their names.
    """
    subject, prompt = (clean(field(record, keys[key])).strip() for key in ("subject", "prompt"))
    new = one_text(field(record, keys["target_new"], kind=object), keys["target_new"])
    true = texts_in(record.get("ground_truth") or [], "ground_truth")
    asked = {
        (part, group): list(_questions(value, f"{part}.{group}"))
        for part, named in groups.items()
        for group, value in named.items()
    }
    near = asked.get(("locality", NEIGHBOURS), [])
    answers = {given[0] for _, given in near}
    own = len(answers) == 1 and clean(min(answers)).strip() != clean(new).strip()
    if own:
        del asked["locality", NEIGHBOURS]
    fact = Fact(
        id=name,
        relation="",
        subject=subject,
        prompt=template_of(prompt, subject),
        target_new=new,
        target_true=true[0] if true else NO_OBJECT,
        paraphrases=tuple(
            text for key in ("rephrase_prompt", "rephrase") for text in texts_in(record.get(key) or [], key)
        ),
        neighbours=tuple(prompt for prompt, _ in near) if own else (),
        neighbour_target=min(answers) if own else None,
    )
    probes = [
        _probe(fact, part, group, question, true) for (part, group), several in asked.items() for question in several
    ]
    return Case((fact,), tuple(probes))


def _probe(fact: Fact, part: str, group: str, question: Question, true: tuple[str, ...]) -> Probe:
    prompt, (answer, *others) = question
    kind, aliases = GROUPS[part].get(group.lower(), part), tuple(others)
    about: dict[str, Any] = {"kind": kind, "fact": fact.id, "prompt": prompt, "answer": answer, "aliases": aliases}
    if part == "locality":
        rival = fact.target_new if fact.target_new != clean(answer).strip() else None
        return Probe(before=answer, before_aliases=aliases, rival=rival, **about)
    if not true:
        return Probe(before=None, **about)
    if kind == "alias":
        return Probe(before=fact.target_true, before_aliases=true[1:], **about)
    # What was right before is not said: the fact itself has to be known.
    return Probe(before=None, conditions=(Condition(fact.text, true),), **about)


def groups_of(record: dict) -> dict[str, dict[str, Any]]:
    """Return the groups of questions under ``portability`` and ``locality``, none where a key is missing."""
    return {part: dict(optional(record, part, dict)) for part in GROUPS}


def _questions(value: Any, where: str) -> Iterator[Question]:
    """Yield a group's questions that have a prompt and an answer; ``where`` is what errors call it."""
    if value is None:
        return
    if isinstance(value, dict):
        prompts, answers = (field(value, key, kind=object) for key in ("prompt", "ground_truth"))
        together = isinstance(prompts, list)
        if together and not (isinstance(answers, list) and len(answers) == len(prompts)):
            raise TypeError(f"{where}.ground_truth is {shown(answers)}; an answer to each of {len(prompts)} is needed")
        pairs = list(zip(prompts, answers, strict=True)) if together else [(prompts, answers)]
    elif isinstance(value, list):
        if other := [one for one in value if not isinstance(one, dict)]:
            raise TypeError(f"{where} holds {shown(other[0])}; objects with prompt and ground_truth are needed")
        pairs = [(field(one, "prompt", kind=object), field(one, "ground_truth", kind=object)) for one in value]
    else:
        raise TypeError(f"{where} is {shown(value)}; a list of questions is needed")
    for prompt, answer in pairs:
        asked, said = texts_in(prompt, f"{where}.prompt"), texts_in(answer, f"{where}.ground_truth")
        if asked and said:
            yield asked[0], said
