"""Tables of the chapter on edits of one batch, from the prompts of :func:`editkit.studies.runs.run_baselines`.

``baselines`` and ``prompts`` are what that returns.
"""

import itertools
from typing import Any

import pandas as pd

from editkit.methods import UNTOUCHED, label
from editkit.studies.intervals import holm, interval, paired_difference
from editkit.studies.tables import (
    SAMPLE,
    SCORES,
    adjusted,
    by_relation,
    number,
    over_seeds,
    sampled,
    scores_of,
    shown,
    written,
)

FIXED, BUDGET = "fixed λ", "budget"  # what decides how much more what is kept weighs than what is asked for


def baseline_scores(prompts: pd.DataFrame) -> pd.DataFrame:
    """Score each method at each batch size with intervals, and the untouched model, which has batch size 0.

    Args:
        prompts: of :func:`editkit.studies.runs.run_baselines`.

    Returns columns method, batch_size, moment, score, value, low, high, n, seeds and clusters.
    """
    keys = ["method", "batch_size", "moment"]
    tables = [
        interval(part, where[-1]).reset_index().assign(**dict(zip(keys, where, strict=True)))
        for where, part in prompts.groupby(keys, sort=False)
    ]
    table = pd.concat(tables, ignore_index=True)
    return table[[*keys, *table.columns.difference(keys, sort=False)]]


def baseline_shown(scores: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """Write :func:`baseline_scores` as a row a cell, each score with its interval, and accuracies beside them."""
    keys = ["method", "batch_size"]
    cells = scores.assign(cell=[written(r.value, r.low, r.high) for r in scores.itertuples()])
    wide = cells.pivot(index=keys, columns="score", values="cell")[SCORES]
    means = over_seeds(baselines, *keys)
    wide = wide.join(means[["EA", "PA", "NA", *means.columns.intersection(["GE"])]].round(3))
    samples = [part.loc[part.score == sampled(part.set_index("score"))] for _, part in scores.groupby(keys)]
    wide = wide.join(pd.concat(samples).set_index(keys)[SAMPLE])
    order = scores[keys].drop_duplicates().itertuples(index=False, name=None)
    return wide.loc[list(order)].rename(index=label, level="method").rename_axis(["method", "edits at once"])


def baseline_differences(prompts: pd.DataFrame) -> pd.DataFrame:
    """Compare every two methods at each batch size, paired by fact: first minus second.

    Returns columns batch_size, method, reference, score, value, low, high, p, p_holm (over the pairs of a batch size
    and score), n, seeds and clusters.
    """
    tables = []
    for size, rows in prompts[prompts.method != UNTOUCHED].groupby("batch_size"):
        parts = dict(list(rows.groupby("method", sort=False)))
        for ours, theirs in itertools.combinations(parts, 2):
            gap = paired_difference(parts[ours], parts[theirs], "immediate").reset_index()
            tables.append(gap.assign(batch_size=size, method=ours, reference=theirs))
    columns = ["batch_size", "method", "reference", "score", "value", "low", "high", "p", *SAMPLE]
    empty = pd.DataFrame(columns=columns, dtype=float)  # one method alone
    return adjusted(pd.concat(tables, ignore_index=True)[columns] if tables else empty, "batch_size", "score")


def baseline_changes(prompts: pd.DataFrame) -> pd.DataFrame:
    """Subtract from each method's scores at the largest batch size those before any edit, and at the smallest size.

    Returns columns method, reference (the batch size subtracted; 0 is the untouched model), score, value, low, high, p,
    p_holm (over the methods of a score and reference), n, seeds and clusters.
    """
    before, edits = (prompts[(prompts.method == UNTOUCHED) == same] for same in (True, False))
    sizes, tables = sorted(edits.batch_size.unique()), []
    for method, rows in edits.groupby("method", sort=False):
        parts = dict(list(rows.groupby("batch_size"))) | {0: before.assign(moment="immediate")}
        for size in dict.fromkeys([0, *sizes[:-1][:1]]):
            gap = paired_difference(parts[sizes[-1]], parts[size], "immediate").reset_index()
            tables.append(gap.assign(method=method, reference=size))
    return adjusted(pd.concat(tables, ignore_index=True), "reference", "score")


def relations_shown(prompts: pd.DataFrame, batch_size: int) -> pd.DataFrame:
    """Write ES, PS and NS of each relation in one cell, a column a method, at a batch size and before any edit."""
    before, cells = prompts[prompts.method == UNTOUCHED], dict[str, Any]()
    for method, part in prompts[prompts.batch_size == batch_size].groupby("method", sort=False):
        table = by_relation(pd.concat([before, part]), "immediate").set_index("relation")
        for name, prefix in ((UNTOUCHED, "pre "), (method, "")):
            scores = table[[f"{prefix}{score}" for score in SCORES[:3]]].itertuples(index=False)
            cells |= {"facts": table.facts, label(name): [" / ".join(number(x, ".2f") for x in row) for row in scores]}
    return pd.DataFrame(cells)


def budget_table(fixed: tuple[pd.DataFrame, pd.DataFrame], budget: tuple[pd.DataFrame, pd.DataFrame]) -> pd.DataFrame:
    """Put the edits of each method under a promise about neighbours beside those with its fixed λ: two rows a method.

    Args:
        fixed: baselines and prompts.
        budget: the same under the promise, at one batch size.

    Returns columns method, by ("fixed λ", "budget"), promised, weight (nan with a fixed λ), tune_kept (share of NS
    kept on facts for tuning), unwritten (batches that no weight held), ES, PS, NS, S, NS_kept (NS over that before any
    edit), seconds, and value, low, high, p, p_holm (over all rows), n, seeds and clusters of NS minus the promised
    share of NS before any edit, paired by fact.
    """
    prompts, budgeted = fixed[1], budget[0]
    before, pre, rows = prompts[prompts.method == UNTOUCHED], over_seeds(budgeted, "method").NS[UNTOUCHED], []
    for method, cells in budgeted[budgeted.method != UNTOUCHED].groupby("method", sort=False):
        promised = cells.neighbour_budget.iloc[0]
        wanted = before.assign(moment="immediate", success=before.success * promised)
        for by, parts in ((FIXED, fixed), (BUDGET, budget)):
            scores, asked = (p[(p.method == method) & (p.batch_size == cells.batch_size.iloc[0])] for p in parts)
            mean = over_seeds(scores, "method").loc[method, [*scores_of(budgeted), "seconds"]].to_dict()
            gap = paired_difference(asked, wanted, "immediate").loc["NS"].to_dict()
            rows.append({"method": method, "by": by, "promised": promised} | mean | {"NS_kept": mean["NS"] / pre} | gap)
        rows[-2] |= {"tune_kept": cells.neighbour_kept_unweighted.mean(), "unwritten": 0}
        rows[-1] |= {"tune_kept": cells.neighbour_kept.mean(), "unwritten": cells.unwritten.sum()}
        rows[-1] |= {"weight": cells.weight.median()}
    columns = ["method", "by", "promised", "weight", "tune_kept", "unwritten", *scores_of(budgeted), "NS_kept"]
    table = pd.DataFrame(rows, columns=[*columns, "seconds", "value", "low", "high", "p", *SAMPLE])
    return table.assign(p_holm=holm(table.p))


def budgets_shown(table: pd.DataFrame) -> pd.DataFrame:
    """Write :func:`budget_table` for a chapter, with NS against the promise and its interval."""
    against = [written(r.value, r.low, r.high, "+") for r in table.itertuples()]
    columns = ["method", "by", "weight", "promised", "tune_kept", *scores_of(table), "NS_kept", "NS against it"]
    return shown(table.assign(**{"NS against it": against})[[*columns, "seconds"]], "method", "by")
