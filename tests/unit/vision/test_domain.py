"""Sessions of repairs on tiny Vision Transformers, as for facts."""

import copy
from typing import get_args

import numpy as np
import pytest
import torch
from peft import PeftModel

from editkit.methods import METHODS, TargetMethodName
from editkit.vision.data import ImageSet
from editkit.vision.domain import RepairSession
from editkit.vision.forward import predict
from editkit.vision.keys import ImageReader, Repair, repairs
from editkit.vision.moments import kept_moments
from tests.conftest import write_under
from tests.unit.vision.conftest import FAMILIES, IMAGES, KEPT, PIXELS, hooked, others


def repaired(vit, items):
    predicted = predict(vit, IMAGES).argmax(1)
    return all(predicted[item.index - 100] == item.label for item in items)


@FAMILIES
@pytest.mark.parametrize("layer", [1, 2])
def test_one_layer_with_equality_puts_the_cls_token_on_its_target(scaled_vit, start, monkeypatch, family, layer):
    def distance():
        vit = scaled_vit(family)
        before = hooked(vit, IMAGES.images[:3], vit.layers[layer])[:, 0].T
        target = start(vit, layers=[layer]).edit(others(vit)).targets.values
        assert (target - before).norm() > 1
        return (hooked(vit, IMAGES.images[:3], vit.layers[layer])[:, 0].T - target).abs().max()

    assert distance() < 1e-4
    monkeypatch.setattr("editkit.models.VisionModel.gain", lambda *_: torch.ones(1, 1))
    assert (distance() > 0.01) == (family == "dinov2"), "LayerScale matters where there is one"


def test_a_layer_whose_outputs_are_scaled_to_nothing_is_refused_before_it_is_written(scaled_vit, start):
    vit = scaled_vit("dinov2")
    vit.layers[1].layer_scale2.lambda1.data[:3] = 0
    mark = vit.fingerprint()
    with pytest.raises(ValueError, match="layer 1 .* cannot be edited: layer_scale2.lambda1 is 0 in 3 of 16 outputs"):
        start(vit, layers=[1]).edit(others(vit))
    assert vit.fingerprint() == mark


@FAMILIES
@pytest.mark.parametrize("method", get_args(TargetMethodName))
@pytest.mark.parametrize("layers", [[2], [1, 2]])
def test_repaired_images_are_classified_as_asked_and_undo_restores_every_bit(scaled_vit, start, family, method, layers):
    vit = scaled_vit(family)
    bits = {name: tensor.clone() for name, tensor in vit.model.state_dict().items()}
    session, items = start(vit, method, layers=layers), others(vit)
    session.edit(items)
    assert repaired(vit, items)
    changed = {name for name, tensor in vit.model.state_dict().items() if not torch.equal(tensor, bits[name])}
    assert changed == {f"{vit.family.layers}.{layer}.mlp.fc2.weight" for layer in layers}
    session.undo()
    assert all(torch.equal(tensor, bits[name]) for name, tensor in vit.model.state_dict().items())


@FAMILIES
def test_off_the_kept_cls_keys_their_outputs_stay_to_rounding(scaled_vit, start, family):
    def moved(**space):
        vit = scaled_vit(family)
        session, items = start(vit, "alphaedit", layers=[2], **space), others(vit)
        K = hooked(vit, KEPT.images, vit.layers[2].mlp.fc2, 0).double()  # (24, positions, 32)
        delta = session.edit(items).deltas[2].double()
        assert repaired(vit, items)
        return [((keys @ delta.T).norm() / delta.norm() / keys.norm()).item() for keys in (K[:, 0], K[:, 1:])]

    cls, patches = moved(nullspace="kept")
    assert cls < 1e-5 < 1e-3 < patches, "patches are not looked at"
    assert moved()[0] > 1e-3, "a threshold leaves some of it"


def test_more_kept_images_than_directions_leave_nothing_to_project_onto(tiny_vit, start):
    rng = np.random.default_rng(1)
    many = ImageSet(rng.integers(0, 256, (80, 28, 28), dtype=np.uint8), np.zeros(80, int), np.arange(80))
    vit = tiny_vit()
    mark = vit.fingerprint()
    with pytest.raises(ValueError, match="nullspace = 'kept': the kept keys span all 32 directions"):
        start(vit, "alphaedit", kept=many, nullspace="kept").edit(others(vit))
    assert vit.fingerprint() == mark


@FAMILIES
def test_one_layer_at_two_thirds_of_the_depth_is_edited_where_nobody_says_which(tiny_vit, start, family):
    vit = tiny_vit(family)
    assert start(vit, layers=None).spec.layers == [2]
    vit.layers.extend(copy.deepcopy(list(vit.layers[:2])))
    assert start(vit, layers=None).spec.layers == [3] and start(vit, layers=[0, 3]).spec.layers == [0, 3]


@pytest.mark.parametrize("method", ["emmet", "memit", "alphaedit"])
@pytest.mark.parametrize("replay", ["hold", "history", "buffer"])
def test_replay_keeps_what_was_put_out_for_an_earlier_image(tiny_vit, start, method, replay):
    def drift(**changes):
        vit = tiny_vit()
        session, items = start(vit, method, mom2_update_weight=0.1, l2=0.1, **changes), others(vit, 4)
        key = hooked(vit, IMAGES.images[:1], vit.layers[1].mlp.fc2, 0)[0, 0]  # no edit of the layer moves its input
        session.edit(items[:1])
        put_out = vit.weight(1) @ key
        for item in items[1:]:
            session.edit([item])
        return (vit.weight(1) @ key - put_out).norm()

    weight = 1.0 if METHODS[method].equality else 10.0  # equality meets new and earlier edits alike
    assert drift(replay=replay, replay_rate=1.0, replay_weight=weight) < 0.5 * drift(replay="none")


@pytest.mark.parametrize("replay", ["buffer", "hold", "history"])
@pytest.mark.parametrize("layers", [[2], [1, 2]])
def test_a_session_goes_on_from_its_state_with_the_same_bits(scaled_vit, start, replay, layers):
    vit, other = scaled_vit(), scaled_vit()
    items, mark = others(vit, 4), vit.fingerprint()
    settings = dict(layers=layers, replay=replay, replay_strategy="priority", n_contexts=1)
    session, again = start(vit, **settings), start(other, **settings)
    session.edit(items[:3])
    again.load_state_dict(session.state_dict())
    assert other.fingerprint() == vit.fingerprint() != mark and len(again.memory) == 3
    assert replay != "buffer" or [record.item for record in again.memory] == items[:3]
    for one in (session, again):
        one.edit(items[3:])
    assert other.fingerprint() == vit.fingerprint()
    again.undo()
    assert other.fingerprint() == mark


def test_saved_updates_make_the_same_repairs_on_another_copy(scaled_vit, start, store, tmp_path):
    vit, other = scaled_vit(), scaled_vit()
    items, mark = others(vit), vit.fingerprint()
    session = start(vit, "alphaedit", layers=[0, 2])
    session.edit(items[:2])
    session.edit(items[2:])
    path = session.save(tmp_path / "repairs.safetensors")
    again = RepairSession.load(other, path, images=IMAGES, kept=KEPT, store=store, progress=False)
    assert other.fingerprint() == vit.fingerprint() != mark
    again.undo()
    assert other.fingerprint() == mark


@FAMILIES
def test_an_adapter_is_the_raw_repair_beside_the_weights(scaled_vit, start, tmp_path, family):
    vit, raw, plain = (scaled_vit(family) for _ in range(3))
    items, x, mark = others(vit), vit.pixels(PIXELS), vit.fingerprint()
    session = start(vit, "memit", layers=[1, 2], edit_mode="lora")
    session.edit(items)
    start(raw, "memit", layers=[1, 2]).edit(items)
    torch.testing.assert_close(vit.forward(x), raw.forward(x), rtol=1e-4, atol=1e-4)
    assert repaired(vit, items) and all(torch.equal(vit.weight(layer), plain.weight(layer)) for layer in range(3))
    folder = session.save_adapter(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(plain.model, folder)
    torch.testing.assert_close(loaded(pixel_values=x).logits, vit.forward(x), rtol=1e-5, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert "| image | class |" in card and all(f"| {item.index} | {item.label} |" in card for item in items)
    assert "| edited images classified as asked | 1.000 |" in card
    session.adapters.disable(*session.adapters)
    assert session.adapters.base == vit.fingerprint() == mark


def test_bad_input_is_refused_and_the_weights_stay(tiny_vit, start, store):
    vit, closed = tiny_vit(), ImageSet(PIXELS[:2], np.zeros(2, int), np.arange(2), held_out=True)
    mark = vit.fingerprint()
    assert repairs(IMAGES.select([1, 4])) == [Repair(101, 0), Repair(104, 2)]
    for attempt in (
        repairs,
        lambda part: start(vit, tune=part),
        lambda part: ImageReader(vit, part, 0, 0),
        lambda part: kept_moments(vit, part, [1], store=store, progress=False),
        lambda part: start(vit, images=part),
        lambda part: start(vit, kept=part),
    ):
        with pytest.raises(ValueError, match="2 held-out images .* must not be used"):
            attempt(closed)
    with pytest.raises(ValueError, match="kept holds no image"):
        start(vit, kept=KEPT.select([]))
    with pytest.raises(ValueError, match="kept_budget = 0.9: give tune, images on which the promise is held"):
        start(vit, kept_budget=0.9)
    only_text = {"target_mode": "fast", "kl_factor": 0.1, "norm_anchor": 2.0, "trust_enable": True}
    for name, value in (only_text | {"neighbour_budget": 0.9, "text_budget": 0.9}).items():
        with pytest.raises(ValueError, match=f"{name} = .* for images"):
            start(vit, **{name: value})
    with pytest.raises(ValueError, match="target_mode = 'gradient': must be 'exact' for images"):
        start(vit, "ultraedit")
    session = start(vit)
    with pytest.raises(ValueError, match="at least one repair, got an empty batch"):
        session.edit([])
    with pytest.raises(ValueError, match="image 7 is not among the 5 images of this session"):
        session.edit([*others(vit), Repair(7, 0)])
    assert vit.fingerprint() == mark and not session.results


def tuning(vit, wrong=10):
    """40 images, of which the model is right on all but the last ``wrong``."""
    pixels = np.random.default_rng(5).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    part = ImageSet(pixels, np.zeros(40, int), np.arange(200, 240))
    labels = predict(vit, part).argmax(1)
    return ImageSet(pixels, (labels + (np.arange(40) >= 40 - wrong)) % 3, part.indices)


def stays(vit, tune, wrong=10):
    return (predict(vit, tune).argmax(1) == tune.labels)[: 40 - wrong].mean()


@FAMILIES
@pytest.mark.parametrize("method", get_args(TargetMethodName))
@pytest.mark.parametrize("edit_mode", ["raw", "lora"])
def test_what_a_budget_keeps_is_held_by_the_smallest_weight(tiny_vit, start, family, method, edit_mode):
    vit, other, free = (tiny_vit(family) for _ in range(3))
    items, tune, mark = others(vit), tuning(vit), vit.fingerprint()
    session = start(vit, method, kept_budget=1.0, tune=tune, edit_mode=edit_mode)
    budget = session.edit(items).budget
    assert budget.promised == {"kept": 1.0} and budget.weight > 0 and stays(vit, tune) == 1
    assert max(weight for weight, seen in budget.tries.items() if seen["kept"] < 1) > budget.weight / 1.07
    write_under(start(other, method, edit_mode=edit_mode), items, budget.weight)
    assert vit.fingerprint() == other.fingerprint() != mark
    start(free, method, edit_mode=edit_mode).edit(items)
    assert stays(free, tune) < 1, "without a promise it is not kept"
    session.undo()
    assert vit.fingerprint() == mark


@pytest.mark.parametrize("layers", [[1], [0, 2]])
def test_what_stays_is_counted_among_what_was_right_before_the_first_edit(tiny_vit, start, layers):
    vit = tiny_vit()
    tune = tuning(vit)
    session = start(vit, kept_budget=0.8, tune=tune, layers=layers)
    for item in others(vit):
        assert session.edit([item]).budget.measured["kept"] == pytest.approx(stays(vit, tune))
    assert 0.8 <= stays(vit, tune) < 1


def test_where_earlier_repairs_broke_a_promise_nothing_is_written(tiny_vit, start):
    bold, vit = tiny_vit(), tiny_vit()
    items, tune, untouched = others(vit), tuning(vit), vit.fingerprint()
    session, strict = start(bold, replay="buffer"), start(vit, replay="buffer", kept_budget=1.0, tune=tune)
    session.edit(items[:2])
    assert stays(bold, tune) < 1
    strict.load_state_dict(session.state_dict())
    mark = vit.fingerprint()
    with pytest.warns(UserWarning, match=r"kept 0\.\d+ of 1; nothing is written"):
        result = strict.edit(items[2:])
    assert not result.budget.holds and not result.updates and vit.fingerprint() == mark != untouched
    assert [record.item for record in strict.memory] == items[:2]
    strict.undo()
    assert vit.fingerprint() == untouched


def test_a_promise_is_not_held_on_edited_images_nor_on_images_that_were_wrong(tiny_vit, start):
    vit = tiny_vit()
    items, tune, mark = others(vit), tuning(vit), vit.fingerprint()
    shared = ImageSet(tune.images, tune.labels, np.arange(101, 141))
    with pytest.raises(ValueError, match="image 101 is edited: leave it out of tune"):
        start(vit, kept_budget=0.5, tune=shared).edit(items)
    for nothing, count in ((tune.select(slice(30, None)), 10), (tune.select([]), 0)):
        with pytest.raises(ValueError, match=f"kept_budget: the model is right on none of {count} tune images"):
            start(vit, kept_budget=0.5, tune=nothing).edit(items)
    assert vit.fingerprint() == mark


def test_a_saved_session_with_a_budget_is_read_with_its_tune_images(tiny_vit, start, store, tmp_path):
    vit, other = tiny_vit(), tiny_vit()
    tune, given = tuning(vit), dict(images=IMAGES, kept=KEPT, store=store, progress=False)
    session = start(vit, kept_budget=1.0, tune=tune)
    session.edit(others(vit))
    path = session.save(tmp_path / "repairs.safetensors")
    with pytest.raises(ValueError, match="kept_budget = 1: give tune"):
        RepairSession.load(other, path, **given)
    RepairSession.load(other, path, **given, tune=tune)
    assert other.fingerprint() == vit.fingerprint()
