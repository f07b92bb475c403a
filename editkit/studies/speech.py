"""What of an edit survives free speech, by method and number of edits?

Read off the prompts of batches (:func:`editkit.studies.runs.run_baselines`) that were answered freely as well: nothing
is edited or measured for it. *Surviving* is the share of the prompts that succeed, P(new) > P(true), after which the
sentence that the model writes names the new object; facts none of whose prompts succeed have no such share.
"""

import itertools

import pandas as pd

from editkit.language.metrics import ENDING, LETTER
from editkit.methods import UNTOUCHED, label
from editkit.studies.findings import protocol
from editkit.studies.intervals import RESOLVED, interval, paired_difference
from editkit.studies.tables import SAMPLE, adjusted, number, shown, written, written_gap

RUNGS, SURVIVING = ("success", "accuracy", "said"), "surviving"
MOMENT = "immediate"  # when edits are scored, right after their batch
MOST = 0.5  # share of what succeeds: where more is said, most of it is
KINDS = {f"{letter}S": kind for kind, letter in LETTER.items()}
ASKED = {"rewrite": "rewrites", "paraphrase": "paraphrases"}  # where an edit is to be said
RANGE = ["value", "low", "high"]


def answered(prompts: pd.DataFrame) -> pd.DataFrame:
    """Take the prompts that were answered freely; none where nothing was asked (``said_facts`` 0)."""
    if "said" not in prompts:
        return prompts[:0]
    own = prompts[prompts.said.notna()]
    return own.astype(dict.fromkeys(RUNGS, bool)).assign(moment=MOMENT)


def speech_scores(spoken: pd.DataFrame) -> pd.DataFrame:
    """Score each method at each batch size on every rung, on the same facts, and what survives, with 95 % intervals.

    Args:
        spoken: of :func:`answered`.

    Returns columns method, batch_size (0: the untouched model), kind, rung (success, accuracy, said, surviving), value,
    low, high, n (facts that have such a share), seeds and clusters.
    """
    tables = []
    for (method, size), part in spoken.groupby(["method", "batch_size"], sort=False):
        for rung in (*RUNGS, SURVIVING):
            found = interval(_counting(part, rung), MOMENT).rename(index=KINDS).loc[list(LETTER)]
            found = found.rename_axis("kind").reset_index().dropna(subset="value")
            tables.append(found.assign(method=method, batch_size=size, rung=rung))
    columns = ["method", "batch_size", "kind", "rung", *RANGE, *SAMPLE]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def speech_differences(spoken: pd.DataFrame) -> pd.DataFrame:
    """Compare what survives at the largest batch size: every two methods, and each with itself at the smallest size.

    Paired by fact: clusters are drawn again with all their facts, each fact with its share in both runs.

    Returns columns method, reference, against (the reference's batch size), batch_size, kind (rewrite, paraphrase),
    value, low, high, p, n, seeds, clusters, and p_holm over the comparisons of a kind and ``against``.
    """
    edits = spoken[spoken.method != UNTOUCHED]
    parts = {where: _counting(part, SURVIVING) for where, part in edits.groupby(["method", "batch_size"], sort=False)}
    methods, sizes, tables = list(dict.fromkeys(edits.method)), sorted(edits.batch_size.unique()), []
    pairs = [(pair, sizes[-1]) for pair in itertools.combinations(methods, 2)]
    pairs += [((method, method), sizes[0]) for method in methods if len(sizes) > 1]
    for (ours, theirs), against in pairs:
        gap = paired_difference(parts[ours, sizes[-1]], parts[theirs, against], MOMENT).rename(index=KINDS)
        gap = gap.loc[list(ASKED)].rename_axis("kind").reset_index().dropna(subset="value")
        tables.append(gap.assign(method=ours, reference=theirs, against=against, batch_size=sizes[-1]))
    columns = ["method", "reference", "against", "batch_size", "kind", *RANGE, "p", *SAMPLE]
    empty = pd.DataFrame(columns=columns, dtype=float)  # one method at one size
    return adjusted(pd.concat(tables, ignore_index=True)[columns] if tables else empty, "kind", "against")


def speech_shown(scores: pd.DataFrame) -> pd.DataFrame:
    """Write :func:`speech_scores` for a chapter: a row a method and batch size, a column a score."""
    ends, keys = ENDING | {SURVIVING: "S said"}, ["method", "batch_size"]
    wanted = {(kind, rung): f"{LETTER[kind]}{ends[rung]}" for kind in LETTER for rung in (*RUNGS, SURVIVING)}
    del wanted["neighbourhood", SURVIVING]  # no edit is to be said there
    cells = scores.assign(cell=[written(r.value, r.low, r.high) for r in scores.itertuples()])
    wide = cells.pivot(index=keys, columns=["kind", "rung"], values="cell")
    wide = wide[[*(name for name in wanted if name in wide)]].fillna(number(float("nan")))
    wide.columns = [wanted[name] for name in wide]
    sample = scores[(scores.kind == "rewrite") & (scores.rung == "success")].set_index(keys)[SAMPLE]
    table = sample.join(wide)[[*wide, *SAMPLE]].reset_index()
    return shown(table.rename(columns={"batch_size": "edits at once"}), "method", "edits at once")


def speech_findings(scores: pd.DataFrame, gaps: pd.DataFrame) -> list[str]:
    """Say of each method whether most of what succeeds is said, how that hangs on the number of edits, and on whom.

    Args:
        scores: of :func:`speech_scores`.
        gaps: of :func:`speech_differences`.
    """
    edited = scores[(scores.method != UNTOUCHED) & scores.kind.isin(ASKED)]
    if edited.empty:
        return []
    here = edited[edited.batch_size == edited.batch_size.max()]
    return [*(_survival(rows) for _, rows in here.groupby("kind", sort=False)), *_compared(gaps)]


def _counting(spoken: pd.DataFrame, rung: str) -> pd.DataFrame:
    """Let prompts count by a rung in place of success; by ``SURVIVING`` those that do not succeed are missing."""
    if rung != SURVIVING:
        return spoken.assign(success=spoken[rung])
    return spoken.assign(success=spoken.said.astype(float).where(spoken.success))


def _survival(rows: pd.DataFrame) -> str:
    """Say what share of the successes of one kind is said by each method at one batch size, and sort methods by it."""
    cells, found = rows.set_index(["method", "rung"]), dict[str, list[str]]()
    told = []
    for method in dict.fromkeys(rows.method):
        name = label(str(method))
        if (method, SURVIVING) not in cells.index:
            told.append(f"{name} – (nothing succeeds)")
            continue
        share = cells.loc[(method, SURVIVING)]
        verdict = "supported" if share.low > MOST else "refuted" if share.high < MOST else "not resolvable"
        found.setdefault(verdict, []).append(name)
        rungs = ", ".join(f"{rung} {cells.value[method, rung]:.2f}" for rung in RUNGS)
        told.append(f"{name} {written(share.value, share.low, share.high)} ({rungs})")
    first = rows[rows.rung == "success"].iloc[0]
    head = ", ".join(f"{verdict} for {', '.join(names)}" for verdict, names in found.items()) or "not asked"
    return (
        f"**Free speech, {ASKED[first.kind]}, {first.batch_size} at once: that most edits that succeed are said is "
        f"{head}.** Share of the successes that a sentence says: {'; '.join(told)} ({protocol(first)})."
    )


def _compared(gaps: pd.DataFrame) -> list[str]:
    """Tell what differs between methods, and between numbers of edits, family by family."""
    sentences = []
    for (kind, against), rows in gaps.groupby(["kind", "against"], sort=False):
        sizes, own = f"{rows.batch_size.iloc[0]} edits", bool((rows.method == rows.reference).all())
        what = f"from {against} to {sizes} at once" if own else f"between methods at {sizes}"
        sure = rows[rows.p_holm < RESOLVED]
        told = "; ".join(
            f"{label(r.method)}{'' if own else f' less {label(r.reference)}'} {written_gap(r)}"
            for r in rows.itertuples()
        )
        head = f"{len(sure)} of {len(rows)}" if len(sure) else "none"
        sentences.append(
            f"**What of successful {ASKED[kind]} is said, {what}: {head} resolved.** Differences of that share, paired "
            f"by fact: {told} (Holm's p, family of {len(rows)})."
        )
    return sentences
