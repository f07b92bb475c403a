"""What a study of repairs has in hand: a classifier, all that is measured of it before any edit, and what edits did."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from editkit.cache import Store
from editkit.models import VisionModel, load_vit
from editkit.studies.repair_spec import RepairSpec
from editkit.vision.data import ImageData, ImageSet
from editkit.vision.domain import RepairSession
from editkit.vision.forward import Panel
from editkit.vision.training import Training


@dataclass(frozen=True)
class Choice:
    """Which layers to edit, and by how much the true class shall lead."""

    layers: list[int]
    margin: float
    how: str
    tried: pd.DataFrame  # one row a setting tried, see choose(); empty where nothing was


@dataclass(frozen=True)
class Classifier:
    """The model to be repaired, on its data."""

    spec: RepairSpec
    data: ImageData
    vit: VisionModel
    training: Training | None  # None where a checkpoint was read
    metrics: pd.DataFrame  # scores on train, val and test before any edit
    store: Store  # of fine-tuned models, moments and traces
    progress: bool


@dataclass(frozen=True)
class Prepared(Classifier):
    """A classifier with its mistakes, and all that is measured of it before any edit."""

    candidates: ImageSet  # editable images that the model misclassifies, at most ``max_edits``
    kept: ImageSet  # images of the training split that it classifies correctly; its outputs for them should stay
    choice: Choice
    panels: dict[str, Panel]  # what a repair is judged by: val, test (held out), edited images, copies of them
    watched: Panel  # kept images that are classified again after each step
    kept_features: Tensor  # what the head sees of the kept images

    @property
    def before(self) -> dict[str, np.ndarray]:
        """Predicted probabilities (n, labels) before any edit, by the names of the panels."""
        return {name: panel.before for name, panel in self.panels.items()}

    @property
    def layers(self) -> list[int]:
        """Layers to edit."""
        return self.choice.layers

    @property
    def chosen(self) -> str:
        """How the layers were chosen: "given", "swept", "traced", or "the last three" (or as many)."""
        return self.choice.how


@dataclass(frozen=True)
class Repaired:
    """What one method did to the model."""

    method: str
    layers: list[int]  # whose weights it changes, besides the head's for controls
    log: pd.DataFrame  # editors: one row an edit; controls: one row a step
    after: dict[str, np.ndarray]  # predicted probabilities (n, labels) by the names of the panels
    leakage: float  # ‖ΔW K₀‖ / (‖ΔW‖ ‖K₀‖), the largest of the edited layers; nan for controls
    seconds: float
    peak_memory_mb: float
    weight: float = math.nan  # on what is kept, as the budget found it; nan where there is none to find


def load_classifier(spec: RepairSpec, data: ImageData) -> VisionModel:
    """Load the backbone with the head that the study's seed draws, not fine-tuned yet."""
    how: dict[str, Any] = {"image_size": spec.image_size or None, "device": spec.device, "pin_memory": spec.pin_memory}
    return load_vit(spec.model, labels=data.labels, seed=spec.seed, **how)


@contextmanager
def repairing(
    classifier: Classifier, images: ImageSet, kept: ImageSet, val: Panel, method: str, **changes: Any
) -> Iterator[RepairSession]:
    """Open a session with a study's options and promise, which is held on val; its edits are undone afterwards."""
    spec = classifier.spec.edit_spec(method, **changes)
    given: dict[str, Any] = {"images": images, "kept": kept, "tune": val, "store": classifier.store}
    opened = RepairSession(classifier.vit, spec, **given, progress=False)
    try:
        yield opened
    finally:
        opened.undo()
