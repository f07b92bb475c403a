"""In steps, or all at once? What many edits come to by the way in which they arrive, editors and controls alike."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from editkit.methods import METHODS, UNTOUCHED, label
from editkit.studies.findings import protocol
from editkit.studies.intervals import RESOLVED, score_differences, score_intervals
from editkit.studies.sequences import Trajectory
from editkit.studies.tables import SAMPLE, adjusted, gap_cells, shown, written, written_gap

TOLD = ("S", "EA")  # in sentences
SPOKEN = ("ESaid", "PSaid", "NSaid", "GE")  # where free texts were asked for
NAMED = ["method", "run", "batch_size", "steps"]
MEASURED = ("immediate_EA", *SPOKEN, "perplexity", "kl", "growth", "seconds", "peak_memory_mb")  # means over seeds


def ways(found: Trajectory) -> Iterator[tuple[dict[str, Any], Trajectory]]:
    """Yield method, run, size and number of steps of every way of arriving in a trajectory, and its own tables."""
    for run_id in found.scores.run_id.unique():
        own = Trajectory(*(table[table.run_id == run_id] for table in found))
        first = own.scores.iloc[0]
        yield {**first[["method", "run", "batch_size"]], "steps": int(own.steps.step.max())}, own


def points(found: Trajectory) -> pd.DataFrame:
    """Score every way after its last step with 95 % intervals, and say what it took; the untouched model comes first.

    Perplexity and KL are on other prose.

    Returns columns method, run, batch_size, steps, those of ``MEASURED`` (nan where something was not measured; peak
    memory is the highest of any seed), score (ES, PS, NS, S, EA), value, low, high, n, seeds and clusters, a row a
    score.
    """
    tables: list[pd.DataFrame] = []
    for about, own in ways(found):
        end, last = own.scores[own.scores.moment == "final"], own.steps[own.steps.step == about["steps"]]
        if not tables:
            before = own.scores[own.scores.moment == UNTOUCHED]
            nothing = {"method": UNTOUCHED, "run": label(UNTOUCHED), "batch_size": 0, "steps": 0}
            prose = {"perplexity": last.perplexity_before_prose.mean(), "kl": 0.0, "growth": 1.0}
            asked = own.prompts[own.prompts.moment == UNTOUCHED].assign(moment="final")
            tables.append(score_intervals(asked).assign(**nothing, **_spoken(before), **prose))
        cost = {"immediate_EA": own.scores.EA[own.scores.moment == "immediate"].mean(), "seconds": end.seconds.mean()}
        cost |= {"peak_memory_mb": end.peak_memory_mb.max(), "growth": last.growth.mean()}
        cost |= {"perplexity": last.perplexity_prose.mean(), "kl": last.kl_prose.mean()}
        tables.append(score_intervals(own.prompts).assign(**about, **_spoken(end), **cost))
    columns = [*NAMED, *MEASURED, "score", "value", "low", "high", *SAMPLE]
    return pd.concat(tables, ignore_index=True).reindex(columns=columns)


def _spoken(scores: pd.DataFrame) -> dict[str, float]:
    return {name: scores[name].mean() for name in SPOKEN if name in scores}


def differences(found: Trajectory) -> pd.DataFrame:
    """Subtract from the final scores of every method's steps those of its own one batch, paired by fact.

    Of a sweep that is not finished the seeds count that both have.

    Returns columns method, run, batch_size, steps, score (ES, PS, NS, S, EA), value, low, high, p, n, seeds, clusters
    and p_holm over all comparisons of a score; no rows where no method has both.
    """
    known = [(about, own.prompts) for about, own in ways(found)]
    whole = {about["method"]: prompts for about, prompts in known if about["steps"] == 1}
    tables = []
    for about, prompts in known:
        if about["steps"] > 1 and about["method"] in whole:
            other = whole[about["method"]]
            both = set(prompts.seed) & set(other.seed)
            pair = [frame[frame.seed.isin(both)] for frame in (prompts, other)]
            tables += [score_differences(*pair).assign(**about)] if both else []
    columns = [*NAMED, "score", "value", "low", "high", "p", *SAMPLE]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    return adjusted(table[columns])


def named(run: str, batch_size: int, steps: int) -> str:
    """Name a way of arriving for people."""
    return f"{run}, {_counted(steps, batch_size)}"


def told(made: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """Write for a chapter the scores of every way, and what sets steps apart from one batch.

    Args:
        made: of :func:`points`.
        gaps: of :func:`differences`.
    """
    apart = gaps.set_index(["run", "batch_size", "score"])
    rows = []
    for where, part in made.groupby(NAMED, sort=False):
        (_, run, size, _), own, first = where, part.set_index("score"), part.iloc[0]
        row = _placed(first) | {name: own.value[name] for name in ("ES", "EA", "PS", "NS")}
        row |= {"S": written(*own.loc["S", ["value", "low", "high"]])}
        rows.append(row | gap_cells(apart, (run, size), ["S"]) | own.loc["S", SAMPLE].astype(int).to_dict())
    return shown(pd.DataFrame(rows), "run", "edits")


def costs(made: pd.DataFrame) -> pd.DataFrame:
    """Write for a chapter what is said freely after every way, what it does to prose and weights, and what it takes.

    Args:
        made: of :func:`points`.
    """
    names = {name: name for name in SPOKEN if made[name].notna().any()}
    names |= {"perplexity": "perplexity", "kl": "KL", "growth": "‖W‖ ÷ before", "seconds": "seconds"}
    names |= {"peak_memory_mb": "MB"}
    firsts = (part.iloc[0] for _, part in made.groupby(NAMED, sort=False))
    rows = [_placed(first) | {shown_as: first[name] for name, shown_as in names.items()} for first in firsts]
    return shown(pd.DataFrame(rows), "run", "edits")


def _placed(row: pd.Series) -> dict[str, Any]:
    edits = _counted(row.steps, row.batch_size) if row.steps else "–"
    return {"run": row.run, "edits": edits.replace(" ", "\N{NO-BREAK SPACE}")}  # in one line of a narrow column


def _counted(steps: int, batch_size: int) -> str:
    return f"{steps:,} × {batch_size:,}"


def findings(made: pd.DataFrame, gaps: pd.DataFrame) -> list[str]:
    """Say what is left of edits after the last step, what steps change against one batch, and what prose is read at.

    Args:
        made: of :func:`points`.
        gaps: of :func:`differences`.
    """
    scores = made.pivot(index=NAMED, columns="score", values="value").reset_index()
    wide = made[[*NAMED, *MEASURED]].drop_duplicates().merge(scores, on=NAMED)
    before, ends = wide[wide.method == UNTOUCHED].iloc[0], wide[wide.method != UNTOUCHED]
    arrived, sentences = ends[ends.method.isin(METHODS) & (ends.steps > 1)], []
    if len(arrived):
        said = f", and free speech names it for {_between(arrived.ESaid)}" if arrived.ESaid.notna().all() else ""
        sentences.append(
            "**Success hides what steps lose.** Right after its own step every token of the new object is the first "
            f"choice for {_between(arrived.immediate_EA)} of an editor's edits. After the last step the new object "
            f"still wins over the old one for {_between(arrived.ES)}, but is the first choice for "
            f"{_between(arrived.EA)}{said} ({protocol(made.iloc[-1])})."
        )
    learned = ends[~ends.method.isin(METHODS) & (ends.steps > 1)]
    if len(arrived) and len(learned):
        kept = made[(made.score == "EA") & (made.steps > 1)].sort_values("value", ascending=False)
        each = "; ".join(f"{r.run} {written(r.value, r.low, r.high)}" for r in kept.itertuples())
        sentences.append(f"**First choice after the last step, controls beside editors**: {each}.")
    for score in TOLD if len(gaps) else ():
        own = gaps[gaps.score == score]
        sure = own.value[own.p_holm < RESOLVED]
        counts = {"higher": (sure > 0).sum(), "lower": (sure < 0).sum()}
        verdict = " and ".join(f"{what} in {number} of {len(own)}" for what, number in counts.items() if number)
        listed = "; ".join(f"{named(r.run, r.batch_size, r.steps)} {written_gap(r)}" for r in own.itertuples())
        verdict = f"{verdict}, resolved" if verdict else "no difference is resolved"
        sentences.append(f"**Steps less one batch, {score}: {verdict}.** {listed} (paired by fact; p is Holm's).")
    read = [f"{named(r.run, r.batch_size, r.steps)} {r.perplexity:,.0f}" for r in ends.itertuples()]
    sentences.append(f"**Perplexity of other prose**, {before.perplexity:,.0f} before any edit: {'; '.join(read)}.")
    return sentences


def _between(values: pd.Series) -> str:
    low, high = f"{values.min():.2f}", f"{values.max():.2f}"
    return low if low == high else f"{low} to {high}"
