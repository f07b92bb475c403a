"""What tables of repairs say, in sentences (Markdown); every number comes from the tables."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from editkit.methods import METHODS, UNTOUCHED, label
from editkit.plain import as_markdown
from editkit.studies.intervals import RESOLVED
from editkit.studies.tables import number

SLACK = 1.5  # points by which held-out images may fall short of a promise that is called held there
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
    after = after.assign(**{name: float("nan") for name in ("budget", "weight") if name not in after})
    columns = ["generality", "heldout_change", "fixed", "kept", "test_kept"]
    mean = after.groupby("method")[[*columns, "budget", "weight"]].mean()
    low = after.groupby("method")[columns].min()
    sentences = [_repaired(row, mean.loc[row["method"]], low.loc[row["method"]]) for row in certain.to_dict("records")]
    return sentences + [
        "Intervals are exact, 95 %; p is McNemar's exact test against no edit with Holm's correction over "
        f"{len(certain)} methods. Both count an image once, however many seeds hold it, and speak of other images "
        "under these fine-tuned models; what another model would do, the worst seed hints at."
    ]


def _repaired(row: dict[str, Any], mean: pd.Series, low: pd.Series) -> str:
    """Say what a method did: ``row`` over all seeds, ``mean`` and ``low``, of the seeds the worst."""

    def share(name: str, digits: int) -> str:
        ends = "–".join(f"{100 * row[f'{name}_{end}']:.{digits}f}" for end in ("low", "high"))
        all_seeds, worst = f"{row[name]:.{digits}%}", f"{low[name]:.{digits}%}"
        apart = f" (worst seed {worst})" if worst != all_seeds else ""
        return f"{all_seeds} [{ends}] of {row[f'{name}_n']}{apart}"

    counts = (
        f"of {row['test_images']} held-out images {row['test_fixed']} are newly right, {row['test_broken']} newly wrong"
    )
    name, gain = label(row["method"]), "a gain" if row["test_fixed"] > row["test_broken"] else "a loss"
    verdict = f"{name} is {gain}" if row["p_holm"] < RESOLVED else f"Neither gain nor loss is resolved for {name}"
    return (
        f"**{verdict}.** {name} fixes {share('fixed', 0)} and gets {mean.generality:.0%} of their augmented copies "
        f"right; of the correct predictions it keeps {share('kept', 1)} on validation and {share('test_kept', 1)} on "
        f"held-out images. Held-out accuracy changes by {number(mean.heldout_change, '+.1f')} points "
        f"(worst seed {number(low.heldout_change, '+.1f')}): {counts}, p = {row['p_holm']:.2g}."
        f"{_promised(row, mean)}"
    )


def _promised(row: dict[str, Any], mean: pd.Series) -> str:
    """Say what was promised of a method, and whether images that no choice looked at bear it out."""
    budget = row.get("budget", float("nan"))
    budget = mean.budget if pd.isna(budget) else budget
    if pd.isna(budget):
        return ""
    weight = "" if pd.isna(mean.weight) else f" (at a mean weight of {mean.weight:.2g})"
    seen, found = (100 * (row[name] - budget) for name in ("kept", "test_kept"))
    verdict = "holds" if found >= -SLACK - 1e-9 else "does not hold"
    return (
        f" Promised was that {budget:.1%} are kept{weight}: validation images, on which that was held, show "
        f"{number(seen, '+.1f')} points against it, held-out images, which no choice looked at, "
        f"{number(found, '+.1f')}; there the promise "
        f"{verdict} within {SLACK:g} points."
    )


def _traced(traced: pd.DataFrame) -> list[str]:
    if traced.empty:
        return []
    # The residual stream after the last layer is what the head reads: that it brings much back is no finding.
    inside = traced[(traced.kind != "residual") | (traced.layer < traced.layer.max())]
    peaks = [rows.loc[rows.value.idxmax()] for _, rows in inside.groupby("kind", sort=False)]
    listed = "; ".join(f"{row.kind} at layer {row.layer} ({row.value:+.2f})" for row in peaks)
    return [f"Of a destroyed decision (first seed), the most comes back by restoring: {listed}."]


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
    told = (
        f"Where to edit{dataset}: of {len(single)} single layers, each at the weight that the budget asks for, layer "
        f"{_numbers(first.layers)} repairs best, {_reached(first)}"
    )
    told += f" (worst: layer {_numbers(last.layers)}, {last.fixed:.0%} fixed)" if len(single) > 1 else ""
    for chosen in SETS:
        for row in sweep[sweep.chosen == chosen].itertuples():
            name = "the traced layers" if chosen == "traced" else chosen
            told += f"; {name}, {_numbers(row.layers)}, reach {_reached(row)}"
    sentences = [told + "."]
    mlp = traced[traced.kind == "mlp"] if len(traced) else traced
    if len(mlp):
        choice = int(mlp.sort_values(["value", "layer"], ascending=[False, True]).layer.iloc[0])
        verdict = "the sweep's choice too" if str(choice) == _numbers(first.layers) else "not the sweep's choice"
        sentences[0] += f" Tracing's first choice, layer {choice} (MLP), is {verdict}."
    for row in sweep[sweep.best.astype(bool)].itertuples():
        margin = f"a margin of {row.margin:g}" if math.isfinite(row.margin) else "no margin"
        sentences[0] += f" Edited are layers {row.layers} with {margin}: {_reached(row)}."
    return sentences


def _numbers(layers: str) -> str:
    return layers.strip("[]")


def _reached(row: Any) -> str:
    return f"{row.fixed:.0%} fixed, {row.generality:.0%} of copies right, {row.kept:.1%} kept on validation"


def _moved(moved: pd.DataFrame) -> list[str]:
    """Say by method which class's images a repair moves most, and whether it moves them alike, as a bias would."""
    told = []
    for method, rows in moved.groupby("method", sort=False) if len(moved) else ():
        row = rows.loc[rows["shift"].abs().idxmax()]
        alike = "more than its spread, as a bias would" if abs(row["shift"]) > row.spread else "less than its spread"
        one = (
            f"{label(str(method))} moves the margin of right {as_markdown(str(row['class']))} images most, by "
            f"{row['shift']:+.2f} logits (sd {row.spread:.2f}: {alike}) and turns {row.broken:.1%} of {row.n:.0f} wrong"
        )
        others = rows.drop(row.name)
        if others.n.sum():
            shift, broken = ((others[name] * others.n).sum() / others.n.sum() for name in ("shift", "broken"))
            one += f", those of other classes by {shift:+.2f} and {broken:.1%} of {others.n.sum():.0f}"
        told.append(one)
    return [f"Why repairs cost (right validation images): {'; '.join(told)}."] if told else []


def _frontier(dataset: str, frontier: pd.DataFrame) -> list[str]:
    """Compare at the budget the best editor with the best control, by number of edits."""
    scores = ["fixed", "generality", "kept", "test_kept", "heldout_change"]
    told = []
    chosen = frontier[frontier.at_budget.astype(bool)] if len(frontier) else frontier
    for n, rows in chosen.groupby("n_edits") if len(chosen) else ():
        mean = rows.groupby("method", sort=False)[scores].mean().sort_values(["fixed", "generality"], ascending=False)
        sides = {"editor": mean[mean.index.isin(METHODS)], "control": mean[~mean.index.isin(METHODS)]}
        listed = [
            f"the best {side} is {label(str(best.index[0]))} with {_reached(best.iloc[0])}, "
            f"{best.test_kept.iloc[0]:.1%} on held-out images, {best.heldout_change.iloc[0]:+.1f} points of accuracy"
            for side, best in sides.items()
            if len(best)
        ]
        edits = f"{n:.0f} edit{'s' * (n != 1)}"
        if len(listed) == 2:
            ahead = 100 * (sides["editor"].fixed.iloc[0] - sides["control"].fixed.iloc[0])
            listed.append(f"the editor's lead is {ahead:+.0f} points of images fixed")
        told.append(f"of {edits}, {', '.join(listed)}")
    return [f"At the budget{dataset}, by images fixed: {'; '.join(told)}."] if told else []


def _leakages(leaks: pd.DataFrame) -> list[str]:
    others, kept = leaks[leaks.nullspace == "none"], leaks[leaks.nullspace == "kept"]
    ours, sentences = leaks[leaks.nullspace == "threshold"], []
    if not ours.empty and not others.empty:
        sentences.append(_least(ours, others.loc[others.leakage.idxmin()]))
    for row in kept.to_dict("records"):
        sentences.append(
            f"Projected off the kept CLS keys themselves, {label(row['method'])} fixes {row['success']:.0%}, keeps "
            f"{row['kept']:.1%} on validation and {row['test_kept']:.1%} on held-out images, and leaks "
            f"{row['leakage']:.2g}, all of it through patches, which that projection does not look at."
        )
    return sentences


def _least(ours: pd.DataFrame, rival: pd.Series) -> str:
    """Compare AlphaEdit at its thresholds with the other editor that leaks least."""
    name, equal = label(rival.method), ours[ours.success >= rival.success]
    lowest = f"The lowest leakage of the other editors is {name}'s, {rival.leakage:.2g} at success {rival.success:.0%}"
    if equal.empty:
        return f"{lowest}; AlphaEdit reaches that success at no threshold tried."
    best = equal.loc[equal.leakage.idxmin()]
    return (
        f"{lowest}; at that success or more AlphaEdit's lowest is {best.leakage:.2g}, at threshold {best.threshold:g}: "
        f"{'lower' if best.leakage < rival.leakage else 'not lower'}. Its update is {best.norm / rival.norm:.2f} times "
        "as large (‖ΔW‖)."
    )
