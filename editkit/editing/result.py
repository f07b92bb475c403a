"""What an edit did."""

import math
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from editkit.editing.budget import Budget
from editkit.editing.item import Item
from editkit.editing.targets import Targets
from editkit.editing.trust import TrustDecision
from editkit.solvers import Update


@dataclass(frozen=True)
class LayerUpdate:
    """One weight update of one layer, with what the solver said of it."""

    layer: int
    update: Update
    edits: int  # new edits
    replayed: int  # earlier edits that took part: records, or all that the moments stand for
    norm: float  # ‖ΔW‖ (Frobenius)
    weight_norm: float  # ‖W‖ before
    growth: float  # ‖W‖ after / ‖W‖ before the session's first edit
    disturbance: float  # root mean square of ΔW k over that of W k for ordinary keys, W before the first edit
    stale: int = 0  # of those earlier edits, how many took part by a key that later edits of lower layers have moved


@dataclass(frozen=True)
class EditResult:
    """What one call of :meth:`Session.edit` did."""

    items: list[Item]
    adapter: str  # the name it was written to; empty for raw edits, and where there was nothing to write
    updates: list[LayerUpdate]  # as written; none where the step was rolled back, or broke a budget
    targets: Targets
    old_residual: float  # what earlier edits miss at the last layer, of what they asked for; nan without memory
    trust: TrustDecision | None
    budget: Budget | None  # where something was promised
    seconds: dict[str, float]  # targets, keys, solve, total
    peak_memory_mb: float  # of the process on a CPU, of the allocator on a GPU

    @property
    def deltas(self) -> dict[int, Tensor]:
        """``ΔW`` (d_v, d_k) of each layer, float64."""
        total: dict[int, Tensor] = {}
        for item in self.updates:
            total[item.layer] = total.get(item.layer, 0) + item.update.delta
        return total

    @property
    def delta_norm(self) -> float:
        """‖ΔW‖ (Frobenius) over all layers; of edits one after another that of their sum."""
        return math.sqrt(sum(delta.norm().item() ** 2 for delta in self.deltas.values()))

    def diagnostics(self) -> pd.DataFrame:
        """Return a table with one row per weight update.

        It shows layer, edits, earlier ones that took part and how many of these by stale keys, norms, rank, what was
        missed of the edited keys' new outputs (``residual``) and lost by a low rank (``fit_residual``), disturbance
        of ordinary outputs, condition numbers and ridges.
        """
        return pd.DataFrame(
            {
                "layer": item.layer,
                "edits": item.edits,
                "replayed": item.replayed,
                "stale": item.stale,
                "delta_norm": item.norm,
                "weight_norm": item.weight_norm,
                "growth": item.growth,
                "disturbance": item.disturbance,
                "rank": item.update.left.shape[1],
                "residual": item.update.residual,
                "fit_residual": item.update.fit_residual,
                "condition_before": item.update.condition_before,
                "condition": item.update.condition,
                "ridge": item.update.ridge,
                "cost_ridge": item.update.cost_ridge,
            }
            for item in self.updates
        )
