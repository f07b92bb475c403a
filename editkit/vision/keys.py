"""Where an image is edited: the key and the hidden state at its CLS token."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from editkit.models import VisionModel
from editkit.vision.augment import augmented
from editkit.vision.data import ImageSet
from editkit.vision.forward import read


@dataclass(frozen=True, slots=True)
class Repair:
    """One image and the class that it shall be given."""

    index: int
    """The image's place in the whole data set."""
    label: int

    @property
    def id(self) -> str:
        return f"image {self.index}"

    @property
    def topic(self) -> tuple[str, str]:
        """What a newer edit replaces: another class for the same image."""
        return str(self.index), "class"

    @property
    def claims(self) -> dict[str, str]:
        """The class by the image that shall be given it."""
        return {self.id: str(self.label)}

    def describe(self) -> dict[str, str]:
        """Describe the edit in words, for a model card."""
        return {"image": str(self.index), "class": str(self.label)}


def repairs(part: ImageSet) -> list[Repair]:
    """Pair each image with its true class. Raises ``ValueError`` for held-out images."""
    part.require_open("editing")
    return [Repair(int(index), int(label)) for index, label in zip(part.indices, part.labels, strict=True)]


class ImageReader:
    """Reads keys and hidden states of images off a Vision Transformer.

    Args:
        images: among which repairs find their images; held-out ones raise ``ValueError``.
        copies: augmented copies of each image over which keys (and the target's loss) are averaged besides itself.
        seed: of the copies.
    """

    def __init__(self, vit: VisionModel, images: ImageSet, copies: int, seed: int):
        self.vit, self.images, self.copies, self.seed = vit, images.require_open("editing"), copies, seed
        self._places = {int(index): place for place, index in enumerate(images.indices)}

    def variants(self, items: Sequence[Repair]) -> np.ndarray:
        """List each image and its copies in turn, (n · (1 + copies), h, w[, 3]) uint8.

        Raises ``ValueError`` for an image that is not among this reader's.
        """
        if unknown := [item.index for item in items if item.index not in self._places]:
            raise ValueError(f"image {unknown[0]} is not among the {len(self.images)} images of this session")
        found = []
        for item in items:
            image = self.images.images[[self._places[item.index]]]
            found.append(image)
            if self.copies:
                found.append(augmented(image, self.copies, self.seed * 1_000_003 + item.index))
        return np.concatenate(found)

    def keys(self, items: Sequence[Repair], layer: int) -> Tensor:
        """Read ``K`` (d_k, n): the edited layer's input at CLS, averaged over an image and its copies."""
        keys = read(self.vit, self.variants(items), self.vit.mlp_out(layer), "input")[:, 0]
        return keys.unflatten(0, (len(items), -1)).mean(1).T

    def hidden(self, items: Sequence[Repair], layer: int) -> Tensor:
        """Read the residual stream (d, n) after ``layer`` at the CLS token of the image itself."""
        images = self.variants(items)[:: 1 + self.copies]
        return read(self.vit, images, self.vit.layers[layer], "output")[:, 0].T

    def states(self, items: Sequence[Repair], layer: int) -> Tensor:
        """Read the residual stream after ``layer`` of images and copies, (n, 1 + copies, positions, d)."""
        found = read(self.vit, self.variants(items), self.vit.layers[layer], "output")
        return found.unflatten(0, (len(items), -1))
