"""Sequences of edits: the tables, their resumption, and what is read out of them."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from editkit import evaluate, summarize
from editkit.experiments import measurement_key, untouched
from editkit.findings import recommendation, sequence_findings
from editkit.forgetting import (
    collapse_step,
    fact_scores,
    forgetting_curve,
    half_life,
    interval,
    paired_difference,
    retention_matrix,
)
from editkit.sequences import run_name, run_seeds, run_sequence
from tests.conftest import TEXTS

CONTEXTS = ["a b c. "]


@pytest.fixture
def sequence(store, full_spec, facts):
    def run(lm, method="memit", size=1, every=1, **changes):
        values = {"layers": [2], "mom2_n_tokens": 100, "trust_heldout_samples": 2, "nullspace_threshold": 0.5}
        spec = full_spec(method, **(values | changes))
        return run_sequence(
            lm,
            facts,
            spec,
            size,
            dataset="made up",
            seed=1,
            contexts=CONTEXTS,
            texts=TEXTS,
            every=every,
            store=store,
            progress=False,
        )

    return run


def test_every_edit_is_tracked_and_the_model_put_back(tiny, facts, sequence, store):
    lm = tiny()
    mark, pre = lm.fingerprint(), summarize(evaluate(lm, facts))
    result = sequence(lm, size=1, every=2, replay="history")
    assert lm.fingerprint() == mark
    rows = result.scores.set_index("moment")
    assert list(rows.index) == ["pre", "immediate", "final"]
    assert rows.ES["pre"] == pre["ES"] and rows.NS["pre"] == pre["NS"]
    assert result.steps.measured.tolist() == [False, True, False, True]
    assert result.steps.perplexity.notna().tolist() == [False, True, False, True]
    pairs = set(zip(result.retention.edited_at, result.retention.measured_at, strict=True))
    assert pairs == {(1, 1), (1, 2), (2, 2), (3, 3), (1, 4), (2, 4), (3, 4), (4, 4)}
    assert result.steps.replayed.tolist() == [0, 1, 2, 3] and result.steps.edits.tolist() == [1, 2, 3, 4]
    final = result.prompts[result.prompts.moment == "final"]
    assert summarize(final)["ES"] == rows.ES["final"] and set(final.edited_at) == {1, 2, 3, 4}
    assert untouched(lm, facts, measurement_key(lm, facts, CONTEXTS, TEXTS), store)[0]["ES"] == pre["ES"]


def test_one_batch_is_immediate_and_final_at_once(tiny, sequence):
    scores = sequence(tiny(), size=4).scores.set_index("moment")
    assert scores.S["immediate"] == scores.S["final"] and scores.seconds["final"] > 0


ADAPTER = {"edit_mode": "lora", "lora_rank": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"replay": "buffer"},
        {"replay": "history"},
        {"method": "alphaedit"},
        {},
        ADAPTER | {"lora_stack": "batch"},
        ADAPTER | {"lora_stack": "fixed", "replay": "hold"},
    ],
)
def test_a_run_killed_at_any_step_goes_on_without_a_lost_or_doubled_step(tiny, sequence, store, changes, monkeypatch):
    whole = sequence(tiny(), **changes)
    import editkit.sequences as module

    for entry in (store.root / "sequence").iterdir():
        entry.unlink()
    lm, step = tiny(), module._step
    mark = lm.fingerprint()
    calls = []

    def dies_half_way(session, *args):
        calls.append(args[1])
        step(session, *args)
        if len(calls) in (2, 4):  # after the edit and its scores, before they are stored
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_step", dies_half_way)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            sequence(lm, **changes)
        assert lm.fingerprint() == mark
    again = sequence(lm, **changes)
    assert calls == [1, 2, 2, 3, 3, 4]
    timeless = [name for name in whole.steps if not name.startswith(("seconds", "peak"))]
    pd.testing.assert_frame_equal(again.steps[timeless], whole.steps[timeless])
    pd.testing.assert_frame_equal(again.retention, whole.retention)
    pd.testing.assert_frame_equal(again.prompts, whole.prompts)
    monkeypatch.setattr(module, "EditSession", None)
    pd.testing.assert_frame_equal(sequence(lm, **changes).steps, again.steps)  # read, not run


def test_a_rolled_back_step_counts_as_failed_edits(tiny, sequence):
    with pytest.warns(UserWarning, match="rollback"):
        result = sequence(tiny(), trust_enable=True, trust_threshold=1.0, trust_action="rollback")
    assert result.steps.action.tolist() == ["rollback"] * 4 and all(result.steps.reasons)
    scores = result.scores.set_index("moment")
    assert scores.S["final"] == scores.S["pre"] and (result.steps.delta_norm == 0).all()


def test_held_out_facts_must_not_be_edited(tiny, facts, full_spec):
    with pytest.raises(ValueError, match="held-out"):
        run_sequence(tiny(), facts, full_spec(), 1, dataset="", seed=1, contexts=[], texts=TEXTS, heldout=facts[:1])


def test_run_names_tell_what_is_unusual(tiny, full_spec):
    lm = tiny()
    assert run_name(full_spec("emmet").resolve(lm)) == "EMMET, none"
    assert run_name(full_spec("alphaedit").resolve(lm)) == "AlphaEdit, hold"
    spec = full_spec("memit", replay="buffer", replay_strategy="priority", replay_weight=2.0, norm_clamp=1.5)
    assert run_name(full_spec("memit", stop_probability=0.9).resolve(lm)) == "MEMIT, none, v* until P = 0.9"
    assert run_name(spec.resolve(lm)) == "MEMIT, buffer r=0.5 priority w=2, norm ≤ 1.5"
    overlay = full_spec("emmet", edit_mode="lora", lora_rank=4, lora_stack="fixed")
    assert run_name(overlay.resolve(lm)) == "EMMET, none, LoRA keys r=4 fixed"


def test_seeds_have_their_own_facts_and_lie_under_one_another(tiny, facts, full_spec, store):
    draws = {3: (facts[:2], facts[2:]), 4: (facts[2:], facts[:2])}
    spec = full_spec(layers=[2], mom2_n_tokens=100, trust_heldout_samples=2)
    options = {"dataset": "made up", "texts": TEXTS, "store": store, "progress": False}
    both = run_seeds(tiny(), draws, spec, 1, contexts={3: CONTEXTS, 4: []}, **options)
    assert both.scores.groupby("seed").size().tolist() == [3, 3] and set(both.steps.seed) == {3, 4}
    assert set(both.prompts[both.prompts.seed == 4].fact) == {fact.id for fact in facts[2:]}
    alone = run_sequence(
        tiny(), facts[2:], spec.model_copy(update={"seed": 4}), 1, seed=4, contexts=[], heldout=facts[:2], **options
    )
    assert alone.scores.S.tolist() == both.scores[both.scores.seed == 4].S.tolist()


@pytest.mark.parametrize("stack, sizes", [("grow", [1, 2, 3, 4]), ("fixed", [1, 1, 1, 1])])
def test_adapters_are_counted_and_taken_off_at_the_end(tiny, facts, full_spec, store, stack, sizes):
    spec = full_spec("emmet", layers=[2], mom2_n_tokens=100, edit_mode="lora", lora_rank=1, lora_stack=stack)
    options = {"dataset": "made up", "seed": 0, "contexts": CONTEXTS, "texts": TEXTS, "store": store, "drift": False}
    lm = tiny()
    mark = lm.fingerprint()
    result = run_sequence(lm, facts, spec, 1, progress=False, **options)
    assert lm.fingerprint() == mark and not lm.has_adapters
    assert result.steps.perplexity.isna().all()
    one = 16 + 24  # numbers of a rank-one adapter of one layer
    assert result.steps.parameters.tolist() == [one * size for size in sizes]
    assert (result.scores.parameters == one * sizes[-1]).all()


def test_findings_sort_runs_by_what_their_intervals_say_and_recommend_by_name():
    scores = pd.DataFrame(
        [
            ("emmet", "none", "pre", 0.0, 0.1),
            ("emmet", "none", "immediate", 1.0, 0.9),
            ("emmet", "none", "final", 0.5, 0.6),
        ],
        columns=["method", "replay", "moment", "ES", "S"],
    )
    differences = pd.DataFrame(
        [("up", 0.2, 0.1, 0.3), ("down", -0.2, -0.3, -0.1), ("same", 0.0, -0.1, 0.1)],
        columns=["run", "value", "low", "high"],
    ).assign(method="emmet")
    first, up, down, same = sequence_findings(scores, differences)
    assert "100% of the rewrites" in first and "50% after the last" in first and "0.900 to 0.600" in first
    assert "final S is higher with up +0.200 [+0.100, +0.300]" in up and "down" not in up
    assert "lower with down -0.200" in down and "not surely different" in same and "same +0.000" in same
    assert "Recommended: up." in recommendation(differences) and "3 configurations" in recommendation(differences)
    assert "No configuration can be recommended" in recommendation(differences[1:])


RETENTION = pd.DataFrame(
    [(1, 1, 1.0), (1, 2, 0.8), (1, 3, 0.4), (2, 2, 0.9), (2, 3, 0.6), (3, 3, 1.0)],
    columns=["edited_at", "measured_at", "ES"],
)


def test_retention_matrix_curve_and_half_life_by_hand():
    matrix = retention_matrix(RETENTION)
    assert matrix.loc[1, 3] == 0.4 and math.isnan(matrix.loc[3, 1])
    sparse = RETENTION[(RETENTION.edited_at != 1) | (RETENTION.measured_at != 2)]
    assert list(retention_matrix(sparse).columns) == [1, 3] and list(retention_matrix(sparse).index) == [1, 2, 3]
    curve = forgetting_curve(RETENTION)
    assert curve.tolist() == pytest.approx([2.9 / 3, 0.7, 0.4])
    assert half_life(curve, 0.0) == 2 and math.isnan(half_life(curve, -2.0))


def test_the_step_of_collapse_is_the_first_measured_one_beyond_ten_times():
    steps = pd.DataFrame(
        {"step": [1, 2, 3, 4], "measured": [True, False, True, True], "perplexity": [20.0, math.nan, 150.0, math.nan]}
    )
    assert collapse_step(steps.assign(perplexity_before=20.0)) == 4  # not a number: gone
    assert collapse_step(steps.assign(perplexity_before=10.0)) == 3
    assert math.isnan(collapse_step(steps[:1].assign(perplexity_before=20.0)))


def prompts_of(success: np.ndarray) -> pd.DataFrame:
    rows = [
        {"seed": 1, "fact": f"f{i}", "kind": kind, "moment": "final", "success": bool(value)}
        for i, triple in enumerate(success)
        for kind, value in zip(("rewrite", "paraphrase", "neighbourhood"), triple, strict=True)
    ]
    return pd.DataFrame(rows)


def test_intervals_hold_the_value_and_paired_differences_are_narrower():
    generator = np.random.default_rng(0)
    base = generator.random((200, 3)) < 0.7
    better = base | (generator.random((200, 3)) < 0.3)
    alone, other = interval(prompts_of(better)), interval(prompts_of(base))
    means = better.mean(0)
    assert alone.value[:3].tolist() == pytest.approx(means) and alone.value["S"] == pytest.approx(3 / (1 / means).sum())
    assert ((alone.low < alone.value) & (alone.value < alone.high)).all()
    # The mean of n yes-or-no answers has the standard error sqrt(p (1 - p) / n).
    width = 2 * 1.96 * np.sqrt(means[0] * (1 - means[0]) / 200)
    assert alone.high["ES"] - alone.low["ES"] == pytest.approx(width, rel=0.15)
    difference = paired_difference(prompts_of(better), prompts_of(base))
    assert difference.value["S"] == pytest.approx(alone.value["S"] - other.value["S"]) and (difference.low > 0).all()
    assert (difference.high - difference.low < alone.high - other.low).all()
    nothing = paired_difference(prompts_of(base), prompts_of(base))
    assert (nothing == 0).all(axis=None)
    with pytest.raises(ValueError, match="same facts"):
        paired_difference(prompts_of(base), prompts_of(base[:10]))


def test_fact_scores_average_the_prompts_of_a_kind():
    frame = pd.concat([prompts_of(np.array([[1, 1, 0]])), prompts_of(np.array([[1, 0, 0]]))])
    assert fact_scores(frame).loc[(1, "f0")].tolist() == [1.0, 0.5, 0.0]


def test_no_step_is_run_where_the_batch_does_not_divide(tiny, sequence):
    lm = tiny()
    mark = lm.fingerprint()
    with pytest.raises(ValueError, match="3 does not divide"):
        sequence(lm, size=3)
    assert lm.fingerprint() == mark and torch.isfinite(lm.weight(2)).all()
