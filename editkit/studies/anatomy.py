"""The anatomy of an edit: what became of each edit, read off its prompts and those of the untouched model.

An edit *holds* where its rewrite prompt does, *generalises* where every paraphrase does too, and *breaks* a neighbour
that was right before any edit and is wrong after it. An edit counts where all three can be told: where its fact has a
paraphrase, and a neighbour that the untouched model has right. Right and wrong are those of one rung
(:mod:`editkit.language.metrics`).
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pandas as pd

from editkit.methods import UNTOUCHED, label
from editkit.studies.intervals import clustered_mean_interval, clusters, interval, paired_difference, proportion
from editkit.studies.tables import SAMPLE, adjusted, written

CLEAN, SPILLS, NARROW, BOTH, LOST = "clean", "spills", "narrow", "both", "does not hold"
CLASSES = {
    CLEAN: "holds and generalises, breaks no neighbour",
    SPILLS: "holds and generalises, breaks a neighbour",
    NARROW: "holds, but not on every paraphrase",
    BOTH: "not on every paraphrase, and breaks a neighbour",
    LOST: "the prompt itself does not give the new object",
}
BATCHES, EVALUATION = "batches", "evaluation"  # parts of a run, as its summary names them
FACT = ["seed", "fact"]
ORIGIN = ["relation", "protocol", "facts", "moment", "batch"]  # what an interval asks for, where it is there
MOMENT = "immediate"  # of the rows that intervals are asked for; an edit is classified once
COUNTS = ["paraphrases", "missed", "watched", "broken"]


def classified(prompts: pd.DataFrame, rung: str = "success") -> pd.DataFrame:
    """Put every edit into its class.

    Args:
        prompts: of :func:`editkit.studies.runs.run_baselines` or of an evaluation, the untouched model's among them.
        rung: column of right and wrong.

    Returns a row a method, batch size, seed and fact: ``class``, of ``CLASSES`` (missing where it cannot be told), the
    numbers of ``paraphrases``, of those ``missed``, of neighbours ``watched`` (right before) and ``broken``, and
    ``broke``, the prompts of these, a line each. Raises ``ValueError`` where a prompt was not asked before any edit.
    """
    untouched = prompts.method == UNTOUCHED
    keys = [*FACT, "kind", "prompt"]
    before = prompts[untouched].drop_duplicates(keys).set_index(keys)[rung].rename("before").astype(bool)
    asked = prompts[~untouched].join(before, on=keys)
    if (unknown := asked[asked.before.isna()]).size:
        raise ValueError(f"{unknown.prompt.iloc[0]!r}: the untouched model was not asked this, so nothing can break")
    right, kind = asked[rung].astype(bool), asked.kind
    lost = (kind == "neighbourhood") & asked.before.astype(bool) & ~right
    by = ["method", *(["batch_size"] if "batch_size" in asked else []), *FACT]
    told = asked.assign(
        holds=right | (kind != "rewrite"),
        paraphrases=kind == "paraphrase",
        missed=(kind == "paraphrase") & ~right,
        watched=(kind == "neighbourhood") & asked.before.astype(bool),
        broken=lost,
        broke=asked.prompt.where(lost),
    )
    groups = told.groupby(by, sort=False)
    origin = [name for name in ORIGIN if name in told]
    edits = groups[origin].first().join(groups[COUNTS].sum()).join(groups.holds.all())
    edits = edits.join(groups.broke.agg(lambda texts: "\n".join(texts.dropna()))).reset_index()
    return edits.assign(**{"class": _classes(edits)}).drop(columns="holds")


def of_run(baselines: pd.DataFrame, evaluated: pd.DataFrame, rung: str = "success") -> pd.DataFrame:
    """Classify what a run edited: batches of the largest size, and the facts that editors and controls hold at once.

    Args:
        baselines: prompts of :func:`editkit.studies.runs.run_baselines`; may be empty.
        evaluated: prompts of an :class:`editkit.studies.evaluation.Evaluation`; may be empty.

    Returns :func:`classified` of both, with ``part``, ``batch_size`` and ``panel``, which says how many facts of how
    many seeds there are.
    """
    found = []
    if len(baselines):
        sizes = [0, baselines.batch_size.max()]
        edits = classified(baselines[baselines.batch_size.isin(sizes)], rung).assign(part=BATCHES)
        found.append(edits.assign(panel=f"{sizes[1]} edits at once: {_sample(edits)}"))
    if len(evaluated):
        edits = classified(evaluated, rung).assign(part=EVALUATION)
        size = int(edits.groupby("seed").fact.nunique().max())
        told = f"editors and controls, {size} at once: {_sample(edits)}"
        found.append(edits.assign(panel=told, batch_size=size))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["part", "panel", "method"])


def anatomy_shown(table: pd.DataFrame, broken: pd.DataFrame) -> pd.DataFrame:
    """Write :func:`anatomy` and :func:`broken_neighbours` of every panel for a chapter, a row a panel and method."""
    keys = ["panel", "method"]
    wide = table.pivot(index=keys, columns="class", values="count").reindex(columns=list(CLASSES))
    clean = table[table["class"] == CLEAN].set_index(keys)
    wide["clean, share"] = pd.Series({at: written(r.value, r.low, r.high, digits=2) for at, r in clean.iterrows()})
    each = broken.set_index(keys)
    per_edit = {at: written(r.value, r.low, r.high, digits=2) for at, r in each.iterrows()}
    wide["neighbours broken an edit"] = pd.Series(per_edit)
    return wide.join(clean[SAMPLE]).loc[list(clean.index)].rename(index=label, level="method")


def by_panel(measure: Callable[[pd.DataFrame], pd.DataFrame], edits: pd.DataFrame) -> pd.DataFrame:
    """Measure the edits of each panel of :func:`of_run` by themselves; the columns part and panel come first."""
    found = []
    for (part, panel), rows in edits.groupby(["part", "panel"], sort=False):
        measured = measure(rows)
        measured.insert(0, "panel", panel)
        measured.insert(0, "part", part)
        found.append(measured)
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["part", "panel", "method"])


def _sample(edits: pd.DataFrame) -> str:
    facts, seeds = len(edits[FACT].drop_duplicates()), edits.seed.nunique()
    return f"{facts} fact{'s' * (facts != 1)} of {seeds} seed{'s' * (seeds != 1)}"


def _classes(edits: pd.DataFrame) -> pd.Series:
    narrow, spills = edits.missed > 0, edits.broken > 0
    found = pd.Series(CLEAN, edits.index, dtype=object)
    found = found.mask(spills, SPILLS).mask(narrow, NARROW).mask(narrow & spills, BOTH).mask(~edits.holds, LOST)
    return found.where((edits.paraphrases > 0) & (edits.watched > 0))


def anatomy(edits: pd.DataFrame) -> pd.DataFrame:
    """Say which share of each method's edits is in each class, and of the clean ones with a 95 % interval.

    Args:
        edits: of :func:`classified`, at one batch size.

    Returns columns method, class, count, value, low, high (nan but for clean), n (edits that count), left_out (those
    that do not), seeds and clusters; five rows a method, none of a method without an edit that counts.
    """
    rows = []
    for method, every in edits.groupby("method", sort=False):
        part = every.dropna(subset="class")
        if part.empty:
            continue
        found = interval(_as_rewrites(part, CLEAN), MOMENT).loc["ES"]
        about = found[SAMPLE].astype(int).to_dict() | {"left_out": len(every) - len(part)}
        for name in CLASSES:
            count = int((part["class"] == name).sum())
            row = {"method": method, "class": name, "count": count, "value": count / len(part)} | about
            rows.append(row | (found[["low", "high"]].to_dict() if name == CLEAN else {}))
    return pd.DataFrame(rows, columns=["method", "class", "count", "value", "low", "high", "left_out", *SAMPLE])


def clean_gaps(edits: pd.DataFrame) -> pd.DataFrame:
    """Compare the shares of clean edits of every two methods, paired by fact: first minus second.

    Returns columns method, reference, value, low, high, p, p_holm (over all pairs), n, seeds and clusters.
    """
    parts = dict(list(edits.dropna(subset="class").groupby("method", sort=False)))
    rows = []
    for ours, theirs in combinations(parts, 2):
        first, second = (_as_rewrites(parts[name], CLEAN) for name in (ours, theirs))
        gap = paired_difference(first, second, MOMENT).loc["ES"]
        rows.append({"method": ours, "reference": theirs} | gap.to_dict())
    columns = ["method", "reference", "value", "low", "high", "p", *SAMPLE]
    return adjusted(pd.DataFrame(rows, columns=columns).assign(family=CLEAN), "family").drop(columns="family")


def broken_neighbours(edits: pd.DataFrame) -> pd.DataFrame:
    """Count the neighbours that an edit breaks, on average, with 95 % intervals over relations × seeds.

    Where none broke, the upper end is what the exact binomial bound leaves: that share of other edits may break all.

    Returns columns method, value, low, high, broken and watched (in all), n (edits with a neighbour right before).
    """
    rows = []
    for method, part in edits[edits.watched > 0].groupby("method", sort=False):
        value, low, high = clustered_mean_interval(part.broken, clusters(part))
        sums = {"broken": int(part.broken.sum()), "watched": int(part.watched.sum()), "n": len(part)}
        ends = {"low": np.maximum(low, 0.0), "high": np.minimum(high, part.watched.mean())}  # nan stays so
        if not sums["broken"]:
            ends["high"] = proportion(0, len(part))[1] * part.watched.mean()
        rows.append({"method": method, "value": value} | ends | sums)
    return pd.DataFrame(rows, columns=["method", "value", "low", "high", "broken", "watched", "n"])


def _as_rewrites(edits: pd.DataFrame, name: str) -> pd.DataFrame:
    """Let being of a class be the success of the one prompt of each fact, as intervals read it."""
    return edits.assign(kind="rewrite", success=(edits["class"] == name).astype(float), moment=MOMENT)
