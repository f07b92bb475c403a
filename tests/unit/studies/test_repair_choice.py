"""Where to edit and by how much the true class shall lead, chosen on val."""

import json

import numpy as np
import pandas as pd
import pytest

from editkit import VisionModel
from editkit.studies import prepared, repair_choice
from editkit.studies.repair_choice import TRIED, choose
from editkit.studies.repair_spec import RepairSpec
from editkit.studies.repair_tables import judged
from editkit.studies.repairs import fine_tune, load_data, repair
from editkit.vision import tracing
from editkit.vision.forward import predict
from tests.unit.conftest import SMALL, bits, refuse

SWEPT = dict(layer_selection="swept", kept_budget=0.9, margins=[0.5, 2.0], edit_method=["emmet"])


@pytest.fixture
def sought(folder, made):
    """A classifier, its mistakes in training images, and those that are right."""

    def build(**changes):
        spec = RepairSpec(**(SMALL | {"data": made, "model": folder()} | SWEPT | changes))
        classifier = fine_tune(spec, load_data(spec), progress=False)
        train = classifier.data.train
        right = predict(classifier.vit, train).argmax(1) == train.labels
        return classifier, train.select(~right), train.select(right)

    return build


def test_layers_that_are_given_come_first_then_the_last_three_or_what_is_traced(study, monkeypatch):
    frame = pd.DataFrame({"kind": "mlp", "layer": range(4), "recovered": [0.3, 0.1, 0.9, 0.2]})
    monkeypatch.setattr(tracing, "trace", lambda *_, **__: frame)
    monkeypatch.setattr(prepared, "RepairSession", refuse)
    traced = study(num_edit_layers=2, margins=[2.0, 1.0])
    monkeypatch.setattr(tracing, "trace", refuse)
    last, given = study(layer_selection="last"), study(edit_layers=[3, 1], layer_selection="swept")
    assert [one.chosen for one in (traced, last, given)] == ["traced", "the last three", "given"]
    assert [one.layers for one in (traced, last, given)] == [[0, 2], [1, 2, 3], [1, 3]]
    assert [one.choice.margin for one in (traced, last, given)] == [2.0, 0.5, 0.5], "the first one, untried"
    assert all(one.choice.tried.empty and list(one.choice.tried) == TRIED for one in (traced, last, given))


def test_a_sweep_tries_every_place_and_then_the_margins_and_takes_what_fixes_most(study):
    one = study(**SWEPT)
    tried = one.choice.tried
    assert list(tried) == TRIED and tried.chosen.tolist() == ["one layer"] * 2 + ["traced", "the last three", "margin"]
    assert tried.layers[[0, 1, 3]].tolist() == ["[2]", "[3]", "[1, 2, 3]"], "the upper half alone"
    assert len(json.loads(tried.layers[2])) == one.spec.num_edit_layers and tried.margin.tolist() == [0.5] * 4 + [2.0]
    gain = tried.fixed + tried.generality
    assert gain.nunique() > 1 and tried.layers[4] in set(tried.layers[:4][gain[:4] == gain[:4].max()])
    (best,) = tried[tried.best].index
    assert gain[best] == gain.max() and (str(one.layers), one.chosen) == (tried.layers[best], "swept")
    assert one.choice.margin == tried.margin[best]
    for row in tried.itertuples():
        done = repair(one, "emmet", layers=json.loads(row.layers), stop_margin=row.margin)
        found = judged(one, done)
        assert [found[name] for name in ("fixed", "generality", "kept")] == [row.fixed, row.generality, row.kept]
        assert done.weight == row.weight


def test_a_sweep_holds_the_budget_on_val(study):
    held, free = (study(**SWEPT | {"kept_budget": budget}).choice.tried for budget in (0.9, 0))
    assert (held.kept >= 0.9).all() and (free.kept < 0.9).any() and (held.weight > 0).any()
    assert free.weight.isna().all() and free.fixed.sum() > held.fixed.sum()


def test_of_equal_gains_the_one_that_keeps_more_is_taken():
    rows = [{"fixed": 0.5, "generality": 0.5, "kept": 0.8}, {"fixed": 0.75, "generality": 0.25, "kept": 0.9}]
    assert max(rows, key=repair_choice._gain) is rows[1]
    assert max([*rows, {"fixed": 1.0, "generality": 0.1, "kept": 0.1}], key=repair_choice._gain)["fixed"] == 1.0


def test_a_sweep_looks_at_no_held_out_image_and_puts_the_model_back(sought, monkeypatch):
    classifier, wrong, kept = sought()
    before, pixels, seen = bits(classifier.vit), VisionModel.pixels, set()

    def watched(vit, images):
        seen.update(image.tobytes() for image in images)
        return pixels(vit, images)

    monkeypatch.setattr(VisionModel, "pixels", watched)
    assert choose(classifier, wrong, kept).how == "swept" and bits(classifier.vit) == before
    data = classifier.data
    assert {image.tobytes() for image in (*wrong.images, *kept.images, *data.val.images)} <= seen
    assert not {image.tobytes() for image in data.test.images} & seen
    monkeypatch.setattr(repair_choice, "copied", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        choose(classifier, wrong, kept)
    assert bits(classifier.vit) == before


def test_a_sweep_repairs_a_part_of_many_mistakes(sought, monkeypatch):
    classifier, wrong, kept = sought()
    real, parts = prepared.RepairSession, []

    def spied(*args, images, **options):
        parts.append(images.indices.tolist())
        return real(*args, images=images, **options)

    monkeypatch.setattr(repair_choice, "CHOSEN_ON", 3)
    monkeypatch.setattr(prepared, "RepairSession", spied)
    choose(classifier, wrong, kept)
    assert len(parts) == 5 and all(part == parts[0] for part in parts)
    assert len(parts[0]) == 3 < len(wrong) and {*parts[0]} < {*wrong.indices}


def test_without_a_mistake_nothing_is_tried(sought, monkeypatch):
    classifier, wrong, kept = sought()
    monkeypatch.setattr(prepared, "RepairSession", refuse)
    monkeypatch.setattr(tracing, "trace", refuse)
    choice = choose(classifier, wrong.select([]), kept)
    assert (choice.layers, choice.how) == ([1, 2, 3], "the last three") and choice.tried.empty


def test_copies_have_the_class_and_place_of_their_image(sought):
    classifier, wrong, _ = sought(copies=2)
    copies = repair_choice.copied(wrong, classifier.spec)
    assert copies.indices.tolist() == np.repeat(wrong.indices, 2).tolist()
    assert copies.labels.tolist() == np.repeat(wrong.labels, 2).tolist() and len(copies.images) == 2 * len(wrong)
    assert not any(np.array_equal(copy, one) for copy, one in zip(copies.images[::2], wrong.images, strict=True))
