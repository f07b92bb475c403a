"""Probes by method and kind with intervals, from frames by hand."""

import numpy as np
import pandas as pd
import pytest

from editkit.studies.probe_tables import probe_scores


def frame(method: str, right: int, kind: str = "two_hop", n: int = 12, known: int = 10) -> pd.DataFrame:
    """``n`` facts of four relations with one probe each, of which the first ``known`` are and ``right`` are right."""
    rows = [
        {
            "method": method,
            "fact": f"f{i}",
            "relation": f"r{i % 4}",
            "kind": kind,
            "known": i < known,
            "success": i < right if i < known else None,
            "accuracy": i < right - 1 if i < known else None,
        }
        for i in range(n)
    ]
    return pd.DataFrame(rows).astype({"success": "boolean", "accuracy": "boolean"})


def test_each_method_and_kind_has_its_scores_and_how_many_count():
    table = probe_scores(pd.concat([frame("memit", 6), frame("rome", 9), frame("rome", 3, "alias")]))
    cells = table.set_index(["method", "kind", "score"])
    assert len(cells) == 6 and cells.value["memit", "two_hop", "success"] == pytest.approx(0.6)
    assert cells.value["rome", "alias", "accuracy"] == pytest.approx(0.2)
    assert (table.asked == 12).all() and (table.known == 10).all() and (table.n == 10).all()
    assert (table.clusters == 4).all() and (table.seeds == 1).all()
    assert ((table.low < table.value) & (table.value < table.high)).all() and table.low.min() >= 0


def test_facts_without_relations_are_clusters_of_their_own_and_seeds_are_pooled():
    alone = frame("memit", 6).assign(relation="")
    assert (probe_scores(alone).clusters == 10).all()
    pooled = probe_scores(pd.concat([alone.assign(seed=1), alone.assign(seed=2)]))
    assert (pooled.seeds == 2).all() and (pooled.n == 20).all() and (pooled.clusters == 20).all()
    assert (pooled.high - pooled.low < (lambda t: t.high - t.low)(probe_scores(alone))).all()


def test_where_all_are_right_other_facts_may_still_do_otherwise():
    success = probe_scores(frame("memit", 10)).set_index("score").loc["success"]
    assert (success.value, success.high) == (1, 1) and 0.6 < success.low < 0.8  # 10 of 10: [0.69, 1]


def test_a_kind_that_nobody_knows_or_that_has_no_rival_has_no_value():
    unknown = probe_scores(frame("memit", 0, known=0))
    assert unknown.value.isna().all() and (unknown.known == 0).all() and (unknown.asked == 12).all()
    open_ = probe_scores(frame("memit", 6).assign(success=pd.array([pd.NA] * 12, dtype="boolean")))
    cells = open_.set_index("score")
    assert np.isnan(cells.value["success"]) and cells.value["accuracy"] == pytest.approx(0.5)
