"""Image files of users: ``.npz`` in MedMNIST's layout, ``{train,val,test}_{images,labels}``, and forms close to it.

What can be read in one way only is read: a channel axis of 1 or in front, pixels in [0, 1], whole numbers of another
type, labels as whole floats or one-hot. Everything else ends in a ``ValueError`` that names file, array, what was found
and what is allowed. Nothing is unpickled.
"""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SPLITS = ("train", "val", "test")
SUFFIX = ".npz"
CHANNELS = (1, 3)
PIXELS = "uint8 (n, h, w) or (n, h, w, 3), or numbers in [0, 1], or whole ones in [0, 255]"

Parts = list[tuple[np.ndarray, np.ndarray]]  # images and labels of train, val, test; or one pair without splits


def is_file(source: str) -> bool:
    """Return whether a source of images is a path, not the name of a data set."""
    return source.lower().endswith(SUFFIX) or len(Path(source).parts) > 1 or Path(source).is_file()


def read_npz(path: Path) -> Parts:
    """Read images, uint8 (n, h, w) or (n, h, w, 3), and labels, int64 (n,), of train, val and test.

    Raises ``ValueError`` for a missing or damaged file, one in another layout, pixels and labels that can be read in
    more than one way or none, and splits that are not alike.
    """
    arrays = _arrays(path)
    images = _images(path, {split: arrays[f"{split}_images"] for split in SPLITS})
    labels = _labels(path, {split: arrays[f"{split}_labels"] for split in SPLITS})
    for split in SPLITS:
        if len(images[split]) != len(labels[split]):
            found = arrays[f"{split}_labels"]
            raise _must(path, f"{split}_labels", f"{len(images[split])} integers, one an image", found)
    return [(images[split], labels[split]) for split in SPLITS]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the six arrays as they stand in the file."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the {SUFFIX} file in it")
    if not path.is_file():
        raise ValueError(f"{path} does not exist: put an {SUFFIX} file in MedMNIST's layout there")
    wanted = [f"{split}_{what}" for split in SPLITS for what in ("images", "labels")]
    arrays, reading = {}, ""
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:  # an .npz is a zip of arrays
            if missing := [name for name in wanted if name not in file]:
                raise ValueError(f"it lacks {', '.join(missing)} and has {', '.join(file) or 'nothing'}")
            for reading in wanted:
                arrays[reading] = file[reading]
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as problem:
        what = f"{reading}: " if reading else ""
        reason = str(problem).partition("\n")[0] or type(problem).__name__
        raise ValueError(f"{path} is not a file in MedMNIST's layout: {what}{reason}") from None
    return arrays


def _images(path: Path, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bring pixels to uint8 (n, h, w) or (n, h, w, 3); how they are scaled is decided for all splits together."""
    kind = found["train"].dtype
    laid = {}
    for split, array in found.items():
        name = f"{split}_images"
        if array.dtype != kind:
            raise _must(path, name, f"{kind} like train_images", array)
        if array.dtype.kind not in "biuf" or array.ndim not in (3, 4) or 0 in array.shape[1:]:
            raise _must(path, name, PIXELS, array)
        if array.ndim == 4:
            array = _channels_last(path, name, array)
        laid[split] = array
        if array.shape[1:] != (like := laid["train"].shape[1:]):
            raise ValueError(f"{path}: {name} must be like train_images, {like} each, got {array.shape[1:]}")
    if not len(laid["train"]):
        raise ValueError(f"{path}: train_images holds no image")
    if kind == np.uint8:
        return laid
    if kind.kind == "b":
        return {split: array.astype(np.uint8) * np.uint8(255) for split, array in laid.items()}
    for split, array in laid.items():
        _check_range(path, f"{split}_images", array)
    unit = kind.kind == "f" and max(array.max(initial=0) for array in laid.values()) <= 1
    if not unit:
        for split, array in laid.items():
            if (array != np.round(array)).any():
                raise _must(path, f"{split}_images", PIXELS, array, "fractions beyond [0, 1]")
    factor = 255.0 if unit else 1
    return {split: np.round(array * factor).astype(np.uint8) for split, array in laid.items()}


def _channels_last(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """Bring images of four axes to (n, h, w) or (n, h, w, 3); the last axis counts where two could be channels."""
    if array.shape[3] not in CHANNELS and array.shape[1] in CHANNELS:
        array = np.ascontiguousarray(np.moveaxis(array, 1, 3))
    if array.shape[3] not in CHANNELS:
        raise _must(
            path, name, PIXELS, array, "four channels: leave transparency out" if 4 in array.shape[1::2] else ""
        )
    return array[..., 0] if array.shape[3] == 1 else array


def _check_range(path: Path, name: str, array: np.ndarray) -> None:
    if not len(array):
        return
    low, high = array.min(), array.max()  # nan where a pixel is
    if not (low >= 0 and high <= 255):
        raise _must(path, name, PIXELS, array, f"from {low} to {high}")


def _labels(path: Path, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bring labels to int64 (n,): whole numbers of any type, or rows with a single 1."""
    labels = {split: _whole(path, f"{split}_labels", array) for split, array in found.items()}
    if len({array.shape[1] for array in found.values() if array.ndim == 2 and array.shape[1] > 1}) > 1:
        shapes = ", ".join(f"{split} {array.shape}" for split, array in found.items())
        raise ValueError(f"{path}: one-hot labels must have as many columns in all splits, got {shapes}")
    return labels


def _whole(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    wanted = f"{len(array) if array.ndim else 'n'} integers, one an image (or one-hot rows)"
    if array.dtype.kind not in "biuf" or array.ndim not in (1, 2) or array.shape[1:] == (0,):
        raise _must(path, name, wanted, array)
    if array.ndim == 2 and array.shape[1] > 1:
        if not (np.isin(array, (0, 1)).all() and (array.sum(axis=1) == 1).all()):
            raise _must(path, name, wanted, array)
        return array.argmax(axis=1).astype(np.int64)
    if not (np.isfinite(array).all() and (array == np.round(array)).all()):
        raise _must(path, name, wanted, array, "with fractions or nan")
    return array.reshape(-1).astype(np.int64)


def _must(path: Path, name: str, wanted: str, array: np.ndarray, more: str = "") -> ValueError:
    """Make the error for an array of another form."""
    found = f"{array.dtype} {array.shape}" + (f", {more}" if more else "")
    return ValueError(f"{path}: {name} must be {wanted}, got {found}")
