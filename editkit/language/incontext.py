"""In-context editing: the model is told the new facts in its prompt, and nothing of it is changed.

Every text is preceded by sentences as CounterFact+ (arXiv 2305.17553) puts them before its neighbourhood prompts, "The
capital of France is Rome. ", those about neighbours included. Either all facts stand there, as many as the model has
positions for, or those about the subject that is asked for alone. The latter is an oracle: it is told the subject,
which a system would have to find.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache

from editkit.facts.fact import Fact, fold
from editkit.language.forward.prefix import FrozenLayer, Prefix
from editkit.models import LanguageModel
from editkit.models.language import continued

ENDS = tuple(".!?…。！？।")  # what a sentence may end in


def sentence(fact: Fact) -> str:
    """Say a fact as the edit wants it, in one sentence."""
    text = continued(fact.text, fact.target_new)
    return text if text.endswith(ENDS) else f"{text}."


def preface(facts: Sequence[Fact]) -> str:
    """Say facts one after another, ready for a text to follow; of one subject and relation the latest alone."""
    return "".join(f"{sentence(fact)} " for fact in {fact.topic: fact for fact in facts}.values())


class Prefaced(LanguageModel):
    """A view of a model that reads a preface before every text; spans and continuations are those of the text alone.

    The preface is run once for all texts that are scored, so the weights must stay as they are meanwhile.

    Raises ``ValueError`` for a preface that leaves no position for a text.
    """

    def __init__(self, lm: LanguageModel, preface: str):
        self.__dict__.update(lm.__dict__)  # the same model, not a copy
        self._plain, self.preface = lm, preface
        length = 1 + len(lm.tokens(preface))
        if length >= lm.n_positions:
            raise ValueError(
                f"{lm.name} has {lm.n_positions} positions: what it is told takes {length} tokens and leaves none for "
                f"what is asked; tell it fewer facts, or those of the subject alone: {preface[:40]!r} …"
            )

    def identity(self) -> dict[str, Any]:
        """Return :meth:`LanguageModel.identity` and the preface."""
        return self._plain.identity() | {"preface": self.preface}

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenize ``text`` after the start token and the preface, whose spans are (0, 0)."""
        ids, spans = self._plain.encode(self.preface + text)
        start = len(self.preface)
        return ids, [(max(0, begin - start), max(0, end - start)) for begin, end in spans]

    def forward(self, ids: Tensor, **options) -> Tensor:
        """Compute the final hidden states; where a batch is scored, those of the preface are left out as zeros."""
        mask, used = options.get("attention_mask"), options.get("past_key_values")
        if torch.is_grad_enabled() or mask is None or used is not None or not self._begins(ids):
            return self._plain.forward(ids, **options)
        length = len(self._head_ids)
        layers = [FrozenLayer(*(side.expand(len(ids), -1, -1, -1) for side in pair)) for pair in self._head.layers]
        hidden = self._plain.forward(
            ids[:, length:],
            attention_mask=mask[:, :, length:],
            position_ids=options["position_ids"][:, length:],
            past_key_values=Cache(layers=[*layers]),
        )
        return pad(hidden, (0, 0, length, 0))

    def _begins(self, ids: Tensor) -> bool:
        """Return whether every row (T) goes on after the preface's own tokens, without its last space."""
        head = torch.tensor(self._head_ids, device=ids.device)
        return ids.shape[1] > len(head) and bool((ids[:, : len(head)] == head).all())

    @cached_property
    def _head_ids(self) -> list[int]:
        return self._plain.encode(self.preface.rstrip())[0]

    @cached_property
    def _head(self) -> Prefix:
        return Prefix.run(self._plain, [self._head_ids])


@dataclass(frozen=True)
class InContext:
    """All facts stand before every text, see :class:`editkit.language.controls.Control`."""

    name = "incontext"
    lm: LanguageModel
    facts: Sequence[Fact]
    seconds, delta_norm, parameters = 0.0, math.nan, 0  # nothing is computed or changed

    @contextmanager
    def apply(self) -> Iterator[LanguageModel]:
        """Yield the model as it answers with the facts before each text; the model itself stays as it is.

        Raises ``ValueError`` for more facts than the model has positions for.
        """
        yield Prefaced(self.lm, preface(self.facts)) if self.facts else self.lm


@dataclass(frozen=True)
class Oracle:
    """The facts about the subject that is asked for stand before a text; which that is has to be told."""

    name = "incontext_oracle"
    lm: LanguageModel
    facts: Sequence[Fact]
    seconds, delta_norm, parameters = 0.0, math.nan, 0

    def about(self, *facts: Fact) -> InContext:
        """Return the control for all that is asked in order to judge these facts, their neighbours included."""
        subjects = {fold(fact.subject) for fact in facts}
        return InContext(self.lm, [known for known in self.facts if fold(known.subject) in subjects])
