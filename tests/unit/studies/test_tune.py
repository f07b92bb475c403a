"""The search for hyperparameters: what it measures, how it goes on, what it refuses."""

import math
import sqlite3
import time
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from editkit import EditSession, EditSpec, evaluate, summarize
from editkit.cache import Store
from editkit.editing.session import Session
from editkit.studies import tune
from editkit.studies.tune import TuneParams, measured, search, studies
from editkit.studies.tune_space import TARGETS

FOREVER = math.inf


def run(tuning, trials, method="memit"):
    return search(tuning, method, until=FOREVER, trials=trials)


def told(study):
    return [(trial.params, trial.value, trial.state) for trial in study.trials]


def test_a_search_goes_on_where_it_was_and_repeats_nothing(tuning, tmp_path):
    first = run(tuning(), 3)
    ends = [trial.datetime_complete for trial in first.trials]
    on = run(tuning(), 5)
    assert [trial.number for trial in on.trials] == [0, 1, 2, 3, 4]
    assert [trial.datetime_complete for trial in on.trials[:3]] == ends and None not in ends
    points = [tuple(trial.params.values()) for trial in on.trials]
    assert len(set(points)) == 5
    assert told(run(tuning(), 5)) == told(on), "there is nothing left to do"
    in_one = run(tuning(store=Store(tmp_path / "other")), 5)
    assert told(in_one) == told(on), "two runs are one"


@pytest.mark.parametrize("method", ["memit", "alphaedit", "emmet", "rome"])
def test_a_trial_measures_s_of_one_batch_on_the_untouched_model(tuning, method, facts):
    given = tuning(method=[method])
    before = given.setting.lm.fingerprint()
    study = run(given, 3, method)
    assert given.setting.lm.fingerprint() == before
    trial = measured(study)[-1]
    spec = given.spec(method, trial.params)
    session = EditSession(given.setting.lm, spec, texts=given.setting.texts, contexts=given.setting.contexts[1])
    session.edit(facts)
    scores = summarize(evaluate(given.setting.lm, facts))
    assert {name: trial.user_attrs[name] for name in ("ES", "PS", "NS")} == {n: scores[n] for n in ("ES", "PS", "NS")}
    assert trial.value == scores["S"]


def test_the_first_trial_is_the_start_and_those_after_it_find_their_targets_in_the_store(tuning, monkeypatch):
    cached = []
    edit = Session.edit

    def watched(self, items):
        result = edit(self, items)
        cached.append((len(items), result.targets.cached))
        return result

    monkeypatch.setattr(Session, "edit", watched)
    given = tuning(first_batch=4)
    study = run(given, 5)
    assert given.spec("memit", study.trials[0].params).resolve(given.setting.lm) == EditSpec(
        method="memit", seed=1, **given.begin("memit")
    ).resolve(given.setting.lm)
    targets = [{name: trial.params[name] for name in TARGETS if name in trial.params} for trial in study.trials]
    assert targets[0] == targets[1] == targets[2] == targets[3] != targets[4]
    assert cached == [(4, 0), (4, 4), (4, 4), (4, 4), (4, 0)]


def test_a_search_that_was_stopped_makes_up_for_its_trial(tuning, monkeypatch):
    given, edit = tuning(), Session.edit
    run(given, 1)
    before = given.setting.lm.fingerprint()

    def stop(self, items):
        edit(self, items)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Session, "edit", stop)
        run(given, 3)
    assert given.setting.lm.fingerprint() == before
    study = run(tuning(), 3)
    stopped = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert len(stopped) == 1 and len(measured(study)) == 3
    assert stopped[0].params in [trial.params for trial in measured(study)]


def test_a_start_that_was_stopped_is_made_up_for(tuning, monkeypatch):
    def stop(self, items):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Session, "edit", stop)
        run(tuning(), 1)
    assert [trial.user_attrs.get("start") for trial in measured(run(tuning(), 2))] == [True, None]


def test_a_trial_far_below_the_others_ends_after_the_first_batch(tuning, monkeypatch):
    batches = []

    def scores(session, facts):
        batches.append(len(facts))
        worse = len(batches) > 12  # the seventh trial's
        return dict.fromkeys(("S", "ES", "PS", "NS"), 0.1 if worse else 0.9)

    monkeypatch.setattr(tune, "_scores", scores)
    study = run(tuning(), 7)
    assert batches == [2, 4] * 6 + [2]
    assert [trial.state for trial in study.trials][-2:] == [TrialState.COMPLETE, TrialState.PRUNED]


def test_an_edit_that_is_refused_ends_its_trial_alone(tuning):
    given = tuning({"nullspace_threshold": 1e-30}, method=["alphaedit"])
    with pytest.raises(ValueError, match="none of 10 trials of alphaedit could be measured; .*no eigenvalue is below"):
        run(given, 12, "alphaedit")


def test_the_clock_ends_a_search_after_the_trial_that_runs(tuning):
    given = tuning()
    assert len(search(given, "memit", until=time.monotonic() - 1).trials) == 1
    assert len(search(given, "memit", until=time.monotonic() - 1).trials) == 1, "one was finished"
    assert len(search(given, "memit", until=time.monotonic() + 0.5).trials) > 1


def test_what_determines_a_trial_names_its_study(tuning, tiny, facts):
    given = tuning()
    others = [
        tuning({"v_lr": 0.3}),
        tuning(lm=tiny(seed=1)),
        tuning(facts=facts[:3]),
        tuning(first_batch=3),
        tuning(seed=2),
    ]
    assert len({given.file, *(other.file for other in others)}) == 6
    assert tuning().file == tuning(trials=7, minutes=1.0, force=True, out="x", method=["rome"]).file == given.file


def test_studies_of_several_methods_lie_side_by_side(tuning):
    given = tuning()
    for method in ("alphaedit", "memit"):
        run(given, 1, method)
    assert {method: len(study.trials) for method, study in studies(given).items()} == {"memit": 1, "alphaedit": 1}


def test_a_file_that_is_no_study_is_told_in_one_line(tuning):
    given = tuning()
    given.file.parent.mkdir(parents=True)
    given.file.write_bytes(b"nothing of the kind " * 300)
    with pytest.raises(OSError, match=r"the study .*\.db cannot be used \(file is not a database\)") as refused:
        run(given, 1)
    assert len(str(refused.value).splitlines()) == 1


def test_a_study_in_a_folder_of_any_name_is_a_file_there(tuning, tmp_path):
    given = tuning(store=Store(tmp_path / "50% {a}?b#c ü"))
    run(given, 1)
    with sqlite3.connect(given.file) as base:
        assert base.execute("select count(*) from trials").fetchone() == (1,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hyperparameters": {"v_rate": 0.1}}, "unknown key 'v_rate'.*v_lr"),
        ({"hyperparameters": {"layers": [99]}}, "layer 99 is out of range: tiny-llama has layers 0 to 3"),
        ({"hyperparameters": {"method": "rome"}}, "hyperparameters holds 'method'"),
        ({"hyperparameters": {"n_contexts": "two"}}, "n_contexts = 'two'"),
        ({"method": []}, "at least 1"),
        ({"method": ["mend"]}, "mend"),
        ({"facts_part": "test"}, "facts_part = 'test': input should be 'tune'"),
        ({"minutes": 0.0}, "minutes = 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(tuning, changes, message):
    with pytest.raises(ValueError, match=message):
        tuning(**changes)


def test_nothing_to_search_is_refused(tuning):
    held = {"layers": [1], "v_lr": 0.1, "clamp_norm_factor": 1.0, "mom2_update_weight": 1.0}
    with pytest.raises(ValueError, match="nothing of memit is left to search"):
        tuning(held)


def test_facts_on_which_s_cannot_be_measured_are_refused(tuning, facts):
    with pytest.raises(ValueError, match="S cannot be measured"):
        tuning(facts=[replace(fact, neighbours=()) for fact in facts])


def test_every_layer_of_a_quantised_model_can_be_edited():
    assert "float_layers" not in TuneParams(quantization="int8").loading
