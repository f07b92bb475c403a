"""Edits on a model: computed, written, recorded, undone bit for bit."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from editkit.cache import Store, from_json_tensor, json_tensor, write_atomic
from editkit.config import EditSpec
from editkit.editing.adapters import AdapterStack
from editkit.editing.replay import Item, Moments, ReplayBuffer, make_memory
from editkit.editing.result import EditResult, TrustDecision
from editkit.editing.spread import Editor, LayerUpdate
from editkit.editing.targets import Targets
from editkit.editing.weights import Overlay, RawWeights
from editkit.memory import peak_mb, reset_peak
from editkit.models import EditableModel

State = dict[str, Tensor]


@dataclass
class Session:
    """A sequence of edits on one model, under one spec; what is edited in is a subclass's affair.

    Args:
        lm: the model; its weights are written to by :meth:`edit`.
        spec: method and hyperparameters; what it leaves out takes the model's defaults.
        store: where second moments and targets are cached.
        progress: show progress bars.
        adapters: with ``edit_mode: lora``, the model's stack where it has one already; else one is made.

    All state (precisions, memory of earlier edits, the weights before) lives here. Sessions on different
    models never meet; on the same model, undo the later one first.

    A subclass names its ``item`` (a dataclass of plain values, :class:`editkit.editing.replay.Item`) and says
    how an editor is made, how targets are optimised, and how edits are scored.
    """

    lm: EditableModel
    spec: EditSpec
    _: KW_ONLY
    store: Store = field(default_factory=Store)
    progress: bool = True
    adapters: AdapterStack | None = None
    results: list[EditResult] = field(default_factory=list, init=False)

    item: ClassVar[Callable[..., Item]]

    def __post_init__(self) -> None:
        self.spec = self.spec.resolve(self.lm)
        self.memory = make_memory(self.spec)
        if self.spec.edit_mode == "lora":
            if self.adapters is None:
                self.adapters = AdapterStack(self.lm, self.spec.lora_alpha)
            elif (self.adapters.lm, self.adapters.alpha) != (self.lm, self.spec.lora_alpha):
                raise ValueError(
                    f"the stack given belongs to {self.adapters.lm.name!r} with alpha {self.adapters.alpha:g}; this "
                    f"session edits {self.lm.name!r} with lora_alpha = {self.spec.lora_alpha:g}"
                )
            self._weights: RawWeights | Overlay = Overlay(self.lm, self.spec, self.adapters)
            self._base = self.adapters.base
        elif self.adapters is not None:
            raise ValueError("edit_mode = 'raw': adapters belong to edit_mode 'lora'")
        else:
            self._weights = RawWeights(self.lm, self.spec.layers)
            self._base = self.lm.fingerprint()
        self._original: State | None = None  # before the first edit
        self._written: State | None = None  # after the last one
        self._settled: tuple[State, list[tuple[str, Item]]] | None = None
        self._before: list[tuple[ReplayBuffer | Moments | None, State | None]] = []  # memory and mark before a result
        self._editor: Editor | None = None

    @property
    def n_parameters(self) -> int:
        """Numbers that hold the edits: all those of the edited weights, or the factors of the session's adapters."""
        return self._weights.n_parameters

    def edit(self, items: Sequence[Item]) -> EditResult:
        """Edit ``items`` into the model: one batch, or with ROME one after another.

        Targets are optimised on the model as it stands when the call is made, or with
        ``targets_from: base`` on the model before the first edit. Either every layer is written or, on any
        error, none: a non-finite update raises ``FloatingPointError`` and leaves weights and memory as they
        were. A step below the trust threshold is undone, scaled down or warned of, see
        :attr:`EditResult.trust`. Raises ``ValueError`` for an empty batch, and ``RuntimeError`` where replay
        would edit in again what was taken out of :attr:`adapters` by hand.
        """
        items = list(items)
        if not items:
            raise ValueError(f"an edit needs at least one {self.item.__name__.lower()}, got an empty batch")
        self._weights.begin()
        self._check_remembered()
        if self._editor is None:  # what is computed once, or read from the cache, is in no edit's seconds
            with self._base_in_force():
                self._editor = self._prepare()
        start = time.perf_counter()
        reset_peak(self.lm.device)
        editor, targets = self._editor, self._targets(items)
        seconds = {"targets": targets.seconds, "keys": 0.0, "solve": 0.0}
        before, mark = self._weights.read(), self._weights.mark()
        memory = None if self.memory is None else self.memory.copy()
        groups = [[i] for i in range(len(items))] if self.spec.method == "rome" else [list(range(len(items)))]
        updates, records = [], []
        try:
            for group in groups:
                batch = [items[i] for i in group]
                written, made = editor.write(batch, targets.values[:, group], self.memory, seconds)
                updates += written
                records += made
            trust = self._judge(updates)
            if trust and trust.action == "scale":
                self._weights.put(before)
                updates = editor.write_share(updates, self.spec.trust_scale)
        except BaseException:
            self._put_back(before, memory)
            raise
        if trust and trust.action == "rollback":
            self._put_back(before, memory)
            updates = []
        old_residual = editor.old_residual(self.memory)
        if updates and self.memory is not None:
            self.memory.add(records)
        self._before.append((memory, mark))
        self._original = before if self._original is None else self._original
        self._written = self._weights.read()
        seconds["total"] = time.perf_counter() - start
        peak = peak_mb(self.lm.device)
        adapter = self._weights.current if self._weights.current in (self.adapters or ()) else ""
        self.results.append(EditResult(items, adapter, updates, targets, old_residual, trust, seconds, peak))
        return self.results[-1]

    def undo(self, last: int | None = None) -> None:
        """Take back the ``last`` edits, or all of them: the weights are then what they were, bit for bit.

        An adapter that was removed from :attr:`adapters` stays removed.

        Raises ``ValueError`` for more edits than were made since :meth:`settle`, and ``RuntimeError`` where
        the weights were changed by somebody else since: undoing would lose that change. The same for edits
        that were combined into one adapter with edits that are to stay.
        """
        everything = last is None
        last = len(self.results) if everything else last
        if not 0 <= last <= len(self.results):
            raise ValueError(f"cannot undo {last} edits: this session made {len(self.results)}")
        if self._written is not None and (what := self._weights.changed_since(self._written)):
            way = "undo that first" if self.adapters is None else "undo that first, or remove the adapter"
            raise RuntimeError(f"{what} was changed outside this session; {way}")
        kept = self.results[: len(self.results) - last]
        self._check_apart(len(kept), everything)
        if everything:
            settled, memory, mark = None, make_memory(self.spec), self._original
        elif last:
            settled, (memory, mark) = self._settled, self._before[len(kept)]
        else:
            return
        if mark is not None:
            self._weights.put(mark)
        elif self._original is not None:
            self._weights.put(settled[0] if settled else self._original)
            for result in kept:  # the same additions in the same order give the same bits
                for item in result.updates:
                    self._weights.add(item.layer, item.update.left, item.update.right)
        self._settled, self.memory = settled, memory
        del self._before[len(kept) :]
        self._written = self._weights.read()
        if not kept and self._settled is None:  # nothing is held: what others do to the weights is their affair
            self._original = self._written = None
        self.results = kept

    def settle(self) -> None:
        """Accept the edits so far and drop their updates: from now on they can only be undone all together.

        A long sequence would otherwise keep every update of every step in memory.
        """
        if self.results:
            self._settled = (self._written, self._pairs())
            self.results = []
            self._before.clear()

    def save(self, path: str | Path) -> Path:
        """Write the session's updates, in factored form, with their provenance to one safetensors file.

        Tensors ``{number}.{layer}.left`` (d_v, n) and ``….right`` (n, d_k), numbered in the order of edits;
        the file's metadata holds the model's name and fingerprint before the session, spec and items as JSON.
        Raises ``ValueError`` in ``edit_mode: lora``, whose edits :meth:`save_adapter` writes.
        """
        if self.adapters is not None:
            raise ValueError("edit_mode = 'lora' leaves the weights alone: use save_adapter()")
        if self._settled:
            raise ValueError("the updates of settled edits are gone: save before settling")
        if not self.results:
            raise ValueError("nothing to save: this session has made no edit")
        items = [item for result in self.results for item in result.updates]
        tensors = {
            f"{number}.{item.layer}.{side}": getattr(item.update, side).cpu().contiguous()
            for number, item in enumerate(items)
            for side in ("left", "right")
        }
        path = Path(path)
        write_atomic(path, save_tensors(tensors, {"editkit": json.dumps(self._provenance(self._edited()))}))
        return path

    def save_adapter(self, directory: str | Path, *names: str) -> Path:
        """Write the edits as one LoRA adapter in peft's own format, see :meth:`AdapterStack.save`.

        The card shows method, the items of these adapters, and their scores where these adapters alone are in
        force, with their weights: what a reader of the folder gets.

        Args:
            names: adapters of :attr:`adapters`; all that are switched on where not given.

        Raises ``ValueError`` in ``edit_mode: raw``, whose edits :meth:`save` writes, and ``RuntimeError`` where
        adapters are merged that would have to be switched.
        """
        if self.adapters is None:
            raise ValueError("edit_mode = 'raw' has no adapter: use save(), or edit with edit_mode 'lora'")
        names = names or self.adapters.enabled
        items = self._edited(names)
        notes = self._provenance(items) if items else {}
        if items:
            with self.adapters.switched(on=names, off=[name for name in self.adapters if name not in names]):
                notes |= {"edited": [item.describe() for item in items], "scores": self._scores(items)}
        return self.adapters.save(directory, *names, notes=notes)

    @classmethod
    def load(cls, lm: EditableModel, path: str | Path, **options: Any) -> Self:
        """Make the edits that :meth:`save` wrote on another copy of the same model, without computing anything.

        The weights are then those of the saved session, bit for bit on the same kind of device. The session
        can undo them, all together; what it remembers of earlier edits for replay is not in the file.

        Args:
            options: further arguments of the session.

        Raises ``ValueError``, before anything is written, for a file that is none, and for another model;
        ``FloatingPointError`` for an update that is not finite. On any error the model is as it was.
        """
        try:
            with safe_open(path, framework="pt", device=str(lm.device)) as file:
                about = json.loads((file.metadata() or {})["editkit"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            items, known = [cls.item(**entry) for entry in about["items"]], cls._options(about)
            spec, model, weights = EditSpec(**about["spec"]), about["model"], about["weights"]
            order = sorted({tuple(map(int, name.split(".")[:2])) for name in tensors})
            wanted = {f"{number}.{layer}.{side}" for number, layer in order for side in ("left", "right")}
            if odd := sorted(wanted ^ tensors.keys()) or sorted({layer for _, layer in order} - {*spec.layers}):
                raise ValueError(f"{odd[0]} does not belong to a pair of factors for one of layers {spec.layers}")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"{path} does not hold the edits of such a session: {problem}") from None
        session = cls(lm, spec, **known | options)
        if weights != session._base:
            raise ValueError(
                f"{path} was made for another model: {model!r} with fingerprint {weights}, "
                f"this is {lm.name!r} with {session._base}"
            )
        session._original = session._weights.read()
        session._weights.begin()
        try:
            for number, layer in order:
                session._weights.add(layer, tensors[f"{number}.{layer}.left"], tensors[f"{number}.{layer}.right"])
        except BaseException:
            session._weights.put(session._original)
            raise
        session._written = session._weights.read()
        session._settled = (session._written, [("", item) for item in items])
        return session

    def state_dict(self) -> State:
        """What a new session on the untouched model needs to go on from here: edits, memory, items edited.

        Adapters are taken as they are now: what was removed, weighted or switched off stays so.
        """
        written = self._weights.read() if self._written is None or self.adapters is not None else self._written
        state = {f"edits.{name}": tensor for name, tensor in written.items()}
        state["session"] = json_tensor(
            {
                "edit_mode": self.spec.edit_mode,
                "layers": self.spec.layers,
                "items": [(adapter, asdict(item)) for adapter, item in self._pairs()],
                "settings": self._weights.settings(),
            }
        )
        if self.memory is not None:
            state |= {f"memory.{name}": tensor for name, tensor in self.memory.state_dict().items()}
        return state

    def load_state_dict(self, state: State) -> None:
        """Go on where another session under the same spec stood; its edits can only be undone all together.

        Raises ``RuntimeError`` for a session that has made edits, ``ValueError`` for a state with other layers or
        another edit_mode than its own.
        """
        if self._original is not None:
            raise RuntimeError("this session has made edits of its own: load into a new one")
        about, spec = from_json_tensor(state["session"]), self.spec
        if (about["edit_mode"], about["layers"]) != (spec.edit_mode, spec.layers):
            raise ValueError(
                f"the state edits layers {about['layers']} ({about['edit_mode']}), this session {spec.layers} "
                f"({spec.edit_mode})"
            )

        def part(prefix: str) -> State:
            return {n.removeprefix(prefix): t.to(self.lm.device) for n, t in state.items() if n.startswith(prefix)}

        self._editor = self._prepare()
        memory = None if self.memory is None else type(self.memory).from_state_dict(part("memory."), self.item)
        original = self._weights.read()
        self._weights.load(part("edits."), about["settings"])
        self.memory, self._original, self._written = memory, original, self._weights.read()
        self._settled = (self._written, [(adapter, self.item(**entry)) for adapter, entry in about["items"]])

    def _prepare(self) -> Editor:
        """What is computed once, on the model before its first edit."""
        raise NotImplementedError

    def _optimise(self, items: list[Item]) -> Targets:
        """Targets of items on the model as it stands."""
        raise NotImplementedError

    def _scores(self, items: Sequence[Item]) -> dict[str, float]:
        """How well the model as it stands holds these edits."""
        raise NotImplementedError

    def _judge(self, updates: list[LayerUpdate]) -> TrustDecision | None:
        """What to do with a step that is written; None where nobody asked."""

    @classmethod
    def _options(cls, about: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the session that :meth:`_provenance` wrote down."""
        return {}

    def _provenance(self, items: Sequence[Item]) -> dict[str, Any]:
        return {
            "model": self.lm.name,
            "weights": self._base,
            "spec": self.spec.model_dump(),
            "items": [asdict(item) for item in items],
        }

    def _targets(self, items: list[Item]) -> Targets:
        with nullcontext() if self.spec.targets_from == "current" else self._base_in_force():
            return self._optimise(items)

    def _base_in_force(self) -> AbstractContextManager[None]:
        """The model as it was before its first edit, for now."""
        return nullcontext() if self._original is None else self._weights.put_for_now(self._original)

    def _put_back(self, weights: State, memory: ReplayBuffer | Moments | None) -> None:
        self._weights.put(weights)
        self.memory = memory

    def _check_remembered(self) -> None:
        """Raises ``RuntimeError`` where replay would undo what was done to an adapter by hand.

        What is replayed is corrected towards its target under the weights in force. With ``hold`` it is not.
        """
        if not self.memory or self.adapters is None or self.spec.replay == "hold":
            return
        items = {record.item.id for record in self.memory} if isinstance(self.memory, ReplayBuffer) else None
        holders = {batch: self.adapters[name] for name in self.adapters for batch in self.adapters[name].holds}
        for name in dict.fromkeys(n for n, item in self._pairs() if n and (items is None or item.id in items)):
            holder = holders.get(name)
            if holder is None or (holder.weight, holder.enabled) != (1.0, True):
                state = "removed" if holder is None else f"weighted {holder.weight:g}" if holder.enabled else "disabled"
                raise RuntimeError(
                    f"adapter {name!r} is {state}: replay would edit its items in again; enable it with weight 1, or "
                    "begin a new session on the same stack (adapters=session.adapters)"
                )

    def _check_apart(self, kept: int, everything: bool) -> None:
        """Raises ``RuntimeError`` where undoing all but ``kept`` results would split a combined adapter."""
        settled = {name for name, _ in self._settled[1]} if self._settled else set()
        stay = {result.adapter for result in self.results[:kept]} | (set() if everything else settled)
        undone = {result.adapter for result in self.results[kept:]} | (settled if everything else set())
        for name in self.adapters or ():
            parts = {*self.adapters[name].holds}
            if parts & undone and parts != {name} and not parts <= undone - stay:
                raise RuntimeError(f"adapter {name!r} joins edits that are to be undone with others: they cannot part")

    def _edited(self, adapters: Sequence[str] | None = None) -> list[Item]:
        """Items edited so far, those in some adapters or in all that are switched on; rolled-back ones left out.

        Items that are in no adapter always count where none is named: nothing can take them out.
        """
        if self.adapters is None:
            return [item for _, item in self._pairs()]
        chosen = self.adapters.enabled if adapters is None else adapters
        held = {batch for name in chosen for batch in self.adapters[name].holds} | ({""} if adapters is None else set())
        return [item for name, item in self._pairs() if name in held]

    def _pairs(self) -> list[tuple[str, Item]]:
        """Every item edited so far with its adapter's name; rolled-back ones left out."""
        settled = self._settled[1] if self._settled else []
        return settled + [(result.adapter, item) for result in self.results if result.updates for item in result.items]
