"""Slightly changed copies of images: what an edit of one image should also hold for."""

import math

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample

ROTATION = 10.0  # degrees
SHIFT = 1 / 16  # of height and width
BRIGHTNESS = 0.1  # of the full range, added
CONTRAST = 0.1  # relative, around the image's mean


def augmented(images: np.ndarray, copies: int, seed: int) -> np.ndarray:
    """Rotate, shift, brighten or darken each image a little, ``copies`` times in turn, (n · copies, …).

    Each change is uniform within plus or minus the constant above; pixels uncovered at a border repeat the border.

    Args:
        images: (n, h, w) or (n, h, w, channels) uint8.

    Raises ``ValueError`` for no images, those of another shape or type, and copies below 1.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size or copies < 1:
        raise ValueError(
            "augmentation needs uint8 images (n, h, w) or (n, h, w, channels), n and copies of at least 1; "
            f"got {images.dtype} {images.shape}, copies = {copies}"
        )
    x = torch.from_numpy(images.repeat(copies, 0)).float() / 255
    x = x[:, None] if images.ndim == 3 else x.permute(0, 3, 1, 2)  # (n · copies, channels, h, w)
    drawn = torch.rand(5, len(x), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    angle, across, down = drawn[0] * math.radians(ROTATION), 2 * SHIFT * drawn[1], 2 * SHIFT * drawn[2]
    brightness, contrast = (values.view(-1, 1, 1, 1) for values in (BRIGHTNESS * drawn[3], 1 + CONTRAST * drawn[4]))
    cos, sin, shape = angle.cos(), angle.sin(), x.shape[2] / x.shape[3]  # the grid runs from −1 to 1 either way
    turned = torch.stack([cos, -sin * shape, across, sin / shape, cos, down], 1).view(-1, 2, 3)
    grid = affine_grid(turned, list(x.shape), align_corners=False)
    x = grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (mean + contrast * (x - mean) + brightness).clamp(0, 1)
    return (x[:, 0] if images.ndim == 3 else x.permute(0, 2, 3, 1)).mul(255).round().byte().numpy()
