"""Scores on every rung, with the intervals of its own."""

import pandas as pd
import pytest

from editkit.studies.intervals import interval
from editkit.studies.ladder import ladder_scores


def prompts(shift: int = 0) -> pd.DataFrame:
    """Twenty facts of two relations, whose success and what is said differ."""
    rows = [
        {"fact": str(n), "relation": "ab"[n % 2], "kind": kind, "success": n % 5 > 0, "said": (n + shift) % 3 == 0}
        for n in range(20)
        for kind in ("rewrite", "paraphrase")
    ]
    return pd.DataFrame(rows).assign(seed=1, moment="final", magnitude=0.5)


def test_each_rung_has_the_values_and_intervals_of_its_column():
    frame = ladder_scores({"rome": prompts(), "memit": prompts(1)})
    assert len(frame) == 2 * 2 * 2 and set(frame.rung) == {"success", "said"}
    picked = frame.set_index(["method", "rung", "kind"]).loc[("memit", "said", "rewrite")]
    assert picked["value"] == pytest.approx(6 / 20) and picked["low"] < 6 / 20 < picked["high"]
    own = interval(prompts().assign(success=lambda one: one.said)).loc["ES"]
    ours = frame.set_index(["method", "rung", "kind"]).loc[("rome", "said", "rewrite")]
    assert ours[["value", "low", "high", "n", "seeds", "clusters"]].tolist() == pytest.approx(own.tolist())


def test_methods_of_different_rungs_are_refused():
    with pytest.raises(ValueError, match="different rungs: rome has success, said and memit success"):
        ladder_scores({"rome": prompts(), "memit": prompts().drop(columns="said")})
    with pytest.raises(ValueError, match="no method"):
        ladder_scores({})
