"""Fine-tuning and evaluation of a tiny Vision Transformer on images that it can learn."""

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal
from transformers import Dinov2Config, Dinov2ForImageClassification

from editkit import VisionModel
from editkit.cache import Store
from editkit.models.vision import IMAGENET_MEAN, IMAGENET_STD
from editkit.vision import training
from editkit.vision.data import ImageData, ImageSet
from editkit.vision.forward import predict
from editkit.vision.training import TrainSpec, best_epoch, metrics, train

NAMES = ("dark", "grey", "bright")


@pytest.fixture
def vit():
    def build(labels=3):
        torch.manual_seed(0)
        config = Dinov2Config(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
            mlp_ratio=2,
            num_labels=labels,
        )
        return VisionModel("tiny", Dinov2ForImageClassification(config), 8, IMAGENET_MEAN, IMAGENET_STD)

    return build


@pytest.fixture
def data():
    """Dark, grey and bright images, with noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = rng.integers(0, 60, (90, 8, 8))
    images += 90 * labels[:, None, None]
    whole = ImageSet(images.astype(np.uint8), labels, np.arange(90))
    test = ImageSet(whole.images[75:], whole.labels[75:], whole.indices[75:], held_out=True)
    splits = {"train": whole.select(np.arange(60)), "val": whole.select(np.arange(60, 75)), "test": test}
    return ImageData("made up", NAMES, splits, "official", {}, splits["train"].select([]))


SPEC = TrainSpec(epochs=4, batch_size=8, lr=0.01, fresh_head_lr=0.03)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def learnt(vit, data, store):
    model = vit()
    with pytest.warns(UserWarning, match="above 98%: the task is too easy"):
        result = train(model, data, SPEC, store=store, progress=False)
    return model, result


def test_it_learns_and_keeps_the_best_epoch(learnt, vit, data):
    model, result = learnt
    scores = result.metrics.set_index("split")
    assert list(scores.index) == ["train", "val", "test"] and (scores.accuracy > 0.95).all()
    with pytest.warns(UserWarning, match="above 98%"):  # a checkpoint's, too
        assert_frame_equal(metrics(model, data), result.metrics)
    assert result.history.epoch.tolist() == [1, 2, 3, 4] and result.history.loss.iloc[-1] < result.history.loss.iloc[0]
    assert result.history.val_accuracy[result.best_epoch - 1] == result.history.val_accuracy.max()
    assert scores.accuracy["val"] == result.history.val_accuracy.max()
    assert not model.model.training and not any(p.requires_grad for p in model.model.parameters())


def test_the_first_of_equal_epochs_is_the_best():
    rows = [{"epoch": i + 1, "val_accuracy": value} for i, value in enumerate([0.5, 0.9, 0.9, 0.8])]
    assert best_epoch(rows) == 2


def test_a_second_call_reads_and_another_setting_trains_again(learnt, vit, data, store, monkeypatch):
    first, result = learnt
    monkeypatch.setattr(training, "_epoch", lambda *_: pytest.fail("it is in the store"))
    model = vit()
    with pytest.warns(UserWarning, match="98%"):
        again = train(model, data, SPEC, store=store, progress=False)
    assert same(weights(model), weights(first)) and again.history.equals(result.history)
    for changes in ({"lr": 0.001}, {"seed": 1}, {"trained_layers": 1}):
        with pytest.raises(pytest.fail.Exception):
            train(vit(), data, SPEC.model_copy(update=changes), store=store, progress=False)


def test_training_stopped_in_any_epoch_goes_on_with_the_same_result(learnt, vit, data, tmp_path, monkeypatch):
    first, result = learnt
    store, epoch, calls = Store(tmp_path / "other"), training._epoch, []

    def dies(*args):
        calls.append(args[4])
        if len(calls) in (2, 4):
            raise KeyboardInterrupt
        return epoch(*args)

    monkeypatch.setattr(training, "_epoch", dies)
    model = vit()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(model, data, SPEC, store=store, progress=False)
        assert same(weights(model), weights(vit())), "as it was, so that the same call goes on"
    with pytest.warns(UserWarning, match="98%"):
        again = train(model, data, SPEC, store=store, progress=False)
    assert calls == [0, 1, 1, 2, 2, 3]
    assert same(weights(model), weights(first))
    assert again.history.drop(columns="seconds").equals(result.history.drop(columns="seconds"))


def test_a_damaged_checkpoint_is_made_again(learnt, vit, data, store):
    for entry in (store.root / "training").iterdir():
        entry.write_bytes(entry.read_bytes()[:100])
    model = vit()
    with pytest.warns(UserWarning, match="98%"), pytest.warns(UserWarning, match="cannot be used"):
        train(model, data, SPEC, store=store, progress=False)
    assert same(weights(model), weights(learnt[0]))


@pytest.mark.parametrize("layers, changed", [(0, {"classifier"}), (1, {"classifier", "1"})])
def test_only_the_layers_asked_for_are_trained(vit, data, store, layers, changed):
    model = vit()
    before = weights(model)
    spec = TrainSpec(epochs=1, trained_layers=layers, fresh_head_lr=0.01, lr=0.01)
    train(model, data, spec, store=store, progress=False)
    now = weights(model)
    parts = {name.split(".")[3] if "layer." in name else name.split(".")[0] for name in now
             if not torch.equal(now[name], before[name])}  # fmt: skip
    assert parts == changed


def test_what_cannot_be_trained_is_refused(vit, data, store):
    def attempt(data=data, spec=SPEC, labels=3):
        return train(vit(labels), data, spec, store=store, progress=False)

    for split, purpose in (("train", "training"), ("val", "choosing a model")):
        leaking = ImageData("leak", NAMES, {**data.splits, split: data.test}, "official", {}, data.pool)
        with pytest.raises(ValueError, match=f"must not be used for {purpose}"):
            attempt(leaking)
    with pytest.raises(ValueError, match="made up has 3 classes, tiny a head for 5"):
        attempt(labels=5)
    with pytest.raises(ValueError, match="trained_layers = 7: tiny has 2"):
        attempt(spec=TrainSpec(trained_layers=7))
    with pytest.raises(FloatingPointError, match="diverged in epoch"):
        attempt(spec=TrainSpec(epochs=3, lr=1e20, fresh_head_lr=1e20))
    nothing = ImageData("few", NAMES, {**data.splits, "val": data.val.select([])}, "official", {}, data.pool)
    with pytest.raises(ValueError, match="few has no val images"):
        attempt(nothing)
    with pytest.raises(ValueError, match="epochs = 0"):
        TrainSpec(epochs=0)


def test_predictions_are_probabilities_in_the_order_of_the_images(vit, data):
    model = vit()
    found = predict(model, data.train)
    assert found.shape == (60, 3) and np.allclose(found.sum(1), 1)
    one = predict(model, data.train.select([7]))
    assert np.allclose(one[0], found[7], atol=1e-6)
    assert predict(model, data.train.select([])).shape == (0, 3)
