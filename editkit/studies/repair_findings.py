"""What tables of repairs say, in sentences (Markdown); every number comes from the tables."""

from typing import Any

import pandas as pd

from editkit.methods import UNTOUCHED, label
from editkit.studies.intervals import RESOLVED
from editkit.studies.repair_tables import DEFAULT_PLACE


def vision_findings(
    report: pd.DataFrame, certain: pd.DataFrame, traced: pd.DataFrame, places: pd.DataFrame, leaks: pd.DataFrame
) -> list[str]:
    """Say how well images were repaired, and at what cost.

    Args:
        report: one row a seed and method (``pre`` for no edit), see :func:`editkit.studies.repair_tables.reports`.
        certain: one row a method, see :func:`editkit.studies.repair_tables.certainty`.
        traced: columns kind, layer, value: probability that restoring a layer recovers.
        places: the same edits in other layers, see :func:`editkit.studies.repair_tables.places`.
        leaks: see :func:`editkit.studies.repair_tables.leakages`.
    """
    before = report[report.method == UNTOUCHED]
    seeds = len(before)
    sentences = [
        f"Before any edit the held-out accuracy is {before.test_accuracy.mean():.1%}; {before.n_edits.min()} to "
        f"{before.n_edits.max()} misclassified training images are repaired ({seeds} seed{'s' * (seeds > 1)}); of "
        f"their augmented copies {before.generality.mean():.0%} are right already."
    ]
    after = report[report.method != UNTOUCHED].groupby("method", sort=False)
    columns = ["generality", "heldout_change", "fixed", "kept", "test_kept"]
    mean, low = after[columns].mean(), after[columns].min()
    sentences += [_repaired(row, mean.loc[row["method"]], low.loc[row["method"]]) for row in certain.to_dict("records")]
    sentences.append(
        "Intervals are exact, 95 %; p is McNemar's exact test against no edit with Holm's correction over "
        f"{len(certain)} methods. Both count an image once, however many seeds hold it, and speak of other images "
        "under these fine-tuned models; what another model would do, the worst seed hints at."
    )
    return sentences + [_traced(traced)] + _places(places) + _leakages(leaks)


def _repaired(row: dict[str, Any], mean: pd.Series, low: pd.Series) -> str:
    """Say what a method did: ``row`` over all seeds, ``mean`` and ``low``, of the seeds the worst."""

    def share(name: str, digits: int) -> str:
        ends = "–".join(f"{100 * row[f'{name}_{end}']:.{digits}f}" for end in ("low", "high"))
        return f"{row[name]:.{digits}%} [{ends}] of {row[f'{name}_n']} (worst seed {low[name]:.{digits}%})"

    counts = (
        f"of {row['test_images']} held-out images {row['test_fixed']} are newly right, {row['test_broken']} newly wrong"
    )
    better = "a gain" if row["test_fixed"] > row["test_broken"] else "a loss"
    verdict = better if row["p_holm"] < RESOLVED else "not resolved: no difference from no edit can be claimed"
    return (
        f"{label(row['method'])} fixes {share('fixed', 0)} and gets {mean.generality:.0%} of their augmented copies "
        f"right; of the correct predictions it keeps {share('kept', 1)} on validation and {share('test_kept', 1)} on "
        f"held-out images. Held-out accuracy changes by {mean.heldout_change:+.1f} points "
        f"(worst seed {low.heldout_change:+.1f}): {counts}, p = {row['p_holm']:.2g}, {verdict}."
    )


def _traced(traced: pd.DataFrame) -> str:
    # The residual stream after the last layer is what the head reads: that it brings much back is no finding.
    inside = traced[(traced.kind != "residual") | (traced.layer < traced.layer.max())]
    peaks = [rows.loc[rows.value.idxmax()] for _, rows in inside.groupby("kind", sort=False)]
    listed = "; ".join(f"{row.kind} at layer {row.layer} ({row.value:+.2f})" for row in peaks)
    return f"Of a destroyed decision (first seed), the most comes back by restoring: {listed}."


def _places(places: pd.DataFrame) -> list[str]:
    sentences = []
    for method, rows in places.groupby("method", sort=False):
        listed = "; ".join(
            f"layers {r.layers} ({r.chosen}) {r.fixed:.0%} fixed, {r.kept:.1%} kept on validation and "
            f"{r.test_kept:.1%} on held-out images, {r.heldout_change:+.1f} points"
            for r in rows.itertuples()
        )
        tested = rows[rows.p_holm.notna()]
        sure = [f"{r.chosen} (p = {r.p_holm:.2g})" for r in tested[tested.p_holm < RESOLVED].itertuples()]
        verdict = (
            f"other than in {DEFAULT_PLACE}: {', '.join(sure)}" if sure else f"not resolved against {DEFAULT_PLACE}"
        )
        least = "" if sure or tested.empty else f" (smallest p = {tested.p_holm.min():.2g})"
        sentences.append(
            f"Where to edit (first seed), {label(str(method))}: {listed}. On held-out images, {verdict}{least}."
        )
    return sentences


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
