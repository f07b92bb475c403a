"""Is v* needed, and how good must it be? Scores of one batch by how its residuals are found, and what that takes."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from benchmarks.growth import Bench
from editkit import EditSpec, Fact
from editkit.studies.intervals import NAMES, paired_difference

EXACT = "exact"  # what the others are compared with
GRADIENT = "one gradient"
SEARCHES: Mapping[str, Mapping[str, Any]] = {  # from the longest to the shortest
    EXACT: {"target_mode": "exact"},
    "bfloat16, every prompt": {"target_mode": "fast", "prompts_per_step": 0},
    "fast": {"target_mode": "fast"},
    "fast, 10 steps": {"target_mode": "fast", "v_num_grad_steps": 10},
    "fast, 5 steps": {"target_mode": "fast", "v_num_grad_steps": 5},
    "fast, 2 steps": {"target_mode": "fast", "v_num_grad_steps": 2},
    "most probable twice": {"target_mode": "fast", "most_probable_steps": 2},
    GRADIENT: {"target_mode": "gradient"},
}
PRECISIONS = ("ultraedit", "memit", "emmet", "alphaedit")  # M = I, from C, from C with equality, in the null space
RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # of the gradient; which one is chosen on other facts
LATE = [27, 28]  # layers of SmolLM2 in which UltraEdit's gradient is taken; the others are MEMIT's
NO_SPACE = "alphaedit"  # no eigenvalue of these layers' C is below the default threshold of its null space


def searches(bench: Bench, facts: Sequence[Fact], tune: Sequence[Fact]) -> list[dict]:
    """Time and score one batch by every search under every precision, a row each.

    v* does not depend on the precision: it is searched for once. Beside ``ES``, ``PS``, ``NS`` and ``S`` stand their
    differences to the exact search under the same precision, with intervals (``…_change``, ``_low``, ``_high``).

    Args:
        tune: other facts, on which the rate of the gradient is chosen by S.
    """
    layers, exact, rows = EditSpec(method="memit").resolve(bench.lm).layers, {}, []
    cells = [(name, method) for name in SEARCHES for method in PRECISIONS if (name, method) != (GRADIENT, NO_SPACE)]
    for name, method in tqdm(cells, desc="searches", unit="batch"):
        if name == GRADIENT:
            spec = _best(bench, tune, method)
        else:
            spec = EditSpec(method=method, layers=layers, **SEARCHES[name])
        row, prompts = bench.measure(facts, spec)
        prompts = prompts.assign(moment="final", seed=0)
        reference = exact.setdefault(method, prompts)
        rows.append({"search": name, "method": method, **row, **_changes(prompts, reference)})
    return rows


def _best(bench: Bench, tune: Sequence[Fact], method: str) -> EditSpec:
    specs = [EditSpec(method=method, layers=LATE, target_mode="gradient", gradient_lr=rate) for rate in RATES]
    return max(specs, key=lambda spec: bench.run(tune, spec)["S"])


def _changes(prompts: pd.DataFrame, reference: pd.DataFrame) -> dict[str, float]:
    table = paired_difference(prompts, reference)
    names = {"value": "change", "low": "low", "high": "high"}
    return {f"{score}_{told}": float(table.loc[score, name]) for score in NAMES for name, told in names.items()}
