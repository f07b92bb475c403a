"""Images to classify: MedMNIST, a file in its layout, or scikit-learn's digits; and who may see which of them.

Two protocols. *official*: the data set's own splits, train for fine-tuning and for finding edits, val for
choosing models and for locality, test for the final report alone. *held-out*: all images pooled, and a
share set aside, stratified, before anything else happens; the rest is train and val; images whose pixels are
equal are in one of the three. Either way the test images are *held out*: :meth:`ImageSet.require_open` refuses them
wherever something is learnt from images.
"""

import contextlib
import hashlib
import io
import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from editkit.cache import download
from editkit.vision.files import SPLITS, Parts, is_file, read_npz

HELD_OUT = 0.2  # share of all images that is set aside, where splits are drawn and nobody says how many
VAL_SHARE = 0.2  # of the rest
SIZES = (28, 64, 128, 224)  # pixels, of MedMNIST's files
BLOCK = 1024  # images that noise is drawn for at once: it takes eight times their memory
Protocol = Literal["official", "held-out"]


@dataclass(frozen=True)
class ImageSet:
    """Some images of a data set."""

    images: np.ndarray  # (n, h, w) or (n, h, w, 3) uint8
    labels: np.ndarray  # (n,) int64: which of the data set's label names
    indices: np.ndarray  # (n,) int64: their places in the whole data set, train before val before test
    held_out: bool = False  # for the final report alone

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, which: np.ndarray | Sequence[int] | slice) -> "ImageSet":
        """Pick the images at these places (or where a mask is true); held-out ones stay held out."""
        return replace(self, images=self.images[which], labels=self.labels[which], indices=self.indices[which])

    def hash(self) -> str:
        """Hash images, labels and places (SHA-256)."""
        total = hashlib.sha256(str(self.images.shape).encode())
        for array in (self.images, self.labels, self.indices):
            total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()

    def require_open(self, purpose: str) -> "ImageSet":
        """Return these images. Raises ``ValueError`` for held-out ones, since ``purpose`` would learn from them."""
        if self.held_out and len(self):
            raise ValueError(
                f"{len(self)} held-out images (the first is index {self.indices[0]}) must not be used for {purpose}: "
                "they are for the final report alone"
            )
        return self


def joined(*parts: ImageSet) -> ImageSet:
    """Put images one part after another; they are open, so held-out ones raise ``ValueError``."""
    opened = [part.require_open("joining") for part in parts]
    images, labels, indices = (
        np.concatenate([getattr(part, name) for part in opened]) for name in ("images", "labels", "indices")
    )
    return ImageSet(images, labels, indices)


@dataclass(frozen=True)
class ImageData:
    """A data set under a protocol."""

    name: str
    labels: tuple[str, ...]  # names of the classes
    splits: Mapping[str, ImageSet]  # train, val, test
    protocol: Protocol
    about: Mapping[str, str | int]  # where it is from: file, bytes, md5, pixels, …; the seed of what is drawn
    pool: ImageSet  # training images that fine-tuning does not see; none where it sees all

    @property
    def train(self) -> ImageSet:
        return self.splits["train"]

    @property
    def val(self) -> ImageSet:
        return self.splits["val"]

    @property
    def test(self) -> ImageSet:
        """Held out: for the final report alone."""
        return self.splits["test"]

    @cached_property
    def open(self) -> ImageSet:
        """The whole training split, seen by fine-tuning or not, in the data set's order: what is kept is in it."""
        if not len(self.pool):
            return self.train
        whole = joined(self.train, self.pool)
        return whole.select(np.argsort(whole.indices))

    @property
    def editable(self) -> ImageSet:
        """Where edits are found: the pool, which fine-tuning does not see, or the training images where it sees all."""
        return self.pool if len(self.pool) else self.train

    def hash(self) -> str:
        """Hash images, labels and who may see them (SHA-256)."""
        total = hashlib.sha256()
        for split, part in (*self.splits.items(), ("pool", self.pool)):
            total.update(f"{split} {part.hash()}".encode())
        return total.hexdigest()

    def split_info(self) -> pd.DataFrame:
        """Tabulate index, split, label and SHA-256 of the pixels of each image, in the order of the whole data set."""
        rows = [
            (int(index), split, self.labels[label], hashlib.sha256(np.ascontiguousarray(image).data).hexdigest())
            for split, part in {**self.splits, "pool": self.pool}.items()
            for index, label, image in zip(part.indices, part.labels, part.images, strict=True)
        ]
        return pd.DataFrame(rows, columns=["index", "split", "label", "sha256"]).sort_values("index", ignore_index=True)


def load_images(
    source: str = "digits",
    *,
    protocol: Protocol = "official",
    held_out_ratio: float = HELD_OUT,
    size: int = 28,
    folder: str | Path | None = None,
    n_train: int | None = None,
    noise: float = 0.0,
    seed: int = 42,
) -> ImageData:
    """Load a data set.

    Args:
        source: ``digits`` (scikit-learn's, offline), a MedMNIST flag such as ``pathmnist``, or the path of an
            ``.npz`` file in MedMNIST's layout or a form close to it (:mod:`editkit.vision.files`).
        protocol: see the module. ``digits`` has no official splits: there they are drawn, stratified.
        held_out_ratio: share of all images that is set aside where splits are drawn.
        size: pixels of MedMNIST's file, one of ``SIZES``.
        folder: where MedMNIST's files lie or are downloaded to; ``~/.medmnist`` where not given.
        n_train: fine-tune on so many of the training images, drawn stratified; on all where not given.
        noise: standard deviation of Gaussian noise added to every image, as a share of the full range.
        seed: of the splits, the draw and the noise.

    Raises ``ValueError`` for an unknown source, a missing or damaged file, one in another layout, labels out of range,
    an empty split under protocol ``official``, and a ``held_out_ratio`` for splits that are the data set's own, and
    ``ConnectionError`` (with the place to put the file) where it cannot be downloaded.
    """
    _check(source, protocol, held_out_ratio, noise)
    if (source == "digits" or is_file(source)) and (size != SIZES[0] or folder):
        raise ValueError(f"size = {size}, folder = {folder}: these choose among MedMNIST's files; {source} is none")
    if source == "digits":
        name, labels, parts, about = _digits()
    elif is_file(source):
        name, labels, parts, about = _npz(Path(source).expanduser())
    else:
        name, labels, parts, about = _medmnist(source, size, folder)
    whole, ends = _join(parts), np.cumsum([len(part[1]) for part in parts])
    del parts  # a data set of 224 × 224 pixels takes as much memory again
    originals = _originals(whole.images)
    whole = replace(whole, images=_noisy(whole.images, noise, seed))
    divided = protocol == "held-out" or len(ends) == 1
    if divided:
        rest, test = _divide(whole, held_out_ratio, seed, originals)
        train, val = _divide(rest, VAL_SHARE, seed, originals)
    else:
        train, val, test = (whole.select(slice(*span)) for span in itertools.pairwise((0, *ends)))
        if empty := [split for split, part in zip(SPLITS, (train, val, test), strict=True) if not len(part)]:
            raise ValueError(f"{name}: {empty[0]} holds no image; protocol 'held-out' draws all three splits")
        _warn_of_copies(name, originals, (train, val, test))
    train, pool = _fewer(train, len(train) if n_train is None else n_train, name, seed)
    splits = {"train": train, "val": val, "test": replace(test, held_out=True)}
    about = about | {"pixels": f"{whole.images.shape[1]} × {whole.images.shape[2]}", "noise": noise}
    about |= {"seed": seed} if divided or noise or len(pool) else {}
    return ImageData(name, labels, splits, protocol, about, pool)


def drawn(n: int, most: int, seed: int) -> np.ndarray:
    """Draw at most ``most`` of ``n`` places at random, in ascending order."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])


def _check(source: str, protocol: str, held_out_ratio: float, noise: float) -> None:
    if protocol not in ("official", "held-out"):
        raise ValueError(f"protocol = {protocol!r}: must be 'official' or 'held-out'")
    if not 0 <= noise < float("inf"):
        raise ValueError(f"noise = {noise}: must be 0 or more, and finite")
    if not 0 < held_out_ratio < 1:
        raise ValueError(f"held_out_ratio = {held_out_ratio}: must lie between 0 and 1")
    if held_out_ratio != HELD_OUT and protocol == "official" and source != "digits":
        raise ValueError(
            f"held_out_ratio = {held_out_ratio}: under protocol 'official' {source} has splits of its own; 'held-out' "
            "sets a share aside"
        )


def _digits() -> tuple[str, tuple[str, ...], Parts, dict]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = tuple(str(name) for name in digits.target_names)
    return "digits", labels, [(images, digits.target)], {"from": "scikit-learn"}


def medmnist_info() -> dict[str, dict]:
    """Read MedMNIST's own table of its data sets, by flag."""
    with contextlib.redirect_stdout(io.StringIO()):  # it advises to install what only its own classes need
        from medmnist.info import INFO
    return INFO


def _medmnist(flag: str, size: int, folder: str | Path | None) -> tuple[str, tuple[str, ...], Parts, dict]:
    table = medmnist_info()
    usable = [f for f, row in table.items() if not f.endswith("3d") and "multi-label" not in row["task"]]
    if flag not in usable:
        raise ValueError(
            f"unknown data set {flag!r}: 'digits', the path of an .npz file, or one of {', '.join(usable)}"
        )
    if size not in SIZES:
        raise ValueError(f"size = {size}: MedMNIST has {', '.join(map(str, SIZES))} pixels")
    suffix = "" if size == 28 else f"_{size}"
    path = Path(folder or Path.home() / ".medmnist").expanduser() / f"{flag}{suffix}.npz"
    if not path.is_file():
        download(table[flag][f"url{suffix}"], path, md5=table[flag][f"MD5{suffix}"])
    names = table[flag]["label"]
    _, labels, parts, about = _npz(path, tuple(names[str(i)] for i in range(len(names))))
    if about["md5"] != table[flag][f"MD5{suffix}"]:
        warnings.warn(f"{path} is not the published file: md5 {about['md5']}", stacklevel=3)
    return flag, labels, parts, about | {"license": table[flag]["license"]}


def _npz(path: Path, names: tuple[str, ...] = ()) -> tuple[str, tuple[str, ...], Parts, dict]:
    """Read a file (:func:`editkit.vision.files.read_npz`); without ``names`` labels are called by their numbers."""
    parts = read_npz(path)
    count = len(names) or 1 + int(parts[0][1].max())
    _check_labels(path, parts, count)
    about = {"from": path.name, "bytes": path.stat().st_size, "md5": _md5(path)}
    return path.stem, names or tuple(map(str, range(count))), parts, about


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _check_labels(path: Path, parts: Parts, count: int) -> None:
    for split, (_, labels) in zip(SPLITS, parts, strict=True):
        if len(bad := np.unique(labels[(labels < 0) | (labels >= count)])):
            raise ValueError(f"{path}: {split}_labels holds {bad[0]}, out of range 0 to {count - 1}")
    present = np.unique(parts[0][1])
    if len(present) < count:
        lacking = next((place for place, label in enumerate(present) if place != label), len(present))
        raise ValueError(
            f"{path}: no training image has label {lacking} of 0 to {count - 1}; number the classes from 0 on without "
            "gaps"
        )


def _join(parts: Parts) -> ImageSet:
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return ImageSet(images, labels.astype(np.int64), np.arange(len(labels)))


def _originals(images: np.ndarray) -> np.ndarray:
    """Find for each image the place of the first one with the same pixels, (n,)."""
    first: dict[bytes, int] = {}
    digests = (hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest() for image in images)
    return np.array([first.setdefault(digest, place) for place, digest in enumerate(digests)])


def _divide(
    part: ImageSet, share: float | int, seed: int, originals: np.ndarray | None = None
) -> tuple[ImageSet, ImageSet]:
    """Divide images into the rest and a stratified share (or number), each in the order of the data set.

    With ``originals`` (of the whole data set) copies follow the first of their kind.
    """
    from sklearn.model_selection import train_test_split

    groups = np.arange(len(part)) if originals is None else originals[part.indices]
    kinds, first = np.unique(groups, return_index=True)
    try:
        _, taken = train_test_split(kinds, test_size=share, random_state=seed, stratify=part.labels[first])
    except ValueError as problem:
        raise ValueError(f"the images cannot be split by class: {problem}") from None
    taken = np.isin(groups, taken)
    return part.select(~taken), part.select(taken)


def _fewer(train: ImageSet, n: int, name: str, seed: int) -> tuple[ImageSet, ImageSet]:
    """Draw ``n`` training images, stratified; returns them and the rest, the pool."""
    if n == len(train):
        return train, train.select([])
    classes = len(np.unique(train.labels))
    least, most = classes, len(train) - classes  # drawn and left, one of each class
    if not least <= n <= most:
        raise ValueError(f"n_train = {n}: must be {least} to {most} of {name}'s {len(train)}, or all")
    return _divide(train, len(train) - n, seed)


def _noisy(images: np.ndarray, noise: float, seed: int) -> np.ndarray:
    if not noise:
        return images
    rng, noisy = np.random.default_rng(seed), np.empty_like(images)
    for begin in range(0, len(images), BLOCK):
        clean = images[begin : begin + BLOCK]
        drawn = rng.normal(scale=255 * noise, size=clean.shape)
        noisy[begin : begin + BLOCK] = np.clip(np.round(clean + drawn), 0, 255)
    return noisy


def _warn_of_copies(name: str, originals: np.ndarray, splits: Sequence[ImageSet]) -> None:
    for split, part in zip(SPLITS, splits, strict=True):
        others = np.concatenate([originals[other.indices] for other in splits if other is not part])
        if copies := np.isin(originals[part.indices], others).sum():
            warnings.warn(f"{name}: {copies} {split} images are exact copies of images in other splits", stacklevel=3)
