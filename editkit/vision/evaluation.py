"""How good a classifier is, and what a change to it did."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, precision_recall_fscore_support
from torch import Tensor
from tqdm.auto import tqdm

from editkit.hooks import capture
from editkit.models import VisionModel
from editkit.tracing import resume
from editkit.vision.data import ImageSet

BATCH = 64  # images in one forward pass
PANEL_BYTES = 2**28  # of hidden states kept in a panel
BINS = 15  # of confidence, in the calibration error


@torch.no_grad()
def predict(vit: VisionModel, part: ImageSet, *, progress: bool = False) -> np.ndarray:
    """Probabilities of the classes for each image, (n, labels) float64."""
    found = [np.empty((0, vit.n_labels))]
    for begin in tqdm(range(0, len(part), BATCH), desc="classifying", unit="batch", disable=not progress):
        logits = vit.forward(vit.pixels(part.images[begin : begin + BATCH]))
        found.append(logits.double().softmax(-1).cpu().numpy())
    return np.concatenate(found)


@torch.no_grad()
def read(vit: VisionModel, images: np.ndarray, module: torch.nn.Module, side: Literal["input", "output"]) -> Tensor:
    """A module's input or output for each of ``images`` (n, h, w[, 3]), (n, …); what comes after it is not run."""
    found = []
    for begin in range(0, len(images), BATCH):
        with capture({"here": module}, side=side, stop=True) as seen:
            vit.forward(vit.pixels(images[begin : begin + BATCH]))
        found.append(seen["here"])
    return torch.cat(found)


class Panel:
    """Images that are classified again and again while only the layers from one on change.

    What that layer sees of each image is kept, where it takes at most ``PANEL_BYTES``; the layers below it are then
    not run again.

    Args:
        layer: the lowest layer that changes, as a rule.
    """

    @torch.no_grad()
    def __init__(self, vit: VisionModel, part: ImageSet, layer: int):
        self.vit, self.part, self.layer = vit, part, layer
        self._inputs: list[Tensor] = []  # (BATCH, positions, d) each; none where they would be too large
        for images in self._batches():
            with capture({0: vit.layers[layer]}, side="input", stop=True) as seen:
                vit.forward(vit.pixels(images))
            if seen[0].nbytes * len(part) > PANEL_BYTES * len(images):
                break
            self._inputs.append(seen[0])

    @torch.no_grad()
    def predict(self, changed: int = 0) -> np.ndarray:
        """:func:`predict`, where every layer below ``changed`` is as it was when the panel was made."""
        if not self._inputs or changed < self.layer:
            return predict(self.vit, self.part)
        found = []
        for images, inputs in zip(self._batches(), self._inputs, strict=True):
            with resume(self.vit.layers, self.layer, inputs):
                found.append(self.vit.forward(self.vit.pixels(images)).double().softmax(-1).cpu().numpy())
        return np.concatenate(found)

    def _batches(self) -> Iterator[np.ndarray]:
        return (self.part.images[begin : begin + BATCH] for begin in range(0, len(self.part), BATCH))


def summary(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Accuracy, macro-averaged F1, mean negative log-likelihood (nats) and expected calibration error.

    Args:
        labels: (n,); every number is a column of ``probabilities`` (n, k). Raises ``ValueError`` for no images.
    """
    if not len(labels):
        raise ValueError("no images to evaluate")
    classes, said = np.arange(probabilities.shape[1]), probabilities.argmax(1)
    return {
        "n": len(labels),
        "accuracy": float(accuracy_score(labels, said)),
        "macro_f1": float(f1_score(labels, said, labels=classes, average="macro", zero_division=0)),
        "nll": float(log_loss(labels, probabilities, labels=classes)),
        "ece": calibration_error(labels, probabilities),
    }


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3) over ``bins`` equal bins of confidence."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    size = np.bincount(which, minlength=bins)
    gap = np.abs(np.bincount(which, right, bins) - np.bincount(which, confidence, bins))
    return float(gap[size > 0].sum() / len(labels))


def per_class(labels: np.ndarray, probabilities: np.ndarray, names: tuple[str, ...]) -> pd.DataFrame:
    """Precision, recall, F1 and number of images of each class."""
    columns = precision_recall_fscore_support(
        labels, probabilities.argmax(1), labels=np.arange(len(names)), zero_division=0
    )
    return pd.DataFrame(dict(zip(("precision", "recall", "f1", "images"), columns, strict=True)), index=list(names))


def confusion(labels: np.ndarray, probabilities: np.ndarray, names: tuple[str, ...]) -> pd.DataFrame:
    """Images of each true class (rows) by the class that was said (columns)."""
    counts = confusion_matrix(labels, probabilities.argmax(1), labels=np.arange(len(names)))
    return pd.DataFrame(counts, index=pd.Index(names, name="true"), columns=pd.Index(names, name="said"))


def compare(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """What a change did to the predictions on the same images.

    ``fixed`` and ``broken`` images, ``locality`` (share of the images right before whose prediction is
    unchanged; nan where none was), and the p-value of the exact McNemar test that it fixes as often as it breaks.
    """
    right, still = before.argmax(1) == labels, after.argmax(1) == labels
    fixed, broken = int((~right & still).sum()), int((right & ~still).sum())
    return {
        "fixed": fixed,
        "broken": broken,
        "locality": float(still[right].mean()) if right.any() else float("nan"),
        "mcnemar_p": float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0,
    }
