"""Memory of what a whole session has seen: statistics of gradients, and the keys of a null space that is taken anew.

Both belong to the edits that they come from: a step that is undone or was not written leaves no trace in them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from editkit.cache import from_json_tensor, json_tensor
from editkit.editing import replay
from editkit.editing.gradients import Columns, RunningStatistics, residuals
from editkit.editing.item import Item
from editkit.editing.replay import EditRecord, Memory, Moments
from editkit.editing.spec import EditSpec
from editkit.methods import METHODS


@dataclass
class Lifelong(Moments):
    """Moments of earlier edits, as far as these take part, and what a session sums up over all its edits.

    Args:
        keeps: whether earlier edits take part in a step.
        every: edits after which the keys so far are noted for a null space that is taken anew; 0 never notes them.
    """

    keeps: bool = True
    every: int = 0
    statistics: RunningStatistics = RunningStatistics()
    noted: int = 0  # edits when keys were last noted
    _noted: dict[int, Tensor] = field(default_factory=dict)  # layer → (d_k, m) with F Fᵀ the mean of k kᵀ over them

    def add(self, records: Sequence[EditRecord]) -> None:
        if not self.keeps:
            return
        super().add(records)
        if self.every and self.count - self.noted >= self.every:
            self.noted = self.count
            self._noted = {layer: self.factors(layer)[0] / self.count**0.5 for layer in records[0].keys}

    def holds(self, item: Item) -> bool:
        return self.keeps

    def seen(self, layer: int) -> Tensor | None:
        return self._noted.get(layer)

    def asked(self, columns: Columns, rate: float) -> Columns:
        made, self.statistics = residuals(columns, self.statistics, rate)
        return made

    def state_dict(self) -> dict[str, Tensor]:
        plain = {name: getattr(self, name) for name in ("keeps", "every", "noted")}
        state = super().state_dict() | {"lifelong": json_tensor(plain | {"columns": self.statistics.n})}
        if self.statistics.n:
            state["statistics"] = torch.stack(self.statistics[1:])
        return state | {f"noted.{layer}": keys for layer, keys in self._noted.items()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor], make: Callable[..., Item]) -> Self:
        plain = from_json_tensor(state["lifelong"])
        columns, noted = plain.pop("columns"), {n: t for n, t in state.items() if n.startswith("noted.")}
        statistics = RunningStatistics(columns, *state["statistics"]) if columns else RunningStatistics()
        keys = {int(name.removeprefix("noted.")): tensor for name, tensor in noted.items()}
        return replace(super().from_state_dict(state, make), **plain, statistics=statistics, _noted=keys)


def make_memory(spec: EditSpec) -> Memory:
    """Return the empty memory that a resolved spec asks for."""
    every = spec.nullspace_every if METHODS[spec.method].renewed and spec.replay == "hold" else 0
    if spec.target_mode == "gradient" or every:
        return Lifelong(keeps=spec.replay != "none", every=every)
    return replay.make_memory(spec, spec.seed)
