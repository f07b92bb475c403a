"""What an edit did, and what was found of it."""

from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from editkit.editing.replay import Item
from editkit.editing.spread import LayerUpdate
from editkit.editing.targets import Targets


@dataclass(frozen=True)
class TrustDecision:
    """What was found after a step, and what was done."""

    score: float  # weighted mean of the parts
    parts: dict[str, float]  # each in [0, 1]; 1 is no harm
    action: str  # accept, rollback, scale or warn
    reasons: list[str]  # where the action is not accept: the parts below the threshold, worst first

    def __str__(self) -> str:
        return f"trust {self.score:.2f}: {self.action}" + (f" ({'; '.join(self.reasons)})" if self.reasons else "")


@dataclass(frozen=True)
class EditResult:
    """What one call of :meth:`Session.edit` did."""

    items: list[Item]
    adapter: str  # the name it was written to; empty for raw edits, and where there was nothing to write
    updates: list[LayerUpdate]  # as written; none where the step was rolled back
    targets: Targets
    old_residual: float  # missing of earlier edits at the last layer, as a share of what they asked; nan without memory
    trust: TrustDecision | None
    seconds: dict[str, float]  # targets, keys, solve, total
    peak_memory_mb: float  # of the process on a CPU, of the allocator on a GPU

    @property
    def deltas(self) -> dict[int, Tensor]:
        """ΔW (d_v, d_k) per layer, float64."""
        total: dict[int, Tensor] = {}
        for item in self.updates:
            total[item.layer] = total.get(item.layer, 0) + item.update.delta
        return total

    def diagnostics(self) -> pd.DataFrame:
        """One row per weight update.

        Layer, edits, norms, rank, what was missed of the edited keys' new outputs (``residual``; ``fit_residual``
        is what a low rank lost), disturbance of ordinary outputs, condition numbers and ridge.
        """
        return pd.DataFrame(
            {
                "layer": item.layer,
                "edits": item.edits,
                "replayed": item.replayed,
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
