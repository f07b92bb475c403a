"""Sequences of edits: the tables, their resumption, and what tells runs apart."""

from dataclasses import replace
from typing import get_args

import pandas as pd
import pytest
import torch

from editkit import evaluate, summarize
from editkit.language.drift import KINDS
from editkit.language.fluency import fluency
from editkit.methods import SequenceMethodName
from editkit.studies import sequences, tables
from editkit.studies.findings import sequence_findings
from editkit.studies.intervals import interval
from editkit.studies.runs import untouched
from editkit.studies.sequences import (
    SequenceParams,
    ablation_grid,
    identify,
    join,
    kinds,
    run_all,
    run_grid,
    run_sequence,
)
from editkit.studies.setting import Setting

SMALL = {"layers": [2], "mom2_n_tokens": 100, "trust_heldout_samples": 2, "nullspace_threshold": 0.5}


@pytest.fixture
def sequence(setting):
    def run(lm, method="memit", size=1, every=1, **changes):
        one = setting(lm=lm, **SMALL)
        return run_sequence(one, one.spec(method, **changes), size, every=every)

    return run


@pytest.fixture
def label(setting, tiny):
    """Label of a run in a setting with ``common`` hyperparameters."""
    lm = tiny()

    def read(method, common=None, **changes):
        one = setting(lm=lm, **(common or {}))
        return identify(one, one.spec(method, **changes), 1).label

    return read


def test_every_edit_is_tracked_and_the_model_put_back(tiny, facts, sequence, setting):
    lm = tiny()
    mark, pre = lm.fingerprint(), summarize(evaluate(lm, facts))
    result = sequence(lm, size=1, every=2, replay="history")
    assert lm.fingerprint() == mark
    rows = result.scores.set_index("moment")
    assert list(rows.index) == ["pre", "immediate", "final"]
    assert rows.ES["pre"] == pre["ES"] and rows.NS["pre"] == pre["NS"]
    assert result.steps.measured.tolist() == [False, True, False, True]
    for kind in KINDS:
        assert result.steps[f"kl_{kind}"].notna().tolist() == [False, True, False, True]
        assert result.steps[f"perplexity_before_{kind}"].notna().all()
    pairs = set(zip(result.retention.edited_at, result.retention.measured_at, strict=True))
    assert pairs == {(1, 1), (1, 2), (2, 2), (3, 3), (1, 4), (2, 4), (3, 4), (4, 4)}
    share = result.edits.groupby(["edited_at", "measured_at"]).success.mean()
    stepwise = result.retention.set_index(["edited_at", "measured_at"]).ES.sort_index()
    assert share.to_dict() == stepwise.to_dict() and len(result.edits) == len(pairs)
    assert result.steps.replayed.tolist() == [0, 1, 2, 3] and result.steps.edits.tolist() == [1, 2, 3, 4]
    final = result.prompts[result.prompts.moment == "final"]
    assert summarize(final)["ES"] == rows.ES["final"] and set(final.edited_at) == {1, 2, 3, 4}
    assert untouched(setting(lm=lm, **SMALL), 1)[0]["ES"] == pre["ES"]


def test_free_texts_are_written_before_any_edit_and_after_the_last(setting, writers, monkeypatch):
    here = replace(setting({1: (writers, [])}, **SMALL), fluency_facts=3)
    spec = here.spec("memit")
    result = run_sequence(here, spec, 2, drift=False)
    before = fluency(here.lm, writers[:3]).GE.mean()
    session = here.session(spec.model_copy(update={"seed": 1}), 1)
    for batch in (writers[:2], writers[2:]):
        session.edit(batch)
        session.settle()
    after = fluency(session.model, writers[:3]).GE.mean()
    session.undo()
    ge = result.scores.set_index("moment").GE
    assert ge[["pre", "final"]].tolist() == pytest.approx([before, after]) and pd.isna(ge["immediate"])
    monkeypatch.setattr(sequences, "free_speech", lambda *_: pytest.fail("written again"))
    pd.testing.assert_frame_equal(run_sequence(here, spec, 2, drift=False).scores, result.scores)
    assert tables.final_scores(result.scores, result.prompts).GE.tolist() == pytest.approx([after])
    assert tables.sizes(result.scores)["final GE"].tolist() == pytest.approx([after])


def test_a_fact_that_comes_twice_is_measured_for_each_of_its_steps(setting, tiny, facts):
    one = setting({1: ([facts[0], facts[1], facts[0]], [])}, **SMALL)
    run = run_sequence(one, one.spec("memit"), 1)
    steps = sorted(zip(run.retention.edited_at, run.retention.measured_at, strict=True))
    assert steps == [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)]
    immediate = run.prompts[run.prompts.moment == "immediate"]
    assert immediate.groupby("edited_at").fact.unique().map(list).to_dict() == {
        1: [facts[0].id], 2: [facts[1].id], 3: [facts[0].id],
    }  # fmt: skip
    assert (immediate.groupby("edited_at").size() == 3).all()


@pytest.mark.parametrize("lacking", [("paraphrases",), ("neighbours",), ("paraphrases", "neighbours")])
@pytest.mark.parametrize("of", ["all", "some"])
def test_facts_may_lack_what_only_scores_an_edit(setting, tiny, facts, lacking, of):
    bare = [replace(fact, **dict.fromkeys(lacking, ())) for fact in facts]
    one = setting({1: (bare if of == "all" else [*facts[:1], *bare[1:]], [])}, **SMALL)
    params, grid = SequenceParams(sequence_facts=4, sequence_every=2), [{"replay": "none"}, {"replay": "hold"}]
    run = run_grid(one, params, "memit", grid)
    final, found = run.scores[run.scores.moment == "final"].iloc[0], tables.final_scores(run.scores, run.prompts)
    missing = {"paraphrases": "PS", "neighbours": "NS"}
    for score in (missing[name] for name in lacking):
        matrix = tables.retention_matrix(run.retention[run.retention.replay == "none"], score)
        assert matrix.index.tolist() == [1, 2, 3, 4] and matrix.columns.tolist() == [1, 2, 4]
        assert pd.isna(final[score]) == (of == "all") and pd.isna(matrix).all(axis=None) == (of == "all")
        assert (found[score].iloc[0] == "–") == (of == "all")
        if of == "some":
            asked = run.prompts[run.prompts.run_id == final.run_id]
            assert final[score] == pytest.approx(interval(asked).value[score])
    assert found.n.tolist() == [4 if of == "all" else 1] * 2 and "nan" not in found.to_string().replace("NaN", "")
    gaps, lost = tables.differences(run.prompts), tables.losses(run.prompts)
    text = " ".join(sequence_findings(run.scores, lost, gaps.query("score == 'S'"))) + gaps_shown(gaps)
    assert "nan" not in text.replace("NaN", "") and ("–" in text) == (of == "all")


def gaps_shown(gaps: pd.DataFrame) -> str:
    return tables.gaps_shown(gaps, "method", "run", "score").difference.to_string()


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
    for entry in (store.root / "sequence").iterdir():
        entry.unlink()
    lm, step = tiny(), sequences._step
    mark = lm.fingerprint()
    calls = []

    def dies_half_way(arrival, plan, number, *rest):
        calls.append(number)
        step(arrival, plan, number, *rest)
        if len(calls) in (2, 4):  # after the edit and its scores, before they are stored
            raise KeyboardInterrupt

    monkeypatch.setattr(sequences, "_step", dies_half_way)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            sequence(lm, **changes)
        assert lm.fingerprint() == mark
    again = sequence(lm, **changes)
    assert calls == [1, 2, 2, 3, 3, 4]
    timeless = [name for name in whole.steps if not name.startswith(("seconds", "peak"))]
    pd.testing.assert_frame_equal(again.steps[timeless], whole.steps[timeless])
    pd.testing.assert_frame_equal(again.retention, whole.retention)
    pd.testing.assert_frame_equal(again.edits, whole.edits)
    pd.testing.assert_frame_equal(again.prompts, whole.prompts)
    monkeypatch.setattr(Setting, "session", None)
    pd.testing.assert_frame_equal(sequence(lm, **changes).steps, again.steps)  # read, not run


def test_a_rolled_back_step_counts_as_failed_edits(tiny, sequence):
    with pytest.warns(UserWarning, match="rollback"):
        result = sequence(tiny(), trust_enable=True, trust_threshold=1.0, trust_action="rollback")
    assert result.steps.action.tolist() == ["rollback"] * 4 and all(result.steps.reasons)
    scores = result.scores.set_index("moment")
    assert scores.S["final"] == scores.S["pre"] and (result.steps.delta_norm == 0).all()


def test_held_out_facts_must_not_be_edited(setting, facts):
    one = setting({1: (facts, facts[:1])})
    with pytest.raises(ValueError, match="held-out"):
        run_sequence(one, one.spec("memit"), 1)


def test_labels_tell_what_is_unusual(label):
    assert label("emmet") == "EMMET, none"
    assert label("alphaedit") == "AlphaEdit, hold"
    assert label("memit", stop_probability=0.9) == "MEMIT, none, v* until P = 0.9"
    unusual = {"replay": "buffer", "replay_strategy": "priority", "replay_weight": 2.0, "norm_clamp": 1.5}
    assert label("memit", **unusual) == "MEMIT, buffer r=0.5 priority w=2, norm ≤ 1.5"
    assert label("memit", replay="buffer", replay_max_items=3) == "MEMIT, buffer r=0.5 of 3 fifo"
    assert label("memit", replay="buffer", replay_base="buffer") == "MEMIT, buffer r=0.5 of all"
    assert label("alphaedit", replay="none") == "AlphaEdit, none" and label("memit", replay="hold") == "MEMIT, hold"
    assert label("alphaedit", replay_refresh=True) == "AlphaEdit, hold, keys read again"
    assert label("memit", replay="hold", replay_refresh=False) == "MEMIT, hold, keys as stored"
    overlay = {"edit_mode": "lora", "lora_rank": 4, "lora_stack": "fixed"}
    assert label("emmet", **overlay) == "EMMET, none, LoRA keys r=4 fixed"
    assert label("emmet", replay="history", trust_enable=True) == "EMMET, history, trust warn"


def test_labels_tell_whatever_else_differs_from_the_setting(label):
    assert label("memit", v_lr=0.3, layers=[2]) == "MEMIT, none, v_lr = 0.3, layers = [2]"
    assert label("memit", {"v_lr": 0.3}, v_lr=0.3) == "MEMIT, none"
    assert label("memit", replay_rate=0.7) == "MEMIT, none, replay_rate = 0.7"
    assert label("memit", trust_enable=True, trust_threshold=0.8) == "MEMIT, none, trust warn, trust_threshold = 0.8"
    assert label("memit", {"replay_strategy": "recent"}, replay="buffer") == "MEMIT, buffer r=0.5 recent"


def test_stop_probabilities_in_fast_mode_are_runs_of_their_own(setting):
    one = setting(target_mode="fast")
    runs = [identify(one, one.spec("emmet", stop_probability=p), 1) for p in (0.5, 0.8, 0.95)]
    assert [run.label for run in runs] == [f"EMMET, none, stop_probability = {p}" for p in (0.5, 0.8, 0.95)]
    assert len({run.id for run in runs}) == 3
    plain = identify(one, one.spec("emmet"), 1)
    assert identify(one, one.spec("emmet", stop_probability=0.98), 1) == plain, "the default of fast mode"


def test_an_id_tells_method_size_and_measurement_and_nothing_of_the_seed(setting):
    one = setting()
    spec = one.spec("emmet")
    run = identify(one, spec, 1)
    assert len(run.id) == 8 and identify(one, spec.model_copy(update={"seed": 5}), 1) == run
    others = [identify(one, spec, 2), identify(one, spec, 1, every=2), identify(one, spec, 1, drift=False)]
    others += [identify(one, one.spec("memit"), 1), identify(one, one.spec("emmet", replay="hold"), 1)]
    assert len({run.id, *(other.id for other in others)}) == 6


def test_two_equal_configurations_are_refused_before_anything_is_run(setting, monkeypatch):
    one, params = setting(target_mode="fast", **SMALL), SequenceParams(sequence_facts=4, stop_probabilities=[0.98])
    monkeypatch.setattr(sequences, "run_sequence", lambda *_, **__: pytest.fail("it is run"))
    with pytest.raises(ValueError, match="'EMMET, none' is asked for twice"):
        run_grid(one, params, "emmet", ablation_grid(params))
    with pytest.raises(ValueError, match="'EMMET, buffer r=0.5' is asked for twice"):
        run_all(one, [(one.spec("emmet", replay="buffer", replay_rate=rate), 1) for rate in (0.5, 0.25, 0.5)])


def test_runs_lie_under_one_another_once(tiny, sequence):
    lm = tiny()
    plain, history = sequence(lm), sequence(lm, replay="history")
    both = join([plain, history])
    for table in both:
        assert table[["run", "run_id"]].drop_duplicates().run.tolist() == ["MEMIT, none", "MEMIT, history"]
    with pytest.raises(ValueError, match="'MEMIT, history' is asked for twice"):
        join([both, sequence(lm, replay="history")])


def test_a_grid_is_measured_as_often_whatever_the_size_of_its_steps(setting, tiny):
    params = SequenceParams(sequence_facts=4, sequence_batch=1, sequence_every=2)
    one = setting(lm=tiny(), **SMALL)
    for size, measured in ((None, [False, True, False, True]), (2, [True, True]), (4, [True])):
        result = run_grid(one, params, "memit", [{"replay": "hold"}], size)
        assert result.steps.measured.tolist() == measured and set(result.steps.run) == {"MEMIT, hold"}


def test_grids_hold_every_combination_once():
    params = SequenceParams(
        sequence_methods=["memit"],
        replay_rates=[0.5, 1.0],
        replay_strategies=["random", "recent"],
        replay_weights=[1.0, 2.0],
        replay_sizes=[0, 3],
        norm_clamps=[1.05],
        stop_probabilities=[0.9],
    )
    assert [kind["replay"] for kind in kinds(params)] == ["none", "buffer", "hold", "history"]
    grid = ablation_grid(params)
    assert len(grid) == 1 + 16 + 4 + 2 and len({tuple(sorted(changes.items())) for changes in grid}) == len(grid)
    assert grid[0] == {"replay": "none"} and grid[-2:] == [
        {"replay": "none", "norm_clamp": 1.05},
        {"replay": "none", "stop_probability": 0.9},
    ]


def test_every_editor_that_may_arrive_in_sequence_takes_every_way_of_remembering(setting):
    one = setting()
    for method in get_args(SequenceMethodName):
        params = SequenceParams(sequence_methods=[method], norm_clamps=[1.05], stop_probabilities=[0.9])
        for changes in [*kinds(params), *ablation_grid(params)]:
            one.spec(method, **changes).resolve(one.lm)
    with pytest.raises(ValueError, match="sequence_methods.0 = 'ultraedit': .*'memit', 'emmet', "):
        SequenceParams(sequence_methods=["ultraedit"])


def test_a_rate_of_zero_is_the_plain_run_and_not_a_second_one(setting):
    params = SequenceParams(sequence_methods=["memit"], replay_rates=[0.0, 0.1, 0.3, 0.5])
    assert kinds(params)[1] == {"replay": "buffer", "replay_rate": 0.5}
    grid = ablation_grid(params)
    assert [changes["replay_rate"] for changes in grid if changes["replay"] == "buffer"] == [0.1, 0.3, 0.5]
    one = setting()
    assert len({identify(one, one.spec("memit", **changes), 1).id for changes in grid}) == len(grid) == 6
    none = SequenceParams(replay_rates=[0.0])
    assert [changes["replay"] for changes in kinds(none)] == ["none", "hold", "history"]
    assert [changes["replay"] for changes in ablation_grid(none)] == ["none", "hold", "history"]


def test_weights_vary_only_where_they_act(setting, tiny):
    params = SequenceParams(sequence_methods=["emmet", "memit"], replay_weights=[0.5, 1.0, 2.0])
    grid = ablation_grid(params)
    assert [changes.get("replay_weight", 1.0) for changes in grid] == [1.0] * 4
    one = setting()
    for changes in grid:
        one.spec("emmet", **changes).resolve(one.lm)


def test_seeds_have_their_own_facts_and_lie_under_one_another(setting, tiny, facts):
    draws = {3: (facts[:2], facts[2:]), 4: (facts[2:], facts[:2])}
    two = replace(setting(draws, lm=tiny(), **SMALL), contexts={3: ["a b c. "], 4: []})
    both = run_sequence(two, two.spec("memit"), 1)
    assert both.scores.groupby("seed").size().tolist() == [3, 3] and set(both.steps.seed) == {3, 4}
    assert set(both.prompts[both.prompts.seed == 4].fact) == {fact.id for fact in facts[2:]}
    one = setting({4: draws[4]}, contexts=(), lm=tiny(), **SMALL)
    alone = run_sequence(one, one.spec("memit"), 1)
    assert alone.scores.S.tolist() == both.scores[both.scores.seed == 4].S.tolist()


@pytest.mark.parametrize("stack, sizes", [("grow", [1, 2, 3, 4]), ("fixed", [1, 1, 1, 1])])
def test_adapters_are_counted_and_taken_off_at_the_end(setting, tiny, stack, sizes):
    one = setting(lm=tiny(), layers=[2], mom2_n_tokens=100)
    lm, spec = one.lm, one.spec("emmet", edit_mode="lora", lora_rank=1, lora_stack=stack)
    mark = lm.fingerprint()
    result = run_sequence(one, spec, 1, drift=False)
    assert lm.fingerprint() == mark and not lm.has_adapters
    assert result.steps.perplexity_text.isna().all() and result.steps.kl_prose.isna().all()
    one_rank = 16 + 24  # numbers of a rank-one adapter of one layer
    assert result.steps.parameters.tolist() == [one_rank * size for size in sizes]
    assert (result.scores.parameters == one_rank * sizes[-1]).all()


def test_no_step_is_run_where_the_batch_does_not_divide(tiny, sequence):
    lm = tiny()
    mark = lm.fingerprint()
    with pytest.raises(ValueError, match="3 does not divide"):
        sequence(lm, size=3)
    assert lm.fingerprint() == mark and torch.isfinite(lm.weight(2)).all()
