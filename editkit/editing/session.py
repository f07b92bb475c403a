"""Edits on a model: computed, written, recorded, undone bit for bit."""

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Generic, Self

from editkit.editing.adapters import AdapterStack
from editkit.editing.budget import Budget, spend
from editkit.editing.domain import Domain
from editkit.editing.editor import Editor, Written
from editkit.editing.item import Item, warn_of_contradictions
from editkit.editing.journal import Journal, part_of, read_edits, read_state
from editkit.editing.lifelong import make_memory
from editkit.editing.replay import Memory
from editkit.editing.result import EditResult, LayerUpdate
from editkit.editing.spec import EditSpec
from editkit.editing.targets import Targets
from editkit.editing.trust import TrustDecision
from editkit.editing.weights import State, writer
from editkit.methods import METHODS
from editkit.models.base import ModelT
from editkit.models.peak import peak_mb, reset_peak

PROVENANCE = ("model", "weights", "spec", "items")  # what is saved besides the domain's options


class Session(Generic[ModelT]):
    """A sequence of edits on one model, under one spec, in one domain.

    All state (precisions, memory of earlier edits, the weights before) lives here. Sessions on different
    models are independent; on the same model, undo the later one first.

    Args:
        model: its weights are written to by :meth:`edit`.
        spec: method and hyperparameters, resolved.
        domain: what is edited, and how the model is read for it.
        adapters: with ``edit_mode: lora``, the model's stack where it has one already; else one is made.
    """

    def __init__(
        self, model: ModelT, spec: EditSpec, domain: Domain[Any], *, adapters: AdapterStack[ModelT] | None = None
    ):
        self.model, self.spec, self.domain = model, spec, domain
        self.memory = make_memory(spec)
        self._weights = writer(model, spec, adapters)
        self._journal = Journal(self._weights)
        self._editor: Editor | None = None

    @property
    def adapters(self) -> AdapterStack[ModelT] | None:
        """The adapters beside the weights; None with ``edit_mode: raw``."""
        return self._weights.stack

    @property
    def results(self) -> list[EditResult]:
        """Results of the edits that are neither undone nor settled, in order."""
        return self._journal.results

    @property
    def n_parameters(self) -> int:
        """Count of numbers that hold the edits: the edited weights, or the factors of the session's adapters."""
        return self._weights.n_parameters

    def edit(self, items: Sequence[Item]) -> EditResult:
        """Edit ``items`` into the model: one batch, or one after another where the method knows no batches.

        Targets, or gradients, are found on the model as it stands when the call is made, or with
        ``targets_from: base`` on the model before the first edit. Either every layer is written or, on any
        error, none: a non-finite update raises ``FloatingPointError`` and leaves weights and memory as they
        were. With budgets a step is written under the smallest weight that holds them, see
        :attr:`EditResult.budget`. A step below the trust threshold is undone, scaled down or warned about, see
        :attr:`EditResult.trust`. Edits that contradict each other are warned of by name. Raises ``ValueError`` for an
        empty batch, ``TypeError`` for what is no list of items, and ``RuntimeError`` where replay would edit in again
        what was taken out of :attr:`adapters` by hand.
        """
        items = self._checked(items)
        warn_of_contradictions(items)
        self._weights.begin()
        self._check_remembered()
        editor = self._prepared()  # computed once or read from the cache: it counts in no edit's seconds
        start = time.perf_counter()
        reset_peak(self.model.device)
        targets = self._targets(items)
        before, mark, memory = self._weights.read(), self._weights.mark(), self.memory.copy()
        try:
            if self.spec.trust_enable:
                self.domain.watch(self._journal.edited())
            write = partial(self._write, editor, items, targets)
            written, budget = self._written(items, write, before, memory)
            updates = [update for group in written for update in group.updates]
            trust, updates = self._judged(items, updates, before) if updates else (None, [])
        except BaseException:
            self._put_back(before, memory)
            raise
        if not updates:
            self._put_back(before, memory.copy())
        old_residual = editor.old_residual(self.memory)
        if updates:
            self.memory.add([record for group in written for record in group.records])
        self._journal.note(before, memory, mark)
        seconds = {"targets": targets.seconds, "keys": sum(w.keys_seconds for w in written)}
        seconds |= {"solve": sum(w.solve_seconds for w in written), "total": time.perf_counter() - start}
        peak = peak_mb(self.model.device)
        name = self._weights.written_to
        result = EditResult(items, name, updates, targets, old_residual, trust, budget, seconds, peak)
        self.results.append(result)
        return result

    def undo(self, last: int | None = None) -> None:
        """Take back the ``last`` batches of edits, or all: the weights are then what they were, bit for bit.

        An adapter that was removed from :attr:`adapters` stays removed.

        Raises ``ValueError`` for more batches than were edited since :meth:`settle`, and ``RuntimeError`` where the
        weights were changed outside the session since, as undoing would lose that change, and where an adapter
        joins the edits with others that are to stay.
        """
        memory = self._journal.undo(last, make_memory(self.spec))
        self.memory = self.memory if memory is None else memory

    def untouched(self) -> AbstractContextManager[None]:
        """Return a context in which the model is as it was before the first edit; the edits come back bit for bit."""
        return self._journal.untouched()

    def settle(self) -> None:
        """Accept the edits so far and drop their updates: from now on they can only be undone all together.

        A long sequence would otherwise keep every update of every step in memory.
        """
        self._journal.settle()

    def save(self, path: str | Path) -> Path:
        """Write the session's updates, in factored form, with their provenance to one safetensors file.

        The tensors ``{number}.{layer}.left`` (d_v, n) and ``….right`` (n, d_k) are numbered in the order of edits;
        the file's metadata holds the model's name and fingerprint before the session, spec and items as JSON.
        Raises ``ValueError`` in ``edit_mode: lora``, whose edits :meth:`save_adapter` writes.
        """
        if self.adapters is not None:
            raise ValueError("edit_mode = 'lora' leaves the weights alone: use save_adapter()")
        return self._journal.save(Path(path), self._provenance(self._journal.edited()))

    def save_adapter(self, directory: str | Path, *names: str) -> Path:
        """Write the edits as one LoRA adapter in peft's own format, see :meth:`AdapterStack.save`.

        The card shows the method, the items of these adapters, and their scores with these adapters alone in force,
        at their weights, which is what a user of the folder gets.

        Args:
            names: adapters of :attr:`adapters`; all that are switched on where not given.

        Raises ``ValueError`` in ``edit_mode: raw``, whose edits :meth:`save` writes, and ``RuntimeError`` where
        merged adapters would have to be switched.
        """
        if self.adapters is None:
            raise ValueError("edit_mode = 'raw' has no adapter: use save(), or edit with edit_mode 'lora'")
        names = names or tuple(self.adapters.enabled)
        items = self._journal.edited(names)
        notes = self._provenance(items) if items else {}
        if items:
            with self.adapters.switched(on=names, off=[name for name in self.adapters if name not in names]):
                notes |= {"edited": [item.describe() for item in items], "scores": self.domain.scores(items)}
        return self.adapters.save(directory, *names, notes=notes)

    @classmethod
    def load(cls, model: ModelT, path: str | Path, **options: Any) -> Self:
        """Write the edits of a file made by :meth:`save` into another copy of the model, without computing anything.

        The weights are then those of the saved session, bit for bit on the same kind of device. The session
        can undo them all together; the memory of earlier edits for replay is not in the file.

        Args:
            options: further arguments of the session.

        Raises ``ValueError``, before anything is written, for any other file and for another model;
        ``FloatingPointError`` for an update that is not finite. On any error the model is as it was.
        """
        saved = read_edits(path, model.device)
        try:
            about = saved.about
            spec = EditSpec(**{n: v for n, v in about["spec"].items() if v is not None})  # null: no bound, the default
            session = cls(model, spec, **{n: v for n, v in about.items() if n not in PROVENANCE} | options)
            items = [session.domain.item(**entry) for entry in about["items"]]
            made_for, weights = about["model"], about["weights"]
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"{path} does not hold the edits of such a session: {problem}") from None
        if weights != session._weights.base:
            raise ValueError(
                f"{path} was made for another model: {made_for!r} with fingerprint {weights}, "
                f"this is {model.name!r} with {session._weights.base}"
            )
        session._journal.repeat(saved, items)
        return session

    def state_dict(self) -> State:
        """Return what a new session on the untouched model needs to go on from here: edits, memory and items.

        Adapters are taken as they are now: what was removed, weighted or switched off stays so.
        """
        state = self._journal.state_dict({"edit_mode": self.spec.edit_mode, "layers": self.spec.layers})
        return state | {f"memory.{name}": tensor for name, tensor in self.memory.state_dict().items()}

    def load_state_dict(self, state: State) -> None:
        """Go on where another session under the same spec stood; its edits can only be undone all together.

        Raises ``RuntimeError`` for a session that has made edits, and ``ValueError`` for a state of other layers
        or another ``edit_mode``.
        """
        if not self._journal.is_empty:
            raise RuntimeError("this session has made edits of its own: load into a new one")
        about, spec = read_state(state), self.spec
        if (about["edit_mode"], about["layers"]) != (spec.edit_mode, spec.layers):
            raise ValueError(
                f"the state edits layers {about['layers']} ({about['edit_mode']}), this session {spec.layers} "
                f"({spec.edit_mode})"
            )
        self._prepared()
        memory = type(self.memory).from_state_dict(part_of(state, "memory.", self.model.device), self.domain.item)
        self._journal.load_state_dict(state, about, self.domain.item)
        self.memory = memory

    def _checked(self, items: Sequence[Item]) -> list[Item]:
        """Return what is to be edited as a list; the errors are those of :meth:`edit`."""
        kind = self.domain.item
        name = kind.__name__.lower()
        if isinstance(items, kind):
            raise TypeError(f"edit takes a list of {name}s, got one {name}: write edit([{name}])")
        items = list(items)
        if odd := [item for item in items if not isinstance(item, kind)]:
            raise TypeError(f"edit takes a list of {name}s, got {odd[0]!r:.80} among them")
        if not items:
            raise ValueError(f"an edit needs at least one {name}, got an empty batch")
        return items

    def _prepared(self) -> Editor:
        """Return the editor, made on the model as it was before its first edit."""
        if self._editor is None:
            with self.untouched():
                self._editor = Editor(self._weights, self.spec, self.domain, self.domain.costs())
        return self._editor

    def _targets(self, items: list[Item]) -> Targets:
        with nullcontext() if self.spec.targets_from == "current" else self.untouched():
            return self.domain.targets(items)

    def _write(self, editor: Editor, items: list[Item], targets: Targets, weight: float) -> list[Written]:
        """Write a step under a weight on what is kept: one batch, or one edit after another."""
        alone = METHODS[self.spec.method].one_at_a_time
        groups = [[i] for i in range(len(items))] if alone else [list(range(len(items)))]
        batches = [[items[i] for i in group] for group in groups]
        if targets.columns is None:
            asked = (targets.values[:, group] for group in groups)
            return [editor.write(*batch, self.memory, weight) for batch in zip(batches, asked, strict=True)]
        columns = self.memory.asked(targets.columns, self.spec.gradient_lr)
        parts = (columns.of(group) for group in groups)
        return [editor.write_columns(*batch, self.memory, weight) for batch in zip(batches, parts, strict=True)]

    def _judged(
        self, items: list[Item], updates: list[LayerUpdate], before: State
    ) -> tuple[TrustDecision | None, list[LayerUpdate]]:
        """Judge a step and act on it; returns the decision and the updates that stay: all, a share of each, or none.

        A share is judged like a whole step, and undone where it is not trusted either.
        """
        if not self.spec.trust_enable:
            return None, updates
        trust = self.domain.judge(items, updates)
        if trust.action == "scale":
            self._weights.put(before)
            updates = self._editor.write_share(updates, self.spec.trust_scale)
            trust = self.domain.judge(items, updates).of_share(trust)
        if trust.action != "accept":
            warnings.warn(str(trust), stacklevel=3)
        return trust, [] if trust.action == "rollback" else updates

    def _written(
        self, items: list[Item], write: Callable[[float], list[Written]], before: State, memory: Memory
    ) -> tuple[list[Written], Budget | None]:
        """Write a step, under the smallest weight on what is kept that holds the spec's promises, if it makes any.

        Where none does, nothing is written, with a warning.
        """
        if not (promised := self.spec.promised):
            return write(0.0), None
        edited = [*self._journal.edited(), *items]  # listed while adapters are switched on
        with self.untouched():
            kept = self.domain.promises(edited)

        latest: dict[float, list[Written]] = {}  # what is written now, by its weight

        def put(weight: float) -> None:
            self._put_back(before, memory.copy())
            latest.clear()
            latest[weight] = write(weight)

        def attempt(weight: float) -> dict[str, float]:
            put(weight)
            return kept()

        budget = spend(promised, attempt)
        if not budget.holds:
            self._put_back(before, memory.copy())
            warnings.warn(f"{budget}, not even under the largest weight; earlier edits have spent it", stacklevel=4)
            return [], budget
        if budget.weight not in latest:
            put(budget.weight)
        return latest[budget.weight], budget

    def _put_back(self, weights: State, memory: Memory) -> None:
        self._weights.put(weights)
        self.memory = memory

    def _provenance(self, items: Sequence[Item]) -> dict[str, Any]:
        about = {"model": self.model.name, "weights": self._weights.base, "spec": self.spec.model_dump()}
        return about | {"items": [asdict(item) for item in items]} | self.domain.options()

    def _check_remembered(self) -> None:
        """Raise ``RuntimeError`` where replay would undo what was done to an adapter by hand.

        Replay corrects an edit towards its target under the weights in force, except with ``hold``.
        """
        if self.spec.replay != "hold":
            remembered = (name for name, item in self._journal.pairs() if self.memory.holds(item))
            self._weights.check_in_force(dict.fromkeys(remembered))
