"""What is said of edits in use, on prompts made by hand."""

import pandas as pd
import pytest

from editkit.studies.intervals import paired_difference
from editkit.studies.survival import ADDED, AS_IS
from editkit.studies.survival_tables import survival_changes, survival_findings, survival_scores, survival_shown
from tests.unit.studies.conftest import prompts_of

FACTS = 200


def many(right: int, method: str, use: str) -> pd.DataFrame:
    """200 facts, each a cluster of its own, of which the first ``right`` are right in every way."""
    kinds = ("rewrite", "paraphrase", "neighbourhood")
    rows = [{"seed": 1, "fact": f"f{i}", "relation": f"r{i}", "kind": kind, "success": i < right}
            for i in range(FACTS) for kind in kinds]  # fmt: skip
    frame = pd.DataFrame(rows).assign(moment="final", method=method, use=use, perplexity=20.0)
    return frame.assign(accuracy=frame.success, perplexity=20.0 if use == AS_IS else 30.0)


@pytest.fixture(scope="module")
def prompts():
    right = {"pre": (20, 30), "memit": (180, 181), "rome": (180, 120), "emmet": (180, 168)}
    used = [many(n, name, use) for name, ends in right.items() for n, use in zip(ends, (AS_IS, "int8"), strict=True)]
    return pd.concat([*used, many(150, "memit", ADDED)], ignore_index=True)


def test_changes_are_paired_and_set_apart_from_the_unedited_models(prompts):
    changes = survival_changes(prompts).set_index(["method", "use", "score"]).sort_index()
    part = {(m, u): rows for (m, u), rows in prompts.groupby(["method", "use"])}
    known = paired_difference(part["rome", "int8"], part["rome", AS_IS])
    for score in ("ES", "PS", "NS", "S"):
        assert changes.loc[("rome", "int8", score), "value":"p"].tolist() == known.loc[score, "value":"p"].tolist()
    assert changes.value["rome", "int8", "EA"] == pytest.approx(-60 / FACTS)
    assert changes.apart["rome", "int8", "EA"] == pytest.approx((-60 - 10) / FACTS)
    # Facts are clusters here, so that the interval is t's over the 200 values: 60 of −1, 10 of −1 elsewhere.
    half = 1.9719565442517553 * ((70 / FACTS * 130 / FACTS) * FACTS / (FACTS - 1) / FACTS) ** 0.5
    assert changes.apart_high["rome", "int8", "EA"] == pytest.approx(-70 / FACTS + half)
    assert changes.apart.xs("pre").isna().all() and changes.apart["memit", ADDED].isna().all()
    assert changes.apart.xs("S", level="score").isna().all()


def test_a_sample_without_an_exception_is_not_certain(prompts):
    same = pd.concat([prompts[prompts.use == AS_IS], prompts[prompts.use == AS_IS].assign(use="int8")])
    row = survival_changes(same).set_index(["method", "score"]).loc[("memit", "EA")]
    assert row.apart == 0 and row.apart_low < 0 < row.apart_high and row.value == 0


def test_verdicts_follow_intervals_and_the_margin(prompts):
    scores, changes = survival_scores(prompts), survival_changes(prompts)
    first, narrow, added = survival_findings(scores, changes)
    assert "200 facts" in first and "MEMIT 0.90 [0.85, 0.93]" in first and "less than 0.05" in first
    assert narrow.startswith(
        "**Int8: that edits survive it is supported for MEMIT, refuted for ROME, not resolvable for"
    )
    assert "EMMET" in narrow.split(".**")[0] and "perplexity on such text from 20.0 to 30.0" in narrow
    assert added.startswith("**Halves, updates added: that edits survive it is refuted for MEMIT.**")
    assert "unedited" not in added
    assert survival_findings(survival_scores(prompts[:0]), survival_changes(prompts[:0])) == []


def test_scores_are_shown_as_edited_and_then_their_changes(prompts):
    table = survival_shown(survival_scores(prompts), survival_changes(prompts))
    assert table.index[0] == (AS_IS, "no edit") and ("int8: change", "ROME") in table.index
    assert table.loc[("int8: change", "ROME"), "ES"].startswith("-0.30 [")
    assert list(table.columns) == ["ES", "EA", "PS", "NS", "S"]


def test_prompts_of_several_protocols_are_refused():
    mixed = pd.concat([prompts_of(4, protocol=name, method="memit", use=AS_IS, perplexity=1.0) for name in "ab"])
    with pytest.raises(ValueError, match="protocols a and b are mixed"):
        survival_scores(mixed)
