"""Facts edited into a language model."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from editkit.editing.result import TrustDecision
from editkit.editing.session import Session
from editkit.editing.spread import Editor, LayerUpdate
from editkit.editing.targets import Targets
from editkit.facts import Fact
from editkit.language.keys import FactReader, sample_contexts
from editkit.language.metrics import evaluate, summarize
from editkit.language.targets import optimise_targets
from editkit.language.trust import TrustMonitor
from editkit.models import LanguageModel
from editkit.statistics import second_moments
from editkit.texts import load_texts


@dataclass
class EditSession(Session):
    """A sequence of edits of facts on one model, under one spec.

    >>> session = EditSession(lm, EditSpec(method="emmet"))
    >>> result = session.edit(facts)
    >>> session.undo()

    Args:
        lm, spec, store, progress, adapters: as in :class:`editkit.editing.session.Session`.
        texts: ordinary text for the second moment; the offline default where not given.
        contexts: context prefixes; sampled from the model with ``spec.seed`` where not given.
        heldout: facts that are never edited; the trust score watches their neighbours.
    """

    lm: LanguageModel
    texts: Sequence[str] | None = None
    contexts: Sequence[str] | None = None
    heldout: Sequence[Fact] = ()

    item = Fact

    def __post_init__(self) -> None:
        super().__post_init__()
        self._trust: TrustMonitor | None = None

    def _prepare(self) -> Editor:
        spec, texts = self.spec, load_texts() if self.texts is None else self.texts
        if self.contexts is None:
            self.contexts = sample_contexts(self.lm, spec.n_contexts, spec.context_length, spec.seed)
        costs = second_moments(
            self.lm, spec.layers, texts, spec.mom2_n_tokens, store=self.store, progress=self.progress
        )
        if spec.trust_enable:
            self._trust = TrustMonitor(self.lm, texts, self.heldout, spec)
        return Editor(self._weights, spec, FactReader(self.lm, self.contexts), costs)

    def _optimise(self, items: list[Fact]) -> Targets:
        return optimise_targets(self.lm, items, self.spec, self.contexts, store=self.store, progress=self.progress)

    def _scores(self, items: Sequence[Fact]) -> dict[str, float]:
        return summarize(evaluate(self.lm, items))

    def _judge(self, updates: list[LayerUpdate]) -> TrustDecision | None:
        if self._trust is None:
            return None
        norm = max(item.norm / item.weight_norm for item in updates)
        condition = max(item.update.condition for item in updates)
        decision = self._trust.judge(self.lm, self._edited(), norm, condition)
        if decision.action != "accept":
            warnings.warn(str(decision), stacklevel=4)
        return decision

    @classmethod
    def _options(cls, about: Mapping[str, Any]) -> dict[str, Any]:
        return {"contexts": about["contexts"]}

    def _provenance(self, items: Sequence[Fact]) -> dict[str, Any]:
        return super()._provenance(items) | {"contexts": list(self.contexts)}
