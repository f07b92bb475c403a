"""Causal tracing of an image classifier: in which layers, and on which patches, a decision is made.

Noise on the patches destroys the decision; then the clean output of one module at a time is put back. The residual
stream is restored at the CLS token alone (at every position it would recover everything), MLP and attention at all
positions in a window of layers, since an edit of their weights acts on all; the heat map restores single patches.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor
from tqdm.auto import tqdm

from editkit.cache import Store, entry_key
from editkit.config import Count, Parameters, Positive
from editkit.models import VisionModel
from editkit.models.hooks import capture, run_from
from editkit.models.tracing import KINDS as MODULES
from editkit.models.tracing import module, modules, put_back, restored_layers
from editkit.vision.data import ImageSet, drawn
from editkit.vision.forward import BATCH, predict

LEAST_DAMAGE = 0.05  # of the probability; a share of less is mostly rounding and chance


class TraceSpec(Parameters):
    """How a decision is traced."""

    num_ablations: Count = 8
    """Draws of the noise in causal tracing, over which a trace is averaged."""
    trace_noise: Positive = 1.0
    """Standard deviation of the noise in causal tracing, as a multiple of that of the image's patch embeddings."""
    window: Count = 3
    """Neighbouring layers whose MLPs (or attentions) causal tracing restores together."""
    max_samples: Count = 12
    """Misclassified images that are traced at most, drawn at random."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the traced images and of the tracing noise; an image's noise does not depend on what else is traced."""


def trace(
    vit: VisionModel, part: ImageSet, classes: np.ndarray, spec: TraceSpec, *, progress: bool = True
) -> pd.DataFrame:
    """Measure how much of a class's probability returns when one layer is restored, on images drawn by the seed.

    Args:
        classes: (n,) the class of each image whose probability is measured.

    Returns one row for each image, kind and layer: index (of the image), class, layer, kind (one of ``MODULES``),
    the probabilities clean, corrupted and restored (means over the draws), recovered = restored − corrupted, and
    share = recovered / (clean − corrupted), which is nan where the noise took less than ``LEAST_DAMAGE``.
    Raises ``ValueError`` for held-out images, none at all, and classes that the model or the images lack.
    """
    chosen = drawn(len(_checked(vit, part, classes)), spec.max_samples, spec.seed)
    part, classes, rows = part.select(chosen), classes[chosen], []
    for place in tqdm(range(len(part)), desc="tracing", unit="image", disable=not progress):
        run = _Traced(vit, part.select([place]), int(classes[place]), spec)
        everywhere = torch.ones(1, run.positions, dtype=torch.bool, device=vit.device)
        cls = everywhere.cumsum(1) == 1
        for kind in MODULES:
            for layer in range(vit.n_layers):
                restored = run.restored(kind, layer, cls if kind == "residual" else everywhere).mean().item()
                row = {"index": int(part.indices[place]), "class": run.label, "layer": layer, "kind": kind}
                rows.append(row | {"clean": run.clean, "corrupted": run.corrupted, "restored": restored})
    frame = pd.DataFrame(rows)
    frame["recovered"] = frame.restored - frame.corrupted
    damage = frame.clean - frame.corrupted
    frame["share"] = frame.recovered / damage.where(damage >= LEAST_DAMAGE)
    return frame


def stored_trace(
    vit: VisionModel, part: ImageSet, spec: TraceSpec, *, store: Store | None = None, progress: bool = True
) -> pd.DataFrame:
    """Run :func:`trace` for the class that the model predicts, or read what was traced before."""
    store, part = store or Store(), part.select(drawn(len(part), spec.max_samples, spec.seed))
    key = entry_key(__name__, vit, images=part.hash(), spec=spec.model_dump())

    def traced() -> dict[str, list]:
        return trace(vit, part, predict(vit, part).argmax(1), spec, progress=progress).to_dict(orient="list")

    return pd.DataFrame(store.plain("trace", key, traced))


def heat_maps(
    vit: VisionModel, part: ImageSet, label: int, layers: Sequence[int], spec: TraceSpec, *, progress: bool = True
) -> np.ndarray:
    """Measure the probability of a class that one patch's residual state brings back after each of ``layers``.

    Args:
        part: one image.

    Returns an array (n, side, side). Raises ``ValueError`` for more or no images, a held-out one, and a class that
    the model lacks.
    """
    if len(part) != 1:
        raise ValueError(f"part has {len(part)} images: a heat map is of one")
    run = _Traced(vit, _checked(vit, part, np.array([label])), label, spec)
    patches = torch.arange(1, run.positions, device=vit.device)
    at = patches.repeat_interleave(spec.num_ablations)[:, None] == torch.arange(run.positions, device=vit.device)
    draws = torch.arange(spec.num_ablations, device=vit.device).repeat(len(patches))
    batches = list(zip(at.split(BATCH), draws.split(BATCH), strict=True))
    bar = tqdm(layers, desc="tracing patches", unit="layer", disable=not progress)
    found = [torch.cat([run.restored("residual", layer, *rows) for rows in batches]) for layer in bar]
    recovered = torch.stack(found).view(len(found), *_grid(vit), spec.num_ablations).mean(-1) - run.corrupted
    return recovered.cpu().numpy()


@torch.no_grad()
def cls_attention(vit: VisionModel, images: np.ndarray) -> np.ndarray:
    """Read the last layer's attention from CLS to each patch, as the mean over its heads.

    It is computed from the layer's queries and keys, so that the model's own attention may be any kernel.
    Returns an array (n, side, side); what is missing from a sum of 1 is CLS's attention to itself.
    Raises ``ValueError`` as :meth:`VisionModel.pixels` does.
    """
    attention: Any = module(vit, "attention", vit.n_layers - 1)  # torch states no type of a module's parts
    found = [np.empty((0, *_grid(vit)))]
    for begin in range(0, len(images), BATCH):
        with capture({"query": attention.q_proj, "key": attention.k_proj}, stop=True) as seen:
            vit.forward(vit.pixels(images[begin : begin + BATCH]))
        query, key = (
            seen[name].double().unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for name in ("query", "key")
        )  # (n, heads, positions, d_head)
        weights = (query[:, :, :1] @ key.mT * attention.scaling).softmax(-1)[:, :, 0, 1:].mean(1)
        found.append(weights.unflatten(-1, _grid(vit)).cpu().numpy())
    return np.concatenate(found)


class _Traced:
    """The clean and the corrupted run of one image, and any restored one."""

    @torch.no_grad()
    def __init__(self, vit: VisionModel, part: ImageSet, label: int, spec: TraceSpec):
        self.vit, self.label, self.window, self.pixels = vit, label, spec.window, vit.pixels(part.images)
        with capture({0: vit.layers[0]}, side="input") as embedded, capture(modules(vit)) as self.outputs:
            self.clean = self._probabilities().item()
        noisy = embedded[0].repeat(spec.num_ablations, 1, 1)
        patches, scale = noisy[:, 1:], spec.trace_noise * embedded[0][:, 1:].std()
        noise = np.random.default_rng([spec.seed, int(part.indices[0])]).standard_normal(patches.shape)
        patches += torch.from_numpy(noise).to(patches) * scale
        with run_from(vit, 0, noisy), capture(dict(enumerate(vit.layers)), side="input") as self.noisy:
            self.corrupted = self._probabilities().mean().item()

    @property
    def positions(self) -> int:
        return self.noisy[0].shape[1]

    @torch.no_grad()
    def restored(self, kind: str, layer: int, where: Tensor, draws: Tensor | slice = slice(None)) -> Tensor:
        """Compute probabilities (rows,) under some draws of the noise, with clean outputs at some positions.

        Args:
            where: bool (rows, positions), or (1, positions) for all rows.
        """
        chosen = restored_layers(kind, layer, self.window, self.vit.n_layers)
        start, places = chosen[0], [(kind, number) for number in chosen]
        with put_back(self.vit, start, self.noisy[start][draws], self.outputs, dict.fromkeys(places, where)):
            return self._probabilities()

    def _probabilities(self) -> Tensor:
        return self.vit.forward(self.pixels).double().softmax(-1)[:, self.label]


def _grid(vit: VisionModel) -> tuple[int, int]:
    return (vit.image_size // vit.model.config.patch_size,) * 2


def _checked(vit: VisionModel, part: ImageSet, classes: np.ndarray) -> ImageSet:
    if not len(part):
        raise ValueError("no images to trace")
    if np.shape(classes) != (len(part),):
        raise ValueError(f"classes has shape {np.shape(classes)}: must be ({len(part)},), one an image")
    if bad := [int(label) for label in classes if not 0 <= label < vit.n_labels]:
        raise ValueError(f"class {bad[0]}: must be 0 to {vit.n_labels - 1}, {vit.name}'s labels")
    return part.require_open("locating")
