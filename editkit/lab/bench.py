"""A language model on the bench: always the model as it came, edited with some facts in order, under one spec.

Targets are searched on the model as it came (``targets_from: base``, as in arXiv 2601.15686). For the first edit that
is what is published; for all of them it means that other weights, another method or another order only solve again,
with the ``v*`` that are there. So a change is two steps: the search, in which the weights stay as they are and which
can be stopped, and the writing, which takes a moment.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from editkit.cache import Store, entry_key
from editkit.editing.adapters import AdapterStack
from editkit.editing.result import EditResult
from editkit.editing.spec import EditSpec
from editkit.editing.targets import Watch
from editkit.editing.trust import TrustDecision, TrustSpec
from editkit.facts import Fact
from editkit.language.domain import EditSession
from editkit.language.drift import PROBE_TOKENS
from editkit.language.keys import sample_contexts
from editkit.language.targets import optimise_targets, stored_targets
from editkit.language.texts import load_texts, other_prose
from editkit.language.trust import TrustMonitor
from editkit.models import LanguageModel

LOOKS = 4  # pieces of text, held-out facts and earlier edits that trust goes by: half as many as a report's
R = TypeVar("R")


class Bench:
    """A model and the edits in it.

    Args:
        lm: the model; it is given back by :meth:`close`, as it came.
        store: where targets and second moments are cached.
        heldout: facts that are never edited, for the trust in each edit.
    """

    def __init__(self, lm: LanguageModel, *, store: Store, heldout: Sequence[Fact] = ()):
        self.lm, self.store, self.heldout = lm, store, list(heldout)
        self.facts: list[Fact] = []
        self.trust: TrustDecision | None = None  # in the last edit, once it was judged
        self.judgeable = False  # whether it is not judged yet, and what came before it was looked at
        self.loaded: list[str] = []  # folders of adapters beside the weights
        self._stack: AdapterStack | None = None  # where adapters lie beside the weights
        self._session: EditSession | None = None
        self._contexts: dict[tuple[int, int, int], list[str]] = {}
        self._texts: list[str] = []
        self._monitor: TrustMonitor | None = None

    @property
    def spec(self) -> EditSpec | None:
        """The spec of the edits in the model, or of the last that were in it; None before the first."""
        return self._session.spec if self._session else None

    @property
    def result(self) -> EditResult | None:
        """What the last edit in the model did."""
        return self._session.results[-1] if self.facts else None

    def untouched(self) -> AbstractContextManager[None]:
        """Return a context in which the model is without its edits; afterwards they are back, bit for bit."""
        return self._session.untouched() if self._session else nullcontext()

    def missing(self, spec: EditSpec, facts: Sequence[Fact]) -> int:
        """Count the facts of which ``v*`` would have to be searched first."""
        if not facts:
            return 0
        with self.untouched():
            return len(facts) - stored_targets(self.lm, facts, spec, self._contexts_of(spec), self.store)

    def make(self, spec: EditSpec, facts: Sequence[Fact], watch: Watch) -> None:
        """Let the model hold these facts, edited in one after another under a resolved spec, and no others.

        ``watch`` is called at each step of a search; what it raises, like any error, leaves everything as it was.
        """
        self._search(spec, facts, watch)
        facts_before, spec_before = self.facts, self.spec
        try:
            self._write(spec, facts)
        except BaseException:
            self._write(spec_before, facts_before)  # solved again from the same targets, to the same bits
            raise

    def judge(self) -> None:
        """Find out how far the edit that was made last can be trusted; not known of one that others were made after."""
        if not self.judgeable:
            return
        with self.untouched():
            monitor = self._trust()
            if len(self.facts) == 1:  # what was before it is what came
                monitor.watch(self.lm, [])
        self.trust, self.judgeable = monitor.judge(self.lm, self.facts[-1:], self.result.updates), False

    def compare(
        self, specs: Mapping[str, EditSpec], facts: Sequence[Fact], read: Callable[[], R], watch: Watch
    ) -> dict[str, R]:
        """Return what ``read`` finds with the facts edited in under each spec; the model is then as it was before."""
        for spec in specs.values():
            self._search(spec, facts, watch)
        found = {}
        with self.untouched():
            for name, spec in specs.items():
                session = self._begin(spec)
                try:
                    for fact in facts:
                        session.edit([fact])
                    found[name] = read()
                finally:
                    session.undo()
        return found

    def save(self, directory: str | Path) -> Path:
        """Write the edits as one adapter. Raises ``ValueError`` where they are not beside the weights."""
        if not self.facts:
            raise ValueError("there is no edit to save")
        if self.spec.edit_mode == "raw":
            raise ValueError("edits over the weights are no adapter: choose 'adapter', which solves them again")
        return self._session.save_adapter(directory)

    def load(self, directory: str | Path) -> None:
        """Lay a saved adapter beside the weights; further edits are made on the model with it.

        Raises ``ValueError`` where the model holds edits, and what :meth:`AdapterStack.load` raises.
        """
        if self.facts:
            raise ValueError("the model holds edits: take them back first, since they were made without that adapter")
        self._take_back()  # a session on the model without that adapter
        stack = self._stack or AdapterStack(self.lm)
        stack.load(directory, f"loaded_{len(self.loaded) + 1}")
        self._stack = stack
        self.loaded.append(str(directory))
        self._forget()

    def close(self) -> None:
        """Take everything back: edits and loaded adapters."""
        self._take_back()
        if self._stack is not None:
            self._stack.close()
        self._stack, self.loaded = None, []
        self._forget()

    def _search(self, spec: EditSpec, facts: Sequence[Fact], watch: Watch) -> None:
        """See to it that every target is in the store."""
        if facts:
            with self.untouched():
                how: dict[str, Any] = {"store": self.store, "progress": False, "watch": watch}
                optimise_targets(self.lm, facts, spec, self._contexts_of(spec), **how)

    def _write(self, spec: EditSpec | None, facts: Sequence[Fact]) -> None:
        """Take back what is not wanted and edit in what is missing; on an error nothing is left in the model."""
        same = self._session is not None and spec == self.spec  # what it has factored serves again
        kept = in_common(self.facts, facts) if same else 0
        new = facts[kept:]
        if same:
            self._session.undo(len(self.facts) - kept)
        else:
            self._take_back()
        self.facts, self.trust, self.judgeable = list(facts[:kept]), None, False
        if not new:
            return
        self._session = self._session or self._begin(spec)
        try:
            for fact in new:
                if fact is new[-1] and self.facts:
                    self._watch()
                self._session.edit([fact])
                self.facts.append(fact)
        except BaseException:
            self._take_back()
            raise
        self.judgeable = True

    def _watch(self) -> None:
        """Look at the model as it stands, before the edit that will be judged."""
        with self.untouched():
            monitor = self._trust()
        monitor.watch(self.lm, self.facts)

    def _begin(self, spec: EditSpec) -> EditSession:
        how: dict[str, Any] = {"texts": self._prose(spec), "contexts": self._contexts_of(spec)}
        how |= {"store": self.store, "progress": False}
        if spec.edit_mode == "lora":
            how["adapters"] = self._stack = self._stack or AdapterStack(self.lm, spec.lora_alpha)
        return EditSession(self.lm, spec, **how)

    def _take_back(self) -> None:
        if self._session is not None:
            self._session.undo()
        self._session, self.facts, self.trust, self.judgeable = None, [], None, False

    def _contexts_of(self, spec: EditSpec) -> list[str]:
        """Return context prefixes as the session would sample them: from the model without edits."""
        wanted = spec.n_contexts, spec.context_length, spec.seed
        if wanted not in self._contexts:
            with self.untouched():
                key = entry_key("editkit.language.keys", self.lm, contexts=wanted)
                found = self.store.plain("contexts", key, lambda: sample_contexts(self.lm, *wanted))
            self._contexts[wanted] = found
        return self._contexts[wanted]

    def _prose(self, spec: EditSpec) -> list[str]:
        """Return ordinary text as the session would draw it, of which the first use of a model takes minutes."""
        if not self._texts:
            with self.untouched():
                self._texts = load_texts(lm=self.lm, n_tokens=spec.mom2_n_tokens, store=self.store, progress=False)
        return self._texts

    def _trust(self) -> TrustMonitor:
        """Return what judges edits; made on the model without them."""
        if self._monitor is None:
            spec = TrustSpec(trust_heldout_samples=LOOKS)
            enough = spec.trust_heldout_samples * PROBE_TOKENS
            prose = other_prose(self._texts, lm=self.lm, n_tokens=enough, store=self.store)
            self._monitor = TrustMonitor(self.lm, prose, self.heldout, spec)
        return self._monitor

    def _forget(self) -> None:
        """Drop what was read of the model without edits, which is another one now."""
        self._contexts.clear()
        self._texts, self._monitor = [], None


def in_common(a: Sequence[object], b: Sequence[object]) -> int:
    """Count what two sequences begin with in common."""
    return next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
