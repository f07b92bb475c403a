"""Controls that learn the facts of a sequence step by step: what they come to, and that they can be stopped."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from editkit import evaluate, summarize
from editkit.language.controls import measure
from editkit.language.finetune import finetune_matrix
from editkit.studies import sequences
from editkit.studies.arriving import Learns
from editkit.studies.controls import ControlParams, locft_spec, look_up
from editkit.studies.sequences import courses

SMALL = {"layers": [1, 2], "mom2_n_tokens": 100, "trust_heldout_samples": 2}
PARAMS = ControlParams(locft_epochs=4, locft_lr=0.01, locft_batch_size=2, grace_eps=0.3)


@pytest.fixture
def learn(setting):
    def run(lm, name, size, every=1):
        here = setting(lm=lm, **SMALL)
        (course,) = courses(here, here.spec("memit"), size, every=every, learns=Learns(name, PARAMS))
        return course.trajectory()

    return run


def final(run: pd.DataFrame) -> pd.Series:
    return run.scores.set_index("moment").loc["final"]


def test_locft_trains_the_matrix_further_with_the_facts_of_each_step(tiny, facts, setting, learn):
    lm = tiny()
    mark, here = lm.fingerprint(), setting(lm=lm, **SMALL)
    weight, spec, immediate = None, locft_spec(here, 1, PARAMS), []
    for step in (facts[:2], facts[2:]):
        tuned = finetune_matrix(lm, step, spec, progress=False, start=weight)
        weight = tuned.weight
        immediate.append(measure(tuned, step))
    run = learn(lm, "locft", 2)
    assert lm.fingerprint() == mark and spec.layer == 2
    want = summarize(measure(tuned, facts))
    assert final(run)[list(want)].to_dict() == pytest.approx(want)
    assert run.scores.set_index("moment").ES["immediate"] == summarize(pd.concat(immediate))["ES"]
    growth = (weight.norm() / lm.weight(2).norm()).item()
    assert run.steps.growth.iloc[-1] == pytest.approx(growth) and growth != 1
    assert run.steps.kl_prose.notna().all() and run.steps.kl_prose.iloc[-1] > 0


def test_grace_in_steps_ends_as_all_at_once(tiny, facts, setting, learn):
    lm = tiny()
    mark = lm.fingerprint()
    steps, once = learn(lm, "grace", 1), learn(lm, "grace", 4)
    table = look_up(setting(lm=lm, **SMALL), 1, facts, PARAMS)
    want = summarize(measure(table, facts))
    for run in (steps, once):
        assert final(run)[list(want)].to_dict() == pytest.approx(want)
    assert want["ES"] > summarize(evaluate(lm, facts))["ES"] and lm.fingerprint() == mark
    assert steps.steps.parameters.tolist() == [n * table.parameters / 4 for n in (1, 2, 3, 4)]
    assert (steps.steps.growth == 1).all() and (steps.steps.seconds >= 0).all()


def test_rows_say_what_has_learnt_and_by_which_parameters(tiny, learn):
    run = learn(tiny(), "locft", 2, every=2)
    rows = run.scores.set_index("moment")
    assert set(rows.method) == {"locft"} and set(rows.run) == {"LocFT-BF"} and set(rows.replay) == {"none"}
    assert set(rows.locft_epochs) == {4} and "grace_eps" not in rows and rows.layers.tolist() == [[2]] * 3
    assert run.steps.measured.tolist() == [False, True] and (rows.seconds > 0).all()
    pairs = set(zip(run.retention.edited_at, run.retention.measured_at, strict=True))
    assert pairs == {(1, 1), (1, 2), (2, 2)}
    other = Learns("locft", PARAMS.model_copy(update={"locft_lr": 0.02}))
    assert other.identify(2, every=2, drift=True).id != rows.run_id.iloc[0]


@pytest.mark.parametrize("name", ["locft", "grace"])
def test_one_that_is_killed_at_any_step_goes_on_without_a_lost_or_doubled_step(tiny, store, learn, name, monkeypatch):
    whole = learn(tiny(), name, 1)
    for entry in (store.root / "sequence").iterdir():
        entry.unlink()
    lm, step, calls = tiny(), sequences._step, []
    mark = lm.fingerprint()

    def dies_half_way(arrival, plan, number, *rest):
        calls.append(number)
        step(arrival, plan, number, *rest)
        if len(calls) in (2, 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(sequences, "_step", dies_half_way)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            learn(lm, name, 1)
        assert lm.fingerprint() == mark
    again = learn(lm, name, 1)
    assert calls == [1, 2, 2, 3, 3, 4]
    timeless = [column for column in whole.steps if not column.startswith(("seconds", "peak"))]
    pd.testing.assert_frame_equal(again.steps[timeless], whole.steps[timeless])
    pd.testing.assert_frame_equal(again.retention, whole.retention)
    pd.testing.assert_frame_equal(again.prompts, whole.prompts)


def test_a_control_that_fails_leaves_the_model_as_it_was(tiny, setting):
    lm = tiny()
    here, mark = setting(lm=lm, **SMALL), lm.fingerprint()
    diverges = Learns("locft", PARAMS.model_copy(update={"locft_lr": 1e37, "locft_epochs": 9}))
    (course,) = courses(here, here.spec("memit"), 2, learns=diverges)
    with pytest.raises(FloatingPointError, match="diverged"):
        course.trajectory()
    assert lm.fingerprint() == mark and not lm.mlp_out(2).weight.requires_grad


def test_a_later_step_starts_from_the_earlier_one_and_counts_from_the_models_own_matrix(tiny, facts, setting):
    lm = tiny()
    spec = locft_spec(setting(lm=lm, **SMALL), 1, PARAMS)
    first = finetune_matrix(lm, facts[:2], spec, progress=False)
    own = replace(first, weight=lm.weight(2))
    assert torch.equal(finetune_matrix(lm, facts[:2], spec, progress=False, start=own.weight).weight, first.weight)
    further = finetune_matrix(lm, facts[2:], spec, progress=False, start=first.weight)
    with first.apply():
        again = finetune_matrix(lm, facts[2:], spec, progress=False)
    assert torch.equal(further.weight, again.weight) and not torch.equal(further.weight, first.weight)
    assert further.delta_norm == pytest.approx((further.weight - lm.weight(2)).norm().item(), rel=1e-5)
