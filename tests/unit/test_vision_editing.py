"""Repairs of tiny Vision Transformers: what is read off them, targets against a plain loop, sessions as for facts."""

import copy

import numpy as np
import pytest
import torch
from peft import PeftModel

from editkit import METHODS, EditSpec
from editkit.vision import editing
from editkit.vision.data import ImageSet
from editkit.vision.editing import ImageReader, Repair, RepairSession, kept_moments, optimise_targets, repairs
from editkit.vision.evaluation import predict

FAMILIES = pytest.mark.parametrize("family", ["dinov2", "vit"])
PIXELS = np.random.default_rng(0).integers(0, 256, (29, 28, 28), dtype=np.uint8)
IMAGES = ImageSet(PIXELS[:5], np.array([2, 0, 1, 0, 2]), np.arange(100, 105))
KEPT = ImageSet(PIXELS[5:], np.zeros(24, int), np.arange(24))
STRONG = dict(v_lr=0.3, clamp_norm_factor=1.5, mom2_update_weight=1e-3, nullspace_threshold=0.5, l2=1e-3)


@pytest.fixture
def start(store):
    def build(vit, method="emmet", *, images=IMAGES, kept=KEPT, **changes):
        spec = EditSpec(method=method, **(STRONG | {"layers": [1]} | changes))
        return RepairSession(vit, spec, images=images, kept=kept, store=store, progress=False)

    return build


@pytest.fixture
def scaled_vit(tiny_vit):
    """As ``tiny_vit``, with random LayerScale where the family has one."""

    def build(family="dinov2"):
        vit = tiny_vit(family)
        for seed, layer in enumerate(vit.layers if family == "dinov2" else []):
            layer.layer_scale2.lambda1.data.uniform_(0.3, 1.3, generator=torch.Generator().manual_seed(seed))
        return vit

    return build


def others(vit, count=3):
    """Repairs that ask for another class than the model says."""
    said = predict(vit, IMAGES).argmax(1)
    return [Repair(100 + i, int(said[i] + 1) % 3) for i in range(count)]


def repaired(vit, items):
    said = predict(vit, IMAGES).argmax(1)
    return all(said[item.index - 100] == item.label for item in items)


def hooked(vit, images, module, side=1):
    """Input (0) or output (1) of a module in a full forward pass, (n, positions, dim)."""
    seen = []
    handle = module.register_forward_hook(lambda _, args, out: seen.append((args[0], out)[side]))
    with torch.no_grad():
        vit.forward(vit.pixels(images))
    handle.remove()
    return seen[0]


@FAMILIES
def test_kept_moments_are_half_cls_and_half_patches_in_units_of_their_mean_eigenvalue(tiny_vit, monkeypatch, family):
    vit = tiny_vit(family)
    monkeypatch.setattr(editing, "BATCH", 7)
    found = kept_moments(vit, KEPT, [0, 2], progress=False)
    for layer in (0, 2):
        keys = hooked(vit, KEPT.images, vit.layers[layer].mlp.fc2, 0).double()
        cls, patches = keys[:, 0], keys[:, 1:].reshape(-1, 32)
        C = cls.T @ cls / 24 / 2 + patches.T @ patches / (24 * 16) / 2
        torch.testing.assert_close(found[layer], C / torch.linalg.eigvalsh(C).mean(), rtol=1e-4, atol=1e-5)


def test_kept_moments_are_read_where_nothing_has_changed(tiny_vit, store, monkeypatch):
    vit = tiny_vit()
    first = kept_moments(vit, KEPT, [1], store=store, progress=False)[1]
    wide = ImageSet(KEPT.images.reshape(-1, 14, 56), KEPT.labels, KEPT.indices)  # other images of the same bytes
    monkeypatch.setattr(vit, "forward", lambda _: pytest.fail("computed"))
    assert torch.equal(kept_moments(vit, KEPT, [1], store=store, progress=False)[1], first)
    for scale, kept, layer in ((1, KEPT.select(range(23)), 1), (1, wide, 1), (1, KEPT, 2), (1.1, KEPT, 1)):
        vit.weight(0).mul_(scale)
        with pytest.raises(pytest.fail.Exception, match="computed"):
            kept_moments(vit, kept, [layer], store=store, progress=False)


@FAMILIES
@pytest.mark.parametrize("copies", [0, 2])
def test_keys_and_hidden_states_are_those_of_a_full_pass(tiny_vit, monkeypatch, family, copies):
    vit, items = tiny_vit(family), [Repair(103, 0), Repair(100, 1), Repair(104, 2)]
    reader, each = ImageReader(vit, IMAGES, copies, seed=3), 1 + copies
    variants = reader.variants(items)
    assert np.array_equal(variants[::each], IMAGES.images[[3, 0, 4]])
    assert np.array_equal(reader.variants(items[1:2]), variants[each : 2 * each]), "whoever else is there"
    assert len(np.unique(variants, axis=0)) == len(variants) == 3 * each
    keys = hooked(vit, variants, vit.layers[1].mlp.fc2, 0)[:, 0].reshape(3, each, 32)
    after = hooked(vit, IMAGES.images[[3, 0, 4]], vit.layers[1])[:, 0]
    monkeypatch.setattr(editing, "BATCH", 2)
    torch.testing.assert_close(reader.keys(items, 1), keys.mean(1).T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reader.hidden(items, 1), after.T, rtol=1e-4, atol=1e-5)


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
@pytest.mark.parametrize("method", METHODS)
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
def test_the_last_three_layers_are_edited_where_nobody_says_which(tiny_vit, start, family):
    vit = tiny_vit(family)
    assert start(vit, layers=None).spec.layers == [0, 1, 2]
    vit.layers.extend(copy.deepcopy(list(vit.layers[:2])))
    assert start(vit, layers=None).spec.layers == [2, 3, 4] and start(vit, layers=[0, 3]).spec.layers == [0, 3]


def plain_target(vit, images, label, spec):
    """``v*``, and the probability reached, by full passes of all images with δ added to the CLS token by a hook."""
    h = hooked(vit, images[:1], vit.layers[spec.layers[-1]])[0, 0]
    delta = torch.zeros_like(h, requires_grad=True)
    adam, cls = torch.optim.Adam([delta], lr=spec.v_lr), torch.eye(17)[:, :1]
    handles = [vit.layers[spec.layers[-1]].register_forward_hook(lambda _, args, out: out + cls * delta)]
    handles += [m.register_forward_hook(lambda _, args, out: args[0]) for m in vit.layers[spec.v_loss_layer + 1 :]]
    for step in range(spec.v_num_grad_steps):
        nll = -vit.forward(vit.pixels(images)).log_softmax(1)[:, label].mean()
        if nll <= -np.log(spec.stop_probability) or step == spec.v_num_grad_steps - 1:
            break
        adam.zero_grad()
        (nll + spec.v_weight_decay * delta.norm() / h.norm() ** 2).backward()
        adam.step()
        if delta.norm() > (limit := spec.clamp_norm_factor * h.norm()):
            delta.data *= limit / delta.norm()
    for handle in handles:
        handle.remove()
    return (h + delta).detach(), (-nll).exp().item()


@FAMILIES
@pytest.mark.parametrize(
    "changes",
    [{}, {"n_contexts": 2, "v_weight_decay": 2.0}, {"layers": [0], "v_loss_layer": 1}, {"clamp_norm_factor": 0.2}],
)
def test_targets_equal_a_plain_loop_over_the_whole_model(scaled_vit, start, family, changes):
    vit = scaled_vit(family)
    spec, items = start(vit, v_num_grad_steps=8, **changes).spec, others(vit)
    reader = ImageReader(vit, IMAGES, spec.n_contexts, spec.seed)
    found = optimise_targets(reader, items, spec, progress=False)
    plain = [plain_target(vit, reader.variants([item]), item.label, spec) for item in items]
    torch.testing.assert_close(found.values, torch.stack([value for value, _ in plain], 1), rtol=1e-4, atol=1e-4)
    assert found.probability.tolist() == pytest.approx([probability for _, probability in plain], abs=1e-4)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_batches_of_targets_do_not_matter(tiny_vit, start, monkeypatch, size):
    vit = tiny_vit()
    spec, items = start(vit).spec, others(vit, 5)
    reader = ImageReader(vit, IMAGES, 1, spec.seed)
    alone = [optimise_targets(reader, [item], spec, progress=False) for item in items]
    monkeypatch.setattr(editing, "BATCH", size)
    together = optimise_targets(reader, items, spec, progress=False)
    for name, dim in (("values", 1), ("losses", 0), ("probability", 0)):
        expected = torch.cat([getattr(one, name) for one in alone], dim)
        torch.testing.assert_close(getattr(together, name), expected, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert len({int(row.isfinite().sum()) for row in together.losses}) > 1, "some finish before others"


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

    assert drift(replay=replay, replay_rate=1.0, replay_weight=10.0) < 0.5 * drift(replay="none")


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
        lambda part: ImageReader(vit, part, 0, 0),
        lambda part: kept_moments(vit, part, [1], store=store, progress=False),
        lambda part: start(vit, images=part),
        lambda part: start(vit, kept=part),
    ):
        with pytest.raises(ValueError, match="2 held-out images .* must not be used"):
            attempt(closed)
    with pytest.raises(ValueError, match="kept holds no image"):
        start(vit, kept=KEPT.select([]))
    for name, value in (("target_mode", "fast"), ("kl_factor", 0.1), ("trust_enable", True)):
        with pytest.raises(ValueError, match=f"{name} = .* for images"):
            start(vit, **{name: value})
    session = start(vit)
    with pytest.raises(ValueError, match="at least one repair, got an empty batch"):
        session.edit([])
    with pytest.raises(ValueError, match="image 7 is not among the 5 images of this session"):
        session.edit([*others(vit), Repair(7, 0)])
    assert vit.fingerprint() == mark and not session.results
