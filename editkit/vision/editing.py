"""Misclassified images, repaired by the same equation as facts.

A key is the input of the MLP's second matrix at the CLS token; the target is the shift of the CLS token's residual
stream under which the true class wins; ``K`` and ``R`` then go to the same solvers. What is kept are the outputs
for images that are classified correctly: ``C`` is the second moment of their keys, half of it from the CLS token,
half from the patches, since a changed weight acts on all of them, and DINOv2's head reads the mean patch beside CLS.
It is divided by its mean eigenvalue.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from editkit.cache import Store
from editkit.config import EditSpec
from editkit.editing.session import Session
from editkit.editing.spread import Editor
from editkit.editing.targets import Targets, optimise_shift
from editkit.hooks import capture, replace_forward
from editkit.models import VisionModel
from editkit.statistics import SecondMoment, stored_moments
from editkit.vision.augment import augmented
from editkit.vision.data import ImageSet
from editkit.vision.evaluation import BATCH, predict, read


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

    def describe(self) -> dict[str, str]:
        """The edit in words, for a model card."""
        return {"image": str(self.index), "class": str(self.label)}


def repairs(part: ImageSet) -> list[Repair]:
    """Each image with its true class. Raises ``ValueError`` for held-out images."""
    part.require_open("editing")
    return [Repair(int(index), int(label)) for index, label in zip(part.indices, part.labels, strict=True)]


class ImageReader:
    """What an editor reads off a Vision Transformer, see :class:`editkit.editing.spread.Reader`.

    Args:
        images: where the repairs' images are; ``ValueError`` for held-out ones.
        copies: augmented copies of each image over which keys (and the target's loss) are averaged besides itself.
        seed: of the copies.
    """

    def __init__(self, vit: VisionModel, images: ImageSet, copies: int, seed: int):
        self.vit, self.images, self.copies, self.seed = vit, images.require_open("editing"), copies, seed
        self._places = {int(index): place for place, index in enumerate(images.indices)}

    def variants(self, items: Sequence[Repair]) -> np.ndarray:
        """Each image and its copies in turn, (n · (1 + copies), h, w[, 3]) uint8; ``ValueError`` for an unknown one."""
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
        """``K`` (d_k, n): the edited layer's input at CLS, averaged over an image and its copies."""
        keys = read(self.vit, self.variants(items), self.vit.mlp_out(layer), "input")[:, 0]
        return keys.unflatten(0, (len(items), -1)).mean(1).T

    def hidden(self, items: Sequence[Repair], layer: int) -> Tensor:
        """Residual stream after ``layer`` at the CLS token of the image itself, (d, n)."""
        images = self.variants(items)[:: 1 + self.copies]
        return read(self.vit, images, self.vit.layers[layer], "output")[:, 0].T

    def states(self, items: Sequence[Repair], layer: int) -> Tensor:
        """Residual stream after ``layer`` of an image and its copies, (n, 1 + copies, positions, d)."""
        found = read(self.vit, self.variants(items), self.vit.layers[layer], "output")
        return found.unflatten(0, (len(items), -1))


@dataclass
class RepairSession(Session):
    """A sequence of repairs on one Vision Transformer, under one spec.

    >>> session = RepairSession(vit, EditSpec(method="alphaedit"), images=wrong, kept=right)
    >>> session.edit(repairs(wrong))
    >>> session.undo()

    Args:
        lm: the model.
        spec: as for facts; ``layers`` left out are the last three. What asks for text is refused (:func:`check_spec`).
        store, progress, adapters: as in :class:`editkit.editing.session.Session`.
        images: where repairs find their images. Raises ``ValueError`` for held-out ones.
        kept: images classified correctly, whose outputs shall stay. Raises ``ValueError`` for held-out ones and none.
    """

    lm: VisionModel
    images: ImageSet
    kept: ImageSet

    item = Repair

    def __post_init__(self) -> None:
        self.images.require_open("editing")
        if not len(self.kept.require_open("keeping what is right")):
            raise ValueError("kept holds no image: without one classified correctly there is nothing to keep")
        super().__post_init__()
        check_spec(self.spec)
        self._reader = ImageReader(self.lm, self.images, self.spec.n_contexts, self.spec.seed)

    def _prepare(self) -> Editor:
        costs = kept_moments(self.lm, self.kept, self.spec.layers, store=self.store, progress=self.progress)
        return Editor(self._weights, self.spec, self._reader, costs)

    def _optimise(self, items: list[Repair]) -> Targets:
        return optimise_targets(self._reader, items, self.spec, progress=self.progress)

    def _scores(self, items: Sequence[Repair]) -> dict[str, float]:
        images = self._reader.variants(items)[:: 1 + self.spec.n_contexts]
        labels = np.array([item.label for item in items])
        said = predict(self.lm, ImageSet(images, labels, np.array([item.index for item in items]))).argmax(1)
        return {"edited images classified as asked": float((said == labels).mean())}


def check_spec(spec: EditSpec) -> None:
    """Raises ``ValueError`` where a resolved spec asks for what only text has."""
    for name, only in {"target_mode": "exact", "kl_factor": 0.0, "trust_enable": False}.items():
        if (value := getattr(spec, name)) != only:
            raise ValueError(f"{name} = {value!r}: must be {only!r} for images")


@torch.no_grad()
def kept_moments(
    vit: VisionModel, kept: ImageSet, layers: Sequence[int], *, store: Store | None = None, progress: bool = True
) -> dict[int, Tensor]:
    """``C`` (d_k, d_k) float64 of each layer's keys over ``kept``, as the module says; its mean eigenvalue is 1.

    All from one pass that stops after the last layer. Raises ``ValueError`` for held-out images and none.
    """
    kept.require_open("keeping what is right")
    images, determines = kept.images, {"images": kept.hash(), "pixels": vit.preprocessing}

    def accumulate(missing: list[int]) -> dict[int, SecondMoment]:
        statistics = {layer: SecondMoment(vit.d_k, vit.device) for layer in missing}
        modules = {layer: vit.mlp_out(layer) for layer in missing}
        batches = range(0, len(images), BATCH)
        for begin in tqdm(batches, desc=f"keys of layers {missing}", unit="batch", disable=not progress):
            with capture(modules, side="input", stop=True) as keys:
                vit.forward(vit.pixels(images[begin : begin + BATCH]))
            for layer, statistic in statistics.items():
                cls, patches = keys[layer][:, 0], keys[layer][:, 1:]
                statistic.add(cls.float() * patches.shape[1] ** 0.5)  # one CLS token weighs as much as all patches
                statistic.add(patches.flatten(0, 1).float())
        return statistics

    moments = stored_moments(vit, layers, determines, accumulate, store or Store())
    return {layer: C / C.diagonal().mean() for layer, C in moments.items()}


def leakage(delta: Tensor, C: Tensor) -> float:
    """``‖ΔW K₀‖ / (‖ΔW‖ ‖K₀‖)`` (Frobenius) for kept keys ``K₀`` of second moment ``C`` (d_k, d_k); 0 for no change.

    Of a ``ΔW`` without any preference for a direction it is ``d_k^{-1/2}``.
    """
    moved = ((delta @ C.to(delta)) * delta).sum().clamp_min(0)
    return (moved / (delta.square().sum() * C.diagonal().sum()).clamp_min(1e-300)).sqrt().item()


def optimise_targets(reader: ImageReader, items: Sequence[Repair], spec: EditSpec, *, progress: bool = True) -> Targets:
    """``v*`` of each repair on the model as it stands: the CLS token after the last edited layer, shifted.

    The shift minimises −log P(class), averaged over the image and its copies, see
    :func:`editkit.editing.targets.optimise_shift`; layers up to the edited one are run once.
    """
    vit, layer, start = reader.vit, spec.layers[-1], time.perf_counter()
    hidden, found = [], []
    bar = tqdm(total=len(items), desc=f"targets at layer {layer}", unit="image", disable=not progress)
    size = max(1, BATCH // (1 + reader.copies))
    with bar:
        for begin in range(0, len(items), size):
            group = items[begin : begin + size]
            states = reader.states(group, layer)
            labels = torch.tensor([item.label for item in group], device=vit.device)
            hidden.append(states[:, 0, 0].float())
            batch = _Batch(states, labels, vit, spec)
            found += optimise_shift(batch, _losses, hidden[-1].norm(dim=1), states.shape[3], spec, bar.set_postfix_str)
            bar.update(len(group))
    delta = torch.stack([entry["delta"] for entry in found]).to(vit.device)
    return Targets(
        values=(torch.cat(hidden) + delta).T,
        losses=torch.stack([entry["losses"] for entry in found]),
        probability=torch.stack([entry["probability"] for entry in found]),
        precision=str(vit.model.dtype).removeprefix("torch."),
        cached=0,
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True)
class _Batch:
    states: Tensor  # (n, 1 + copies, positions, d) residual stream after the edited layer
    labels: Tensor  # (n,)
    vit: VisionModel
    spec: EditSpec

    def select(self, rows: Tensor) -> "_Batch":
        return replace(self, states=self.states[rows], labels=self.labels[rows])


def _losses(batch: _Batch, delta: Tensor) -> tuple[Tensor, Tensor]:
    """−log P(class), averaged over an image and its copies, and no drift; (n,) each."""
    vit, layer, (n, variants) = batch.vit, batch.spec.layers[-1], batch.states.shape[:2]
    cls = batch.states[:, :, :1] + delta[:, None, None].to(batch.states)
    hidden = torch.cat([cls, batch.states[:, :, 1:]], dim=2).flatten(0, 1)
    blank = torch.zeros(n * variants, 3, vit.image_size, vit.image_size, dtype=hidden.dtype, device=vit.device)
    with (
        replace_forward(vit.layers[:layer], lambda x: x, tuple_output=False),
        replace_forward(vit.layers[layer : layer + 1], lambda x: hidden, tuple_output=False),
        replace_forward(vit.layers[batch.spec.v_loss_layer + 1 :], lambda x: x, tuple_output=False),
    ):
        logits = vit.forward(blank)
    nll = cross_entropy(logits, batch.labels.repeat_interleave(variants), reduction="none").view(n, variants).mean(1)
    return nll, torch.zeros_like(nll)
