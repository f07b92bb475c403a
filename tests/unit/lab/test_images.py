"""The laboratory of images without a front end: open, look, edit, see, undo; settings; errors in place."""

import numpy as np
import pytest
import torch

from editkit.lab.images import Images
from editkit.studies.repair_spec import RepairSpec
from editkit.vision.domain import RepairSession
from editkit.vision.keys import repairs
from tests.unit.conftest import bits
from tests.unit.lab.test_laboratory import LONG, done


@torch.no_grad()
def classes(vit, part):
    return vit.model(vit.pixels(part.images)).logits.argmax(-1).numpy()


def test_open_edit_see_undo(images):
    assert images.reasons() == ["open the classifier first"]
    images.open()
    prepared = done(images).prepared
    vit, came = prepared.vit, bits(prepared.vit)
    assert images.place == 0 and images.reasons() == [] and images.seen.before is images.seen.after
    assert not len(images.seen.moved.places) and images.seen.moved.kept == 1
    test, before = prepared.data.test, classes(vit, prepared.data.test)
    images.edit()
    seen = done(images).seen
    after = classes(vit, test)
    assert bits(vit) != came and images.places == [0] and images.reasons() == ["this repair is in the classifier"]
    true = prepared.candidates.labels[0]
    assert seen.before.probabilities.argmax() != true
    assert seen.after.probabilities[true] > seen.before.probabilities[true]
    assert not np.allclose(seen.before.attention, seen.after.attention)
    moved = np.flatnonzero(before != after)
    assert list(seen.moved.places) == list(moved) and len(moved), "an edit of this size is meant to move some images"
    assert list(seen.moved.before) == list(before[moved]) and list(seen.moved.after) == list(after[moved])
    assert seen.moved.broken == (before == test.labels)[moved].sum()
    assert seen.moved.fixed == (after == test.labels)[moved].sum()
    images.undo()
    assert bits(done(images).prepared.vit) == came and images.places == []
    assert np.array_equal(images.seen.after.probabilities, images.seen.before.probabilities)


def test_the_classifier_is_as_a_session_of_its_own_would_leave_it(opened):
    prepared = opened.prepared
    for place in (0, 1):
        opened.pick(place)
        done(opened).edit()
        done(opened)
    found = bits(prepared.vit)
    opened.base()
    done(opened)
    given = {"images": prepared.candidates, "kept": prepared.kept, "progress": False}
    session = RepairSession(prepared.vit, opened.spec(), **given)
    for item in repairs(prepared.candidates.select([0, 1])):
        session.edit([item])
    assert bits(prepared.vit) == found
    session.undo()


def test_settings_reach_the_spec_and_are_applied_when_asked(opened):
    opened.edit()
    held = bits(done(opened).prepared.vit)
    opened.choose("memit", stop_margin=2.0, layers=[2, 3])
    spec = opened.spec()
    assert (spec.method, spec.stop_margin, spec.layers) == ("memit", 2.0, [2, 3])
    assert not opened.settled and bits(opened.prepared.vit) == held
    opened.again()
    assert bits(done(opened).prepared.vit) != held and opened.settled
    before = opened.seen.before
    opened.choose("alphaedit", stop_margin=None, layers=None)
    opened.again()
    assert bits(done(opened).prepared.vit) == held and opened.seen.before is before


def test_a_failing_repair_leaves_the_classifier_bit_for_bit(opened, monkeypatch):
    opened.edit()
    held = bits(done(opened).prepared.vit)
    real = RepairSession.edit

    def fails(session, items):
        if session.spec.method == "memit":
            raise FloatingPointError("layer 1: the update is not finite; the weights stay as they were")
        return real(session, items)

    monkeypatch.setattr(RepairSession, "edit", fails)
    opened.choose("memit")
    opened.again()
    opened.wait(LONG)
    assert opened.worker.error.startswith("layer 1: the update is not finite")
    assert bits(opened.prepared.vit) == held and opened.places == [0]


def test_what_does_not_fit_is_told_in_words(opened):
    opened.choose(layers=[9])
    [told] = opened.reasons()
    assert "9" in told and "\n" not in told
    with pytest.raises(ValueError, match="9"):
        opened.edit()
    opened.choose(layers=None)
    opened.pick(99)
    opened.wait(LONG)
    assert opened.worker.error == f"place = 99: there are {len(opened.mistakes)} mistakes, counted from 0"
    assert opened.place == 0


def test_a_study_that_cannot_be_opened_is_told_in_place():
    images = Images(RepairSpec(data="digit"))
    images.open()
    images.wait(LONG)
    assert "unknown data set 'digit'" in images.worker.error and images.prepared is None
