"""Causal tracing of tiny Vision Transformers, against forward passes written out by hand."""

import numpy as np
import pandas as pd
import pytest
import torch

from editkit.models.hooks import capture, edit_output, run_from, window
from editkit.vision import tracing
from editkit.vision.data import ImageSet, drawn
from editkit.vision.forward import predict
from editkit.vision.tracing import MODULES, TraceSpec, _Traced, cls_attention, heat_maps, stored_trace, trace

SPEC = TraceSpec(num_ablations=4, trace_noise=2.0, window=1, max_samples=3)
FAMILIES = pytest.mark.parametrize("family", ["dinov2", "vit"])


@pytest.fixture
def part():
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    return ImageSet(images, np.array([0, 1, 2, 0]), np.array([10, 11, 12, 13]))


def hooks(vit):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in vit.model.modules())


def block(family, layer, x, mlp=None, cls=None):
    """One layer written out; ``mlp`` and ``cls`` stand in for the MLP's output and for the CLS token's result."""
    if family == "dinov2":
        x = x + layer.layer_scale1(layer.attention(layer.norm1(x))[0])
        x = x + layer.layer_scale2(layer.mlp(layer.norm2(x)) if mlp is None else mlp)
    else:
        x = x + layer.attention(layer.layernorm_before(x))[0]
        x = x + (layer.mlp(layer.layernorm_after(x)) if mlp is None else mlp)
    return x if cls is None else torch.cat([cls.expand(len(x), 1, -1), x[:, 1:]], 1)


def probability(family, vit, x, label):
    """The classifier's end written out: DINOv2's head reads CLS and the mean patch, ViT's the CLS token."""
    x = getattr(vit.model, family).layernorm(x)
    read = torch.cat([x[:, 0], x[:, 1:].mean(1)], 1) if family == "dinov2" else x[:, 0]
    return vit.head(read).double().softmax(-1)[:, label]


@FAMILIES
def test_the_residual_at_every_position_recovers_everything(tiny_vit, part, family):
    vit = tiny_vit(family)
    run = _Traced(vit, part.select([1]), 2, SPEC)
    assert run.clean == pytest.approx(predict(vit, part)[1, 2]) and abs(run.clean - run.corrupted) > 0.01
    everywhere, nowhere = torch.ones(1, 17, dtype=torch.bool), torch.zeros(1, 17, dtype=torch.bool)
    for layer in range(3):
        assert run.restored("residual", layer, everywhere).tolist() == pytest.approx([run.clean] * 4, abs=1e-5)
        for kind in MODULES:
            assert run.restored(kind, layer, nowhere).mean().item() == pytest.approx(run.corrupted, abs=1e-5)


@FAMILIES
@torch.no_grad()
def test_restored_runs_equal_passes_written_out(tiny_vit, part, family):
    vit = tiny_vit(family)
    frame = trace(vit, part, part.labels, SPEC, progress=False)
    rows = frame[frame["index"] == 11].set_index(["kind", "layer"])
    embedded = getattr(vit.model, family).embeddings(vit.pixels(part.images[1:2]))
    noisy = embedded.repeat(4, 1, 1)
    noise = np.random.default_rng([SPEC.seed, 11]).standard_normal((4, 16, 16))
    noisy[:, 1:] += 2 * embedded[:, 1:].std() * torch.tensor(noise, dtype=torch.float32)
    with capture({"mlp": vit.layers[1].mlp}) as seen:
        states = [embedded := block(family, layer, embedded) for layer in vit.layers]

    def run(**stand_in):
        x = noisy
        for number, layer in enumerate(vit.layers):
            x = block(family, layer, x, **(stand_in if number == 1 else {}))
        return probability(family, vit, x, 1).mean().item()

    assert rows.clean.iloc[0] == pytest.approx(probability(family, vit, states[-1], 1).item(), abs=1e-5)
    assert rows.corrupted.iloc[0] == pytest.approx(run(), abs=1e-5)
    assert rows.restored["mlp", 1] == pytest.approx(run(mlp=seen["mlp"]), abs=1e-5)
    assert rows.restored["residual", 1] == pytest.approx(run(cls=states[1][:, :1]), abs=1e-5)
    assert len({round(value, 4) for value in (run(), run(mlp=seen["mlp"]), run(cls=states[1][:, :1]))}) == 3


@FAMILIES
def test_noise_lies_on_patches_alone_and_belongs_to_the_image(tiny_vit, part, family):
    vit = tiny_vit(family)
    with capture({0: vit.layers[0]}, side="input") as seen, torch.no_grad():
        vit.forward(vit.pixels(part.images[2:3]))
    run = _Traced(vit, part.select([2]), 0, SPEC.model_copy(update={"num_ablations": 200}))
    noise = run.noisy[0] - seen[0]
    assert not noise[:, 0].any() and noise[:, 1:].all()
    assert (noise[:, 1:].std() / seen[0][:, 1:].std()).item() == pytest.approx(2.0, rel=0.02)
    alone = _Traced(vit, part.select([2]), 0, SPEC)
    other = _Traced(vit, part.select([2]), 0, SPEC.model_copy(update={"seed": 1}))
    assert torch.equal(alone.noisy[0], _Traced(vit, part.select([2]), 1, SPEC).noisy[0])
    assert not torch.equal(alone.noisy[0], other.noisy[0])


def test_a_trace_has_a_row_an_image_kind_and_layer_and_repeats(tiny_vit, part, capsys):
    vit = tiny_vit()
    frame = trace(vit, part, part.labels, SPEC)
    assert "tracing: 100%" in capsys.readouterr().err
    chosen = drawn(4, 3, SPEC.seed)
    assert len(frame) == 3 * 3 * 3 and frame["index"].unique().tolist() == part.indices[chosen].tolist()
    assert frame["class"].tolist() == np.repeat(part.labels[chosen], 9).tolist()
    assert np.allclose(frame.recovered, frame.restored - frame.corrupted)
    damage = frame.clean - frame.corrupted
    assert frame.share.isna().equals(damage < 0.05) and frame.share.notna().any()
    assert np.allclose((frame.share * damage).dropna(), frame.recovered[frame.share.notna()])
    pd.testing.assert_frame_equal(frame, trace(vit, part, part.labels, SPEC, progress=False))
    one = trace(vit, part.select(chosen[1:2]), part.labels[chosen[1:2]], SPEC, progress=False)
    pd.testing.assert_frame_equal(one, frame[9:18].reset_index(drop=True))
    same, reseeded = part.select(chosen), SPEC.model_copy(update={"seed": 1})
    seeded = trace(vit, same, same.labels, reseeded, progress=False)
    assert seeded.clean.equals(frame.clean) and not np.isclose(seeded.corrupted, frame.corrupted).any()


def test_the_seed_draws_which_images_are_traced():
    found = {tuple(drawn(40, 4, seed)) for seed in range(30)}
    assert len(found) > 25 and all(list(places) == sorted(set(places)) for places in found)
    seen = {int(place) for places in found for place in places}
    assert len(seen) > 30 and min(seen) < 4 and max(seen) > 35, "not the first ones alone"
    assert drawn(3, 9, 0).tolist() == [0, 1, 2] and not len(drawn(0, 4, 0))


def test_a_window_is_centred_and_ends_with_the_model(tiny_vit, part):
    assert [list(window(layer, 3, 5)) for layer in (0, 2, 4)] == [[0, 1], [1, 2, 3], [3, 4]]
    assert [list(window(layer, 4, 5)) for layer in (0, 2, 4)] == [[0, 1], [0, 1, 2, 3], [2, 3, 4]]
    assert list(window(2, 1, 5)) == [2] and list(window(2, 99, 5)) == [0, 1, 2, 3, 4]
    vit = tiny_vit()
    one, three, all_of_them = (
        trace(vit, part, part.labels, SPEC.model_copy(update={"window": size}), progress=False).set_index("kind")
        for size in (1, 3, 5)
    )
    assert np.allclose(one.restored["residual"], three.restored["residual"])
    assert not np.isclose(one.restored["mlp"], three.restored["mlp"]).any()
    middle = three.layer["mlp"] == 1
    assert np.allclose(three.restored["mlp"][middle.to_numpy()], all_of_them.restored["mlp"][middle.to_numpy()])
    assert np.allclose(one.clean, three.clean) and np.allclose(one.corrupted, three.corrupted)


def test_a_trace_is_read_where_nothing_has_changed(tiny_vit, part, store, monkeypatch):
    vit = tiny_vit()
    first = stored_trace(vit, part, SPEC, store=store, progress=False)
    pd.testing.assert_frame_equal(first, trace(vit, part, predict(vit, part).argmax(1), SPEC, progress=False))
    monkeypatch.setattr(tracing, "trace", lambda *_, **__: pytest.fail("computed"))
    pd.testing.assert_frame_equal(first, stored_trace(vit, part, SPEC, store=store, progress=False))
    for changed, scale in ((SPEC.model_copy(update={"seed": 1}), 1), (SPEC, 1.1)):
        vit.weight(0).mul_(scale)
        with pytest.raises(pytest.fail.Exception, match="computed"):
            stored_trace(vit, part, changed, store=store, progress=False)


def test_nothing_stays_installed_also_after_an_error(tiny_vit, part, monkeypatch):
    vit = tiny_vit()
    trace(vit, part, part.labels, SPEC, progress=False)
    heat_maps(vit, part.select([0]), 0, [0], SPEC, progress=False)
    cls_attention(vit, part.images)
    assert hooks(vit) == 0
    run = _Traced(vit, part.select([0]), 0, SPEC)
    everywhere = torch.ones(1, 17, dtype=torch.bool)
    with pytest.raises(RuntimeError):
        run.restored("mlp", 2, everywhere[:, :5])
    with (
        pytest.raises(KeyError),
        run_from(vit, 2, run.noisy[2]),
        edit_output({vit.layers[2]: lambda hidden: hidden}),
    ):
        assert hooks(vit) == 3
        raise KeyError
    assert hooks(vit) == 0
    monkeypatch.setattr(vit.layers[1].mlp, "fc2", None)
    with pytest.raises(TypeError):
        trace(vit, part, part.labels, SPEC, progress=False)
    assert hooks(vit) == 0


def test_what_cannot_be_traced_is_refused(tiny_vit, part):
    vit = tiny_vit()
    held_out = ImageSet(part.images, part.labels, part.indices, held_out=True)
    with pytest.raises(ValueError, match="4 held-out images .* must not be used for locating"):
        trace(vit, held_out, part.labels, SPEC)
    with pytest.raises(ValueError, match="must not be used for locating"):
        heat_maps(vit, held_out.select([0]), 0, [0], SPEC)
    with pytest.raises(ValueError, match="no images to trace"):
        trace(vit, part.select([]), part.labels[:0], SPEC)
    with pytest.raises(ValueError, match=r"classes has shape \(3,\): must be \(4,\)"):
        trace(vit, part, part.labels[:3], SPEC)
    with pytest.raises(ValueError, match="class 3: must be 0 to 2, tiny-dinov2's labels"):
        heat_maps(vit, part.select([0]), 3, [0], SPEC)
    with pytest.raises(ValueError, match="part has 4 images: a heat map is of one"):
        heat_maps(vit, part, 0, [0], SPEC)
    with pytest.raises(ValueError, match="window = 0"):
        TraceSpec(window=0)


@FAMILIES
def test_a_heat_map_restores_one_patch_at_a_time(tiny_vit, part, family, monkeypatch):
    vit, rows = tiny_vit(family), []
    assert not vit.tuple_layers  # known from a pass of its own, which is not counted
    forward = vit.head.forward
    monkeypatch.setattr(vit.head, "forward", lambda x: rows.append(len(x)) or forward(x))
    spec = SPEC.model_copy(update={"num_ablations": 5})
    maps = heat_maps(vit, part.select([3]), 1, [1, 2], spec, progress=False)
    assert maps.shape == (2, 4, 4) and rows == [1, 5] + [64, 16] * 2
    run = _Traced(vit, part.select([3]), 1, spec)
    patch = torch.arange(17)[None] == 1 + 4 * 2 + 3
    assert maps[0, 2, 3] == pytest.approx(run.restored("residual", 1, patch).mean().item() - run.corrupted, abs=1e-5)
    reads_patches = family == "dinov2"
    assert np.allclose(maps[1], 0, atol=1e-5) != reads_patches, "after the last layer only DINOv2's head reads patches"


@FAMILIES
def test_attention_is_that_of_the_model_which_keeps_its_kernel(tiny_vit, part, family):
    vit = tiny_vit(family)
    before = vit.model.config._attn_implementation
    seen = cls_attention(vit, part.images)
    assert seen.shape == (4, 4, 4) and (seen > 0).all() and (seen.sum((1, 2)) < 1).all()
    assert vit.model.config._attn_implementation == before != "eager"
    vit.model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = vit.model(vit.pixels(part.images), output_attentions=True).attentions[-1][:, :, 0, 1:].mean(1)
    assert np.allclose(seen.reshape(4, 16), expected, atol=1e-6)
    assert cls_attention(vit, part.images[:0]).shape == (0, 4, 4)
