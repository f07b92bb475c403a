"""What use does to edits, in tables and sentences: every score before and after, with paired intervals.

A change is that of a method's scores from the edited model as it is to the same model after its use, fact by fact.
``apart`` is that change minus the one that the same use makes of the unedited model's scores on the same prompts: what
is left is the edits' own.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from editkit.methods import UNTOUCHED, label
from editkit.studies.findings import protocol
from editkit.studies.intervals import (
    RESOLVED,
    by_accuracy,
    clustered_mean_interval,
    clusters,
    fact_scores,
    proportion,
    score_differences,
    score_intervals,
)
from editkit.studies.survival import AS_IS
from editkit.studies.tables import SAMPLE, adjusted, number, shown, written

MARGIN = 0.05  # of ES and EA: an edit that loses less survives
HOLDS = ("ES", "EA")  # the scores that say whether edits hold
SHOWN = ["ES", "EA", "PS", "NS", "S"]


def survival_scores(prompts: pd.DataFrame) -> pd.DataFrame:
    """Score every method after each use with 95 % intervals: ES, PS, NS, S, and EA, accuracy on rewrite prompts.

    Args:
        prompts: see :func:`editkit.studies.survival.run_survival`.

    Returns columns method, use, perplexity, score, value, low, high, n, seeds, clusters, a row a score.
    """
    columns, tables = ["method", "use", "perplexity", "score", "value", "low", "high", *SAMPLE], []
    for method, use, part in _cells(prompts):
        found = score_intervals(part)
        about = {"method": method, "use": use, "perplexity": part.groupby("seed").perplexity.first().mean()}
        tables.append(found.assign(**about))
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def survival_changes(prompts: pd.DataFrame) -> pd.DataFrame:
    """Subtract the scores of each model as it is from those after each use, paired by fact, with 95 % intervals.

    Returns columns method, use, score (as in :func:`survival_scores`), value, low, high, p, n, seeds, clusters, p_holm
    (over all comparisons of a score), and apart, apart_low, apart_high, which are missing for S, for merges and for the
    unedited model.
    """
    cells = {(method, use): part for method, use, part in _cells(prompts)}
    columns = ["method", "use", "score", "value", "low", "high", "p", *SAMPLE, "apart", "apart_low", "apart_high"]
    tables = []
    for (method, use), part in cells.items():
        if use == AS_IS:
            continue
        before = cells[method, AS_IS]
        gap = score_differences(part, before).assign(method=method, use=use)
        if method != UNTOUCHED and (UNTOUCHED, use) in cells:
            gap = gap.merge(_apart([part, before, cells[UNTOUCHED, use], cells[UNTOUCHED, AS_IS]]), "left", "score")
        tables.append(gap)
    return adjusted(pd.concat(tables, ignore_index=True).reindex(columns=columns)) if tables else pd.DataFrame()


def survival_shown(scores: pd.DataFrame, changes: pd.DataFrame) -> pd.DataFrame:
    """Write what a chapter shows: scores as they are, and below them what each use changes, with its interval."""
    scores = scores.assign(cell=[written(r.value, r.low, r.high) for r in scores.itertuples()])
    changes = changes.assign(cell=[written(r.value, r.low, r.high, "+") for r in changes.itertuples()])
    rows = pd.concat([scores[scores.use == AS_IS], changes])
    rows = rows.assign(use=rows.use.where(rows.use == AS_IS, rows.use + ": change"))
    order = {name: list(dict.fromkeys(rows[name])) for name in ("use", "method")}
    wide = rows.pivot(index=["use", "method"], columns="score", values="cell")[SHOWN].reset_index()
    wide = wide.sort_values(["use", "method"], key=lambda names: names.map(order[names.name].index))
    return shown(wide.rename_axis(columns=None), "use", "method")


def survival_findings(scores: pd.DataFrame, changes: pd.DataFrame) -> list[str]:
    """Say of each use whether edits survive it: supported, refuted, or not resolvable with these facts.

    An edit survives where neither ES nor EA falls by ``MARGIN``, by the whole of both intervals; it does not where one
    of them falls by more, by the whole of its interval, and Holm's p resolves the fall.
    """
    if changes.empty:
        return []
    as_edited = scores[(scores.use == AS_IS) & (scores.method != UNTOUCHED)]
    sentences = [
        f"Held at once: {protocol(scores.iloc[0])}. ES, EA as edited: {_listed(as_edited)}. Edits survive a use where "
        f"ES and EA fall by less than {MARGIN:g}, by the whole of both intervals."
    ]
    for use, rows in changes.groupby("use", sort=False):
        own = rows[rows.method != UNTOUCHED]
        told = f"Change of ES, EA: {_listed(own, '+')}."
        sentences.append(f"**{str(use).capitalize()}: {_verdict(own)}.** {told}{_model(scores, rows)}")
    return sentences


def _cells(prompts: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    for (method, use), part in prompts.groupby(["method", "use"], sort=False) if len(prompts) else ():
        yield str(method), str(use), part


def _apart(cells: list[pd.DataFrame]) -> pd.DataFrame:
    """Average over facts (after − before) of an edited model minus the same of the unedited one, with an interval."""
    facts = [fact_scores(part).assign(EA=fact_scores(by_accuracy(part)).ES) for part in cells]
    after, before, control_after, control_before = facts
    each = (after - before) - (control_after - control_before)
    of = cells[0].drop_duplicates(["seed", "fact"]).set_index(["seed", "fact"]).loc[each.index].reset_index()
    of_facts = clusters(of)
    rows = []
    for score, values in each.items():
        known = values.notna().to_numpy()
        if not known.any():
            continue
        mean, low, high = clustered_mean_interval(values[known], of_facts[known])
        if np.ptp(values[known]) == 0:  # a sample that shows no error
            edge = proportion(0, int(known.sum()))[1]
            low, high = mean - edge, mean + edge
        rows.append({"score": score, "apart": mean, "apart_low": low, "apart_high": high})
    return pd.DataFrame(rows, columns=["score", "apart", "apart_low", "apart_high"])


def _verdict(changes: pd.DataFrame) -> str:
    """Sort methods by what becomes of their edits."""
    found: dict[str, list[str]] = {"supported": [], "refuted": [], "not resolvable": []}
    for method, rows in changes[changes.score.isin(HOLDS)].groupby("method", sort=False):
        if (rows.low > -MARGIN).all():
            verdict = "supported"
        elif ((rows.p_holm < RESOLVED) & (rows.high < -MARGIN)).any():
            verdict = "refuted"
        else:
            verdict = "not resolvable"
        found[verdict].append(label(str(method)))
    told = [f"{verdict} for {', '.join(methods)}" for verdict, methods in found.items() if methods]
    return f"that edits survive it is {', '.join(told)}"


def _listed(rows: pd.DataFrame, sign: str = "") -> str:
    """List ES and EA, each with its interval, method by method."""
    cells = {(r.method, r.score): written(r.value, r.low, r.high, sign) for r in rows.itertuples()}
    methods = dict.fromkeys(rows.method)
    return "; ".join(f"{label(name)} {', '.join(cells[name, score] for score in HOLDS)}" for name in methods)


def _model(scores: pd.DataFrame, changes: pd.DataFrame) -> str:
    """Say what the use does to the unedited model, and what is left of the changes apart from that."""
    control = changes[changes.method == UNTOUCHED].set_index("score")
    if control.empty:
        return ""
    perplexity = scores[scores.method == UNTOUCHED].groupby("use").perplexity.first()
    ends = " to ".join(number(perplexity[use], ".1f") for use in (AS_IS, changes.use.iloc[0]))
    value, low, high = (float(control[name]["NS"]) for name in ("value", "low", "high"))
    ns = written(value, low, high, "+")
    apart = "; ".join(
        f"{label(r.method)} {written(r.apart, r.apart_low, r.apart_high, '+')}"
        for r in changes[(changes.score == "EA") & changes.apart.notna()].itertuples()
    )
    return (
        f" The unedited model's NS changes by {ns}, its perplexity on such text from {ends}; change of EA apart "
        f"from the unedited model's: {apart}."
    )
