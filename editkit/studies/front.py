"""The first screen of a report: five sentences with the run's key numbers, each from one of its tables.

``tables`` holds tables of ``results/`` by name (``TABLES``), and of :mod:`editkit.studies.anatomy` ``anatomy``,
``clean_gaps`` and ``broken_neighbours``. A sentence whose table is missing, or holds nothing to tell, is left out.
Verdicts come first; they are of paired comparisons with Holm's p where there are several.
"""

from collections.abc import Iterable, Mapping

import pandas as pd

from editkit.methods import METHODS, label
from editkit.plain import as_markdown
from editkit.studies.anatomy import BATCHES, CLEAN
from editkit.studies.intervals import RESOLVED, paired_difference

Tables = Mapping[str, pd.DataFrame]
TABLES = (
    *("baseline_prompts", "evaluation_prompts", "baseline_scores", "baseline_differences", "baseline_changes"),
    *("ladder", "sequence_configurations", "sequence_losses", "sequence_differences"),
    *("lora_ablation", "lora_removal", "evaluation_certainty"),
)
SEVERAL = 50  # below so many, a share is told as a count
COLUMNS = (  # what a table that is not here has
    *("part", "panel", "method", "reference", "score", "kind", "batch_size", "value", "low", "high", "p_holm"),
    *("run", "moment", "ES", "replay", "arrival", "configuration", "it is"),
)
KEPT = 0.95  # of the edits that hold at full rank, which a rank must keep


def abstract(tables: Tables) -> list[str]:
    """Tell in at most five sentences what the run found: written, said, broken, kept, and images repaired."""
    told = (clean_sentence(tables), said_sentence(tables), broken_sentence(tables))
    return [text for text in (*told, lasting_sentence(tables), images_sentence(tables)) if text]


def about(tables: Tables) -> str:
    """Say in one line what was measured, on what, and how small a difference in NS it can resolve."""
    found = [tables[name].iloc[0] for name in ("baseline_prompts", "evaluation_prompts") if filled(tables, name)]
    parts = [f"{as_markdown(found[0].model)} on {as_markdown(found[0].dataset)}"] if found else []
    if filled(tables, "anatomy"):
        parts.append(tables["anatomy"].panel.iloc[0])
    least = resolution(tables)
    parts += [f"**one comparison alone resolves differences of ≥ {least:.2f} in NS**"] if least == least else []
    return " · ".join(parts)


def resolution(tables: Tables, score: str = "NS") -> float:
    """Return the smallest difference in a score between editors at the largest batch that the run would resolve.

    That is the widest half of the paired 95% intervals, before Holm's correction; nan where there is no pair.
    """
    gaps = read(tables, "baseline_differences")
    rows = gaps[(gaps.score == score) & (gaps.batch_size == gaps.batch_size.max())]
    rows = rows[rows.method.isin(METHODS) & rows.reference.isin(METHODS)]
    return float(((rows.high - rows.low) / 2).max()) if len(rows) else float("nan")


def anatomy_title(tables: Tables) -> str:
    """Say what the anatomy comes to: whether an editor is cleaner, and how many edits are clean."""
    clean = editors(tables, "anatomy")
    if clean.empty:
        return "What became of each edit"
    least, most = clean.value.min(), clean.value.max()
    span = f"{most:.0%}" if least == most else f"{least:.0%} to {most:.0%}"
    return f"{clean_verdict(tables)}: {span} of edits are clean"


def clean_verdict(tables: Tables) -> str:
    """Say whether the editor with the most clean edits has more than the one with the fewest, surely."""
    clean = editors(tables, "anatomy")
    if len(clean) < 2:
        return "Clean edits"
    best, worst = clean.loc[clean.value.idxmax()], clean.loc[clean.value.idxmin()]
    gap = clean_gap(tables)
    sure = gap is not None and gap.p_holm < RESOLVED
    return f"{label(best.method)} is cleaner than {label(worst.method)}" if sure else "No editor is surely cleaner"


def clean_gap(tables: Tables) -> pd.Series | None:
    """Return the comparison of the editor with the most clean edits with that of the fewest, as first minus second."""
    clean, gaps = editors(tables, "anatomy"), read(tables, "clean_gaps")
    if len(clean) < 2:
        return None
    best, worst = clean.method[clean.value.idxmax()], clean.method[clean.value.idxmin()]
    gaps = gaps[gaps.part == clean.part.iloc[0]]
    rows = gaps[gaps.method.isin([best, worst]) & gaps.reference.isin([best, worst])]
    if rows.empty:
        return None
    return turned(rows.iloc[0], best)


def turned(gap: pd.Series, method: str) -> pd.Series:
    """Return a comparison of two methods as one method minus the other."""
    if gap.method == method:
        return gap
    turns = {"method": gap.reference, "reference": gap.method, "value": -gap.value, "low": -gap.high, "high": -gap.low}
    return pd.concat([gap.drop(list(turns)), pd.Series(turns)])


def clean_sentence(tables: Tables) -> str:
    """Compare the editors with the most and the fewest clean edits."""
    clean = editors(tables, "anatomy")
    if clean.empty:
        return ""
    best, worst = clean.loc[clean.value.idxmax()], clean.loc[clean.value.idxmin()]
    size = tables["anatomy"].panel.iloc[0].split(":")[0]
    others = f", {share(worst)} with {label(worst.method)}" if worst.value < best.value else ""
    return (
        f"**{clean_verdict(tables)}.** With {size}, {share(best)} hold, generalise and spare every neighbour with "
        f"{label(best.method)}{others}."
    )


def said_sentence(tables: Tables) -> str:
    """Compare how often the new object is preferred on paraphrases, and how often it is said."""
    found = said_gap(tables)
    if found is None:
        return ""
    verdict = "Preferred is not yet said" if found.high < 0 else "That less is said than preferred is not resolved"
    return (
        f"**{verdict}.** On {found.kind}s {label(found.method)} prefers the new object {times(found.preferred)} and "
        f"says it {times(found.said, bare=True)}: {points(found)}."
    )


def said_gap(tables: Tables) -> pd.Series | None:
    """Subtract what the editor that says most prefers on paraphrases (rewrites where there are none) from what it says.

    Returns value, low, high, p, method, kind, and counts ``preferred`` and ``said``, each with the number of prompts.
    """
    prompts = read(tables, "evaluation_prompts")
    prompts = prompts[prompts.method.isin(METHODS)]
    kind, score = ("paraphrase", "PS") if (prompts.kind == "paraphrase").any() else ("rewrite", "ES")
    asked = prompts[prompts.kind == kind]
    if asked.empty or "said" not in asked:
        return None
    best = asked.groupby("method", sort=False).said.mean().idxmax()
    ours, asked = (rows[rows.method == best].assign(moment="immediate") for rows in (prompts, asked))
    gap = paired_difference(ours.assign(success=ours.said.astype(float)), ours, "immediate").loc[score]
    counts = {name: (int(asked[rung].sum()), len(asked)) for name, rung in (("preferred", "success"), ("said", "said"))}
    return pd.concat([gap, pd.Series({"method": best, "kind": kind} | counts)])


def broken_sentence(tables: Tables) -> str:
    """Say how many right neighbours an edit breaks, with the gentlest and the roughest editor."""
    rows = editors(tables, "broken_neighbours")
    if rows.empty:
        return ""
    least, most = rows.loc[rows.value.idxmin()], rows.loc[rows.value.idxmax()]
    of = f"of its {least.watched / least.n:.1f} right neighbours"
    told = f"{amount(least)} {of} with {label(least.method)}"
    told += f", {amount(most)} with {label(most.method)}" if most.value > least.value else ""
    return f"**{loss_verdict(tables)}.** An edit breaks {told}."


def loss_verdict(tables: Tables) -> str:
    """Say with which editors NS at the largest batch is surely below that before any edit."""
    changes = read(tables, "baseline_changes")
    rows = changes[(changes.score == "NS") & (changes.reference == 0) & changes.method.isin(METHODS)]
    lost = rows[(rows.p_holm < RESOLVED) & (rows.value < 0)]
    if lost.empty:
        return "Neighbours show no resolved loss"
    names = "every editor" if len(lost) == len(rows) > 1 else listed(lost.method.map(label))
    return f"Neighbours are lost with {names}"


def lasting_sentence(tables: Tables) -> str:
    """Say how many edits of a sequence survive, and which rank of an adapter keeps as many as the full one."""
    row, rank = survivors(tables), enough_rank(tables)
    told = []
    if row is not None:
        told.append(f"{share(row, 'ES')} hold at the end with {label(row.method)}")
    if rank is not None:
        told.append(
            f"as adapter rank {rank.lora_rank} keeps {KEPT:.0%} of {rank.batch_size} edits"
            if rank.lora_rank
            else f"no rank keeps {KEPT:.0%} of {rank.batch_size} edits"
        )
    if not told:
        return ""
    head = f"**{lasting_verdict(tables)}.** One after another, " if row is not None else ""
    text = "; ".join(told)
    return f"{head}{text if head else text[:1].upper() + text[1:]}."


def survivors(tables: Tables) -> pd.Series | None:
    """Return the run in steps, without any memory, of which the fewest edits hold at the end; None without one."""
    runs = read(tables, "sequence_configurations").dropna(subset="ES")
    plain = runs.configuration == runs.method.map(label) + ", none"
    runs = runs[plain & (runs.arrival == "sequence")]
    runs = runs[runs.batch_size < runs.n / runs.seeds] if len(runs) else runs
    return runs.loc[runs.ES.idxmin()] if len(runs) else None


def lasting_verdict(tables: Tables) -> str:
    """Say whether fewer edits hold after the last step than right after their own."""
    row, losses = survivors(tables), read(tables, "sequence_losses")
    if row is None:
        return "Not measured"
    own = losses[(losses.run == row.configuration) & (losses.score == "ES")]
    if own.empty:
        return "Forgetting is not measured"
    if (change := own.iloc[0]).value >= 0:
        return "Nothing is forgotten"
    return "Old edits are lost" if change.p_holm < RESOLVED else "Forgetting is not resolved"


def enough_rank(tables: Tables) -> pd.Series | None:
    """Return the lowest rank at which some fit keeps ``KEPT`` of what the raw edit holds in one step; rank 0: none."""
    if not filled(tables, "lora_ablation"):
        return None
    table = tables["lora_ablation"]
    table = table[(table.replay == "none") & (table.batch_size == table.batch_size.max())]
    raw = table[table.lora_fit == "raw"].ES.mean()
    low = table[table.lora_fit != "raw"].groupby([table.lora_rank.astype(str), "lora_fit"]).ES.mean()
    if not len(low) or not raw > 0:
        return None
    ranks = [int(rank) for (rank, _), value in low.items() if value >= KEPT * raw]
    return pd.Series({"lora_rank": min(ranks, default=0), "batch_size": int(table.batch_size.iloc[0])})


def images_sentence(tables: Tables) -> str:
    """Say how many images the best editor fixes, keeps, and wins on held-out ones."""
    row = best_repair(tables)
    if row is None:
        return ""
    net = int(row.test_fixed - row.test_broken)
    verdict = "Image repairs show no resolved gain"
    if row.p_holm < RESOLVED and net:
        verdict = f"Image repairs are a net {'gain' if net > 0 else 'loss'}"
    fixed, kept = (share(row.rename({f"{name}_n": "n"}), name) for name in ("fixed", "test_kept"))
    return (
        f"**{verdict}.** {label(row.method)} fixes {fixed} and keeps {kept}; {row.test_fixed:.0f} of "
        f"{row.test_images:.0f} held-out images turn right, {row.test_broken:.0f} wrong."
    )


def best_repair(tables: Tables) -> pd.Series | None:
    """Return the editor whose repairs win most held-out images, net of those they break; None where there is none."""
    rows = read(tables, "evaluation_certainty")
    rows = rows[rows.method.isin(METHODS)]
    return rows.loc[(rows.test_fixed - rows.test_broken).idxmax()] if len(rows) else None


def editors(tables: Tables, name: str) -> pd.DataFrame:
    """Select the editors' rows of a table of the anatomy, of the largest batch, else of the evaluation; clean ones."""
    table = read(tables, name)
    if table.empty:
        return table
    part = BATCHES if (table.part == BATCHES).any() else table.part.iloc[0]
    rows = clean_of(tables) if name == "anatomy" else table
    return rows[(rows.part == part) & rows.method.isin(METHODS)]


def clean_of(tables: Tables) -> pd.DataFrame:
    """Select from the anatomy the shares of clean edits."""
    table = read(tables, "anatomy")
    return table[table["class"] == CLEAN] if len(table) else table


def read(tables: Tables, name: str) -> pd.DataFrame:
    """Return a table, or one without rows where it is not here."""
    return tables[name] if filled(tables, name) else pd.DataFrame(columns=COLUMNS)


def filled(tables: Tables, name: str) -> bool:
    """Tell whether a table is there and has rows."""
    return name in tables and len(tables[name]) > 0


def share(row: pd.Series, name: str = "value") -> str:
    """Write a share with its interval: in percent, or as a count where fewer than ``SEVERAL`` are behind it."""
    prefix = "" if name == "value" else f"{name}_"
    ends = f"[{100 * row[f'{prefix}low']:.0f}–{row[f'{prefix}high']:.0%}]"
    n = int(row.n)
    head = f"{row[name]:.0%}" if n >= SEVERAL else f"{row[name] * n:.0f} of {n}"
    return f"{head} {ends}" if pd.notna(row[f"{prefix}low"]) else head


def times(counted: tuple[int, int], *, bare: bool = False) -> str:
    """Write how many times of how many, in percent where there are many; ``bare`` leaves the second number out."""
    count, n = counted
    return f"{count / n:.0%}" if n >= SEVERAL else f"{count}" if bare else f"{count} of {n} times"


def amount(row: pd.Series) -> str:
    """Write a mean number with its interval."""
    ends = f" [{row.low:.2f}–{row.high:.2f}]" if pd.notna(row.low) else ""
    return f"{row.value:.2f}{ends}"


def points(gap: pd.Series) -> str:
    """Write a difference of shares with its interval, in percentage points."""
    value, low, high = (signed(100 * gap[name]) for name in ("value", "low", "high"))
    return f"{value} points [{low}, {high}]"


def signed(value: float) -> str:
    """Write a whole number with its sign, of which nothing has none."""
    rounded = round(value)
    return f"{rounded:+d}".replace("-", "−") if rounded else "0"


def listed(names: Iterable[str]) -> str:
    """List names with commas and "and"."""
    *first, last = names
    return " and ".join(filter(None, [", ".join(first), last]))
