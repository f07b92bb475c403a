"""Files of images: the forms that can be read in one way only, and what is said of the others."""

import numpy as np
import pytest

from editkit.vision.data import load_images
from editkit.vision.files import is_file
from tests.unit.vision.conftest import write

COUNTS = {"train": 12, "val": 6, "test": 6}


def arrays(images=lambda x: x, labels=lambda y: y, channels=()):
    """Images and labels 0, 1, 2 of three splits, in another form."""
    rng, made = np.random.default_rng(0), {}
    for split, n in COUNTS.items():
        pixels = rng.integers(0, 256, (n, 8, 8, *channels), dtype=np.uint8)
        made |= {f"{split}_images": images(pixels), f"{split}_labels": labels(np.arange(n) % 3)}
    return made


FORMS = {
    "channel": {"images": lambda x: x[..., None]},
    "channel in front": {"images": lambda x: x[:, None]},
    "unit range": {"images": lambda x: (x / 255).astype(np.float32)},
    "half precision": {"images": lambda x: (x / 255).astype(np.float16)},
    "whole floats": {"images": lambda x: x.astype(np.float64)},
    "integers": {"images": lambda x: x.astype(np.int64)},
    "float labels": {"labels": lambda y: y.astype(np.float32)[:, None]},
    "one-hot": {"labels": lambda y: np.eye(3, dtype=np.uint8)[y]},
    "one-hot floats": {"labels": lambda y: np.eye(3)[y]},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_form_that_can_be_read_in_one_way_is_read(tmp_path, form):
    plain, other = tmp_path / "plain.npz", tmp_path / "other.npz"
    np.savez(plain, **arrays())
    np.savez(other, **arrays(**form))
    expected, found = load_images(str(plain)), load_images(str(other))
    assert found.labels == expected.labels == ("0", "1", "2")
    for split, part in expected.splits.items():
        assert found.splits[split].images.dtype == np.uint8 and found.splits[split].labels.dtype == np.int64
        assert np.array_equal(found.splits[split].images, part.images)
        assert np.array_equal(found.splits[split].labels, part.labels)


def test_channels_in_front_are_brought_to_the_end_and_masks_are_black_and_white(tmp_path):
    path = tmp_path / "made.npz"
    coloured = arrays(channels=(3,))
    np.savez(path, **coloured | {n: np.moveaxis(a, 3, 1) for n, a in coloured.items() if n.endswith("images")})
    assert np.array_equal(load_images(str(path)).train.images, coloured["train_images"])
    np.savez(path, **arrays(images=lambda x: x > 127))
    assert set(np.unique(load_images(str(path)).train.images)) == {0, 255}


def test_dark_splits_are_scaled_as_the_others_are(tmp_path):
    made = arrays(images=lambda x: x.astype(np.float32))
    np.savez(tmp_path / "dark.npz", **made | {"test_images": np.ones((6, 8, 8), np.float32)})
    assert load_images(str(tmp_path / "dark.npz")).test.images.max() == 1, "whole numbers up to 255, in all splits"


def test_a_path_is_told_from_the_name_of_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("mine.NPZ.npz", **arrays())
    (tmp_path / "mine.NPZ.npz").rename("mine.NPZ")
    assert len(load_images("mine.NPZ").train) == 12
    assert is_file("~/mine.npz") and is_file("folder/mine") and not is_file("pathmnist") and not is_file("pathmist")


NAN = np.full((12, 8, 8), np.nan, np.float32)
BAD = {
    "transparency": (arrays(channels=(4,)), r"train_images must be uint8 .*got uint8 \(12, 8, 8, 4\), four channels"),
    "flat": (arrays(images=lambda x: x.reshape(len(x), -1)), r"train_images must be .*got uint8 \(12, 64\)"),
    "beyond": (arrays(images=lambda x: x.astype(np.uint16) * 256), r"got uint16 \(12, 8, 8\), from 0 to 65"),
    "standardised": (arrays(images=lambda x: (x - 127.0) / 64), r"in \[0, 1\], .* float64 .*, from -1.98"),
    "fractions": (arrays(images=lambda x: x / 2), r"got float64 .*fractions beyond \[0, 1\]"),
    "nan": (arrays() | {f"{s}_images": NAN[:n] for s, n in COUNTS.items()}, "train_images must .*, from nan to nan"),
    "text": (arrays(images=lambda x: x.astype(str)), "train_images must be uint8 .*, got <U"),
    "no pixel": (arrays(images=lambda x: x[:, :, :0]), r"got uint8 \(12, 8, 0\)"),
    "mixed types": (
        arrays() | {"test_images": np.zeros((6, 8, 8))},
        "test_images must be uint8 like train_images, got",
    ),
    "names": (arrays(labels=lambda y: y.astype(str)), "train_labels must be 12 integers, one an image .*got <U"),
    "halves": (arrays(labels=lambda y: y / 2), "train_labels must be 12 integers.* got float64 .*fractions"),
    "soft": (arrays(labels=lambda y: np.full((len(y), 3), 1 / 3)), r"train_labels must be .*got float64 \(12, 3\)"),
    "two at once": (arrays(labels=lambda y: np.ones((len(y), 3), int)), r"one-hot rows\), got int64 \(12, 3\)"),
    "columns": (
        arrays(labels=lambda y: np.eye(3)[y]) | {"test_labels": np.eye(4)[np.arange(6) % 3]},
        r"as many columns in all splits, got train \(12, 3\), val \(6, 3\), test \(6, 4\)",
    ),
    "from one": (arrays(labels=lambda y: y + 1), "no training image has label 0 of 0 to 3"),
    "huge": (arrays(labels=lambda y: y * 10**12), "no training image has label 1 of 0 to 2000000000000"),
    "objects": (arrays(images=lambda x: x.astype(object)), "train_images: Object arrays cannot be loaded"),
    "scalar": (arrays() | {"val_labels": np.int64(3)}, r"val_labels must be n integers.*got int64 \(\)"),
}


@pytest.mark.parametrize("made, message", BAD.values(), ids=BAD)
def test_any_other_form_ends_in_one_line_that_names_file_and_array(tmp_path, made, message):
    np.savez(tmp_path / "bad.npz", **made)
    with pytest.raises(ValueError, match=f"bad.npz.*{message}") as error:
        load_images(str(tmp_path / "bad.npz"))
    assert "\n" not in str(error.value)


def test_a_damaged_array_is_named(tmp_path):
    path = write(tmp_path / "made.npz", size=4)
    content = bytearray(path.read_bytes())
    at = content.index(b"val_images.npy") + 200  # inside its pixels, which are stored as they are
    content[at : at + 50] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="made.npz is not a file in MedMNIST's layout: val_images: "):
        load_images(str(path))
