"""Where edits are written: over the weights. The other place is :class:`editkit.language.adapters.Overlay`."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from editkit.models import LanguageModel
from editkit.solvers import Update, clamp


class RawWeights:
    """Writes updates over the weights of some layers.

    Args:
        lm: a model without adapters; ``ValueError`` where it has some, whose share in a weight is not seen here.
    """

    def __init__(self, lm: LanguageModel, layers: Iterable[int]):
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

    def write(self, layer: int, update: Update, problem: object, largest: float) -> Update:
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
