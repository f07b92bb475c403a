"""What is to be kept of an image classifier: the second moment of the keys of images it gets right.

Half of the moment is from the CLS token and half from the patches, since a changed weight acts on all of them, and
DINOv2's head reads the mean patch beside CLS. For a projection off the kept CLS keys K₀ themselves it is of K₀ alone:
the null space of K₀ K₀ᵀ is what K₀ does not span, see :func:`editkit.solvers.unspanned`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from editkit.cache import Store
from editkit.editing.moments import SecondMoment, stored_moments
from editkit.models import VisionModel
from editkit.models.hooks import capture
from editkit.vision.data import ImageSet
from editkit.vision.forward import BATCH


@torch.no_grad()
def kept_moments(
    vit: VisionModel,
    kept: ImageSet,
    layers: Sequence[int],
    *,
    tokens: Literal["all", "cls"] = "all",
    store: Store | None = None,
    progress: bool = True,
) -> dict[int, Tensor]:
    """Compute ``C`` (d_k, d_k) float64 of each layer's keys over ``kept``, divided by its mean eigenvalue.

    All come from one pass that stops after the last layer.

    Args:
        tokens: whose keys; ``all`` for CLS and patches, half and half. Those of ``cls`` are multiplied in float64, so
            that the rank of ``C`` is that of the keys.

    Raises ``ValueError`` for held-out images and none.
    """
    images = kept.require_open("keeping what is right").images

    def accumulate(missing: list[int]) -> dict[int, SecondMoment]:
        statistics = {layer: SecondMoment(vit.d_k, vit.device) for layer in missing}
        modules = {layer: vit.mlp_out(layer) for layer in missing}
        batches = range(0, len(images), BATCH)
        for begin in tqdm(batches, desc=f"keys of layers {missing}", unit="batch", disable=not progress):
            with capture(modules, side="input", stop=True) as keys:
                vit.forward(vit.pixels(images[begin : begin + BATCH]))
            for layer, statistic in statistics.items():
                cls, patches = keys[layer][:, 0], keys[layer][:, 1:]
                if tokens == "cls":
                    statistic.add(cls.double())
                    continue
                statistic.add(cls.float() * patches.shape[1] ** 0.5)  # one CLS token weighs as much as all patches
                statistic.add(patches.flatten(0, 1).float())
        return statistics

    determines = {"images": kept.hash(), "tokens": tokens}
    moments = stored_moments(vit, layers, accumulate, store or Store(), code=__name__, **determines)
    return {layer: C / C.diagonal().mean() for layer, C in moments.items()}


def leakage(delta: Tensor, C: Tensor) -> float:
    """Compute ``‖ΔW K₀‖ / (‖ΔW‖ ‖K₀‖)`` (Frobenius) for kept keys ``K₀`` of second moment ``C`` (d_k, d_k).

    It is 0 for no change, and ``d_k^{-1/2}`` for a ``ΔW`` without any preference for a direction.
    """
    moved = ((delta @ C.to(delta)) * delta).sum().clamp_min(0)
    return (moved / (delta.square().sum() * C.diagonal().sum()).clamp_min(1e-300)).sqrt().item()
