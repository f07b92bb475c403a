"""Build the tables of the chapters from the rows that runs return: tidy frames in, a frame out.

``scores``, ``steps``, ``retention`` and ``prompts`` are the tables of a
:class:`editkit.studies.sequences.Trajectory`, which may hold several runs, told apart by ``run_id``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from editkit.language.drift import KINDS, REACHABLE
from editkit.language.metrics import harmonic
from editkit.methods import UNTOUCHED, label
from editkit.studies.intervals import RESOLVED, fact_scores, holm, interval, mean_interval, paired_difference

COLLAPSE = 10.0  # perplexity, as a multiple of that before any edit
SCORES = ["ES", "PS", "NS", "S"]
SAMPLE = ["n", "seeds", "clusters"]  # what is behind an interval


def scores_of(table: pd.DataFrame) -> list[str]:
    """Name the scores that a table has: ES, PS, NS and S, and GE where free texts were written."""
    return [*SCORES, *(["GE"] if "GE" in table else [])]


def shown(table: pd.DataFrame, *index: str) -> pd.DataFrame:
    """Bring a table into the form in which a chapter shows it: methods by their labels, no ids, three decimals."""
    table = table.drop(columns="run_id", errors="ignore")
    if "method" in table:
        table = table.assign(method=table.method.map(label))
    return table.set_index(list(index)).round(3)


def over_seeds(scores: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Average every number over the seeds of each group, and make S of the averaged ES, PS and NS.

    Seeds have equally many facts, so this S is that of all facts pooled (:func:`editkit.language.metrics.summarize`).
    """
    means = scores.groupby(list(by), sort=False, dropna=False).mean(numeric_only=True)
    return means.assign(S=harmonic(means[SCORES[:3]]))


def adjusted(gaps: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Add ``p_holm``: p adjusted over the family of comparisons of each score, or of each value of other columns."""
    return gaps.assign(p_holm=gaps.groupby(list(by) or ["score"]).p.transform(holm))


def by_relation(prompts: pd.DataFrame, moment: str = "final") -> pd.DataFrame:
    """Score the facts of each relation, before any edit (pre) and at a moment, a row a relation.

    Args:
        prompts: of one run, with the prompts of the untouched model among them.
    """
    columns: dict[str, pd.Series] = {}
    for when, prefix in ((UNTOUCHED, "pre "), (moment, "")):
        scores = fact_scores(prompts, when)
        of = prompts.drop_duplicates(["seed", "fact"]).set_index(["seed", "fact"]).relation.fillna("")
        groups = scores.groupby(of.loc[scores.index])
        columns |= {"facts": groups.size()} | {f"{prefix}{name}": groups[name].mean() for name in scores}
    table = pd.DataFrame(columns).rename_axis("relation")
    return table.assign(S=harmonic(table[SCORES[:3]])).reset_index()


def gaps_shown(gaps: pd.DataFrame, *index: str) -> pd.DataFrame:
    """Write differences for a chapter: each with its interval, Holm's p, what it comes to, and the sample behind it."""
    told = {
        "difference": [written(r.value, r.low, r.high, "+") for r in gaps.itertuples()],
        "p (Holm)": gaps.p_holm,
        "resolved": ["yes" if p < RESOLVED else "no" for p in gaps.p_holm],
    }
    names = {name: gaps[name].map(label) for name in ("method", "reference", "fit") if name in gaps}
    return shown(gaps.assign(**names, **told)[[*index, *told, *SAMPLE]], *index)


def sampled(found: pd.DataFrame) -> str:
    """Name the score whose sample stands for those of a run (index score): S, or ES where facts lack what S needs."""
    return "S" if found.n["S"] else "ES"


def written(value: float, low: float, high: float, sign: str = "", digits: int = 2) -> str:
    """Write a number with its interval; a ``sign`` of "+" shows that of positive ones."""
    if pd.isna(value):
        return number(value)
    form = f"{sign}.{digits}f"
    ends = "[not known]" if pd.isna(low) else f"[{number(low, form)}, {number(high, form)}]"
    return f"{number(value, form)} {ends}"


def gap_cells(gaps: pd.DataFrame, where: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """Write for a table's row what sets it apart: a difference and Holm's p for each score; blank and nan without.

    Args:
        gaps: with p_holm, indexed by what tells the rows apart and by score.
        where: of the row.
        names: of scores.
    """
    cells: dict[str, Any] = {}
    for score in names:
        place = (*where, score)
        row = gaps.loc[place] if place in gaps.index else None
        cells[f"difference of {score}"] = "" if row is None else written(row.value, row.low, row.high, "+")
        cells[f"p ({score}, Holm)"] = float("nan") if row is None else row.p_holm
    return cells


def written_gap(row: Any) -> str:
    """Write a difference with its interval and Holm's p, of a row with value, low, high and p_holm."""
    p = "< 0.0001" if row.p_holm < 1e-4 else number(row.p_holm, ".2g")
    return f"{written(row.value, row.low, row.high, '+')}, p {p}"


def number(value: float, form: str = ".3f") -> str:
    """Write a number; – stands for one that is not there, and what is rounded to nothing has no sign."""
    text = "–" if pd.isna(value) else f"{value:{form}}"
    return text if any(digit in text for digit in "123456789–") else text.lstrip("+-")


def final_scores(scores: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """Write the scores after the last step with their intervals, and *immediate* S beside them, a row a run."""
    rows = []
    for part, asked in _by_run(scores, prompts):
        found, moments = interval(asked), over_seeds(part, "moment")
        cells = {name: written(r.value, r.low, r.high) for name, r in found.iterrows()}
        sample = found.loc[sampled(found), SAMPLE].astype(int).to_dict()
        cells |= {"GE": moments.GE["final"]} if "GE" in part else {}
        immediate = {"immediate S": round(moments.S["immediate"], 3)}
        rows.append(_named(part, "method", "replay") | immediate | cells | sample)
    return pd.DataFrame(rows)


def differences(prompts: pd.DataFrame) -> pd.DataFrame:
    """Subtract from the final scores of each run those of the first run of its method, paired by fact.

    Returns columns score, value, low, high, p, n, seeds, clusters, method, run, run_id and p_holm, adjusted over all
    comparisons of a score in the table; four rows a run, the first ones left out.
    """
    tables = []
    for _, rows in prompts.groupby("method", sort=False):
        (reference,), *others = _by_run(rows)
        for (part,) in others:
            tables.append(_less(part, reference))
    return adjusted(pd.concat(tables, ignore_index=True))


def losses(prompts: pd.DataFrame) -> pd.DataFrame:
    """Subtract from the final scores of each run those right after each edit's own step, paired by fact.

    Returns the columns of :func:`differences`; four rows a run.
    """
    tables = []
    for (part,) in _by_run(prompts):
        at_first = part[part.moment == "immediate"].assign(moment="final")
        tables.append(_less(part, at_first))
    return adjusted(pd.concat(tables, ignore_index=True))


def _less(part: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Subtract the final scores of a reference from those of a run, which the rows name."""
    return paired_difference(part, reference).reset_index().assign(**_named(part, "method", "run"))


def ablation(scores: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """Put beside the final rows of every run what :func:`differences` says of it, a column a score and bound."""
    wide = gaps.pivot(index="run_id", columns="score", values=["value", "low", "high", "p_holm"])
    wide.columns = [f"{score} {part}" for part, score in wide.columns]
    return scores[scores.moment == "final"].merge(wide, on="run_id", how="left")


def wear(scores: pd.DataFrame, steps: pd.DataFrame, retention: pd.DataFrame) -> pd.DataFrame:
    """Say what each run did to earlier edits (half-life) and to the model (drift, growth, collapse).

    Of each kind of text: perplexity as a multiple of the untouched model's (×), and KL from that model in nats.
    """
    rows = []
    for part, made, kept in _by_run(scores, steps, retention):
        moments, last = part.groupby("moment").ES.mean(), _last(made)
        rows.append(
            _named(part, "method", "replay")
            | {
                "final ES": moments["final"],
                "half-life": half_life(forgetting_curve(kept), moments["pre"]),
                **{f"{kind} ×": _times(last, kind) for kind in KINDS},
                **{f"{kind} KL": last[f"kl_{kind}"].mean() for kind in KINDS},
                "growth": last.growth.mean(),
                "collapse": collapse_step(made),
            }
        )
    return pd.DataFrame(rows)


def cost(scores: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Say what each run's memory used at the last step, what it left undone, and what it took."""
    rows = []
    for part, made in _by_run(scores, steps):
        last = _last(made).mean(numeric_only=True)
        rows.append(
            _named(part, "run")
            | {
                "final S": over_seeds(part, "moment").S["final"],
                "edits used": last.replayed,
                "left undone": last.old_residual,
                "MB": last.memory_mb,
                "condition before, after": f"{last.condition_before:.1e}, {last.condition:.1e}",
                "seconds": (made.seconds_keys + made.seconds_solve).sum(),
            }
        )
    return pd.DataFrame(rows)


def sizes(scores: pd.DataFrame) -> pd.DataFrame:
    """Pool *immediate* S and the final scores over seeds, a row a run with the edits of its steps."""
    rows = []
    for (part,) in _by_run(scores):
        moments = over_seeds(part, "moment")
        where = _named(part) | {"edits a step": part.batch_size.iloc[0], "replay": part.replay.iloc[0]}
        where |= {"immediate S": moments.S["immediate"]}
        where |= {f"final {name}": moments[name]["final"] for name in scores_of(part)}
        rows.append(where | {"n": part.n_facts.iloc[0] * part.seed.nunique(), "seeds": part.seed.nunique()})
    return pd.DataFrame(rows)


def spectrum_table(spectra: Mapping[int, Sequence[float]]) -> pd.DataFrame:
    """Put the eigenvalues of each layer's second moment into rows, the largest (rank 1) first."""
    parts = [
        pd.DataFrame({"layer": layer, "rank": range(1, len(values) + 1), "eigenvalue": sorted(values, reverse=True)})
        for layer, values in spectra.items()
    ]
    return pd.concat(parts, ignore_index=True)


def retention_matrix(retention: pd.DataFrame, score: str = "ES") -> pd.DataFrame:
    """Lay out a score of the edits of step i (rows) as measured at step j (columns); nan before they were made.

    Steps at which only their own edits were measured are left out.
    """
    measured = retention.measured_at[retention.edited_at == retention.edited_at.min()].unique()
    matrix = retention.groupby(["edited_at", "measured_at"])[score].mean().unstack()  # of no such prompts: nan
    return matrix.loc[:, matrix.columns.isin(measured)]


def forgetting_curve(retention: pd.DataFrame, score: str = "ES") -> pd.Series:
    """Average a score of edits by their age in steps; age 0 is right after they were made."""
    age = (retention.measured_at - retention.edited_at).rename("age")
    return retention.groupby(age)[score].mean()


def forgetting_curves(retention: pd.DataFrame, score: str = "ES") -> pd.DataFrame:
    """Put the forgetting curves of several runs beside one another, a column a run under its label."""
    return pd.DataFrame({part.run.iloc[0]: forgetting_curve(part, score) for (part,) in _by_run(retention)})


def half_life(curve: pd.Series, before: float) -> float:
    """Find the first age at which half of what edits gained over ``before`` (no edit) is lost; nan if never seen."""
    lost = curve.index[curve - before <= (curve.loc[0] - before) / 2]
    return float(lost[0]) if len(lost) else float("nan")


def collapse_step(steps: pd.DataFrame) -> float:
    """Find the first measured step with a perplexity over ``COLLAPSE`` times the untouched model's; nan if none.

    The kinds of text that edits can reach count, whichever comes first: more of C's own is what C protects.
    """
    measured = steps[steps.measured]
    gone = pd.Series(False, index=measured.index)
    for kind in REACHABLE:
        before, now = measured[f"perplexity_before_{kind}"], measured[f"perplexity_{kind}"]
        gone |= before.notna() & ~(now <= COLLAPSE * before)
    return float(measured.step[gone].min())


def layer_statistics(frame: pd.DataFrame) -> pd.DataFrame:
    """Average recovered probability (value) with its 95 % t interval (low, high) and n, a kind × layer a row.

    Args:
        frame: columns kind, layer, recovered; a row for each input that was traced.
    """
    rows = [
        (kind, layer, *mean_interval(values), len(values))
        for (kind, layer), values in frame.groupby(["kind", "layer"], sort=False).recovered
    ]
    return pd.DataFrame(rows, columns=["kind", "layer", "value", "low", "high", "n"])


def rank_layers(statistics: pd.DataFrame, n: int, kind: str = "mlp") -> list[int]:
    """List the ``n`` layers that recover most, in ascending order; of equal ones the lower.

    Raises ``ValueError`` for a kind that was not traced and more layers than there are.
    """
    rows = statistics[statistics.kind == kind]
    if not 1 <= n <= len(rows):
        raise ValueError(f"n = {n}, kind = {kind!r}: {len(rows)} layers of that kind were traced")
    return sorted(rows.sort_values(["value", "layer"], ascending=[False, True]).layer[:n].tolist())


def _by_run(*frames: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, ...]]:
    """Yield, run by run in the order of the first frame, what belongs to it in each frame."""
    for run_id in frames[0].run_id.unique():
        yield tuple(frame[frame.run_id == run_id] for frame in frames)


def _named(rows: pd.DataFrame, *columns: str) -> dict[str, str]:
    """Read from a run's rows its id and what else does not differ in them."""
    return rows[["run_id", *columns]].iloc[0].to_dict()


def _times(steps: pd.DataFrame, kind: str) -> float:
    return (steps[f"perplexity_{kind}"] / steps[f"perplexity_before_{kind}"]).mean()


def _last(steps: pd.DataFrame) -> pd.DataFrame:
    return steps[steps.step == steps.step.max()]
