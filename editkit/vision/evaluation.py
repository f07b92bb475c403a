"""How good a classifier is, and what a change to it did."""

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, precision_recall_fscore_support
from tqdm.auto import tqdm

from editkit.models import VisionModel
from editkit.vision.data import ImageSet

BATCH = 64  # images in one forward pass
BINS = 15  # of confidence, in the calibration error


@torch.no_grad()
def predict(vit: VisionModel, part: ImageSet, *, progress: bool = False) -> np.ndarray:
    """Probabilities of the classes for each image, (n, labels) float64."""
    found = [np.empty((0, vit.n_labels))]
    for begin in tqdm(range(0, len(part), BATCH), desc="classifying", unit="batch", disable=not progress):
        logits = vit.forward(vit.pixels(part.images[begin : begin + BATCH]))
        found.append(logits.double().softmax(-1).cpu().numpy())
    return np.concatenate(found)


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
