"""Probes that a fact's own text makes, whatever its source: its negation, its truth, and neighbours after it.

An edit that is understood turns over what is true of its sentence. Before it, "The capital of France is Rome" is
false, and so "It is not true that the capital of France is" goes on with Rome sooner than with Paris; afterwards the
other way round (negated queries as in arXiv 2510.00625). A question is no statement, and is not negated.

*Distracting neighbours* follow the edit's own sentence, as CounterFact+ asks them (arXiv 2305.17553;
``experiments/py/eval_utils_counterfact.py`` of apartresearch/specificityplus): what was just said of one subject must
not become the answer about another.
"""

import re
from collections.abc import Iterator
from typing import Any

from editkit.facts.fact import NO_OBJECT, SLOT, Fact
from editkit.facts.probe import Probe
from editkit.models.language import continued

VERB = re.compile(r"\b(?:is|are|was|were)\b")
NOT_TRUE = "It is not true that"


def statement_probes(fact: Fact) -> list[Probe]:
    """Make the probes of one fact that take nothing but its own texts; of a question, none that take a statement."""
    about: dict[str, Any] = {"fact": fact.id, "relation": fact.relation}
    becomes_true, becomes_false = (continued(fact.text, target) for target in (fact.target_new, fact.target_true))
    is_statement = not fact.text.endswith("?") and fact.target_true != NO_OBJECT
    return [
        *(Probe(prompt=prompt, **about, **rest) for prompt, rest in _negated(fact) if is_statement),
        *(judged("true_false", fact, becomes_true, becomes_false) if is_statement else []),
        *(
            Probe(
                kind="distracting_neighbourhood",
                prompt=f"{_ended(becomes_true)} {neighbour}",
                answer=fact.neighbour_answer,
                before=fact.neighbour_answer,
                rival=fact.target_new,
                **about,
            )
            for neighbour in fact.neighbours
            if fact.neighbour_answer != fact.target_new
        ),
    ]


def judged(kind: str, fact: Fact, becomes_true: str, becomes_false: str) -> list[Probe]:
    """Ask of two statements whether they are true: one that the edit makes true, and one that it makes false."""
    return [
        Probe(
            kind=kind,
            fact=fact.id,
            prompt=f"True or false? {_ended(statement)}\nAnswer:",
            answer="True" if turns else "False",
            before="False" if turns else "True",
            relation=fact.relation,
        )
        for turns, statement in ((True, becomes_true), (False, becomes_false))
    ]


def _negated(fact: Fact) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the fact's prompt negated from outside and, where it has a verb after its subject, inside."""
    turned: dict[str, Any] = {"answer": fact.target_true, "before": fact.target_new}
    yield f"{NOT_TRUE} {_inside_a_sentence(fact.prompt).replace(SLOT, fact.subject)}", {"kind": "negation"} | turned
    before, after = fact.prompt.split(SLOT)
    if verb := VERB.search(after):
        prompt = f"{before}{fact.subject}{after[: verb.end()]} not{after[verb.end() :]}"
        yield prompt, {"kind": "negation_inside"} | turned


def _ended(statement: str) -> str:
    return statement if statement.endswith(".") else f"{statement}."


def _inside_a_sentence(template: str) -> str:
    """Write a template's first word small where it is a common one; a subject keeps its capital."""
    first = template.split(" ", 1)[0]
    is_common = first.istitle() and first != "I" and SLOT not in first
    return template[0].lower() + template[1:] if is_common else template
