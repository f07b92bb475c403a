"""What a model says: while a fact is typed, and before and after it is edited in.

A reading begins with what one pass tells, and goes on with what takes longer: :func:`read`, :func:`write`, :func:`ask`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch

from editkit.facts import Fact, Probe
from editkit.lab.form import Form
from editkit.language.forward.scoring import score_tokens
from editkit.language.generation import Continuation, generate
from editkit.language.inspection import prompt_tokens
from editkit.language.known import completes
from editkit.language.metrics import evaluate, scored_prompts
from editkit.language.probes import evaluate_probes
from editkit.language.said import names
from editkit.models import LanguageModel

SHOWN = 5  # next tokens
RUNGS = ("success", "accuracy", "magnitude")  # that one pass tells
WORDS = 12  # tokens, at most, of a sentence

Says = list[tuple[str, float]]  # next tokens with their probabilities, the likeliest first


class Look(NamedTuple):
    """What a model makes of a form as it stands; empty where that is not asked for yet."""

    tokens: list[tuple[str, bool]]  # of the prompt, each with whether it is the one that is edited
    says: Says
    knows: bool | None  # whether the true object follows greedily; None where none is typed
    new_tokens: int | None  # of the new object


class Reading(NamedTuple):
    """What a model says of one fact at one moment, as far as it was read."""

    says: Says
    prompts: pd.DataFrame  # see :func:`editkit.language.metrics.evaluate`; said and text are missing until written
    written: tuple[Continuation, ...] = ()  # the sentences after the prompts, in their order
    probes: pd.DataFrame | None = None  # see :func:`editkit.language.probes.evaluate_probes`; None where none is asked

    @property
    def text(self) -> str:
        """The sentence that the model writes after the fact's prompt; empty until written."""
        return self.prompts.text[0] or ""


def look(lm: LanguageModel, form: Form) -> Look:
    """Look at a form with the model as it stands. Raises ``ValueError`` for a text without its subject, or too long."""
    if not (form.subject.strip() and form.prompt.strip()):
        return Look([], [], None, None)
    tokens = prompt_tokens(lm, form.template, form.subject.strip())
    text = form.template.replace("{}", form.subject.strip(), 1).rstrip()
    new = len(lm.encode_continuation(text, form.new)) if form.new.strip() else None
    knows = completes(lm, [(text, form.true)])[0] if form.true.strip() else None
    return Look(tokens, next_tokens(lm, text), knows, new)


@torch.no_grad()
def next_tokens(lm: LanguageModel, text: str, n: int = SHOWN) -> Says:
    """Return the ``n`` likeliest tokens after a text with their probabilities."""
    ids, _ = lm.encode(text)
    hidden = lm.forward(torch.tensor([ids], device=lm.device))[0, -1]
    found = lm.logits(hidden).softmax(-1).topk(n)
    tokens = [lm.tokenizer.decode([token]) for token in found.indices.tolist()]
    return list(zip(tokens, found.values.tolist(), strict=True))


def read(lm: LanguageModel, fact: Fact) -> Reading:
    """Read what one pass over the model as it stands tells of a fact: next tokens, and every prompt's rungs."""
    prompts = evaluate(lm, [fact], rungs=RUNGS).assign(said=None, text=None)
    return Reading(next_tokens(lm, fact.text), prompts)


def write(lm: LanguageModel, fact: Fact, reading: Reading, other: Reading | None = None) -> Reading:
    """Let the model as it stands write a sentence after every prompt.

    Args:
        other: a reading of the fact at another moment; a sentence that is still the same is not written again.
    """
    asked = scored_prompts(fact)
    written = sentences(lm, [prompt for _, prompt, _ in asked], other.written if other else ())
    texts = [sentence.text.strip() for sentence in written]
    wanted = [objects[kind == "neighbourhood"] for kind, _, objects in asked]
    said = [names(text, word) for text, word in zip(texts, wanted, strict=True)]
    return reading._replace(prompts=reading.prompts.assign(said=said, text=texts), written=tuple(written))


def sentences(lm: LanguageModel, prompts: Sequence[str], others: Sequence[Continuation] = ()) -> list[Continuation]:
    """Continue prompts greedily to a sentence's end, of ``WORDS`` tokens at most.

    Args:
        others: continuations of the same prompts at another moment. One pass tells which of them every token of is the
            first choice now too; only the other prompts are continued token by token.
    """
    items = [(lm.encode(prompt)[0], [list(other.ids)]) for prompt, other in zip(prompts, others, strict=False)]
    same = [scores[0].greedy for scores in score_tokens(lm, items)] or [False] * len(prompts)
    changed = [prompt for prompt, stays in zip(prompts, same, strict=True) if not stays]
    new = iter(generate(lm, changed, WORDS, stop="sentence"))
    return [others[place] if stays else next(new) for place, stays in enumerate(same)]


def ask(lm: LanguageModel, reading: Reading, probes: Sequence[Probe]) -> Reading:
    """Ask the model as it stands some probes, which are those that the untouched model answers."""
    asked = evaluate_probes(lm, probes, [True] * len(probes)) if probes else None
    return reading._replace(probes=asked)


def hold(lm: LanguageModel, facts: Sequence[Fact]) -> list[bool]:
    """Tell which facts the model as it stands completes with their new object, every token of it greedily."""
    return completes(lm, [(fact.text, fact.target_new) for fact in facts])
