"""What of an edit is said, on prompts made by hand, and on a tiny model's own."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from scipy.stats import t

from editkit import evaluate
from editkit.studies.runs import run_baselines
from editkit.studies.speech import answered, speech_differences, speech_findings, speech_scores, speech_shown

FACTS, KINDS = 120, ("rewrite", "paraphrase", "neighbourhood")


def batch(method: str, size: int, succeeds: int, said: int, asked: int = FACTS) -> pd.DataFrame:
    """120 facts, three of each relation, of which the first succeed, of these the first are said, in every kind."""
    rows = [
        {"fact": f"f{i}", "relation": f"r{i % 40}", "kind": kind, "success": i < succeeds, "accuracy": i < succeeds}
        | {"said": i < said if i < asked else None}
        for i in range(FACTS)
        for kind in KINDS
    ]
    return pd.DataFrame(rows).assign(seed=1, method=method, batch_size=size, moment="immediate" if size else "pre")


@pytest.fixture(scope="module")
def spoken():
    counts = [("pre", 0, 0, 0), ("rome", 8, 115, 100), ("rome", 32, 110, 88)]
    counts += [("memit", 8, 120, 90), ("memit", 32, 100, 30), ("emmet", 8, 120, 60), ("emmet", 32, 100, 51)]
    return answered(pd.concat([batch(*each) for each in counts], ignore_index=True))


def test_rungs_are_scored_on_the_same_facts_and_what_survives_on_those_that_succeed(spoken):
    scores = speech_scores(spoken).set_index(["method", "batch_size", "kind", "rung"]).sort_index()
    ours = scores.loc[("memit", 32, "rewrite")]
    assert ours.value.round(9).to_dict() == {
        "accuracy": round(100 / 120, 9), "said": 0.25, "success": round(100 / 120, 9), "surviving": 0.3,
    }  # fmt: skip
    assert ours.n.to_dict() == {"accuracy": 120, "said": 120, "success": 120, "surviving": 100}
    assert (scores.clusters == 40).all() and (scores.low <= scores.value).all() and (scores.high >= scores.value).all()
    untouched = scores.loc[("pre", 0)]
    assert "surviving" not in untouched.index.get_level_values("rung") and (untouched.value == 0).all()


def test_intervals_are_those_of_a_ratio_of_clusters(spoken):
    """Cochran, Sampling Techniques, 3rd ed., equation 6.13, with the means of clusters that differ in their counts."""
    part = spoken[(spoken.method == "memit") & (spoken.batch_size == 32) & (spoken.kind == "rewrite")]
    found = speech_scores(spoken).query("method == 'memit' and batch_size == 32 and kind == 'rewrite'")
    found = found.set_index("rung").loc["surviving"]
    left = (part.said & part.success).astype(float) - 0.3 * part.success
    sums = left.groupby(part.relation).sum()
    error = (40 / 39 * (sums**2).sum()) ** 0.5 / part.success.sum()
    half = (logit(found.high) - logit(found.low)) / 2 * 0.3 * 0.7
    assert half == pytest.approx(t.ppf(0.975, 39) * error, rel=0.1)


def test_differences_are_paired_and_corrected_within_their_family(spoken):
    gaps = speech_differences(spoken)
    pairs = gaps[(gaps.against == 32) & (gaps.kind == "rewrite")].set_index(["method", "reference"])
    assert list(pairs.index) == [("rome", "memit"), ("rome", "emmet"), ("memit", "emmet")]
    assert pairs.value.tolist() == pytest.approx([0.8 - 0.3, 0.8 - 0.51, 0.3 - 0.51])
    own = gaps[(gaps.against == 8) & (gaps.kind == "paraphrase")].set_index("method")
    assert own.value.to_dict() == pytest.approx({"rome": 0.8 - 100 / 115, "memit": 0.3 - 0.75, "emmet": 0.51 - 0.5})
    assert (own.index == own.reference).all() and set(gaps.kind) == {"rewrite", "paraphrase"}
    for _, family in gaps.groupby(["kind", "against"]):
        lowest = family.loc[family.p.idxmin()]
        assert lowest.p_holm == pytest.approx(min(1, 3 * lowest.p))


def test_verdicts_follow_the_intervals(spoken):
    first, second, *compared = speech_findings(speech_scores(spoken), speech_differences(spoken))
    verdict = "supported for ROME, refuted for MEMIT, not resolvable for EMMET.**"
    assert first.startswith(f"**Free speech, rewrites, 32 at once: that most edits that succeed are said is {verdict}")
    assert "MEMIT 0.30 [0." in first and "(success 0.83, accuracy 0.83, said 0.25)" in first and "120 facts" in first
    assert "paraphrases" in second and len(compared) == 4
    between = next(
        told for told in compared if "rewrites is said, between methods at 32 edits: 3 of 3 resolved" in told
    )
    assert "ROME less MEMIT +0.50 [+0." in between and "family of 3" in between
    grown = next(told for told in compared if "rewrites is said, from 8 to 32 edits at once" in told)
    assert "MEMIT -0.45 [" in grown and "less" not in grown


def test_nothing_asked_is_nothing_said(spoken):
    silent = answered(batch("rome", 8, 9, 9).drop(columns="said"))
    scores, gaps = speech_scores(silent), speech_differences(silent)
    assert scores.empty and gaps.empty and speech_findings(scores, gaps) == []
    alone = spoken[(spoken.method == "rome") & (spoken.batch_size == 8)]
    assert (
        speech_differences(alone).empty and len(speech_findings(speech_scores(alone), speech_differences(alone))) == 2
    )


def test_what_never_succeeds_has_no_share_that_is_said():
    none = answered(pd.concat([batch("rome", 8, 0, 0), batch("memit", 8, 60, 60)]))
    scores, gaps = speech_scores(none), speech_differences(none)
    assert set(scores[scores.rung == "surviving"].method) == {"memit"} and gaps.empty
    assert "ROME – (nothing succeeds)" in speech_findings(scores, gaps)[0]
    assert speech_shown(scores).loc[("ROME", 8), "ES said"] == "–"


def test_the_table_has_a_row_a_method_and_number_of_edits(spoken):
    table = speech_shown(speech_scores(spoken))
    assert list(table.index)[:3] == [("no edit", 0), ("ROME", 8), ("ROME", 32)]
    rungs = ["ES", "EA", "ESaid", "ES said", "PS", "PA", "PSaid", "PS said", "NS", "NA", "NSaid"]
    assert list(table.columns) == [*rungs, "n", "seeds", "clusters"]
    assert table.loc[("MEMIT", 32), "PS said"].startswith("0.30 [")


def test_prompts_of_a_run_that_were_answered_freely_are_those_of_its_first_facts(setting, facts):
    here = replace(setting({7: (facts[:4], [])}), said_facts=3)
    _, prompts = run_baselines(here, {"memit": here.spec("memit")}, [2, 4])
    mine = answered(prompts)
    assert set(mine.fact) == {fact.id for fact in facts[:3]} and mine.said.dtype == bool
    session = here.session(here.spec("memit").model_copy(update={"seed": 7}), 7)
    for size in (2, 4):
        wanted = []
        for begin in range(0, 4, size):
            session.edit(facts[begin : begin + size])
            wanted.append(evaluate(here.lm, facts[begin : min(begin + size, 3)], rungs=["success", "said"]))
            session.undo()
        wanted = pd.concat(wanted)
        own = mine[mine.batch_size == size]
        for column in ("prompt", "success", "said"):
            assert own[column].tolist() == wanted[column].tolist()
    again = answered(run_baselines(here, {"memit": here.spec("memit")}, [2, 4])[1])
    assert np.array_equal(again.said, mine.said), "it is read from the store"
