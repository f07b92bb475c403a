"""Where edits are written: over the weights (:class:`RawWeights`) or beside them (:class:`Overlay`).

Both do the same things under the same names, so that a session does not need to know which it has.
"""

from collections.abc import Iterable, Mapping
from itertools import count

import torch
from torch import Tensor

from editkit.config import EditSpec
from editkit.language.adapters import Adapter, AdapterStack, side_by_side
from editkit.language.lora import Problem, fit
from editkit.models import EditableModel
from editkit.solvers import Update, clamp, missed


class RawWeights:
    """Writes updates over the weights of some layers.

    Args:
        lm: a model without adapters; ``ValueError`` where it has some, whose share in a weight is not seen here.
    """

    def __init__(self, lm: EditableModel, layers: Iterable[int]):
        if lm.has_adapters:
            raise ValueError(f"{lm.name} carries adapters: close() their stack first, or edit with edit_mode 'lora'")
        self.lm, self.layers = lm, list(layers)

    @property
    def n_parameters(self) -> int:
        return sum(self.lm.weight(layer).numel() for layer in self.layers)

    def begin(self) -> None:
        """The next updates belong to a new batch."""

    def weight(self, layer: int) -> Tensor:
        """``W`` (d_v, d_k) as it is in force."""
        return self.lm.weight(layer)

    def write(self, layer: int, update: Update, problem: Problem, largest: float) -> Update:
        """Bound the norm, write; returns the update as written."""
        update = clamp(update, self.weight(layer).double(), largest)
        self.add(layer, update.left, update.right)
        return update

    def add(self, layer: int, left: Tensor, right: Tensor) -> None:
        """Add ``left · right`` to a layer's weight; ``FloatingPointError`` where the sum is not finite."""
        weight = self.lm.weight(layer)
        changed = weight + (left @ right).to(weight)
        if not torch.isfinite(changed).all():
            raise FloatingPointError(f"layer {layer}: the update is not finite; the weights stay as they were")
        weight.copy_(changed)

    def read(self) -> dict[str, Tensor]:
        """A copy of everything that edits change, by name."""
        return {f"weight.{layer}": self.lm.weight(layer).clone() for layer in self.layers}

    def put(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`read` returned."""
        for name, weight in state.items():
            self.lm.weight(int(name.removeprefix("weight."))).copy_(weight)

    def mark(self) -> None:
        """What undoing needs to come back here: nothing, the same additions in the same order give the same bits."""

    def changed_since(self, state: Mapping[str, Tensor]) -> int | None:
        """A layer whose weight is not what :meth:`read` returned, if there is one."""
        changed = (layer for layer in self.layers if not torch.equal(self.lm.weight(layer), state[f"weight.{layer}"]))
        return next(changed, None)


class Overlay:
    """Writes updates as adapters of a stack; the weights are left alone."""

    def __init__(self, lm: EditableModel, spec: EditSpec, stack: AdapterStack):
        self.lm, self.spec, self.stack = lm, spec, stack
        self._names: list[str] = []  # of the session's own adapters
        self._current = ""

    @property
    def n_parameters(self) -> int:
        return sum(adapter.n_parameters for adapter in self._own().values())

    def begin(self) -> None:
        """The next updates belong to a new batch."""
        self.stack.check_unmerged()
        kind = "batch" if self.spec.lora_stack == "batch" else "edits"
        own = list(self._own())
        free = next(name for number in count(1) if (name := f"{kind}_{number}") not in self.stack)
        self._current = own[0] if own and kind == "edits" else free

    def weight(self, layer: int) -> Tensor:
        """``W`` (d_v, d_k) as it is in force, float64."""
        return self.lm.weight(layer).double() + self.stack.delta(layer)

    def write(self, layer: int, update: Update, problem: Problem, largest: float) -> Update:
        """Fit the update to the rank, bound the norm, write; returns the change as written."""
        K, R = problem.K, problem.R
        if self.spec.lora_scale != 1:
            left = update.left * self.spec.lora_scale
            update = update._replace(left=left, residual=missed(left, update.right, K, R))
        old = self._factors(layer)
        if self.spec.lora_stack != "fixed" or old is None:
            written = clamp(fit(update, problem, self.spec), self.weight(layer), largest)
            self.add(layer, written.left, written.right)
            return written
        # All edits so far together are brought down to the rank again.
        left, right = side_by_side(old, (update.left, update.right))
        rest = self.weight(layer) - old[0] @ old[1]
        new = clamp(fit(update._replace(left=left, right=right), problem, self.spec), rest, largest)
        self._put(layer, new.left, new.right)
        left, right = side_by_side((new.left, new.right), (-old[0], old[1]))
        return new._replace(left=left, right=right, residual=missed(left, right, K, R))

    def add(self, layer: int, left: Tensor, right: Tensor) -> None:
        """Add ``left · right`` as it is to the current adapter."""
        old, new = self._factors(layer), (left, right)
        self._put(layer, *(side_by_side(old, new) if old else new))

    def read(self) -> dict[str, Tensor]:
        """Everything that edits change, by name. The tensors are the adapters' own, which are never written to."""
        return {
            f"{name}.{layer}.{side}": tensor
            for name, adapter in self._own().items()
            for layer, pair in adapter.factors.items()
            for side, tensor in zip(("left", "right"), pair, strict=True)
        }

    def put(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`read` returned."""
        adapters: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
        for key in state:
            name, layer, side = key.split(".")
            if side == "left":
                adapters.setdefault(name, {})[int(layer)] = state[key], state[f"{name}.{layer}.right"]
        self.stack.remove(*(name for name in self._own() if name not in adapters))
        for name, factors in adapters.items():
            self.stack.add(name, factors)
        self._names = list(adapters)

    mark = read  # what undoing needs to come back here

    def changed_since(self, state: Mapping[str, Tensor]) -> int | None:
        """Undoing removes adapters and does not touch the weights, so nobody's change to them can be lost."""

    def _own(self) -> dict[str, Adapter]:
        return {name: self.stack[name] for name in self._names if name in self.stack}

    def _factors(self, layer: int) -> tuple[Tensor, Tensor] | None:
        own = self._own()
        pair = own[self._current].factors.get(layer) if self._current in own else None
        return (pair[0].double(), pair[1].double()) if pair else None

    def _put(self, layer: int, left: Tensor, right: Tensor) -> None:
        own = self._own()
        before = own[self._current].factors if self._current in own else {}
        self.stack.add(self._current, {**before, layer: (left, right)})
        self._names = list(self._own() | {self._current: None})
