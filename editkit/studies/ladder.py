"""Scores of methods on every rung of the ladder, with intervals."""

from collections.abc import Mapping

import pandas as pd

from editkit.language.metrics import ENDING, LETTER
from editkit.studies.intervals import interval


def ladder_scores(prompts: Mapping[str, pd.DataFrame], moment: str = "final", seed: int = 0) -> pd.DataFrame:
    """Score methods on each rung and kind of prompt, with 95 % intervals.

    Args:
        prompts: by method, a frame of :func:`editkit.language.metrics.evaluate` with columns seed and moment. Every one
            has the same rungs.
        seed: of the intervals' bootstrap.

    Returns one row a method, rung and kind, with columns method, rung, kind, value, low, high, n, seeds, clusters, as
    :func:`editkit.figures.ranks_by_rung` draws them. Magnitudes are no shares and are left out. Raises ``ValueError``
    for no method, and where methods have different rungs.
    """
    shares = [rung for rung in ENDING if rung != "magnitude"]
    rungs = {method: [rung for rung in shares if rung in frame] for method, frame in prompts.items()}
    if not rungs:
        raise ValueError("no method to score")
    first, *others = rungs
    if other := [method for method in others if rungs[method] != rungs[first]]:
        told = f"{first} has {', '.join(rungs[first])} and {other[0]} {', '.join(rungs[other[0]])}"
        raise ValueError(f"methods were measured on different rungs: {told}")
    kinds = {f"{letter}S": kind for kind, letter in LETTER.items()}
    rows = []
    for method, frame in prompts.items():
        for rung in rungs[method]:
            found = interval(frame.assign(success=frame[rung].astype(float)), moment, seed).loc[list(kinds)]
            found = found.rename(index=kinds).rename_axis("kind").reset_index().dropna(subset="value")
            # Equal shares differ in their last digits, by the order in which they were added up.
            rows.append(found.assign(method=method, rung=rung, value=found.value.round(9)))
    table = pd.concat(rows, ignore_index=True)
    return table[["method", "rung", "kind", "value", "low", "high", "n", "seeds", "clusters"]]
