"""Tables of a study of repairs: what each method fixed, kept and broke, and how the same edits do otherwise.

A study without a mistake to repair has these tables too, with columns and no rows.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from editkit.methods import METHODS, UNTOUCHED, MethodName, label
from editkit.studies.intervals import holm, proportion
from editkit.studies.prepared import Prepared, Repaired
from editkit.studies.repair_controls import is_bounded
from editkit.studies.repairs import costs, repair, subset
from editkit.studies.tables import number
from editkit.vision.metrics import compare, confusion, mcnemar, per_class, summary

JUDGED = ["fixed", "kept", "test_kept", "heldout_change"]  # what seeds are compared by
SCORES = ["weight", "fixed", "generality", "kept", "test_kept", "test_accuracy", "heldout_change", "leakage", "seconds"]
LEAKS = ["method", "nullspace", "threshold", "leakage", "success", "kept", "test_kept", "norm"]
SOME = 16  # images at most that are repaired one by one

Done = Sequence[tuple[Prepared, Sequence[Repaired]]]  # studies (seeds) with what was done to their mistakes


def report(prepared: Prepared, repaired: Sequence[Repaired]) -> pd.DataFrame:
    """Judge each method, the untouched model first, a row a method.

    ``fixed`` of the edited images and ``generality`` over their copies are shares, ``kept`` and ``test_kept`` are the
    shares of right val and test predictions that stay right. Fixed and broken images and McNemar's p follow for val and
    test, scores on test, and ``heldout_change`` of test accuracy in points.
    """
    return pd.DataFrame([judged(prepared, one) for one in _all(prepared, repaired)])


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
    """Measure leakage and success of each method, in each null space that it has, all images at once, without a budget.

    ``nullspace`` is "threshold", or "kept" (off the kept CLS keys themselves, of AlphaEdit), and "none" for the others,
    ``threshold`` is nan where there is none, ``kept`` and ``test_kept`` are as in :func:`report`, and ``norm`` is ‖ΔW‖
    of all layers together. A null space that is empty in some layer is left out, with a warning.
    """
    rows = []
    if len(prepared.candidates):
        least = max(torch.linalg.eigvalsh(C)[0].item() for C in costs(prepared, prepared.layers).values())
        usable = [threshold for threshold in thresholds if threshold > least]
        if len(usable) < len(thresholds):
            warnings.warn(f"thresholds up to {least:.2g} are left out: no eigenvalue is that small", stacklevel=2)
        for method in methods:
            spaces = [("threshold", threshold) for threshold in usable] + [("kept", math.nan)]
            for space, threshold in spaces if METHODS[method].null_space else [("none", math.nan)]:
                changes: dict[str, Any] = {"nullspace_threshold": threshold} if space == "threshold" else {}
                changes |= {"nullspace": space} if space != "none" else {}
                try:
                    one = repair(prepared, method, sequential=False, kept_budget=None, **changes)
                except ValueError as problem:
                    if space != "kept":
                        raise
                    warnings.warn(f"the projection off the kept keys is left out: {problem}", stacklevel=2)
                    continue
                found, norm = judged(prepared, one), one.log.delta_norm.iloc[-1]
                scores = [found[name] for name in ("leakage", "fixed", "kept", "test_kept")]
                rows.append([method, space, threshold, *scores, norm])
    return pd.DataFrame(rows, columns=LEAKS)


def variants(prepared: Prepared, method: MethodName) -> pd.DataFrame:
    """Repair at once with written weights and with an adapter, and one by one without replay and with it.

    Without a budget, so that what differs is the form alone, and of ``SOME`` images at most: one by one takes long.
    """
    prepared = subset(prepared, SOME) if len(prepared.candidates) > SOME else prepared
    raw: dict[str, Any] = {"edit_mode": "raw"}
    lora: dict[str, Any] = {"edit_mode": "lora", "lora_rank": len(prepared.candidates)}
    options = {
        "at once, raw": raw | {"sequential": False},
        "at once, LoRA": lora | {"sequential": False},
        "one by one, replay none": raw | {"sequential": True, "replay": "none"},
        "one by one, replay hold": raw | {"sequential": True, "replay": "hold"},
    }
    if not len(prepared.candidates):
        return pd.DataFrame(columns=["variant", *SCORES])
    repaired = {name: repair(prepared, method, kept_budget=None, **changes) for name, changes in options.items()}
    return pd.DataFrame([{"variant": name} | judged(prepared, one) for name, one in repaired.items()])


def reports(done: Done) -> pd.DataFrame:
    """Join the reports of several studies."""
    return pd.concat([report(*one) for one in done] or [pd.DataFrame(columns=["method"])], ignore_index=True)


def certainty(done: Done) -> pd.DataFrame:
    """Say how certain the reports of several studies (seeds) are, all of them together, a row a method.

    ``fixed``, ``kept`` and ``test_kept`` are shares over all seeds with exact 95 % intervals (``…_low``, ``…_high``)
    for ``…_n`` images; ``budget`` is the promise, nan for none. ``test_fixed`` and ``test_broken`` count the
    ``test_images`` that are more often right, or more often wrong, than without an edit, ``p`` is McNemar's exact test
    of these and ``p_holm`` has Holm's correction over the methods. An image counts once, however many seeds hold it:
    repeated it would be no further evidence.
    """
    methods = dict.fromkeys(one.method for _, repaired in done for one in repaired)
    rows = []
    for method in methods:
        seen = {panel: _outcomes(done, method, panel) for panel in ("edited", "val", "test")}
        row = {"method": method, "seeds": seen["test"].seed.nunique(), "test_images": seen["test"]["index"].nunique()}
        row |= {"budget": _promise(done[0][0], method)}
        for name, panel in {"fixed": "edited", "kept": "val", "test_kept": "test"}.items():
            found = seen[panel]
            row |= _share(name, found if name == "fixed" else found[found.right])
        test = seen["test"]
        balance = (test.still.astype(int) - test.right).groupby(test["index"]).sum()
        fixed, broken = int((balance > 0).sum()), int((balance < 0).sum())
        rows.append(row | {"test_fixed": fixed, "test_broken": broken, "p": mcnemar(fixed, broken)})
    table = pd.DataFrame(rows)
    return table if table.empty else table.assign(p_holm=holm(table.p.to_numpy()))


def by_method(report: pd.DataFrame, columns: list[str], how: Any = "mean") -> pd.DataFrame:
    """Aggregate columns of a report over seeds, a row a method under its label."""
    return report if report.empty else report.groupby("method", sort=False)[columns].agg(how).rename(index=label)


def _all(prepared: Prepared, repaired: Sequence[Repaired]) -> list[Repaired]:
    """Put the control without any edit first."""
    return [Repaired(UNTOUCHED, [], pd.DataFrame(), prepared.before, float("nan"), 0.0, 0.0), *repaired]


def certainty_shown(certain: pd.DataFrame) -> pd.DataFrame:
    """Bring :func:`certainty` into the form in which a chapter shows it: an interval and its n in a cell."""
    rows = []
    for row in certain.to_dict("records"):
        cells = {
            name: f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}] of {row[f'{name}_n']}"
            for name in ("fixed", "kept", "test_kept")
        }
        counts = {"seeds": row["seeds"], "test images": row["test_images"]}
        counts |= {"more right": row["test_fixed"], "more wrong": row["test_broken"]}
        tested = {"p": f"{row['p']:.2g}", "p (Holm)": f"{row['p_holm']:.2g}"}
        rows.append({"method": label(row["method"])} | cells | counts | tested)
    return pd.DataFrame(rows)


def moved_shown(moved: pd.DataFrame) -> pd.DataFrame:
    """Write by how much each method moves the margins of a class, mean ± standard deviation.

    Args:
        moved: columns method, class, shift and spread (logits), of right val images.
    """
    told = [f"{number(row['shift'], '+.2f')} ± {row.spread:.2f}" for _, row in moved.iterrows()]
    names = {"method": moved.method.map(label), "told": told}
    wide = moved.assign(**names).pivot(index="class", columns="method", values="told")
    return wide.loc[moved["class"].unique(), names["method"].unique()].rename_axis(columns=None)


def _outcomes(done: Done, method: str, panel: str) -> pd.DataFrame:
    """List for each study and image of a panel whether it was right before and still is."""
    frames = []
    for prepared, repaired in done:
        part = prepared.panels[panel].part
        for one in (one for one in repaired if one.method == method):
            right, still = (found[panel].argmax(1) == part.labels for found in (prepared.before, one.after))
            told = {"seed": prepared.spec.seed, "index": part.indices, "right": right, "still": still}
            frames.append(pd.DataFrame(told))
    return pd.concat(frames, ignore_index=True)


def _share(name: str, rows: pd.DataFrame) -> dict[str, float]:
    """Return the share of images that are still right, with its exact interval for the number of different ones."""
    n, share = rows["index"].nunique(), rows.still.mean()
    if not n:
        return {name: math.nan, f"{name}_low": math.nan, f"{name}_high": math.nan, f"{name}_n": 0}
    # Over repeated images a share need not be a whole number of them: the interval is then of both its neighbours.
    least, most = math.floor(share * n + 1e-9), math.ceil(share * n - 1e-9)
    return {name: share, f"{name}_low": proportion(least, n)[0], f"{name}_high": proportion(most, n)[1], f"{name}_n": n}


def judged(prepared: Prepared, one: Repaired) -> dict[str, Any]:
    """Judge one repair, a row of :func:`report`."""
    before, labels = prepared.before, {name: panel.part.labels for name, panel in prepared.panels.items()}
    edited, copies = ((one.after[name].argmax(1) == labels[name]).mean() for name in ("edited", "copies"))
    val, test = (compare(labels[name], before[name], one.after[name]) for name in ("val", "test"))
    now, was = (summary(labels["test"], found["test"]) for found in (one.after, before))
    row = {"method": one.method, "seed": prepared.spec.seed, "model": prepared.vit.name, "dataset": prepared.data.name}
    row |= {"layers": str(one.layers), "n_edits": len(prepared.candidates)}
    row |= {"budget": _promise(prepared, one.method), "weight": one.weight}
    row |= {"fixed": edited, "generality": copies, "kept": val["locality"], "test_kept": test["locality"]}
    row |= {f"val_{name}": val[name] for name in ("fixed", "broken", "mcnemar_p")}
    row |= {f"test_{name}": test[name] for name in ("fixed", "broken", "mcnemar_p")}
    row |= {f"test_{name}": now[name] for name in ("accuracy", "macro_f1", "nll", "ece")}
    row |= {"heldout_change": 100 * (now["accuracy"] - was["accuracy"]), "leakage": one.leakage}
    return row | {"seconds": one.seconds, "peak_memory_mb": one.peak_memory_mb}


def _promise(prepared: Prepared, method: str) -> float:
    """Return what is promised of a method on val; nan for nothing, and where it cannot be held to anything."""
    return prepared.spec.promise or math.nan if is_bounded(method) else math.nan
