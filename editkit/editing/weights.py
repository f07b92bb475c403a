"""Where edits are written: over the weights (:class:`RawWeights`) or beside them (:class:`Overlay`).

Both have the same methods, so that a session need not know which it has.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor

from editkit.editing.adapters import Adapter, AdapterStack, side_by_side
from editkit.editing.lowrank import Problem, fit
from editkit.editing.spec import EditSpec
from editkit.models import EditableModel
from editkit.solvers import Update, clamp, missed

State = dict[str, Tensor]


class RawWeights:
    """Writes updates over the weights of some layers.

    Raises ``ValueError`` for a model with adapters, whose share in a weight is not seen here.
    """

    is_raw, stack, written_to = True, None, ""
    way_back = "undo that first"  # what to do where something was changed outside the session

    def __init__(self, model: EditableModel, layers: Iterable[int]):
        self.model, self.layers = model, list(layers)
        self.begin()
        self.base = model.fingerprint()

    @property
    def n_parameters(self) -> int:
        return sum(self.model.weight(layer).numel() for layer in self.layers)

    def begin(self) -> None:
        """Begin a new batch of updates. Raises ``ValueError`` where the model carries adapters."""
        if self.model.has_adapters:
            raise ValueError(
                f"{self.model.name} carries adapters: close() their stack first, or edit with edit_mode 'lora'"
            )

    def weight(self, layer: int) -> Tensor:
        """Return ``W`` (d_v, d_k) as it is in force."""
        return self.model.weight(layer)

    def write(self, layer: int, update: Update, problem: Problem, largest: float) -> Update:
        """Write an update, scaled down to the bound on the norm; returns it with the residual as written.

        A weight of low precision takes up less than was solved for.
        """
        before = self.weight(layer).double()
        update = clamp(update, before, largest)
        self.add(layer, update.left, update.right)
        written = self.weight(layer).double() - before
        return update._replace(residual=missed(written @ problem.K, problem.R))

    def add(self, layer: int, left: Tensor, right: Tensor) -> None:
        """Add ``left · right`` to a layer's weight, in float64 up to the one rounding to the weight's own type.

        Raises ``FloatingPointError`` where the sum is not finite.
        """
        weight = self.model.weight(layer)
        changed = (weight.double() + left.double() @ right.double()).to(weight.dtype)
        if not torch.isfinite(changed).all():
            raise FloatingPointError(f"layer {layer}: the update is not finite; the weights stay as they were")
        weight.copy_(changed)

    def read(self) -> dict[str, Tensor]:
        """Return a copy of everything that edits change, by name."""
        return {f"weight.{layer}": self.model.weight(layer).clone() for layer in self.layers}

    def put(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`read` returned."""
        for name, weight in state.items():
            self.model.weight(int(name.removeprefix("weight."))).copy_(weight)

    def settings(self) -> dict[str, Any]:
        """Return the plain values that belong to what :meth:`read` returns; raw weights have none."""
        return {}

    def load(self, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        """Take over what :meth:`read` and :meth:`settings` of another instance returned."""
        self.put(state)

    def mark(self) -> None:
        """Return None: undoing needs no copy, as the same additions in the same order give the same bits."""

    @contextmanager
    def put_for_now(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """Put back what :meth:`read` returned within a block; afterwards the weights are as they were before it."""
        now = self.read()
        try:
            self.put(state)
            yield
        finally:
            self.put(now)

    def changed_since(self, state: Mapping[str, Tensor]) -> str | None:
        """Name something that is not as :meth:`read` returned it; returns None where nothing has changed."""
        changed = (
            layer for layer in self.layers if not torch.equal(self.model.weight(layer), state[f"weight.{layer}"])
        )
        return next((f"layer {layer}" for layer in changed), None)

    def batches(self, adapters: Sequence[str] | None) -> None:
        """Return None: edits in the weights have no names and are always in force."""

    def check_in_force(self, batches: Iterable[str]) -> None:
        """Do nothing: edits in the weights are always in force as they were solved."""

    def check_apart(self, stay: set[str], undone: set[str]) -> None:
        """Do nothing: edits in the weights can always be undone without others."""


class Overlay:
    """Writes updates as adapters of a stack; the weights are left alone."""

    is_raw = False
    way_back = "undo that first, or remove the adapter"

    def __init__(self, model: EditableModel, spec: EditSpec, stack: AdapterStack):
        self.model, self.spec, self.stack, self.base = model, spec, stack, stack.base
        self._names: list[str] = []  # names the session wrote under; combined adapters still hold them, see _own
        self.current = ""  # name of the adapter that is written to

    @property
    def n_parameters(self) -> int:
        return sum(adapter.n_parameters for adapter in self._own().values())

    @property
    def written_to(self) -> str:
        """The current adapter's name; empty where there was nothing to write."""
        return self.current if self.current in self.stack else ""

    def begin(self) -> None:
        """Begin a new batch of updates.

        Raises ``RuntimeError`` while the adapters are merged, and where the adapter to be extended is not in force
        as it was solved, since the new edits would not be either.
        """
        self.stack.check_unmerged()
        kind = "batch" if self.spec.lora_stack == "batch" else "edits"
        own = [name for name in self._names if name in self.stack]
        free = next(name for number in count(1) if (name := f"{kind}_{number}") not in self.stack.names)
        self.current = own[-1] if own and kind == "edits" else free
        adapter = self.stack[self.current] if own and kind == "edits" else None
        if adapter and (adapter.weight, adapter.enabled) != (1.0, True):
            raise RuntimeError(f"adapter {self.current!r} is switched off or weighted: enable it with weight 1 first")

    def weight(self, layer: int) -> Tensor:
        """Return ``W`` (d_v, d_k) as it is in force, float64."""
        return self.model.weight(layer).double() + self.stack.delta(layer)

    def write(self, layer: int, update: Update, problem: Problem, largest: float) -> Update:
        """Write an update, fitted to the rank and the bound on the norm; returns the change as written."""
        K, R = problem.K, problem.R
        if self.spec.lora_scale != 1:
            left = update.left * self.spec.lora_scale
            update = update._replace(left=left, residual=missed(left @ (update.right @ K), R))
        old = self._factors(layer)
        if self.spec.lora_stack != "fixed" or old is None:
            written = clamp(fit(update, problem, self.spec), self.weight(layer), largest)
            self.add(layer, written.left, written.right)
            return written._replace(residual=missed(written.left @ (written.right @ K), R))
        # All edits so far together are brought down to the rank again.
        left, right = side_by_side(old, (update.left, update.right))
        rest = self.weight(layer) - old[0] @ old[1]
        new = clamp(fit(update._replace(left=left, right=right), problem, self.spec), rest, largest)
        self._put(layer, new.left, new.right)
        left, right = side_by_side((new.left, new.right), (-old[0], old[1]))
        return new._replace(left=left, right=right, residual=missed(left @ (right @ K), R))

    def add(self, layer: int, left: Tensor, right: Tensor) -> None:
        """Add ``left · right`` as it is to the current adapter."""
        if not left.shape[1]:
            return  # nothing was asked for
        old, new = self._factors(layer), (left, right)
        self._put(layer, *(side_by_side(old, new) if old else new))

    def read(self) -> dict[str, Tensor]:
        """Return everything that edits change, by name: the adapters' own tensors, which are never changed in place."""
        return {
            f"{name}.{layer}.{side}": tensor
            for name, adapter in self._own().items()
            for layer, pair in adapter.factors.items()
            for side, tensor in zip(("left", "right"), pair, strict=True)
        }

    def put(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`read` returned; an adapter that was removed by hand since stays removed."""
        adapters = _adapters(state)
        gone = {name: adapter.holds for name, adapter in self._own().items() if name not in adapters}
        self.stack.remove(*gone)
        self._names = [name for name in self._names if not any(name in holds for holds in gone.values())]
        for name in adapters:
            if name in self.stack:
                self.stack.add(name, adapters[name])

    def settings(self) -> dict[str, Any]:
        """Return switches, weights and contents of the adapters that :meth:`read` returns, and the names taken."""
        own = {name: {"weight": a.weight, "enabled": a.enabled, "holds": a.holds} for name, a in self._own().items()}
        return {"adapters": own, "names": sorted(self.stack.names)}

    def load(self, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        """Take over what :meth:`read` and :meth:`settings` of another instance returned."""
        factors, adapters = _adapters(state), settings["adapters"]
        for name in adapters:
            self.stack.check_free(name)
        for name, how in adapters.items():
            self.stack.add(name, factors[name], holds=how["holds"])
            self.stack.weigh(name, how["weight"])
            self._names += how["holds"]
        self.stack.disable(*(name for name, how in adapters.items() if not how["enabled"]))
        self.stack.names.update(settings["names"])

    def put_for_now(self, state: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Switch off within a block the session's adapters that ``state`` lacks; the others must be as in it."""
        kept = _adapters(state)
        return self.stack.switched(off=[name for name in self._own() if name not in kept])

    mark = read  # the state that undoing needs to come back here

    def changed_since(self, state: Mapping[str, Tensor]) -> str | None:
        """Name something that is not as :meth:`read` returned it; returns None where nothing has changed.

        Switches, weights and the removal of a whole adapter do not count: they are the user's choice.
        """
        now, here = self.read(), {*self.stack, *(batch for a in self._own().values() for batch in a.holds)}
        then = {key: tensor for key, tensor in state.items() if key.split(".")[0] in here}
        keys = sorted(now.keys() ^ then.keys()) or [key for key in now if not torch.equal(now[key], then[key])]
        if not keys:
            return None
        name = keys[0].split(".")[0]
        return f"adapter {name!r}" + ("" if name in self.stack else " (combined with others)")

    def batches(self, adapters: Sequence[str] | None) -> set[str]:
        """Return the names under which edits lie in the given adapters, or in all that are switched on.

        Where no adapters are given, edits in no adapter count as well, since nothing can take them out.
        """
        chosen = self.stack.enabled if adapters is None else adapters
        return {batch for name in chosen for batch in self.stack[name].holds} | ({""} if adapters is None else set())

    def check_in_force(self, batches: Iterable[str]) -> None:
        """Raise ``RuntimeError`` where edits written under one of these names are not in force as they were solved."""
        holders = {batch: self.stack[name] for name in self.stack for batch in self.stack[name].holds}
        for name in filter(None, batches):
            holder = holders.get(name)
            if holder is None or (holder.weight, holder.enabled) != (1.0, True):
                state = "removed" if holder is None else f"weighted {holder.weight:g}" if holder.enabled else "disabled"
                raise RuntimeError(
                    f"adapter {name!r} is {state}: replay would edit its items in again; enable it with weight 1, or "
                    "begin a new session on the same stack (adapters=session.adapters)"
                )

    def check_apart(self, stay: set[str], undone: set[str]) -> None:
        """Raise ``RuntimeError`` where an adapter joins edits that are to be undone with others that are not."""
        for name in self.stack:
            parts = {*self.stack[name].holds}
            if parts & undone and parts != {name} and not parts <= undone - stay:
                raise RuntimeError(f"adapter {name!r} joins edits that are to be undone with others: they cannot part")

    def _own(self) -> dict[str, Adapter]:
        """Return the adapters that hold edits of the session, also where they were combined with others."""
        mine = {*self._names}
        return {name: self.stack[name] for name in self.stack if not mine.isdisjoint(self.stack[name].holds)}

    def _factors(self, layer: int) -> tuple[Tensor, Tensor] | None:
        pair = self.stack[self.current].factors.get(layer) if self.current in self.stack else None
        return (pair[0].double(), pair[1].double()) if pair else None

    def _put(self, layer: int, left: Tensor, right: Tensor) -> None:
        before = self.stack[self.current].factors if self.current in self.stack else {}
        self.stack.add(self.current, {**before, layer: (left, right)})
        self._names = list(dict.fromkeys([*self._names, self.current]))


def writer(model: EditableModel, spec: EditSpec, stack: AdapterStack | None) -> RawWeights | Overlay:
    """Make the writer of a session under a resolved spec.

    Raises ``ValueError`` for a stack that does not fit it, and for layers that cannot be edited.
    """
    for layer in spec.layers:
        model.weight(layer)
    if spec.edit_mode == "raw":
        if stack is not None:
            raise ValueError("edit_mode = 'raw': adapters belong to edit_mode 'lora'")
        return RawWeights(model, spec.layers)
    stack = AdapterStack(model, spec.lora_alpha) if stack is None else stack
    if (stack.model, stack.alpha) != (model, spec.lora_alpha):
        raise ValueError(
            f"the stack given belongs to {stack.model.name!r} with alpha {stack.alpha:g}; this "
            f"session edits {model.name!r} with lora_alpha = {spec.lora_alpha:g}"
        )
    return Overlay(model, spec, stack)


def _adapters(state: Mapping[str, Tensor]) -> dict[str, dict[int, tuple[Tensor, Tensor]]]:
    """Return the factors of each adapter in what :meth:`Overlay.read` returned."""
    adapters: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for key in state:
        name, layer, side = key.split(".")
        if side == "left":
            adapters.setdefault(name, {})[int(layer)] = state[key], state[f"{name}.{layer}.right"]
    return adapters
