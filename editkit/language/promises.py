"""What of a language model is promised to stay, measured on facts for tuning and on prose that no edit is about."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from editkit.editing.budget import BudgetSpec
from editkit.facts.fact import Fact
from editkit.language.drift import PROBE_TOKENS, TextProbe, held_out
from editkit.language.forward.scoring import score
from editkit.models import LanguageModel

ASKED = 128  # neighbourhood prompts at most behind a neighbour budget
FROM_ONE = 8  # of them that are set against one edit's new object
PIECES = 24  # of prose behind a text budget
PROSE_TOKENS = PIECES * PROBE_TOKENS

Question = tuple[str, list[str]]  # a neighbourhood prompt, and the edit's new object and the right one


def questions(items: Sequence[Fact], tune: Sequence[Fact]) -> list[Question]:
    """Set neighbourhood prompts of facts for tuning against the new objects of edits, each edit's in its own relation.

    An edit does its harm where its new object is nearly right, so that is what is asked: whether the right object
    still wins over the new one at prompts that share the relation, of facts that nobody edits or reports. Where no
    such fact has the relation, those of all relations stand in. At most ``ASKED``, evenly from all edits.
    """
    pools = defaultdict(list)
    for fact in tune:
        for prompt in fact.neighbours:
            pools[fact.relation].append((prompt, fact.neighbour_answer))
    everything = [pair for pool in pools.values() for pair in pool]
    subjects = {fact.subject for fact in items}
    few = min(len(items), ASKED)
    each, taken, found = min(FROM_ONE, ASKED // few), defaultdict[str, int](int), []
    for fact in (items[i * len(items) // few] for i in range(few)):
        pool = pools.get(fact.relation) or everything
        begin = taken[fact.relation]
        turn = (pool[(begin + step) % len(pool)] for step in range(len(pool)))
        fit = (pair for pair in turn if pair[1] != fact.target_new and not any(s in pair[0] for s in subjects))
        chosen = [pair for _, pair in zip(range(each), fit, strict=False)]
        taken[fact.relation] += each
        found += [(prompt, [fact.target_new, right]) for prompt, right in chosen]
    return found


def watch(
    lm: LanguageModel, spec: BudgetSpec, items: Sequence[Fact], tune: Sequence[Fact], prose: Sequence[str]
) -> Callable[[], dict[str, float]]:
    """Look at the untouched model, and return a measurement of what share stays of what ``spec`` promises.

    ``neighbour`` is NS on :func:`questions` now over NS then, ``text`` the perplexity of the prose then over that now.

    Raises ``ValueError`` where the model is right at none of the questions, or there are none.
    """
    measures: dict[str, Callable[[], float]] = {}
    if spec.neighbour_budget is not None:
        asked = questions(items, tune)
        if not asked or not (before := _success(lm, asked)):
            raise ValueError(
                f"neighbour_budget = {spec.neighbour_budget:g}: the model is right at none of {len(asked)} "
                f"neighbourhood prompts of {len(tune)} facts for tuning; give facts with neighbours that it knows"
            )
        measures["neighbour"] = lambda: _success(lm, asked) / before
    if spec.text_budget is not None:
        probe = TextProbe(lm, held_out(lm, prose, 0, PIECES))
        measures["text"] = lambda: probe.perplexity / probe.measure(lm)[0]
    return lambda: {name: measure() for name, measure in measures.items()}


def _success(lm: LanguageModel, asked: Sequence[Question]) -> float:
    return sum(right.logprob > new.logprob for new, right in score(lm, asked)) / len(asked)
