"""What a model says: while a fact is typed, and before and after it is edited in."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch

from editkit.facts import Fact, Probe
from editkit.lab.form import Form
from editkit.language.inspection import prompt_tokens
from editkit.language.known import completes
from editkit.language.metrics import evaluate
from editkit.language.probes import evaluate_probes
from editkit.models import LanguageModel

SHOWN = 5  # next tokens
RUNGS = ("success", "accuracy", "magnitude", "said")

Says = list[tuple[str, float]]  # next tokens with their probabilities, the likeliest first


class Look(NamedTuple):
    """What a model makes of a form as it stands; empty where that is not asked for yet."""

    tokens: list[tuple[str, bool]]  # of the prompt, each with whether it is the one that is edited
    says: Says
    knows: bool | None  # whether the true object follows greedily; None where none is typed
    new_tokens: int | None  # of the new object


class Reading(NamedTuple):
    """What a model says of one fact at one moment."""

    says: Says
    prompts: pd.DataFrame  # see :func:`editkit.language.metrics.evaluate`, with every rung
    probes: pd.DataFrame | None  # see :func:`editkit.language.probes.evaluate_probes`; None where there are none

    @property
    def text(self) -> str:
        """The sentence that the model writes after the fact's prompt."""
        return self.prompts.text[0]


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


def read(lm: LanguageModel, fact: Fact, probes: Sequence[Probe] = ()) -> Reading:
    """Read what the model as it stands says of a fact; ``probes`` are those that the untouched model answers."""
    probed = evaluate_probes(lm, probes, [True] * len(probes)) if probes else None
    return Reading(next_tokens(lm, fact.text), evaluate(lm, [fact], rungs=RUNGS), probed)


def hold(lm: LanguageModel, facts: Sequence[Fact]) -> list[bool]:
    """Tell which facts the model as it stands completes with their new object, every token of it greedily."""
    return completes(lm, [(fact.text, fact.target_new) for fact in facts])
