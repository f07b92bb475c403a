"""What a repair costs and what that buys: images fixed against images kept, and where the cost comes from."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from editkit.methods import METHODS
from editkit.studies.prepared import Prepared, Repaired
from editkit.studies.repair_controls import is_bounded
from editkit.studies.repair_tables import judged
from editkit.studies.repairs import repair, session, subset
from editkit.vision.keys import repairs
from editkit.vision.metrics import lead

POINTS = ["method", "n_edits", "point", "at_budget", "weight", "fixed", "generality", "kept", "test_kept"]
POINTS += ["test_accuracy", "heldout_change", "seconds"]
NO_BUDGET = 0.0  # promises nothing


def promising(prepared: Prepared, budget: float) -> Prepared:
    """Promise another share of the right val predictions; 0 promises nothing."""
    return replace(prepared, spec=prepared.spec.model_copy(update={"kept_budget": budget}))


def frontier(
    prepared: Prepared, methods: Sequence[str], budgets: Sequence[float], done: Sequence[Repaired] = ()
) -> pd.DataFrame:
    """Repair under one promise after another, and under none: a row a method and promise (``point``).

    Editors take all ``budgets``; a control, whose way to the edited images is long, the study's own budget and none.

    Args:
        done: repairs of all images under the study's own budget, which are not made again.
    """
    own = prepared.spec.kept_budget
    every = sorted({NO_BUDGET, own, *budgets})
    rows = [
        _point(promising(prepared, budget), method, done if budget == own else ())
        for method in methods
        for budget in (every if method in METHODS else sorted({NO_BUDGET, own}))
        if is_bounded(method) or budget == NO_BUDGET
    ]
    table = pd.DataFrame([row for row in rows if row], columns=POINTS)
    return table.assign(at_budget=table.point == own)


def by_count(
    prepared: Prepared, methods: Sequence[str], counts: Sequence[int], done: Sequence[Repaired] = ()
) -> pd.DataFrame:
    """Repair some of the images, drawn at random, and all, under the study's budget: a row a method and count.

    Args:
        done: as for :func:`frontier`.
    """
    total = len(prepared.candidates)
    chosen: list[tuple[Prepared, Sequence[Repaired]]] = [
        (subset(prepared, n), ()) for n in sorted({n for n in counts if n < total})
    ]
    chosen += [(prepared, done)] if total else []
    rows = [_point(part, method, made) for part, made in chosen for method in methods]
    table = pd.DataFrame([row for row in rows if row], columns=POINTS)
    return table.assign(at_budget=[is_bounded(method) for method in table.method])


def directions(prepared: Prepared) -> pd.DataFrame:
    """Say how alike the shifts are that the targets ask of the CLS token, under the first editor's hyperparameters.

    ``cosine`` is that of an image's shift with the first left singular vector of all shifts, signed so that they point
    along it on the whole; ``share``, the same in every row, is what that direction holds of their squared length.
    """
    columns = ["index", "true", "cosine", "share", "norm"]
    if not len(prepared.candidates) or not prepared.spec.edit_method:
        return pd.DataFrame(columns=columns)
    items = repairs(prepared.candidates)
    with session(prepared, prepared.spec.edit_method[0]) as opened:
        hidden = opened.domain.hidden(items, prepared.layers[-1])
        shifts = (opened.domain.targets(items).values - hidden).double()  # (d, n)
    left, values, _ = np.linalg.svd(shifts.cpu().numpy(), full_matrices=False)
    along = left[:, 0] @ shifts.cpu().numpy()
    norms = shifts.norm(dim=0).cpu().numpy()
    return pd.DataFrame(
        {
            "index": prepared.candidates.indices,
            "true": [prepared.data.labels[label] for label in prepared.candidates.labels],
            "cosine": along * (np.sign(along.sum()) or 1.0) / np.maximum(norms, np.finfo(float).tiny),
            "share": values[0] ** 2 / (values**2).sum(),
            "norm": norms,
        },
        columns=columns,
    )


def moved(prepared: Prepared, repaired: Sequence[Repaired]) -> pd.DataFrame:
    """Say what each repair did to the right val predictions of each class.

    ``shift`` is the mean change of log p(class) − log of the largest other p, in logits, and ``spread`` its standard
    deviation: a shift that is the same for all images of a class is a bias, and an added bias of the head would do it
    too. ``broken`` is the share of the ``n`` images that are no longer right.
    """
    labels, before = prepared.data.val.labels, prepared.before["val"]
    right, rows = before.argmax(1) == labels, []
    for one in repaired:
        after = one.after["val"]
        change = _lead(after, labels) - _lead(before, labels)
        for label, name in enumerate(prepared.data.labels):
            those = right & (labels == label)
            if those.any():
                told = {"shift": change[those].mean(), "spread": change[those].std()}
                told |= {"broken": (after[those].argmax(1) != label).mean(), "n": int(those.sum())}
                rows.append({"method": one.method, "split": "val", "class": name} | told)
    return pd.DataFrame(rows, columns=["method", "split", "class", "shift", "spread", "broken", "n"])


def _lead(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return lead(torch.from_numpy(p).clamp_min(np.finfo(float).tiny).log(), torch.from_numpy(labels)).numpy()


def _point(prepared: Prepared, method: str, done: Sequence[Repaired]) -> dict | None:
    """Repair, unless that is done, and judge; a repair that leaves the finite numbers is left out, with a warning."""
    made = next((one for one in done if one.method == method), None)
    try:
        found = judged(prepared, made or repair(prepared, method))
    except FloatingPointError as problem:
        warnings.warn(f"{method} is left out: {problem}", stacklevel=3)
        return None
    return {name: found[name] for name in POINTS if name in found} | {"point": prepared.spec.kept_budget}
