"""What closed forms and fine-tuning come to at equal cost, in tables and sentences.

*Equal seconds*: fine-tuning at the best of the budgets that took no longer than the editor, best by S on the facts for
tuning. *Equal KL*: each prompt's score is interpolated between the two budgets whose KL lies on either side of the
editor's, linearly in log KL. Nothing is extrapolated: where no budget is as cheap, or the curve does not reach the
editor's KL, there is no comparison. Differences are the editor's score less fine-tuning's, paired by fact.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from editkit.methods import UNTOUCHED, label
from editkit.studies.controls import TRAINERS
from editkit.studies.equal_cost import MEASURED, Found
from editkit.studies.findings import protocol
from editkit.studies.intervals import RESOLVED, score_differences, score_intervals
from editkit.studies.tables import SAMPLE, adjusted, number, shown, written, written_gap

SHOWN = ("S", "ES", "EA", "PS", "NS")
EQUALLY = {"seconds": "seconds", "kl": "KL"}
GAPS = ["equal", "method", "targets", "control", "against", "seconds", "tuned_seconds", "kl", "tuned_kl", "perplexity"]
GAPS += ["tuned_perplexity", "score", "value", "low", "high", "p", *SAMPLE]
Shares = Mapping[str, float]  # of variants, which add up to 1
NONE: Shares = {}


def points(found: Found) -> pd.DataFrame:
    """Score every editor and every budget with 95 % intervals, and say what each took.

    Returns columns method, variant, seconds, forward, backward, kl, perplexity (means over seeds), score (ES, PS, NS,
    S, EA), value, low, high, n, seeds, clusters, a row a score.
    """
    tables = []
    for (method, variant), rows in found.scores.groupby(["method", "variant"], sort=False):
        part = _of(found.prompts, method, variant)
        table = score_intervals(part)
        tables.append(table.assign(method=method, variant=variant, **rows[[*MEASURED]].mean()))
    columns = ["method", "variant", *MEASURED, "score", "value", "low", "high", *SAMPLE]
    return pd.concat(tables, ignore_index=True)[columns]


def within_seconds(curve: pd.DataFrame, editor: pd.Series) -> Shares:
    """Choose the budget of a curve that is best on facts for tuning of those that took no longer than the editor."""
    cheap = curve[curve.seconds <= editor.seconds]
    return {str(cheap.variant[cheap.tuned_S.idxmax()]): 1.0} if len(cheap) else NONE


def at_kl(curve: pd.DataFrame, editor: pd.Series) -> Shares:
    """Weigh the two budgets whose KL lies on either side of the editor's, linearly in log KL."""
    curve = curve[curve.kl > 0].sort_values("kl")
    below, above = curve[curve.kl <= editor.kl], curve[curve.kl >= editor.kl]
    if below.empty or above.empty or not editor.kl > 0:
        return NONE
    first, last = below.iloc[-1], above.iloc[0]
    if first.kl == last.kl:
        return {str(first.variant): 1.0}
    share = math.log(editor.kl / first.kl) / math.log(last.kl / first.kl)
    return {str(first.variant): 1 - share, str(last.variant): share}


EQUAL: dict[str, Callable[[pd.DataFrame, pd.Series], Shares]] = {"seconds": within_seconds, "kl": at_kl}


def comparisons(found: Found) -> pd.DataFrame:
    """Subtract fine-tuning's scores from each editor's, at equal seconds and at equal KL, paired by fact.

    Returns columns equal (seconds or kl), method, targets, control, against (the budgets), seconds, kl, perplexity and
    the same of fine-tuning (``tuned_…``), score, value, low, high, p, n, seeds, clusters and p_holm, over all
    comparisons of a score. Where there is nothing to compare with there is one row, without a score.
    """
    tuned = found.scores.method.isin(TRAINERS)
    editors = found.scores[~tuned & (found.scores.method != UNTOUCHED)]
    tables = []
    for (method, mode), own in editors.groupby(["method", "variant"], sort=False):
        for control, curves in found.scores[tuned].groupby("method", sort=False):
            for equal, match in EQUAL.items():
                shares = {row.seed: match(curves[curves.seed == row.seed], row) for _, row in own.iterrows()}
                about = {"equal": equal, "method": method, "targets": mode, "control": control}
                about |= {name: own[name].mean() for name in ("seconds", "kl", "perplexity")}
                if all(shares.values()):
                    gap = score_differences(_of(found.prompts, method, mode), _mixed(found.prompts, control, shares))
                    tables.append(gap.assign(**about, **_cost(curves, shares)))
                else:
                    tables.append(pd.DataFrame([about | {"against": _missed(curves, equal)}]))
    return adjusted(pd.concat(tables, ignore_index=True).reindex(columns=GAPS))


def _of(prompts: pd.DataFrame, method: Any, variant: Any) -> pd.DataFrame:
    return prompts[(prompts.method == method) & (prompts.variant == variant)]


def _mixed(prompts: pd.DataFrame, control: Any, shares: Mapping[int, Shares]) -> pd.DataFrame:
    """Average what variants of a control score on each prompt, each seed's by its shares."""
    frames = []
    for seed, parts in shares.items():
        of = [(_of(prompts[prompts.seed == seed], control, name), share) for name, share in parts.items()]
        mean = {name: sum(share * part[name].to_numpy(float) for part, share in of) for name in ("success", "accuracy")}
        frames.append(of[0][0].assign(**mean))
    return pd.concat(frames, ignore_index=True)


def _cost(curves: pd.DataFrame, shares: Mapping[int, Shares]) -> dict[str, Any]:
    """Say which budgets these are, and what they took and did, a mean over seeds."""
    at = curves.set_index(["seed", "variant"])
    own = [
        {name: sum(share * at[name][seed, variant] for variant, share in parts.items()) for name in MEASURED}
        for seed, parts in shares.items()
    ]
    told = dict.fromkeys(" and ".join(parts) for parts in shares.values())
    means = pd.DataFrame(own)[["seconds", "kl", "perplexity"]].mean()
    return {"against": " or ".join(told), **means.add_prefix("tuned_")}


def _missed(curves: pd.DataFrame, equal: str) -> str:
    """Say how far a curve reaches that an editor is not compared with."""
    low, high = curves[equal].min(), curves[equal].max()
    if equal == "seconds":
        return f"none: the smallest budget takes {number(low, '.3g')} s"
    return f"none: its KL goes from {number(low, '.2g')} to {number(high, '.2g')}"


def told(gaps: pd.DataFrame) -> pd.DataFrame:
    """Write for a chapter what sets every editor apart from fine-tuning at equal cost, a row a comparison."""
    rows = []
    keys = ["equal", "method", "targets", "control"]
    for (equal, method, mode, control), part in gaps.groupby(keys, sort=False):
        own, by_score = part.iloc[0], part.set_index("score")
        row = {"equal": EQUALLY[equal], "method": method, "targets": mode, "control": label(control)}
        row |= {"against": own.against}
        for name in SHOWN:
            gap = by_score.loc[name] if name in by_score.index else own  # without any score
            row[name] = written(gap.value, gap.low, gap.high, "+")
        row |= {"p (S, Holm)": by_score.p_holm.get("S")}
        for name, form in (("seconds", ".0f"), ("kl", ".3f"), ("perplexity", ".1f")):
            row[EQUALLY.get(name, name)] = f"{number(own[name], form)}, {number(own[f'tuned_{name}'], form)}"
        rows.append(row)
    return shown(pd.DataFrame(rows).sort_values("equal", kind="stable"), "equal", "method", "targets", "control")


def findings(gaps: pd.DataFrame) -> list[str]:
    """Say whether closed forms score higher than fine-tuning at equal seconds, and at equal KL."""
    sentences = []
    for equal, name in EQUALLY.items():
        rows = gaps[gaps.equal == equal]
        made, missed = rows[rows.score == "S"], rows[rows.score.isna()]
        sure = made[made.p_holm < RESOLVED]
        higher, lower = (sure.value > 0).sum(), (sure.value < 0).sum()
        verdict = f"no difference of S is resolved in {len(made)} comparisons"
        if len(sure):
            ways = [f"{way} in {count}" for way, count in (("higher", higher), ("lower", lower)) if count]
            verdict = f"S of closed forms is {' and '.join(ways)} of {len(made)} comparisons, resolved"
        if made.empty:
            sentences.append(f"**At equal {name} nothing can be compared**: {_missing(missed)}.")
            continue
        listed = "; ".join(f"{_pair(r)} ({r.against}) {written_gap(r)}" for r in made.itertuples())
        rest = f" Not compared: {_missing(missed)}." if len(missed) else ""
        sentences.append(
            f"**At equal {name} {verdict}.** S of the editor less that of fine-tuning: {listed} "
            f"({protocol(made.iloc[0])}; p is Holm's).{rest}"
        )
    return sentences


def _pair(row: Any) -> str:
    return f"{label(row.method)}, {row.targets} targets, against {label(row.control)}"


def _missing(rows: pd.DataFrame) -> str:
    return "; ".join(f"{_pair(r)} ({r.against})" for r in rows.itertuples())
