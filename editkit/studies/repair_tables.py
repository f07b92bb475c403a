"""Tables of a study of repairs: what each method fixed, kept and broke, and how the same edits do otherwise.

A study without a mistake to repair has these tables too, with columns and no rows.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from editkit.methods import UNTOUCHED, MethodName, label
from editkit.studies.repairs import Prepared, Repaired, costs, repair
from editkit.vision.metrics import compare, confusion, per_class, summary

JUDGED = ["fixed", "kept", "heldout_change"]  # what other layers are compared by
SCORES = ["fixed", "generality", "kept", "test_accuracy", "heldout_change", "leakage", "seconds"]


def report(prepared: Prepared, repaired: Sequence[Repaired]) -> pd.DataFrame:
    """Judge each method, the untouched model first, a row a method.

    ``fixed`` of the edited images and ``generality`` over their copies are shares, ``kept`` is the share of right val
    predictions that stay right. Fixed and broken images and McNemar's p follow for val and test, scores on test, and
    ``heldout_change`` of test accuracy in points.
    """
    return pd.DataFrame([_judged(prepared, one) for one in _all(prepared, repaired)])


def predictions(prepared: Prepared, repaired: Sequence[Repaired]) -> pd.DataFrame:
    """List index, true and predicted class and all probabilities, a row a held-out image and method."""
    test, names = prepared.data.test, prepared.data.labels
    frames = []
    for one in _all(prepared, repaired):
        found = pd.DataFrame(one.after["test"], columns=[f"p({name})" for name in names])
        told = {"true": test.labels, "predicted": one.after["test"].argmax(1)}
        told = {column: [names[i] for i in labels] for column, labels in told.items()}
        frames.append(pd.DataFrame({"method": one.method, "index": test.indices, **told}).join(found))
    return pd.concat(frames, ignore_index=True)


def classes(prepared: Prepared, repaired: Sequence[Repaired]) -> pd.DataFrame:
    """Tabulate precision, recall and F1 on held-out images, a row a method and class."""
    tables = [
        per_class(prepared.data.test.labels, one.after["test"], prepared.data.labels)
        .rename_axis("class")
        .reset_index()
        .assign(method=one.method)
        for one in _all(prepared, repaired)
    ]
    return pd.concat(tables, ignore_index=True)


def confusions(prepared: Prepared, one: Repaired) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Count held-out images by true and predicted class, before and after a repair."""
    found, data = (prepared.before["test"], one.after["test"]), prepared.data
    before, after = (confusion(data.test.labels, p, data.labels) for p in found)
    return before, after


def leakages(prepared: Prepared, thresholds: Sequence[float], methods: Sequence[MethodName]) -> pd.DataFrame:
    """Measure leakage and success of each method, AlphaEdit at each threshold, all images edited at once.

    ``threshold`` is nan for the other methods, ``kept`` the share of right val predictions that stay right and ``norm``
    ‖ΔW‖ of all layers together. A threshold below which some layer has no eigenvalue is left out, with a warning.
    """
    rows = []
    if len(prepared.candidates):
        least = max(torch.linalg.eigvalsh(C)[0].item() for C in costs(prepared, prepared.layers).values())
        usable = [threshold for threshold in thresholds if threshold > least]
        if len(usable) < len(thresholds):
            warnings.warn(f"thresholds up to {least:.2g} are left out: no eigenvalue is that small", stacklevel=2)
        for method in methods:
            for threshold in usable if method == "alphaedit" else [float("nan")]:
                changes = {"nullspace_threshold": threshold} if method == "alphaedit" else {}
                one = repair(prepared, method, sequential=False, **changes)
                judged, norm = _judged(prepared, one), one.log.delta_norm.iloc[-1]
                rows.append([method, threshold, one.leakage, judged["fixed"], judged["kept"], norm])
    return pd.DataFrame(rows, columns=["method", "threshold", "leakage", "success", "kept", "norm"])


def places(prepared: Prepared, methods: Sequence[MethodName], ranked: Sequence[int]) -> pd.DataFrame:
    """Repair in other layers: those that tracing ranks first (``ranked``), the last three and the last one alone."""
    n, rows = prepared.vit.n_layers, []
    choices = {"traced": list(ranked), "the last three": list(range(max(0, n - 3), n)), "the last": [n - 1]}
    for method in methods if len(prepared.candidates) else ():
        for chosen, layers in choices.items():
            judged = _judged(prepared, repair(prepared, method, layers=layers))
            about = {"method": method, "layers": str(layers), "chosen": chosen}
            rows.append(about | {name: judged[name] for name in JUDGED})
    return pd.DataFrame(rows, columns=["method", "layers", "chosen", *JUDGED])


def variants(prepared: Prepared, method: MethodName) -> pd.DataFrame:
    """Repair at once with written weights and with an adapter, and one by one without replay and with it."""
    raw, lora = {"edit_mode": "raw"}, {"edit_mode": "lora", "lora_rank": len(prepared.candidates)}
    options = {
        "at once, raw": raw | {"sequential": False},
        "at once, LoRA": lora | {"sequential": False},
        "one by one, replay none": raw | {"sequential": True, "replay": "none"},
        "one by one, replay hold": raw | {"sequential": True, "replay": "hold"},
    }
    if not len(prepared.candidates):
        return pd.DataFrame(columns=["variant", *SCORES])
    repaired = {name: repair(prepared, method, **changes) for name, changes in options.items()}
    return pd.DataFrame([{"variant": name} | _judged(prepared, one) for name, one in repaired.items()])


def reports(done: Sequence[tuple[Prepared, Sequence[Repaired]]]) -> pd.DataFrame:
    """Join the reports of several studies."""
    return pd.concat([report(*one) for one in done] or [pd.DataFrame(columns=["method"])], ignore_index=True)


def by_method(report: pd.DataFrame, columns: list[str], how: Any = "mean") -> pd.DataFrame:
    """Aggregate columns of a report over seeds, a row a method under its label."""
    return report if report.empty else report.groupby("method", sort=False)[columns].agg(how).rename(index=label)


def _all(prepared: Prepared, repaired: Sequence[Repaired]) -> list[Repaired]:
    """Put the control without any edit first."""
    return [Repaired(UNTOUCHED, [], pd.DataFrame(), prepared.before, float("nan"), 0.0, 0.0), *repaired]


def _judged(prepared: Prepared, one: Repaired) -> dict[str, Any]:
    before, labels = prepared.before, {name: panel.part.labels for name, panel in prepared.panels.items()}
    edited, copies = ((one.after[name].argmax(1) == labels[name]).mean() for name in ("edited", "copies"))
    val, test = (compare(labels[name], before[name], one.after[name]) for name in ("val", "test"))
    now, was = (summary(labels["test"], found["test"]) for found in (one.after, before))
    row = {"method": one.method, "seed": prepared.spec.seed, "model": prepared.vit.name, "dataset": prepared.data.name}
    row |= {"layers": str(one.layers), "n_edits": len(prepared.candidates)}
    row |= {"fixed": edited, "generality": copies, "kept": val["locality"]}
    row |= {f"val_{name}": val[name] for name in ("fixed", "broken", "mcnemar_p")}
    row |= {f"test_{name}": test[name] for name in ("fixed", "broken", "mcnemar_p")}
    row |= {f"test_{name}": now[name] for name in ("accuracy", "macro_f1", "nll", "ece")}
    row |= {"heldout_change": 100 * (now["accuracy"] - was["accuracy"]), "leakage": one.leakage}
    return row | {"seconds": one.seconds, "peak_memory_mb": one.peak_memory_mb}
