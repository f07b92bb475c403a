"""What a run comes to: titles of the summary's figures, and a few sentences, each with a verdict and its chapter.

``final`` is the table of :func:`editkit.studies.summary.final_summary`. Verdicts are of paired comparisons where a
chapter made them (p by Holm); else two scores are told apart only where their intervals do not meet, which asks for
more.
"""

import pandas as pd

from editkit.methods import METHODS, UNTOUCHED, label
from editkit.studies import summary
from editkit.studies.intervals import RESOLVED
from editkit.studies.tables import number, written, written_gap

NAMED = 3  # configurations that a title has room for


def methods_title(final: pd.DataFrame, gaps: pd.DataFrame) -> str:
    """Say which method leads at the largest batch, or that none does.

    Args:
        gaps: of :func:`editkit.studies.baseline_tables.baseline_differences`.
    """
    edits, leader = _at_most(final), _leader(final, gaps)
    size = f"{edits.batch_size.max():.0f} edits at once"
    if leader:
        return f"{leader} leads at {size}: S {edits.S.max():.2f}"
    return f"No lead is resolved at {size}: S from {number(edits.S.min(), '.2f')} to {number(edits.S.max(), '.2f')}"


def sizes_title(changes: pd.DataFrame) -> str:
    """Say whose S changes from the smallest to the largest batch.

    Args:
        changes: of :func:`editkit.studies.baseline_tables.baseline_changes`.
    """
    rows = changes[(changes.reference > 0) & (changes.score == "S")]
    if rows.empty:
        return "S by the number of edits at once"
    sure = rows[rows.p_holm < RESOLVED]
    told = [
        f"{verb} for {_listed(part.method.map(label))}"
        for verb, part in (("falls", sure[sure.value < 0]), ("rises", sure[sure.value > 0]))
        if len(part)
    ]
    head = f"Against {rows.reference.iloc[0]:.0f} at once, S of the largest batch"
    return f"{head} {' and '.join(told)}" if told else f"{head} changes for no method that is resolved"


def costs_title(final: pd.DataFrame) -> str:
    """Name who edits fastest and slowest, of those whom it takes time."""
    rows = summary.controls(final)
    rows = rows[rows.seconds_an_edit > 0].sort_values("seconds_an_edit")
    fast, slow = rows.iloc[0], rows.iloc[-1]
    ends = [f"{row.seconds_an_edit:.2g} s ({label(row.method)})" for row in (fast, slow)]
    return f"An edit takes from {ends[0]} to {ends[1]}"


def front_title(final: pd.DataFrame) -> str:
    """Name the editors and controls on the front of what is learnt and kept."""
    rows = summary.keep_and_learn(final)
    names = rows[(rows.part == "evaluation") & rows.front].configuration
    return (
        f"On the front of editors and controls: {_listed(names)}" if len(names) else "Nothing was both learnt and kept"
    )


def summary_findings(
    final: pd.DataFrame, gaps: pd.DataFrame, changes: pd.DataFrame, compared: pd.DataFrame
) -> list[str]:
    """Answer five questions of the run: does an edit hold, is it said, what does it break, does it last, is it small?

    Args:
        gaps: of :func:`editkit.studies.baseline_tables.baseline_differences`.
        changes: of :func:`editkit.studies.baseline_tables.baseline_changes`.
        compared: ``results/sequence_differences.csv``: final S of every sequence minus that without replay.
    """
    told = [_held(final, gaps), _said(final), _broken(final, changes), _lasting(final, compared), _small(final)]
    return [sentence for sentence in told if sentence]


def _held(final: pd.DataFrame, gaps: pd.DataFrame) -> str:
    edits, leader = _at_most(final).sort_values("S"), _leader(final, gaps)
    if edits.S.isna().all():
        return ""
    best, worst, size = edits.dropna(subset="S").iloc[-1], edits.iloc[0], edits.batch_size.max()
    verdict = f"{leader} holds edits best" if leader else "Which editor holds edits best is not resolved here"
    return (
        f"**{verdict}.** Of {size:.0f} edits at once {label(best.method)} has S {_score(best)}, {label(worst.method)} "
        f"{_score(worst)}, ES {_score(best, 'ES')} and {_score(worst, 'ES')} ({_sample(best)}; "
        "[baselines](01_baselines.ipynb))."
    )


def _said(final: pd.DataFrame) -> str:
    rows = summary.controls(final)
    rows = rows[rows.method.isin(METHODS)].dropna(subset=["PS", "PSaid"])
    if rows.empty:
        return ""
    row = rows.loc[rows.PSaid.idxmax()]
    verdict = (
        "Preferred is not yet said" if row.PSaid_high < row.PS_low else "Whether the preferred is said is not resolved"
    )
    return (
        f"**{verdict}.** {label(row.method)}, which says the new object on most paraphrases, prefers it on "
        f"{_score(row, 'PS')} of them and says it on {_score(row, 'PSaid')} ({_sample(row)}; "
        "[baselines](01_baselines.ipynb))."
    )


def _broken(final: pd.DataFrame, changes: pd.DataFrame) -> str:
    rows = changes[(changes.reference == 0) & (changes.score == "NS")].dropna(subset="value")
    before = final[(final.part == "batches") & (final.method == UNTOUCHED)]
    if rows.empty or before.empty:
        return ""
    lost = rows[(rows.p_holm < RESOLVED) & (rows.value < 0)]
    verdict = "No damage to neighbours is resolved"
    if len(lost):
        verdict = f"Neighbours break with {_listed(lost.method.map(label))}"
    worst = rows.loc[rows.value.idxmin()]
    return (
        f"**{verdict}.** NS is {_score(before.iloc[0], 'NS')} before any edit; the largest batch changes it most with "
        f"{label(worst.method)}, by {written_gap(worst)}, over {len(rows)} methods ([baselines](01_baselines.ipynb))."
    )


def _lasting(final: pd.DataFrame, compared: pd.DataFrame) -> str:
    runs = summary.by_arrival(final)
    runs = runs[runs.replay == "none"].dropna(subset="S")
    if runs.empty or compared.empty:
        return ""
    best = compared.loc[compared.value.idxmax()]
    plain = runs[runs.method == best.method].iloc[0]
    sure = compared[(compared.p_holm < RESOLVED) & (compared.value > 0)]
    verdict = (
        f"{len(sure)} of {len(compared)} memories and restraints help"
        if len(sure)
        else (f"That any of {len(compared)} memories and restraints helps is not resolved")
    )
    return (
        f"**{verdict}.** One after another, {plain.batch_size:.0f} a step, {label(plain.method)} ends "
        f"at S {_score(plain)} without replay ({_sample(plain)}); the most is gained by {best.run}, "
        f"{written_gap(best)} ([replay](02_replay.ipynb))."
    )


def _small(final: pd.DataFrame) -> str:
    rows = final[(final.part == "sequences") & final.chapter.isin(final.chapter[final.arrival == summary.ADAPTERS])]
    rows = rows[(rows.batch_size == rows.batch_size.max()) & (rows.replay == "none")].dropna(subset="S")
    raw, low = rows[rows.arrival == summary.SEQUENCE], rows[rows.lora_fit.isin(["svd", "keys", "steps"])]
    if raw.empty or low.empty:
        return ""
    raw, least = raw.iloc[0], low[low.lora_rank == low.lora_rank.min()]
    row = least.loc[least.S.idxmax()]
    verdict = "A low rank costs" if row.S_high < raw.S_low else "What a low rank costs is not resolved"
    return (
        f"**{verdict}.** Of {raw.batch_size:.0f} edits in one step the best adapter of rank {row.lora_rank:.0f} "
        f"({row.lora_fit}) has S {_score(row)}, the raw edit {_score(raw)} ({_sample(raw)}; [adapters](03_lora.ipynb))."
    )


def _at_most(final: pd.DataFrame) -> pd.DataFrame:
    """Select the methods at the largest batch in the untouched model."""
    rows = summary.by_method(final)
    return rows[(rows.part == "batches") & (rows.method != UNTOUCHED)]


def _leader(final: pd.DataFrame, gaps: pd.DataFrame) -> str:
    """Name the method whose lead in S at the largest batch is resolved over every other; empty where there is none."""
    edits = _at_most(final).dropna(subset="S")
    here = gaps[(gaps.batch_size == edits.batch_size.max()) & (gaps.score == "S")]
    if edits.empty:
        return ""
    best = edits.loc[edits.S.idxmax(), "method"]
    over = (((here.method == best) | (here.reference == best)) & (here.p_holm < RESOLVED)).sum()
    return label(best) if over == len(edits) - 1 > 0 else ""


def _score(row: pd.Series, name: str = "S") -> str:
    return written(row[name], row[f"{name}_low"], row[f"{name}_high"], digits=2)


def _sample(row: pd.Series) -> str:
    return f"{row.n:.0f} facts of {row.seeds:.0f} seed{'s' * int(row.seeds > 1)}, {row.moment}"


def _listed(names: pd.Series) -> str:
    """List names, of many the first and the number of others."""
    names = list(names)
    if len(names) > NAMED:
        names = [*names[: NAMED - 1], f"{len(names) - NAMED + 1} others"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
