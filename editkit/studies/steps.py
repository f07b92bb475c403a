"""What is noted of one step of a sequence, besides its scores."""

from typing import Any

from editkit.editing.result import EditResult


def described(result: EditResult) -> dict[str, Any]:
    """Note of a step what its solver, its trust score and its clock said; of several layers the worst."""
    table, trust = result.diagnostics(), result.trust
    worst = ["condition_before", "condition", "ridge", "cost_ridge", "growth", "residual"]
    worst += ["rank", "fit_residual", "disturbance"]
    return {
        "replayed": int(table.replayed.max()) if len(table) else 0,
        "stale": int(table.stale.max()) if len(table) else 0,
        "old_residual": result.old_residual,
        **{name: float(table[name].max()) if len(table) else float("nan") for name in worst},
        "delta_norm": float(table.delta_norm.pow(2).sum() ** 0.5) if len(table) else 0.0,
        "trust": trust.score if trust else float("nan"),
        "action": trust.action if trust else "",
        "reasons": "; ".join(trust.reasons) if trust else "",
        "target_precision": result.targets.precision,
        "seconds": result.seconds["total"],
        **{f"seconds_{stage}": result.seconds[stage] for stage in ("targets", "keys", "solve")},
        "peak_memory_mb": result.peak_memory_mb,
    }
