"""Passes over a Vision Transformer: classify images, read modules, and classify again after upper layers changed."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from editkit.models import VisionModel
from editkit.models.hooks import capture, run_from
from editkit.vision.data import ImageSet

BATCH = 64  # images in one forward pass
PANEL_BYTES = 2**28  # of hidden states kept in a panel


@torch.no_grad()
def predict(vit: VisionModel, part: ImageSet, *, progress: bool = False) -> np.ndarray:
    """Classify images. Returns probabilities (n, labels) in float64."""
    found = [np.empty((0, vit.n_labels))]
    for begin in tqdm(range(0, len(part), BATCH), desc="classifying", unit="batch", disable=not progress):
        found.append(_probabilities(vit.forward(vit.pixels(part.images[begin : begin + BATCH]))))
    return np.concatenate(found)


@torch.no_grad()
def read(vit: VisionModel, images: np.ndarray, module: torch.nn.Module, side: Literal["input", "output"]) -> Tensor:
    """Read a module's input or output (n, …) for ``images`` (n, h, w[, 3]); what comes after it is not run."""
    found = []
    for begin in range(0, len(images), BATCH):
        with capture({"here": module}, side=side, stop=True) as seen:
            vit.forward(vit.pixels(images[begin : begin + BATCH]))
        found.append(seen["here"])
    return torch.cat(found)


class Panel:
    """Images that are classified again and again while only the layers from ``layer`` on change.

    The inputs of that layer are kept where they take at most ``PANEL_BYTES``; layers below it are then not run again.
    ``before`` (n, labels) holds the probabilities when the panel was made.
    """

    @torch.no_grad()
    def __init__(self, vit: VisionModel, part: ImageSet, layer: int):
        self.vit, self.part, self.layer = vit, part, layer
        self._inputs: list[Tensor] = []  # (BATCH, positions, d) each; none where they would be too large
        found = [np.empty((0, vit.n_labels))]
        for images in self._batches():
            with capture({0: vit.layers[layer]}, side="input") as seen:
                found.append(_probabilities(vit.forward(vit.pixels(images))))
            if seen[0].nbytes * len(part) <= PANEL_BYTES * len(images):
                self._inputs.append(seen[0])
        self.before = np.concatenate(found)

    @torch.no_grad()
    def predict(self, changed: int = 0) -> np.ndarray:
        """Classify the images, given that every layer below ``changed`` is as it was when the panel was made."""
        if not self._inputs or changed < self.layer:
            return predict(self.vit, self.part)
        found = []
        for images, inputs in zip(self._batches(), self._inputs, strict=True):
            with run_from(self.vit, self.layer, inputs):
                found.append(_probabilities(self.vit.forward(self.vit.pixels(images))))
        return np.concatenate(found)

    def _batches(self) -> Iterator[np.ndarray]:
        return (self.part.images[begin : begin + BATCH] for begin in range(0, len(self.part), BATCH))


def _probabilities(logits: Tensor) -> np.ndarray:
    return logits.double().softmax(-1).cpu().numpy()
