"""What tables of repairs say, in sentences (Markdown); every number comes from the tables."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from editkit.methods import METHODS, UNTOUCHED, label
from editkit.plain import as_markdown
from editkit.studies.findings import with_list
from editkit.studies.front import listed
from editkit.studies.intervals import RESOLVED
from editkit.studies.tables import number, written

SLACK = 1.5  # points by which held-out images may fall short of a promise that is called held there
KINDS = {"residual": "the residual stream", "mlp": "the MLP"}
SETS = ("traced", "the last three")  # what the best single layer is compared with


def vision_findings(
    report: pd.DataFrame,
    certain: pd.DataFrame,
    traced: pd.DataFrame,
    sweep: pd.DataFrame,
    frontier: pd.DataFrame,
    moved: pd.DataFrame,
    leaks: pd.DataFrame,
) -> list[str]:
    """Say how well images were repaired, at what cost, and why they cost that. Of an empty table nothing is said.

    Args:
        report: one row a seed and method (``pre`` for no edit), see :func:`editkit.studies.repair_tables.reports`; may
            have columns budget (what was promised on val, nan for nothing) and weight (of what is kept).
        certain: one row a method, see :func:`editkit.studies.repair_tables.certainty`; may have a column budget.
        traced: columns kind, layer, value: probability that restoring a layer recovers; compared with the sweep where
            that is of one dataset.
        sweep: the same edits at the same budget in other places, columns layers (as "[8]"), chosen ("one layer",
            "traced", "the last three", "margin"), margin, weight, fixed, generality, kept and best (the row chosen);
            may have a column dataset.
        frontier: columns method, n_edits, point, at_budget, fixed, generality, kept, test_kept and heldout_change; may
            have a column dataset.
        moved: how the margins of right val images moved, columns method, class, shift and spread (mean and standard
            deviation, logits), broken (share no longer right) and n.
        leaks: see :func:`editkit.studies.repair_tables.leakages`.
    """
    sentences = _before(report) + _repairs(report, certain) + _traced(traced)
    sentences += [
        told for name, rows in _by_dataset(sweep) for told in _where(name, rows, traced[: 0 if name else None])
    ]
    sentences += _moved(moved)
    sentences += [told for name, rows in _by_dataset(frontier) for told in _frontier(name, rows)]
    return sentences + (_leakages(leaks) if len(leaks) else [])


def _before(report: pd.DataFrame) -> list[str]:
    before = report[report.method == UNTOUCHED] if len(report) else report
    seeds = len(before)
    if not seeds:
        return []
    counts = " to ".join(map(str, sorted({before.n_edits.min(), before.n_edits.max()})))
    return [
        f"Before any edit the held-out accuracy is {before.test_accuracy.mean():.1%}; {counts} misclassified images "
        f"are repaired ({seeds} seed{'s' * (seeds > 1)}); of "
        f"their augmented copies {before.generality.mean():.0%} are right already."
    ]


def _repairs(report: pd.DataFrame, certain: pd.DataFrame) -> list[str]:
    if certain.empty:
        return []
    after = report[report.method != UNTOUCHED]
    after = after if "budget" in after else after.assign(budget=float("nan"))
    columns = ["generality", "heldout_change", "fixed", "kept", "test_kept"]
    mean = after.groupby("method")[[*columns, "budget"]].mean()
    low = after.groupby("method")[columns].min()
    rows = certain.assign(verdict=[_verdict(row) for row in certain.to_dict("records")])
    rows["promised"] = rows.method.map(mean.budget).fillna(certain.get("budget", float("nan")))
    sentences = []
    for verdict, part in rows.groupby("verdict", sort=False):
        whose = f"any of {len(part)} methods" if len(part) == len(rows) > 2 else listed(map(label, part.method))
        told = [_repaired(row, mean.loc[row["method"]], low.loc[row["method"]]) for row in part.to_dict("records")]
        sentences.append(with_list(f"**{verdict} {whose}.**", told))
    sentences += [_promised(budget, part) for budget, part in rows.groupby("promised")]
    return sentences + [
        "Intervals are exact, 95%; p is McNemar's exact test against no edit with Holm's correction over "
        f"{len(certain)} methods. Both count an image once, however many seeds hold it, and speak of other images "
        "under these fine-tuned models; what another model would do, the worst seed hints at."
    ]


def _verdict(row: dict[str, Any]) -> str:
    """Say whether a method changes how many held-out images are right."""
    if row["p_holm"] >= RESOLVED:
        return "Neither gain nor loss of held-out images is resolved for"
    return f"A {'gain' if row['test_fixed'] > row['test_broken'] else 'loss'} of held-out images is resolved for"


def _repaired(row: dict[str, Any], mean: pd.Series, low: pd.Series) -> str:
    """Say what a method did: ``row`` over all seeds, ``mean`` and ``low``, of the seeds the worst."""

    def share(name: str, digits: int) -> str:
        ends = "–".join(f"{100 * row[f'{name}_{end}']:.{digits}f}" for end in ("low", "high"))
        all_seeds, worst = f"{row[name]:.{digits}%}", f"{low[name]:.{digits}%}"
        apart = f" (worst seed {worst})" if worst != all_seeds else ""
        return f"{all_seeds} [{ends}%] of {row[f'{name}_n']}{apart}"

    return (
        f"{label(row['method'])}: fixed are {share('fixed', 0)} and {mean.generality:.0%} of their augmented copies; "
        f"{row['test_fixed']} of {row['test_images']} held-out images turn right, {row['test_broken']} wrong: "
        f"{number(mean.heldout_change, '+.1f')} points (worst seed {number(low.heldout_change, '+.1f')}), "
        f"p = {row['p_holm']:.2g}; of right ones stay {share('test_kept', 1)}"
    )


def _promised(budget: float, rows: pd.DataFrame) -> str:
    """Say whether images that no choice looked at bear out what was promised of methods."""
    seen, found = (100 * (rows[name] - budget) for name in ("kept", "test_kept"))
    short = rows.method[found < -SLACK - 1e-9]
    verdict = f"does not hold with {listed(map(label, short))}" if len(short) else "holds"
    return (
        f"**On held-out images, which neither promise nor choice looked at, the promise to keep {budget:.1%} "
        f"{verdict}**, within {SLACK:g} points: they show {_ends(found)} points against it (the lowest interval begins "
        f"at {rows.test_kept_low.min():.1%}); validation images, on which it was held, {_ends(seen)}."
    )


def _ends(values: pd.Series) -> str:
    """Say from where to where differences in points go."""
    return " to ".join(dict.fromkeys(number(value, "+.1f") for value in (values.min(), values.max())))


def _traced(traced: pd.DataFrame) -> list[str]:
    if traced.empty:
        return []
    # The residual stream after the last layer is what the head reads: that it brings much back is no finding.
    inside = traced[(traced.kind != "residual") | (traced.layer < traced.layer.max())]
    peaks = [rows.loc[rows.value.idxmax()] for _, rows in inside.groupby("kind", sort=False)]
    told = "; ".join(f"{KINDS.get(row.kind, row.kind)} at layer {row.layer} ({_recovered(row)})" for row in peaks)
    return [
        "Of a destroyed decision (first seed), the most comes back by restoring, the stream that the head reads aside: "
        f"{told}."
    ]


def _recovered(row: pd.Series) -> str:
    return written(row.value, row.low, row.high, "+") if "low" in row else number(row.value, "+.2f")


def _by_dataset(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the rows of each dataset with its name, as it opens a bracket; a table without names is of one dataset."""
    if "dataset" not in frame:
        yield "", frame
        return
    several = frame.dataset.nunique() > 1
    for name, rows in frame.groupby("dataset", sort=False):
        yield f" ({as_markdown(str(name))})" if several else "", rows


def _where(dataset: str, sweep: pd.DataFrame, traced: pd.DataFrame) -> list[str]:
    """Compare single layers with each other, with sets of layers and with what tracing says."""
    single = sweep[sweep.chosen == "one layer"] if len(sweep) else sweep
    if single.empty:
        return []
    single = single[single.margin == single.margin.iloc[0]] if pd.notna(single.margin.iloc[0]) else single
    first, last = (single.sort_values(["fixed", "generality"], kind="stable").iloc[place] for place in (-1, 0))
    ties = (single.fixed == first.fixed).sum() - 1
    equal = f" ({ties} more fixed as many, with no more copies right)" if ties else ""
    head = (
        f"**Where to edit{dataset}, first seed**: of {len(single)} single layers, each at the weight that the budget "
        f"asks for, layer {_numbers(first.layers)} fixed most images{equal}. They chose it: no test is made."
    )
    mlp = traced[traced.kind == "mlp"] if len(traced) else traced
    if len(mlp):
        choice = int(mlp.sort_values(["value", "layer"], ascending=[False, True]).layer.iloc[0])
        verdict = "the sweep's choice too" if str(choice) == _numbers(first.layers) else "not the sweep's choice"
        head += f" Tracing's first choice, layer {choice} (MLP), is {verdict}."
    worst = f" (worst: layer {_numbers(last.layers)}, {last.fixed:.0%} fixed)" if len(single) > 1 else ""
    told = [f"layer {_numbers(first.layers)}: {_reached(first)}{worst}"]
    for chosen in SETS:
        name = "the traced layers" if chosen == "traced" else chosen
        rows = sweep[sweep.chosen == chosen].itertuples()
        told += [f"{name}, {_numbers(row.layers)}: {_reached(row)}" for row in rows]
    for row in sweep[sweep.best.astype(bool)].itertuples():
        margin = f"a margin of {row.margin:g}" if math.isfinite(row.margin) else "no margin"
        told.append(f"edited, {_numbers(row.layers)} with {margin}: {_reached(row)}")
    return [with_list(head, told)]


def _numbers(layers: str) -> str:
    return layers.strip("[]")


def _reached(row: Any) -> str:
    return f"{row.fixed:.0%} fixed, {row.generality:.0%} of copies right, {row.kept:.1%} kept on validation"


def _moved(moved: pd.DataFrame) -> list[str]:
    """Say by method which class's images a repair moves most, and whether it moves them alike, as a bias would."""
    told, alike = [], []
    for method, rows in moved.groupby("method", sort=False) if len(moved) else ():
        row, name = rows.loc[rows["shift"].abs().idxmax()], label(str(method))
        many = int((rows["shift"].abs() > rows.spread).sum())
        alike += [f"{name} ({many} of {len(rows)} classes)"] if many else []
        one = (
            f"{name}: class {as_markdown(str(row['class']))} by {row['shift']:+.2f} logits (sd {row.spread:.2f}), "
            f"{row.broken:.1%} of {row.n:.0f} turn wrong"
        )
        others = rows.drop(row.name)
        if others.n.sum():
            shift, broken = ((others[name] * others.n).sum() / others.n.sum() for name in ("shift", "broken"))
            one += f"; the other classes by {shift:+.2f}, {broken:.1%} of {others.n.sum():.0f}"
        told.append(one)
    head = (
        f"**As a bias would, whole classes are moved by {'; '.join(alike) or 'no method'}** (first seed): the margins "
        "of their right validation images by more than their spread. The class that each method moves most:"
    )
    return [with_list(head, told)] if told else []


def _frontier(dataset: str, frontier: pd.DataFrame) -> list[str]:
    """Compare at the budget the best editor with the best control, by number of edits."""
    scores = ["fixed", "generality", "kept", "test_kept", "heldout_change"]
    told = []
    chosen = frontier[frontier.at_budget.astype(bool)] if len(frontier) else frontier
    for n, rows in chosen.groupby("n_edits") if len(chosen) else ():
        mean = rows.groupby("method", sort=False)[scores].mean().sort_values(["fixed", "generality"], ascending=False)
        sides = [mean[mean.index.isin(METHODS)], mean[~mean.index.isin(METHODS)]]
        best_of = [
            f"{label(str(best.index[0]))} {_reached(best.iloc[0])}, {best.test_kept.iloc[0]:.1%} held out, "
            f"{number(best.heldout_change.iloc[0], '+.1f')} points"
            for best in sides
            if len(best)
        ]
        told.append(f"{n:.0f} edit{'s' * (n != 1)}: {'; '.join(best_of)}")
    head = f"At the budget{dataset}, first seed, by images fixed and then copies, the best editor and the best control:"
    return [with_list(head, told)] if told else []


def _leakages(leaks: pd.DataFrame) -> list[str]:
    others, kept = leaks[leaks.nullspace == "none"], leaks[leaks.nullspace == "kept"]
    ours, sentences = leaks[leaks.nullspace == "threshold"], []
    if not ours.empty and not others.empty:
        sentences.append(_least(ours, others.loc[others.leakage.idxmin()]))
    for row in kept.to_dict("records"):
        sentences.append(
            f"Projected off the kept CLS keys themselves (first seed), {label(row['method'])} fixes "
            f"{row['success']:.0%}, keeps {row['kept']:.1%} on validation and {row['test_kept']:.1%} on held-out "
            f"images, and leaks {row['leakage']:.2g}, all of it through patches, which it does not look at."
        )
    return sentences


def _least(ours: pd.DataFrame, rival: pd.Series) -> str:
    """Compare AlphaEdit at its thresholds with the other editor that leaks least."""
    name, equal = label(rival.method), ours[ours.success >= rival.success]
    lowest = f"Without a budget (first seed) {name} leaks least of the other editors, {rival.leakage:.2g} at success "
    lowest += f"{rival.success:.0%}"
    if equal.empty:
        return f"{lowest}; AlphaEdit reaches that success at no threshold tried."
    best = equal.loc[equal.leakage.idxmin()]
    return (
        f"{lowest}; at that success or more AlphaEdit's lowest is {best.leakage:.2g}, at threshold {best.threshold:g}: "
        f"{'lower' if best.leakage < rival.leakage else 'not lower'}. Its update is {best.norm / rival.norm:.2f} times "
        "as large (‖ΔW‖)."
    )
