"""Images, models with a random LayerScale, and sessions on them."""

import numpy as np
import pytest
import torch

from editkit import EditSpec
from editkit.vision.data import SPLITS, ImageSet
from editkit.vision.domain import RepairSession
from editkit.vision.forward import predict
from editkit.vision.keys import Repair

FAMILIES = pytest.mark.parametrize("family", ["dinov2", "vit"])
PIXELS = np.random.default_rng(0).integers(0, 256, (29, 28, 28), dtype=np.uint8)
IMAGES = ImageSet(PIXELS[:5], np.array([2, 0, 1, 0, 2]), np.arange(100, 105))
KEPT = ImageSet(PIXELS[5:], np.zeros(24, int), np.arange(24))
STRONG = dict(v_lr=0.3, clamp_norm_factor=1.5, mom2_update_weight=1e-3, nullspace_threshold=0.5, l2=1e-3)


@pytest.fixture
def start(store):
    def build(vit, method="emmet", *, images=IMAGES, kept=KEPT, tune=None, **changes):
        spec = EditSpec(method=method, **(STRONG | {"layers": [1]} | changes))
        return RepairSession(vit, spec, images=images, kept=kept, tune=tune, store=store, progress=False)

    return build


@pytest.fixture
def scaled_vit(tiny_vit):
    """As ``tiny_vit``, with random LayerScale where the family has one."""

    def build(family="dinov2"):
        vit = tiny_vit(family)
        for seed, layer in enumerate(vit.layers if family == "dinov2" else []):
            layer.layer_scale2.lambda1.data.uniform_(0.3, 1.3, generator=torch.Generator().manual_seed(seed))
        return vit

    return build


def others(vit, count=3):
    """Repairs that ask for another class than the model predicts."""
    predicted = predict(vit, IMAGES).argmax(1)
    return [Repair(100 + i, int(predicted[i] + 1) % 3) for i in range(count)]


def hooked(vit, images, module, side=1):
    """Input (0) or output (1) of a module in a full forward pass, (n, positions, dim)."""
    seen = []
    handle = module.register_forward_hook(lambda _, args, out: seen.append((args[0], out)[side]))
    with torch.no_grad():
        vit.forward(vit.pixels(images))
    handle.remove()
    return seen[0]


def write(path, *, n=20, classes=9, size=224, channels=(3,), **changes):
    """A made-up file in MedMNIST's layout."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in zip(SPLITS, (3 * n, n, n), strict=True):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, size, size, *channels), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % classes).astype(np.uint8)[:, None]
    np.savez(path, **{name: value for name, value in (arrays | changes).items() if value is not None})
    return path
