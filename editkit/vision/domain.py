"""Misclassified images, repaired by the same equation as facts.

A key is the input of the MLP's second matrix at the CLS token. The target is the shift of the CLS token's residual
stream under which the true class wins. ``C`` is the second moment of the keys of images that are classified
correctly, whose outputs shall stay.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from editkit.cache import Store
from editkit.editing.adapters import AdapterStack
from editkit.editing.domain import Domain
from editkit.editing.session import Session
from editkit.editing.spec import EditSpec
from editkit.editing.targets import Targets
from editkit.methods import METHODS
from editkit.models import VisionModel
from editkit.vision.data import ImageSet
from editkit.vision.forward import Panel, predict
from editkit.vision.keys import ImageReader, Repair
from editkit.vision.moments import kept_moments
from editkit.vision.targets import optimise_targets


class ImageDomain(ImageReader, Domain[Repair]):
    """What a session has to know of images, see :class:`editkit.editing.domain.Domain`.

    Args:
        spec: resolved, and checked by :func:`check_spec`.
        images: among which repairs find their images.
        kept: images classified correctly, whose outputs shall stay.
        tune: images on which the promise of ``kept_budget`` is held, or a panel of them that was made on the model as
            it is; held-out ones and edited ones are refused.

    Raises ``ValueError`` for held-out images, where no image is kept, and for a promise without right ``tune`` images.
    """

    item = Repair

    def __init__(
        self,
        vit: VisionModel,
        spec: EditSpec,
        *,
        images: ImageSet,
        kept: ImageSet,
        tune: ImageSet | Panel | None,
        store: Store | None,
        progress: bool,
    ):
        super().__init__(vit, images, spec.n_contexts, spec.seed)
        if not len(kept.require_open("keeping what is right")):
            raise ValueError("kept holds no image: without one classified correctly there is nothing to keep")
        if spec.kept_budget is not None and tune is None:
            raise ValueError(f"kept_budget = {spec.kept_budget:g}: give tune, images on which the promise is held")
        self.spec, self.kept, self.store, self.progress = spec, kept, store, progress
        self._panel = tune if isinstance(tune, Panel) else None  # of the tune images, as they are before any edit
        self._tune = tune.part if isinstance(tune, Panel) else tune
        if self._tune is not None:
            self._tune.require_open("holding a promise")

    def costs(self) -> dict[int, Tensor]:
        """Compute ``C`` of each edited layer from the kept images: of their CLS keys where these are projected off."""
        alone = METHODS[self.spec.method].null_space and self.spec.nullspace == "kept"
        options: dict[str, Any] = {"tokens": "cls" if alone else "all", "store": self.store, "progress": self.progress}
        return kept_moments(self.vit, self.kept, self.spec.layers, **options)

    def targets(self, items: Sequence[Repair]) -> Targets:
        """Search ``v*`` of each repair on the model as it stands."""
        return optimise_targets(self, items, self.spec.layers[-1], self.spec, store=self.store, progress=self.progress)

    def scores(self, items: Sequence[Repair]) -> dict[str, float]:
        """Measure how many of the edited images the model as it stands classifies as asked."""
        images, labels = self.variants(items)[:: 1 + self.copies], np.array([item.label for item in items])
        predicted = predict(self.vit, ImageSet(images, labels, np.array([item.index for item in items]))).argmax(1)
        return {"edited images classified as asked": float((predicted == labels).mean())}

    def promises(self, items: Sequence[Repair]) -> Callable[[], dict[str, float]]:
        """Return a measurement of the share of the right predictions on the tune images that stay right."""
        if shared := {item.index for item in items}.intersection(self._tune.indices.tolist()):
            raise ValueError(f"image {min(shared)} is edited: leave it out of tune, where promises are held")
        if self._panel is None:
            self._panel = Panel(self.vit, self._tune, self.spec.layers[0])
        panel, right = self._panel, self._panel.before.argmax(1) == self._tune.labels
        if not right.any():
            raise ValueError(f"kept_budget: the model is right on none of {len(right)} tune images, nothing to keep")

        def measure() -> dict[str, float]:
            still = panel.predict(self.spec.layers[0]).argmax(1) == self._tune.labels
            return {"kept": float(still[right].mean())}

        return measure

    def options(self) -> dict[str, Any]:
        """Return nothing: a saved session is given its images anew."""
        return {}


class RepairSession(Session[VisionModel]):
    """A sequence of repairs on one Vision Transformer, under one spec.

    >>> session = RepairSession(vit, EditSpec(method="alphaedit"), images=wrong, kept=right)
    >>> session.edit(repairs(wrong))
    >>> session.undo()

    Args:
        spec: as for facts; what only text has is refused (:func:`check_spec`).
        images, kept, tune, store, progress: see :class:`ImageDomain`.
        adapters: see :class:`editkit.editing.session.Session`.
    """

    def __init__(
        self,
        vit: VisionModel,
        spec: EditSpec,
        *,
        images: ImageSet,
        kept: ImageSet,
        tune: ImageSet | Panel | None = None,
        store: Store | None = None,
        progress: bool = True,
        adapters: AdapterStack | None = None,
    ):
        spec = spec.resolve(vit)
        check_spec(spec)
        given: dict[str, Any] = {"images": images, "kept": kept, "tune": tune, "store": store, "progress": progress}
        super().__init__(vit, spec, ImageDomain(vit, spec, **given), adapters=adapters)


def check_spec(spec: EditSpec) -> None:
    """Raise ``ValueError`` where a resolved spec asks for what only text has."""
    only = {"target_mode": "exact", "kl_factor": 0.0, "norm_anchor": 0.0, "trust_enable": False}
    for name, value in (only | {"neighbour_budget": None, "text_budget": None}).items():
        if (found := getattr(spec, name)) != value:
            raise ValueError(f"{name} = {found!r}: must be {value!r} for images")
