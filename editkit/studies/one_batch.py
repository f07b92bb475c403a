"""Is a sequence that holds its edits one batch of them all?"""

from typing import Any

import torch

from editkit.studies.runs import check_batches, warm_targets
from editkit.studies.setting import Setting


def gap_to_one_batch(setting: Setting, method: str, batch_size: int, **changes: Any) -> float:
    """Compare the update that steps of ``batch_size`` add up to with that of one batch of the same edits.

    Returns ``‖Σ ΔW − ΔW of one batch‖ / ‖ΔW of one batch‖`` (Frobenius) at the last edited layer alone, with targets
    from the untouched model, on the facts of the first seed. For *hold* and a setting without context prefixes theory
    says 0 (:mod:`editkit.editing.replay`), and what is left is the rounding of keys and weights.

    Raises ``ValueError`` for a batch size that does not divide the facts.
    """
    seed, draw = next(iter(setting.draws.items()))
    check_batches(len(draw.facts), [batch_size])
    layer = setting.spec(method).resolve(setting.lm).layers[-1]
    spec = setting.spec(method, **{"layers": [layer], "targets_from": "base", **changes})
    warm_targets(setting, seed, [spec.model_copy(update={"seed": seed})])
    totals = []
    for size in (batch_size, len(draw.facts)):
        session = setting.session(spec.model_copy(update={"seed": seed}), seed)
        try:
            steps = [session.edit(draw.facts[i : i + size]) for i in range(0, len(draw.facts), size)]
        finally:
            session.undo()
        totals.append(sum((step.deltas[layer] for step in steps), start=torch.zeros(())))
    return ((totals[0] - totals[1]).norm() / totals[1].norm()).item()
