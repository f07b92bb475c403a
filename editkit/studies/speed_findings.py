"""Sentences from the tables of the speed appendix: what the package gains, what a target takes, what ``C`` needs."""

import pandas as pd

from editkit.methods import label
from editkit.studies.findings import with_list
from editkit.studies.tables import number, written

MEASURED = {  # what benchmarks/results.json calls it, and what people do
    "targets_exact": "targets, exact search",
    "targets_fast": "targets, fast mode",
    "targets_single": "the target of one edit",
    "statistics": "second moments",
    "scoring": "scores",
    "alphaedit_solve": "AlphaEdit's solve",
    "batch": "a whole batch",
}
AGREED = {  # the largest difference between both sides, of what
    "largest_relative_error": "v*, relative",
    "largest_loss_difference": "loss of a step (nats)",
    "largest_difference": "log-probability (nats)",
    "relative_error": "ΔW, relative",
}


def speed_findings(ratios: pd.DataFrame, edits: pd.DataFrame) -> list[str]:
    """Say how much faster the package is than the published algorithms, and where the time goes.

    Args:
        ratios: columns what, ratio, lowest; a row a measurement.
        edits: seconds of each stage by the number of edits in one batch.
    """
    low, high = ratios.loc[ratios.ratio.idxmin()], ratios.loc[ratios.ratio.idxmax()]
    most = edits.loc[edits.edits.idxmax()]
    share = most.targets / (most.targets + most["keys"] + most.solve)
    return [
        f"{(ratios.lowest > 1).sum()} of {len(ratios)} measurements are faster than the published algorithm in every "
        f"repeat, by {low.ratio:.1f} ({low.what}) to {high.ratio:.0f} times ({high.what}).",
        f"With {most.edits:.0f} edits in one batch, the targets take {share:.0%} of the time of an edit.",
    ]


def token_findings(frame: pd.DataFrame, chosen: int) -> list[str]:
    """Say how scores depend on the text behind ``C``: on its kind, and on how much of it there is.

    Args:
        frame: columns text (its kind), method, tokens_per_dimension, edits, S, NS.
        chosen: tokens for each dimension of a key by default.
    """
    most = frame.tokens_per_dimension.max()
    sentences = [
        f"The text behind $C$: {frame.edits.iloc[0]} facts of one seed in one batch. These are the scores of that "
        "batch, without intervals: where two lie within a few facts of each other, no order of texts can be named."
    ]
    for method, rows in frame.groupby("method", sort=False):
        told = []
        for kind, part in rows.groupby("text", sort=False):
            scores = part.set_index("tokens_per_dimension")[["S", "NS"]]
            change = scores.loc[most] - scores.loc[chosen]
            told.append(
                f"{kind}: S {scores.S[chosen]:.3f}, NS {scores.NS[chosen]:.3f}; with {most} S "
                f"{number(change.S, '+.3f')}, NS {number(change.NS, '+.3f')}; lowest NS {scores.NS.min():.3f}, at "
                f"{scores.NS.idxmin()}"
            )
        sentences.append(with_list(f"{label(str(method))}, {chosen} tokens for each dimension:", told))
    return sentences


def search_findings(frame: pd.DataFrame) -> list[str]:
    """Say how good a target v* must be, and what it may take.

    Args:
        frame: rows of ``benchmarks.searches``; the first search is the one that the others are compared with.
    """
    rows, (reference, *others) = frame.set_index(["search", "method"]), frame.search.unique()
    each = frame.groupby("search").targets.mean() / frame.edits.iloc[0]
    worse = {name for name in others if (rows.loc[name].S_high < 0).all()}
    lists = ("; ".join(name for name in others if (name in worse) == lost) or "none" for lost in (False, True))
    head = "**Of shorter ways to a target than the {} search these lose no S that is resolved: {}. These do: {}.**"
    about = f"{frame.edits.iloc[0]} edits in one batch; differences of S, paired, by precision of the equation."
    told = []
    for name in others:
        gaps = [
            f"{label(method)} {written(row.S_change, row.S_low, row.S_high, '+')}"
            for method, row in rows.loc[name].iterrows()
        ]
        times = f"{each[reference] / each[name]:.0f} times as fast" if each[name] else "without a search"
        told.append(f"{name}, {times}: {', '.join(gaps)}")
    return [with_list(f"{head.format(reference, *lists)} {about}", told)]


def thousands_findings(frame: pd.DataFrame) -> list[str]:
    """Say what becomes of ever more edits in one batch, and what they take.

    Args:
        frame: rows of ``benchmarks.thousands``.
    """
    frame = frame.assign(times=frame.perplexity / frame.perplexity_before)
    sizes, width = sorted(frame.edits.unique()), frame.d_k.iloc[0]
    told = []
    for editor, rows in frame.groupby("editor", sort=False):
        each = [
            f"{row.edits:,} edits S {written(row.S, row.S_low, row.S_high)}, perplexity × {row.times:.1f}"
            for row in rows.sort_values("edits").itertuples()
        ]
        told.append(f"{editor}: {'; '.join(each)}")
    head = (
        f"**From {sizes[0]:,} to {sizes[-1]:,} edits in one batch, where a key has {width:,} dimensions.** S of the "
        f"first {frame.judged.max()}, and the perplexity of prose as a multiple of that before:"
    )
    whole = frame[frame.edits == sizes[-1]]
    rate = sizes[-1] / whole[["targets", "keys", "solve"]].sum(axis=1).max()
    memory = [frame[frame.edits == size].peak_memory_mb.max() for size in (sizes[0], sizes[-1])]
    return [
        with_list(head, told),
        f"{sizes[-1]:,} edits take {rate:.1f} edits a second or more, {whole.solve.max():.1f} s of it in the solve; "
        f"keys and solve need {memory[1]:,.0f} MB at most ({sizes[0]:,} edits: {memory[0]:,.0f} MB). Targets and keys "
        f"grow with the edits, and the solve does not beyond {width:,}: 10,000 would take {10_000 / rate / 60:.0f} "
        "minutes.",
    ]
