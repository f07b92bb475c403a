"""The domain of facts: what a session needs to edit them into a language model."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from editkit.cache import Store
from editkit.editing.adapters import AdapterStack
from editkit.editing.result import LayerUpdate
from editkit.editing.session import Session
from editkit.editing.spec import EditSpec
from editkit.editing.targets import Targets
from editkit.editing.trust import TrustDecision
from editkit.facts.fact import Fact
from editkit.language.anchor import anchor_targets
from editkit.language.drift import PROBE_TOKENS
from editkit.language.gradients import read_gradients
from editkit.language.keys import edit_keys, hidden_states, sample_contexts
from editkit.language.metrics import evaluate, summarize
from editkit.language.moments import second_moments
from editkit.language.promises import PROSE_TOKENS, watch
from editkit.language.targets import optimise_targets
from editkit.language.texts import load_texts, other_prose
from editkit.language.trust import TrustMonitor
from editkit.models import LanguageModel


class FactDomain:
    """Facts in a language model, see :class:`editkit.editing.domain.Domain`.

    Args:
        spec: a resolved spec.
        texts: ordinary text for the second moment; samples of the model where not given.
        contexts: context prefixes; sampled from the model with ``spec.seed`` where not given.
        heldout: facts that are never edited: the trust score watches them and their neighbours, and the promise of
            ``neighbour_budget`` is held on their neighbours, for which they should be of the part for tuning.

    Raises ``ValueError`` for what only images have, and for a promise about neighbours without ``heldout``.
    """

    item = Fact

    def __init__(
        self,
        lm: LanguageModel,
        spec: EditSpec,
        *,
        texts: Sequence[str] | None,
        contexts: Sequence[str] | None,
        heldout: Sequence[Fact],
        store: Store,
        progress: bool,
    ):
        if spec.kept_budget is not None or spec.stop_margin != math.inf:
            raise ValueError(
                f"kept_budget = {spec.kept_budget}, stop_margin = {spec.stop_margin:g}: these are for images; "
                "facts have neighbour_budget, text_budget and stop_probability"
            )
        if spec.neighbour_budget is not None and not heldout:
            raise ValueError(f"neighbour_budget = {spec.neighbour_budget:g}: give heldout facts, of the tune part")
        if lm.family.norm and len(spec.layers) > 1 and spec.target_mode != "gradient":
            raise ValueError(
                f"layers = {spec.layers}: {lm.name} normalises what an edited matrix puts out, so that layers cannot "
                "share a target; give one"
            )
        self._prose: Sequence[str] = ()
        self.lm, self.spec, self.texts, self.contexts, self.heldout = lm, spec, texts, contexts, heldout
        self.store, self.progress = store, progress
        self._trust: TrustMonitor | None = None

    def costs(self) -> dict[int, Tensor]:
        lm, spec = self.lm, self.spec
        texts = self.texts
        if texts is None:
            texts = load_texts(lm=lm, n_tokens=spec.mom2_n_tokens, store=self.store, progress=self.progress)
        if self.contexts is None:
            self.contexts = sample_contexts(lm, spec.n_contexts, spec.context_length, spec.seed)
        costs = second_moments(lm, spec.layers, texts, spec.mom2_n_tokens, store=self.store, progress=self.progress)
        if spec.trust_enable:
            enough = spec.trust_heldout_samples * PROBE_TOKENS
            prose = other_prose(texts, lm=lm, n_tokens=enough, store=self.store)
            self._trust = TrustMonitor(lm, prose, self.heldout, spec)
        if spec.text_budget is not None:
            self._prose = other_prose(texts, lm=lm, n_tokens=PROSE_TOKENS, store=self.store)
        return costs

    def keys(self, items: Sequence[Fact], layer: int) -> Tensor:
        return edit_keys(self.lm, items, layer, self.contexts)

    def hidden(self, items: Sequence[Fact], layer: int) -> Tensor:
        return hidden_states(self.lm, items, layer)

    def targets(self, items: Sequence[Fact]) -> Targets:
        if self.spec.target_mode == "gradient":
            return read_gradients(self.lm, items, self.spec, progress=self.progress)
        how: dict[str, Any] = {"store": self.store, "progress": self.progress}
        found = optimise_targets(self.lm, items, self.spec, self.contexts, **how)
        return anchor_targets(self.lm, items, found, self.spec)

    def scores(self, items: Sequence[Fact]) -> dict[str, float]:
        return summarize(evaluate(self.lm, items))

    def watch(self, earlier: Sequence[Fact]) -> None:
        self._trust.watch(self.lm, earlier)

    def judge(self, items: Sequence[Fact], updates: Sequence[LayerUpdate]) -> TrustDecision:
        return self._trust.judge(self.lm, items, updates)

    def promises(self, items: Sequence[Fact]) -> Callable[[], dict[str, float]]:
        return watch(self.lm, self.spec, items, self.heldout, self._prose)

    def options(self) -> dict[str, Any]:
        return {"contexts": list(self.contexts or ())}


class EditSession(Session[LanguageModel]):
    """A sequence of edits of facts on one language model, under one spec.

    >>> session = EditSession(lm, EditSpec(method="emmet"))
    >>> result = session.edit(facts)
    >>> session.undo()

    Args:
        lm: the model, whose weights the edits change.
        spec: method and hyperparameters; the model's defaults fill in what it leaves out.
        texts, contexts, heldout: as in :class:`FactDomain`.
        store: where second moments and targets are cached.
        adapters: as in :class:`editkit.editing.session.Session`.
    """

    def __init__(
        self,
        lm: LanguageModel,
        spec: EditSpec,
        *,
        texts: Sequence[str] | None = None,
        contexts: Sequence[str] | None = None,
        heldout: Sequence[Fact] = (),
        store: Store | None = None,
        progress: bool = True,
        adapters: AdapterStack | None = None,
    ):
        spec = spec.resolve(lm)
        about: dict[str, Any] = {"texts": texts, "contexts": contexts, "heldout": heldout}
        domain = FactDomain(lm, spec, **about, store=store or Store(), progress=progress)
        super().__init__(lm, spec, domain, adapters=adapters)
