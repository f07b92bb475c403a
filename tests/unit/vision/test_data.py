"""Images: sources, splits, and that held-out ones stay out."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from pooch import HTTPDownloader

from editkit.vision.data import SPLITS, ImageSet, load_images, medmnist_info
from tests.conftest import SHARED
from tests.unit.vision.conftest import write


def parts_of(data):
    return [set(data.splits[split].indices.tolist()) for split in SPLITS]


def test_digits_are_split_stratified_and_the_same_every_time():
    data, again = load_images(), load_images()
    assert data.labels == tuple("0123456789") and data.train.images.dtype == np.uint8
    assert data.train.images.max() == 255 and data.train.images.shape[1:] == (8, 8)
    train, val, test = parts_of(data)
    assert train | val | test == set(range(1797)) and not train & val and not (train | val) & test
    assert len(test) == 360 and parts_of(again) == [train, val, test]
    shares = [np.bincount(data.splits[split].labels) / len(data.splits[split]) for split in SPLITS]
    assert all(np.allclose(share, shares[0], atol=0.01) for share in shares)
    assert parts_of(load_images(seed=1)) != [train, val, test]


def test_held_out_images_are_refused_wherever_something_is_learnt():
    for protocol in ("official", "held-out"):
        data = load_images(protocol=protocol)
        for part in (data.train, data.val):
            assert part.require_open("training") is part
        first = data.test.indices[0]
        with pytest.raises(ValueError, match=f"index {first}.* must not be used for training"):
            data.test.require_open("training")
        with pytest.raises(ValueError, match="2 held-out images .* editing"):
            data.test.select([3, 5]).require_open("editing")
        assert len(data.test.select([]).require_open("editing")) == 0


def test_the_held_out_protocol_pools_a_file_and_sets_a_fifth_aside(tmp_path):
    path = write(tmp_path / "made.npz", size=4)
    official, pooled = load_images(str(path)), load_images(str(path), protocol="held-out")
    assert parts_of(official) == [set(range(60)), set(range(60, 80)), set(range(80, 100))]
    train, val, test = parts_of(pooled)
    assert (len(train), len(val), len(test)) == (64, 16, 20) and train | val | test == set(range(100))
    assert test != set(range(80, 100)) and pooled.test.held_out
    info = pooled.split_info()
    assert info["index"].tolist() == list(range(100)) and set(info.sha256.str.len()) == {64}
    assert set(info[info.split == "test"]["index"]) == test
    assert info.sha256.tolist() == official.split_info().sha256.tolist(), "the same images, otherwise divided"


def test_another_share_is_held_out_where_splits_are_drawn(tmp_path):
    path = write(tmp_path / "made.npz", size=4)
    pooled = load_images(str(path), protocol="held-out", held_out_ratio=0.5)
    assert [len(pooled.splits[split]) for split in SPLITS] == [40, 10, 50] and pooled.test.held_out
    assert [len(part) for part in parts_of(load_images(held_out_ratio=0.4))] == [862, 216, 719]
    with pytest.raises(ValueError, match="held_out_ratio = 0.5: under protocol 'official' .* splits of its own"):
        load_images(str(path), held_out_ratio=0.5)
    for wrong in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"held_out_ratio = {wrong}: must lie between 0 and 1"):
            load_images(held_out_ratio=wrong)


def test_the_seed_draws_noise_and_training_images_and_leaves_official_splits(tmp_path):
    path = str(write(tmp_path / "made.npz", size=4))
    first, other = (load_images(path, n_train=30, noise=0.1, seed=seed) for seed in (1, 2))
    for split in ("val", "test"):
        assert first.splits[split].indices.tolist() == other.splits[split].indices.tolist()
        assert not np.array_equal(first.splits[split].images, other.splits[split].images)
    assert first.open.indices.tolist() == other.open.indices.tolist() == list(range(60))
    assert first.train.indices.tolist() != other.train.indices.tolist() and first.about["seed"] == 1
    plain = [load_images(path, seed=seed) for seed in (1, 2)]
    assert plain[0].hash() == plain[1].hash() and "seed" not in plain[0].about, "nothing was drawn"
    assert all(load_images(**drawn, seed=3).about["seed"] == 3 for drawn in ({}, {"source": path, "noise": 0.1}))


def test_a_file_states_what_it_is(tmp_path):
    path = write(tmp_path / "path.npz")
    data = load_images(str(path))
    assert data.name == "path" and len(data.labels) == 9 and data.train.images.shape == (60, 224, 224, 3)
    assert data.about["bytes"] == path.stat().st_size and data.about["pixels"] == "224 × 224"
    assert len(data.about["md5"]) == 32


def test_fewer_training_images_and_noise(tmp_path):
    plain, few = load_images(), load_images(n_train=100, noise=0.3)
    assert len(few.train) == 100 and np.bincount(few.train.labels).min() >= 9
    assert parts_of(few)[1:] == parts_of(plain)[1:] and parts_of(few)[0] < parts_of(plain)[0]
    change = few.val.images.astype(float) - plain.val.images
    middle = (plain.val.images > 100) & (plain.val.images < 150)  # far from both ends, where nothing is cut off
    assert change[middle].std() == pytest.approx(0.3 * 255, rel=0.1)
    assert np.array_equal(few.val.images, load_images(noise=0.3).val.images)
    assert not len(plain.pool) and set(few.pool.indices) == set(plain.train.indices) - set(few.train.indices)
    assert sorted(few.open.indices) == plain.train.indices.tolist() and plain.open is plain.train
    assert few.editable is few.pool and plain.editable is plain.train
    assert set(few.split_info().split) == {"train", "pool", "val", "test"}
    for wrong in (5, len(plain.train) - 3, 10**6):
        with pytest.raises(ValueError, match=f"n_train = {wrong}"):
            load_images(n_train=wrong)
    assert len(load_images(n_train=len(plain.train)).train) == len(plain.train)
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match=f"noise = {wrong}"):
            load_images(noise=wrong)


def test_copies_are_warned_of(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    path = write(tmp_path / "twice.npz", size=4, val_images=images, test_images=images)
    with pytest.warns(UserWarning) as warned:
        load_images(str(path), noise=0.1)
    copies = "20 {} images are exact copies of images in other splits"
    assert [str(one.message) for one in warned] == [f"twice: {copies.format(name)}" for name in ("val", "test")]


@pytest.mark.filterwarnings("error:.*exact copies")
def test_copies_stay_together_where_a_fifth_is_set_aside(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    path = write(tmp_path / "twice.npz", size=4, val_images=images, test_images=images)
    data = load_images(str(path), protocol="held-out")
    pixels = [{image.tobytes() for image in data.splits[split].images} for split in SPLITS]
    assert not (pixels[0] & pixels[1] or pixels[0] & pixels[2] or pixels[1] & pixels[2])
    assert sum(map(len, pixels)) == 60 + 20 and sum(len(part) for part in data.splits.values()) == 60 + 40


BAD = {
    "lacks": ({"val_labels": None}, "lacks val_labels and has train_images"),
    "floats": ({"val_images": np.zeros((20, 4, 4))}, r"val_images must be uint8 .* got float64"),
    "channels": ({"val_images": np.zeros((20, 4, 4, 2), np.uint8)}, r"got uint8 \(20, 4, 4, 2\)"),
    "count": ({"test_labels": np.zeros((3, 1), np.uint8)}, "test_labels must be 20 integers"),
    "several": ({"test_labels": np.zeros((20, 14), np.uint8)}, "one an image"),
    "negative": ({"test_labels": -np.ones((20, 1), np.int64)}, "test_labels holds -1, out of range 0 to 8"),
    "beyond": ({"test_labels": np.full((20, 1), 40)}, "test_labels holds 40, out of range 0 to 8"),
    "gap": ({"train_labels": np.arange(60) % 9 // 2 * 2}, "no training image has label 1 of 0 to 8"),
    "pixels": ({"test_images": np.zeros((20, 5, 4, 3), np.uint8)}, r"must be like train_images, \(4, 4, 3\) each"),
    "pickled": (
        {"val_labels": np.array([None] * 20, dtype=object)},
        "layout: val_labels: Object arrays cannot",
    ),
}


@pytest.mark.parametrize("changes, message", BAD.values(), ids=BAD)
def test_a_file_in_another_layout_is_refused(tmp_path, changes, message):
    path = write(tmp_path / "bad.npz", size=4, **changes)
    with pytest.raises(ValueError, match=message) as error:
        load_images(str(path))
    assert "bad.npz" in str(error.value)


def test_missing_and_truncated_files_and_unknown_names(tmp_path):
    with pytest.raises(ValueError, match="none.npz does not exist"):
        load_images(str(tmp_path / "none.npz"))
    with np.load(write(tmp_path / "whole.npz", size=4)) as file:
        np.savez_compressed(tmp_path / "garbled.npz", **file)
    content = bytearray((tmp_path / "garbled.npz").read_bytes())
    content[200:400] = bytes(200)
    (tmp_path / "garbled.npz").write_bytes(content)
    with pytest.raises(ValueError, match="garbled.npz is not a file in MedMNIST's layout"):
        load_images(str(tmp_path / "garbled.npz"))
    path = write(tmp_path / "cut.npz", size=4)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="cut.npz is not a file in MedMNIST's layout"):
        load_images(str(path))
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="array.npz is not a file in MedMNIST's layout"):
        load_images(str(tmp_path / "array.npz"))
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match="folder.npz is a folder: name the .npz file in it"):
        load_images(str(tmp_path / "folder.npz"))
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match="array.npy is not a file in MedMNIST's layout"):
        load_images(str(tmp_path / "array.npy"))
    with pytest.raises(ValueError, match="size = 64, folder = None: .*digits is none"):
        load_images(size=64)
    with pytest.raises(ValueError, match="unknown data set 'pathmist'.*pathmnist"):
        load_images("pathmist")
    with pytest.raises(ValueError, match="unknown data set 'chestmnist'"):
        load_images("chestmnist")
    with pytest.raises(ValueError, match="size = 30"):
        load_images("pathmnist", size=30)
    with pytest.raises(ValueError, match="protocol = 'mine'"):
        load_images(protocol="mine")


def test_an_empty_split_is_refused_unless_splits_are_drawn(tmp_path):
    nothing = {"val_images": np.zeros((0, 4, 4, 3), np.uint8), "val_labels": np.zeros((0, 1), np.uint8)}
    path = str(write(tmp_path / "empty.npz", size=4, **nothing))
    with pytest.raises(ValueError, match="empty: val holds no image; protocol 'held-out' draws"):
        load_images(path)
    assert [len(part) for part in load_images(path, protocol="held-out").splits.values()] == [51, 13, 16]
    nothing = {name.replace("val", "train"): array for name, array in nothing.items()}
    with pytest.raises(ValueError, match="train_images holds no image"):
        load_images(str(write(tmp_path / "empty.npz", size=4, **nothing)), protocol="held-out")


def test_a_file_that_cannot_be_downloaded_is_named_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(HTTPDownloader, "__call__", Mock(side_effect=OSError("no network")))
    with pytest.raises(ConnectionError, match=r"https://zenodo.*no network.*put it at .*pathmnist_224.npz"):
        load_images("pathmnist", size=224, folder=tmp_path)
    monkeypatch.setattr(HTTPDownloader, "__call__", lambda self, url, to, pooch: Path(to).write_bytes(b"half of it"))
    with pytest.raises(ConnectionError, match="(?s)hash.*pathmnist_224.npz"):
        load_images("pathmnist", size=224, folder=tmp_path)
    assert not list(tmp_path.glob("pathmnist*"))


def test_a_flag_reads_the_folder_and_takes_the_names_from_medmnist(tmp_path):
    write(tmp_path / "pathmnist.npz", size=28)
    with pytest.warns(UserWarning, match="is not the published file"):
        data = load_images("pathmnist", folder=tmp_path)
    assert data.labels == tuple(medmnist_info()["pathmnist"]["label"].values()) and data.about["license"] == "CC BY 4.0"


def test_real_pneumoniamnist():
    path = SHARED / "pneumoniamnist.npz"
    if not path.exists():
        pytest.skip("needs pneumoniamnist.npz in ../shared/data, which is absent here")
    with pytest.warns(UserWarning, match="not the published file|exact copies"):  # it is a sample, and has copies
        data = load_images("pneumoniamnist", folder=path.parent)
    assert data.labels == ("normal", "pneumonia")
    assert [len(data.splits[split]) for split in SPLITS] == [3882, 524, 624]


def test_images_are_selected_by_mask_or_place():
    part = ImageSet(np.arange(12, dtype=np.uint8).reshape(3, 2, 2), np.array([5, 6, 7]), np.array([10, 11, 12]))
    one = part.select(np.array([False, True, False]))
    assert one.indices.tolist() == [11] and one.labels.tolist() == [6] and one.images.tolist() == [[[4, 5], [6, 7]]]
    assert part.select([]).images.shape == (0, 2, 2)
