"""How good a classifier is, and what a change to it did."""

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, precision_recall_fscore_support
from torch import Tensor

BINS = 15  # of confidence, in the calibration error


def summary(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Score predictions: n, accuracy, macro-averaged F1, mean negative log-likelihood (nats), calibration error.

    Args:
        labels: (n,) columns of ``probabilities`` (n, k).

    Raises ``ValueError`` for no images.
    """
    if not len(labels):
        raise ValueError("no images to evaluate")
    classes, predicted = np.arange(probabilities.shape[1]), probabilities.argmax(1)
    return {
        "n": len(labels),
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, labels=classes, average="macro", zero_division=0)),
        "nll": float(log_loss(labels, probabilities, labels=classes)),
        "ece": calibration_error(labels, probabilities),
    }


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float:
    """Compute the expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3) over bins of confidence."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    size = np.bincount(which, minlength=bins)
    gap = np.abs(np.bincount(which, right, bins) - np.bincount(which, confidence, bins))
    return float(gap[size > 0].sum() / len(labels))


def per_class(labels: np.ndarray, probabilities: np.ndarray, names: tuple[str, ...]) -> pd.DataFrame:
    """Tabulate precision, recall, F1 and number of images of each class."""
    columns = precision_recall_fscore_support(
        labels, probabilities.argmax(1), labels=np.arange(len(names)), zero_division=0
    )
    return pd.DataFrame(dict(zip(("precision", "recall", "f1", "images"), columns, strict=True)), index=list(names))


def confusion(labels: np.ndarray, probabilities: np.ndarray, names: tuple[str, ...]) -> pd.DataFrame:
    """Count the images of each true class (rows) by predicted class (columns)."""
    counts = confusion_matrix(labels, probabilities.argmax(1), labels=np.arange(len(names)))
    return pd.DataFrame(counts, index=pd.Index(names, name="true"), columns=pd.Index(names, name="predicted"))


def lead(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute by how much the logit (n, classes) of each row's label leads the largest other one, (n,)."""
    own = logits.gather(1, labels[:, None])
    return (own - logits.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True))[:, 0]


def compare(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Compare predictions on the same images before and after a change.

    Returns the number of ``fixed`` and ``broken`` images, ``locality`` (share of the images right before that still
    are; nan where none was), and ``mcnemar_p`` (exact McNemar test that as many are fixed as broken).
    """
    right, still = before.argmax(1) == labels, after.argmax(1) == labels
    fixed, broken = int((~right & still).sum()), int((right & ~still).sum())
    return {
        "fixed": fixed,
        "broken": broken,
        "locality": float(still[right].mean()) if right.any() else float("nan"),
        "mcnemar_p": mcnemar(fixed, broken),
    }


def mcnemar(fixed: int, broken: int) -> float:
    """Test exactly that as many images are fixed as broken (McNemar 1947); returns p, two-sided."""
    return float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0
