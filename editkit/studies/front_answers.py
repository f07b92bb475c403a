"""The first screen of a report, below its abstract: five answers, three findings, and what to do in six situations.

Every line leads to the section that it rests on, as a link to a chapter's heading; ``tables`` are those of
:mod:`editkit.studies.front`. A line whose table is missing is left out.
"""

import pandas as pd

from editkit.methods import METHODS, UNTOUCHED, label
from editkit.plain import as_markdown
from editkit.studies.anatomy import EVALUATION
from editkit.studies.front import (
    Tables,
    best_repair,
    clean_of,
    editors,
    enough_rank,
    lasting_verdict,
    listed,
    loss_verdict,
    points,
    read,
    said_gap,
    share,
    signed,
    survivors,
    times,
    turned,
)
from editkit.studies.intervals import RESOLVED

SECTIONS = {  # what a line rests on: chapter and heading
    "scores": ("01_baselines", "Scores"),
    "pairs": ("01_baselines", "Which method?"),
    "said": ("01_baselines", "From success to free speech"),
    "budget": ("01_baselines", "A budget instead of λ"),
    "last": ("02_replay", "What is left at the end"),
    "memory": ("02_replay", "Which replay?"),
    "ranks": ("03_lora", "Scores against the rank"),
    "removal": ("03_lora", "Three batches, three adapters"),
    "repair": ("04_vit_alphaedit", "A repair"),
}
FINDINGS = 3


def link(section: str, text: str) -> str:
    """Write a link to a section, by Jupyter's own anchor: the heading with dashes for blanks."""
    chapter, heading = SECTIONS[section]
    return f"[{text}]({chapter}.ipynb#{heading.replace(' ', '-')})"


def below_abstract(tables: Tables) -> str:
    """Put answers, findings and advice under one another, as Markdown: a list, a numbered list, and a quoted box."""
    numbered = [f"{place}. {text}" for place, text in enumerate(findings(tables), start=1)]
    box = [f"> - {text}" for text in advice(tables)]
    blocks = (
        ("**Five questions**", [f"- {text}" for text in answers(tables)]),
        ("**Findings**", numbered),
        ("> **Should I edit?**\n>", box),
    )
    return "\n\n".join("\n".join([head, *([""] * (head[0] != ">")), *lines]) for head, lines in blocks if lines)


def answers(tables: Tables) -> list[str]:
    """Answer in a line each: does it write, does it generalise, what breaks, does it last, can it be taken back?"""
    told = {
        "Does it write?": (_writes(tables), "scores"),
        "Does it generalise?": (_generalises(tables), "said"),
        "What breaks?": (_breaks(tables), "pairs"),
        "Does it last?": (_lasts(tables), "last"),
        "Can it be taken back?": (_taken_back(tables), "removal"),
    }
    return [f"**{asked}** {text} ({link(where, 'evidence')})" for asked, (text, where) in told.items() if text]


def _writes(tables: Tables) -> str:
    rows = _at_most(tables, "ES")
    return f"{_span(rows)} of the prompts prefer the new object right after the edit." if len(rows) else ""


def _generalises(tables: Tables) -> str:
    rows, said = _at_most(tables, "PS"), said_gap(tables)
    told = f"{_span(rows)} of the paraphrases prefer it" if len(rows) else ""
    if said is None:
        return told and f"{told}."
    speech = f"asked to speak, {label(said.method)} says it {times(said.said)}"
    return f"{told}; {speech}." if told else f"{speech[:1].upper()}{speech[1:]}."


def _breaks(tables: Tables) -> str:
    rows = editors(tables, "broken_neighbours")
    if rows.empty:
        return ""
    broken, watched = rows.broken.sum(), rows.watched.sum()
    return f"Of neighbours that were right {broken / watched:.0%} turn wrong, over all editors. {loss_verdict(tables)}."


def _lasts(tables: Tables) -> str:
    row = survivors(tables)
    if row is None:
        return ""
    steps = row.n / row.seeds / row.batch_size
    told = f"{lasting_verdict(tables)} in {steps:.0f} steps of {row.batch_size:.0f}"
    return f"{told}: {share(row, 'ES')} hold at the end."


def _taken_back(tables: Tables) -> str:
    table = read(tables, "lora_removal")
    off = table[table["it is"] == "off"]
    if off.empty:
        return ""
    own, same = off["its own ES"].max(), (off.value.abs() < 1e-9).sum()
    told = "none of its edits is left" if own == 0 else f"up to {own:.0%} of its edits are left"
    return (
        f"A batch that lies beside the weights can be switched off: {told}, and in {same} of {len(off)} cases the "
        "others score as if it had never been made."
    )


def findings(tables: Tables) -> list[str]:
    """State at most three findings, each from one paired comparison: supported, refuted, or not resolvable here."""
    told = [_beside_controls(tables), _many_at_once(tables), _remembered(tables), _repaired(tables)]
    return [text for text in told if text][:FINDINGS]


def _beside_controls(tables: Tables) -> str:
    """Compare the cleanest editor with the controls that hold the same facts."""
    gaps, clean = (rows[rows.part == EVALUATION] for rows in (read(tables, "clean_gaps"), clean_of(tables)))
    ours, others = clean[clean.method.isin(METHODS)], clean[~clean.method.isin(METHODS)]
    if ours.empty or others.empty:
        return ""
    best = ours.method[ours.value.idxmax()]
    against = [turned(row, best) for _, row in gaps.iterrows() if best in (row.method, row.reference)]
    against = [row for row in against if row.reference in set(others.method)]
    if not against:
        return ""
    over = sum(row.p_holm < RESOLVED and row.value > 0 for row in against)
    nearest = min(against, key=lambda row: row.value)
    return (
        f"**{label(best)} is surely cleaner than {over} of {len(against)} controls.** Clean edits against the nearest, "
        f"{label(nearest.reference)}: {_weighed(nearest)} ({link('said', 'evidence')})."
    )


def _many_at_once(tables: Tables) -> str:
    """Compare the largest batch with the smallest."""
    rows = read(tables, "baseline_changes")
    rows = rows[(rows.score == "S") & rows.method.isin(METHODS)].dropna(subset="value")
    rows = rows[rows.reference.astype(float) > 0]
    if rows.empty:
        return ""
    worst, lost = rows.loc[rows.value.idxmin()], rows[(rows.p_holm < RESOLVED) & (rows.value < 0)]
    verdict = (
        f"Many at once cost {listed(lost.method.map(label))}" if len(lost) else "No cost of many at once is resolved"
    )
    return (
        f"**{verdict}.** S of the largest batch against {worst.reference:.0f} at once falls most with "
        f"{label(worst.method)}: {_weighed(worst)} ({link('pairs', 'evidence')})."
    )


def _remembered(tables: Tables) -> str:
    rows = read(tables, "sequence_differences")
    rows = rows[rows.score == "S"].dropna(subset="value")
    if rows.empty:
        return ""
    best = rows.loc[rows.value.idxmax()]
    sure = ((rows.p_holm < RESOLVED) & (rows.value > 0)).sum()
    verdict = (
        f"{sure} of {len(rows)} memories and restraints help" if sure else "No memory or restraint is resolved to help"
    )
    return (
        f"**{verdict}.** The most favourable, {as_markdown(best.run)}, changes final S by {_weighed(best)} "
        f"({link('memory', 'evidence')})."
    )


def _repaired(tables: Tables) -> str:
    row = best_repair(tables)
    if row is None:
        return ""
    sure = row.p_holm < RESOLVED and row.test_fixed > row.test_broken
    return (
        f"**{'Repairs teach' if sure else 'No net gain of repairs is sure'}.** {label(row.method)} turns "
        f"{row.test_fixed:.0f} held-out images right and {row.test_broken:.0f} wrong ({link('repair', 'evidence')})."
    )


def advice(tables: Tables) -> list[str]:
    """Say to those who wonder whether to edit what to expect in six situations, by the run's numbers."""
    told = [_one_fact(tables), _many_facts(tables), _must_say(tables), _stream(tables), _undo(tables), _image(tables)]
    return [text for text in told if text]


def _one_fact(tables: Tables) -> str:
    scores = read(tables, "baseline_scores").dropna(subset="value")
    wide = scores.pivot(index=["method", "batch_size"], columns="score", values="value")
    ours = wide[wide.index.get_level_values("method").isin(METHODS)]
    if ours.empty or not {"S", "PS", "NS"} <= {*wide}:
        return ""
    few = ours[ours.index.get_level_values("batch_size") == ours.index.get_level_values("batch_size").min()]
    best, before = few.loc[few.S.idxmax()], wide.loc[(UNTOUCHED, 0)]
    return (
        f"**A single fact is wrong**: with {best.name[1]} at once {label(best.name[0])} carries it over to "
        f"{best.PS:.0%} of paraphrases and leaves {best.NS:.0%} of neighbours right ({before.NS:.0%} before; "
        f"{link('scores', 'evidence')})."
    )


def _many_facts(tables: Tables) -> str:
    rows = editors(tables, "anatomy")
    if rows.empty:
        return ""
    best = rows.loc[rows.value.idxmax()]
    return (
        f"**Many facts at once**: with {best.panel.split(':')[0]} expect {share(best)} clean ones from "
        f"{label(best.method)}; look the others' neighbours over ({link('pairs', 'evidence')}, figure 1)."
    )


def _must_say(tables: Tables) -> str:
    gap = said_gap(tables)
    if gap is None:
        return ""
    prompts = tables["evaluation_prompts"]
    shown = prompts[(prompts.method == "incontext_oracle") & (prompts.kind == gap.kind)]
    beside = f", with the fact in its prompt {times((int(shown.said.sum()), len(shown)))}" if len(shown) else ""
    return (
        f"**It must say it, in any words**: do not trust preference; {label(gap.method)} says it {times(gap.said)}"
        f"{beside} ({link('said', 'evidence')})."
    )


def _stream(tables: Tables) -> str:
    row = survivors(tables)
    if row is None:
        return ""
    return (
        f"**Edits keep coming**: {share(row, 'ES')} survive {row.n / row.seeds:.0f} edits in steps of "
        f"{row.batch_size:.0f} without memory; beyond that measure your own ({link('last', 'evidence')})."
    )


def _undo(tables: Tables) -> str:
    rank = enough_rank(tables)
    if rank is None:
        return ""
    told = f"at rank {rank.lora_rank} or more" if rank.lora_rank else "at full rank, as no lower one held"
    return (
        f"**It must be undone**: edit as an adapter, {told} for {rank.batch_size} edits ({link('ranks', 'evidence')})."
    )


def _image(tables: Tables) -> str:
    row = best_repair(tables)
    if row is None:
        return ""
    net = int(row.test_fixed - row.test_broken)
    told = f"{label(row.method)} nets {signed(net)} of {row.test_images:.0f} held-out images"
    sure = "resolved" if row.p_holm < RESOLVED else "not resolved"
    return f"**A classifier errs on images**: {told}, {sure}; compare fine-tuning ({link('repair', 'evidence')})."


def _at_most(tables: Tables, score: str) -> pd.DataFrame:
    """Select the editors' rows of a score at the largest batch."""
    scores = read(tables, "baseline_scores")
    rows = scores[scores.method.isin(METHODS) & (scores.score == score)].dropna(subset="value")
    return rows[rows.batch_size == rows.batch_size.max()]


def _span(rows: pd.DataFrame) -> str:
    """Write the lowest and the highest share, each with its interval and editor."""
    low, high = rows.loc[rows.value.idxmin()], rows.loc[rows.value.idxmax()]
    if low.value == high.value:
        return share(high)
    return f"{share(low)} ({label(low.method)}) to {share(high)} ({label(high.method)})"


def _weighed(gap: pd.Series) -> str:
    """Write a difference, and where it is not resolved Holm's p and how little it could have been to be seen here."""
    told, half = points(gap), (gap.high - gap.low) * 50
    unseen = f"not resolved: p {gap.p_holm:.2f}, and less than {half:.0f} points cannot be seen here"
    return told if gap.p_holm < RESOLVED else f"{told}, {unseen}"
