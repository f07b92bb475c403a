"""The target of an image: the CLS token under which its true class wins."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from editkit.cache import Store, entry_key
from editkit.editing.targets import DECISIVE, Losses, Step, Targets, TargetSpec, optimise_shift
from editkit.models import VisionModel
from editkit.models.hooks import run_from
from editkit.vision.forward import BATCH
from editkit.vision.keys import ImageReader, Repair
from editkit.vision.metrics import lead


def optimise_targets(
    reader: ImageReader,
    items: Sequence[Repair],
    layer: int,
    spec: TargetSpec,
    *,
    store: Store | None = None,
    progress: bool = True,
) -> Targets:
    """Search ``v*`` of each repair on the model as it stands: the CLS token after ``layer``, shifted.

    The shift minimises −log P(class), averaged over the image and its copies, see
    :func:`editkit.editing.targets.optimise_shift`; layers up to ``layer`` are run once.

    A target depends on neither the method nor the other images: with a ``store``, one that was found before for the
    same weights, image, class and hyperparameters is read from it.

    Args:
        layer: the last edited one.
        spec: resolved.
    """
    vit = reader.vit
    keys = _cache_keys(reader, items, layer, spec) if store else []
    found: list[dict[str, Tensor] | None] = [None] * len(items)
    if store:
        found = [store.get("target", key) for key in keys]
    missing = [place for place, entry in enumerate(found) if entry is None]
    bar = tqdm(total=len(missing), desc=f"targets at layer {layer}", unit="image", disable=not (progress and missing))
    size = max(1, BATCH // (1 + reader.copies))

    def tell(step: Step) -> None:
        bar.set_postfix_str(str(step))

    with bar:
        for begin in range(0, len(missing), size):
            start, places = time.perf_counter(), missing[begin : begin + size]
            group = [items[place] for place in places]
            states = reader.states(group, layer)
            labels = torch.tensor([item.label for item in group], device=vit.device)
            h = states[:, 0, 0].float()
            batch = _Batch(states, labels, vit, layer + 1, spec.v_loss_layer + 1)
            entries = optimise_shift(batch, _losses, h.norm(dim=1), states.shape[3], spec, tell)
            each = torch.tensor((time.perf_counter() - start) / len(group))
            for place, own, entry in zip(places, h.cpu(), entries, strict=True):
                found[place] = {"value": own + entry.pop("delta"), **entry, "seconds": each}
                if store:
                    store.put("target", keys[place], found[place])
            bar.update(len(group))
    precision = str(vit.model.dtype).removeprefix("torch.")
    return Targets.of(found, vit.device, precision, len(items) - len(missing))


def _cache_keys(reader: ImageReader, items: Sequence[Repair], layer: int, spec: TargetSpec) -> list[dict]:
    decisive = {name: getattr(spec, name) for name in DECISIVE}
    base = entry_key(__name__, reader.vit, layer=layer, spec=decisive, copies=reader.copies)
    variants = np.split(reader.variants(items), len(items))
    return [
        base | {"pixels": hashlib.sha256(np.ascontiguousarray(own).data).hexdigest(), "label": item.label}
        for own, item in zip(variants, items, strict=True)
    ]


@dataclass(frozen=True)
class _Batch:
    states: Tensor  # (n, 1 + copies, positions, d) residual stream after the edited layer
    labels: Tensor  # (n,)
    vit: VisionModel
    start: int  # the layer after the edited one
    until: int  # the layer after the one whose output is classified

    def select(self, rows: Tensor) -> "_Batch":
        return replace(self, states=self.states[rows], labels=self.labels[rows])


def _losses(batch: _Batch, delta: Tensor, step: int) -> Losses:
    """Compute −log P(class), averaged over an image and its copies, no drift, and the smallest lead among these.

    Every step looks at all of them.
    """
    vit, (n, variants) = batch.vit, batch.states.shape[:2]
    cls = batch.states[:, :, :1] + delta[:, None, None].to(batch.states)
    hidden = torch.cat([cls, batch.states[:, :, 1:]], dim=2).flatten(0, 1)  # (n · variants, positions, d)
    blank = torch.zeros(n * variants, 3, vit.image_size, vit.image_size, dtype=hidden.dtype, device=vit.device)
    with run_from(vit, batch.start, hidden, until=batch.until):
        logits = vit.forward(blank)
    labels = batch.labels.repeat_interleave(variants)
    nll = cross_entropy(logits, labels, reduction="none").view(n, variants).mean(1)
    ahead = lead(logits, labels).view(n, variants).amin(1)
    return Losses(nll, torch.zeros_like(nll), ahead, ahead > 0)
