"""Controls of a study of repairs, each as far as its promise allows."""

import math
from dataclasses import replace

import numpy as np
import pytest

from editkit import load_vit
from editkit.cache import Store
from editkit.editing.budget import HALVINGS, LARGEST, SMALLEST, Budget
from editkit.studies import repair_controls
from editkit.studies.repair_controls import is_bounded
from editkit.studies.repair_frontier import promising
from editkit.studies.repair_spec import CONTROLS, FINETUNED
from editkit.studies.repair_tables import judged
from editkit.studies.repairs import repair
from editkit.vision.data import ImageSet
from editkit.vision.forward import predict
from editkit.vision.training import TrainSpec, train
from tests.unit.conftest import bits


def kept(prepared, done):
    return judged(prepared, done)["kept"]


def with_options(prepared, **options):
    return replace(prepared, spec=prepared.spec.model_copy(update=options))


@pytest.mark.parametrize("method", ["head_ewc", *FINETUNED])
def test_a_control_ends_before_the_step_that_breaks_its_promise(study, method):
    options = dict(finetune_lr=0.01, finetune_penalty=1e-3, head_lr=0.05, ewc_lambda=0.01)
    one = study(edit_layers=[2], kept_budget=0.95, **options)
    free, done = repair(promising(one, 0.0), method), repair(one, method)
    assert kept(one, free) < 0.95 <= kept(one, done) and not free.log.taken_back.any()
    assert done.log.taken_back.tolist() == [False] * (len(done.log) - 1) + [True] and math.isnan(done.weight)
    steps = len(done.log) - 1
    if steps:
        short = with_options(one, kept_budget=0.0, finetune_steps=steps, head_steps=steps)
        assert np.allclose(repair(short, method).after["test"], done.after["test"], rtol=0, atol=1e-6)
    else:
        assert np.allclose(one.before["test"], done.after["test"], rtol=0, atol=1e-6)


def test_the_heads_weight_is_the_smallest_that_holds_the_promise_and_a_larger_one_changes_less(study):
    one = study(edit_layers=[2], kept_budget=1.0)
    free, done = repair(promising(one, 0.0), "head_closed"), repair(one, "head_closed")
    assert kept(one, free) < 1 == kept(one, done) and math.isnan(free.weight) and done.weight > 0

    step = (LARGEST / SMALLEST) ** (2.0**-HALVINGS)

    def under(slack):
        return repair(with_options(one, kept_budget=0.0, slack=slack), "head_closed")

    assert kept(one, under(done.weight / step)) < 1, "so finely is it known"
    assert np.array_equal(under(done.weight).after["test"], done.after["test"])
    changes = [under(slack).log.change[0] for slack in (0.0, done.weight, 2 * done.weight)]
    assert changes == sorted(changes, reverse=True) and len(set(changes)) == 3
    assert changes[:2] == [free.log.change[0], done.log.change[0]] and not done.log.taken_back.any()


def test_a_head_that_no_weight_holds_to_its_promise_stays_as_it_is(study, monkeypatch):
    one = study(edit_layers=[2], kept_budget=1.0)

    def fail(promised, attempt):
        return Budget(promised, math.nan, attempt(LARGEST), {})

    monkeypatch.setattr(repair_controls, "spend", fail)
    done = repair(one, "head_closed")
    assert math.isnan(done.weight) and done.log.taken_back.tolist() == [True]
    assert np.allclose(done.after["test"], one.before["test"], rtol=0, atol=1e-9)


def test_training_anew_is_training_with_the_edited_images_among_the_others(study, tmp_path):
    one = study(edit_layers=[2], n_train=30, kept_budget=0.95)
    done, data = repair(one, "retraining"), one.data
    parts = (data.train, one.candidates)
    arrays = {n: np.concatenate([getattr(part, n) for part in parts]) for n in ("images", "labels", "indices")}
    more = replace(data, splits={**data.splits, "train": ImageSet(**arrays)})
    vit = load_vit(one.spec.model, labels=data.labels, device=one.spec.device)
    history = train(vit, more, one.spec.part(TrainSpec), store=Store(tmp_path / "other"), progress=False).history
    assert np.allclose(predict(vit, data.test), done.after["test"], rtol=0, atol=1e-6)
    assert not np.allclose(done.after["test"], one.before["test"], rtol=0, atol=1e-3)
    assert done.log.loss.tolist() == pytest.approx(history.loss.tolist()) and done.log.step.tolist() == [1]
    assert [method for method in CONTROLS if not is_bounded(method)] == ["retraining"]


def test_images_that_fine_tuning_saw_are_not_added_again(study):
    one = study(edit_layers=[2])
    before = bits(one.vit)
    assert np.allclose(repair(one, "retraining").after["test"], one.before["test"], rtol=0, atol=1e-6)
    assert bits(one.vit) == before
