"""Tables of probes, from :func:`editkit.language.probes.evaluate_probes`, with their intervals."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from editkit.facts.probe import KINDS
from editkit.language.probes import probe_scores_by_fact, summarize_probes
from editkit.studies.intervals import clustered_by, estimate

SCORES = ("success", "accuracy")


def probe_scores(probes: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Score each method's known probes by kind, with 95 % intervals over clusters of facts, relation × draw.

    Args:
        probes: frames of ``evaluate_probes``, one below the other, with columns method and, where there are several
            draws, seed.
        seed: of the bootstrap.

    Returns columns method, kind, score ("success", "accuracy"), value, low, high, asked and known (probes), n (facts
    that have a known one), seeds and clusters. A kind that the untouched model answers nowhere has no value.
    """
    rows = [
        {"method": method, "kind": kind} | row
        for method, of_method in probes.groupby("method", sort=False)
        for kind in KINDS
        if len(part := of_method[of_method.kind == kind])
        for row in _rows(part, seed)
    ]
    columns = ["method", "kind", "score", "value", "low", "high", "asked", "known", "n", "seeds", "clusters"]
    return pd.DataFrame(rows, columns=columns)


def _rows(part: pd.DataFrame, seed: int) -> Iterator[dict]:
    """Yield success and accuracy of one method's probes of one kind."""
    part = part if "seed" in part else part.assign(seed=0)
    counts, facts = summarize_probes(part).iloc[0], probe_scores_by_fact(part).droplevel("kind")
    of = part.drop_duplicates(["seed", "fact"]).set_index(["seed", "fact"]).loc[facts.index].reset_index()
    groups = of.groupby(["seed", clustered_by(of)]).ngroup().to_numpy()
    about = {"asked": int(counts.asked), "known": int(counts.known), "n": len(facts)}
    about |= {"seeds": part.seed.nunique(), "clusters": len(set(groups))}
    # A third score that no fact has: what is estimated is made for the three of the ladder.
    table = facts[list(SCORES)].assign(none=np.nan).to_numpy(float)[:, None]
    found = estimate(table, [groups], seed) if len(facts) else {}
    for number, score in enumerate(SCORES):
        ends = {name: float(found[name][number]) if found else np.nan for name in ("value", "low", "high")}
        yield {"score": score} | ends | about
