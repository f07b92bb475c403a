"""Can forgetting be foretold before a step is made? Predictors of loss, and how well each orders what is lost.

Each edit that held when it was measured is a case; the event is that it does not hold when it is measured next. What
the steps between do to it (:mod:`editkit.studies.interference`) adds up.
"""

import numpy as np
import pandas as pd

from editkit.studies.intervals import MIN_GROUPS, clusters, holm, rank_areas
from editkit.studies.tables import shown, written

PREDICTORS = {
    "interference": "‖ΔW k‖ of its key",
    "taken_back": "share taken back",
    "cosine": "nearest new key",
    "age": "age in edits",
}
OUTCOMES = ("success", "accuracy")
LEAST = 5  # cases with the event, and without: fewer say nothing of an order
NAMED = ["run_id", "run", "method", "replay", "score"]
SAMPLE = ["lost", "n", "seeds", "clusters"]
FOUND = ["value", "low", "high", "gap", "gap_low", "gap_high", "p"]  # of a predictor


def cases(edits: pd.DataFrame) -> pd.DataFrame:
    """List every edit that held when it was measured, and whether it was lost when it was measured next.

    Args:
        edits: of a :class:`editkit.studies.sequences.Trajectory`.

    Returns its rows at the later of the two measurements with columns score (what holding means: success or accuracy of
    the rewrite prompt), lost, and age: the edits made after its own step until the first of the two.
    """
    edits = edits.sort_values("measured_at", kind="stable")
    before = edits.groupby(["run_id", "seed", "fact", "edited_at"], sort=False)
    edits = edits.assign(age=(before.measured_at.shift(fill_value=0) - edits.edited_at) * edits.batch_size)
    parts = []
    for score in OUTCOMES:
        held = before[score].shift(fill_value=False).astype(bool) & edits.interference.notna()
        parts.append(edits[held].assign(score=score, lost=~edits[score][held].astype(bool)))
    return pd.concat(parts, ignore_index=True)


def areas(cases: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Estimate the AUC of each predictor for each run and score, with 95 % intervals over clusters.

    Clusters are relation × draw, and, where there are enough, the measurements of a draw, between which edits share
    every ΔW; the wider interval counts.

    Returns columns run_id, run, method, replay, score, predictor, value, low, high; gap, gap_low, gap_high, p and
    p_holm of the interference's area minus that of another predictor; lost, n (cases), seeds, clusters. With fewer than
    ``LEAST`` cases of either kind there is no area.
    """
    rows = []
    for _, part in cases.groupby(["run_id", "score"], sort=False):
        groupings = [clusters(part), part.groupby(["seed", "measured_at"]).ngroup().to_numpy()]
        groupings = groupings[: 2 if groupings[1].max() + 1 >= MIN_GROUPS else 1]
        lost = part.lost.to_numpy()
        found = {}
        if min(lost.sum(), (~lost).sum()) >= LEAST:
            found = rank_areas(lost, part[list(PREDICTORS)].to_numpy(float), groupings, seed)
        about = part[NAMED].iloc[0].to_dict()
        sample = {"lost": lost.sum(), "n": len(lost), "seeds": part.seed.nunique()}
        sample["clusters"] = min(groups.max() + 1 for groups in groupings)
        for number, predictor in enumerate(PREDICTORS):
            own = {name: values[number] for name, values in found.items()}
            rows.append(about | {"predictor": predictor} | dict.fromkeys(FOUND, np.nan) | own | sample)
    table = pd.DataFrame(rows, columns=[*NAMED, "predictor", *FOUND, *SAMPLE])
    table.loc[table.predictor == "interference", FOUND[3:]] = np.nan  # it has no gap to itself
    return table.assign(p_holm=holm(table.p))


def areas_shown(areas: pd.DataFrame) -> pd.DataFrame:
    """Write areas for a chapter, a row a run and score, a column a predictor."""
    cells = areas.assign(cell=[written(r.value, r.low, r.high) for r in areas.itertuples()])
    where = ["run", "score", *SAMPLE]
    wide = cells.pivot(index=where, columns="predictor", values="cell").reindex(columns=PREDICTORS)
    return shown(wide.rename(columns=PREDICTORS).reset_index().rename_axis(columns=None), "run", "score")
