"""Augmentation: repeatable, small, and of the shape and type that came in."""

import numpy as np
import pytest

from editkit.vision import augment
from editkit.vision.augment import BRIGHTNESS, augmented


def spotted(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("shape", [(3, 12, 16), (3, 12, 16, 3), (3, 12, 16, 1)])
def test_shape_and_type_stay_and_a_seed_says_it_all(shape):
    images = spotted(*shape)
    first = augmented(images, 4, seed=1)
    assert first.shape == (4 * shape[0], *shape[1:]) and first.dtype == np.uint8
    assert np.array_equal(first, augmented(images, 4, seed=1))
    assert not np.array_equal(first, augmented(images, 4, seed=2)) and not np.array_equal(first[0], first[1])


def test_copies_of_an_image_stand_together():
    dark_and_bright = np.stack([np.full((8, 8), 40), np.full((8, 8), 200)]).astype(np.uint8)
    found = augmented(dark_and_bright, 3, seed=0)
    assert (found[:3] < 100).all() and (found[3:] > 100).all()


@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_constant_image_changes_in_brightness_alone(channels):
    found = augmented(np.full((1, 9, 14, *channels), 128, np.uint8), 50, seed=0).astype(int)
    assert (found == found.reshape(50, -1)[:, 0].reshape(50, *[1] * (found.ndim - 1))).all()
    assert 5 < np.abs(found - 128).max() <= np.ceil(255 * BRIGHTNESS)


def test_without_any_change_an_image_is_itself(monkeypatch):
    for name in ("ROTATION", "SHIFT", "BRIGHTNESS", "CONTRAST"):
        monkeypatch.setattr(augment, name, 0.0)
    images = spotted(2, 9, 14, 3)
    assert np.array_equal(augmented(images, 2, seed=0), images.repeat(2, 0))


def test_a_rotation_keeps_circles_round_in_an_oblong_image(monkeypatch):
    for name in ("SHIFT", "BRIGHTNESS", "CONTRAST"):
        monkeypatch.setattr(augment, name, 0.0)
    monkeypatch.setattr(augment, "ROTATION", 90.0)
    y, x = np.mgrid[:20, :40]
    disc = np.uint8(255 / (1 + np.exp(np.hypot(y - 9.5, x - 19.5) - 6)))
    assert np.abs(augmented(disc[None], 10, seed=0).astype(int) - disc).max() < 12


def test_what_is_no_image_is_refused():
    for images, copies in (
        (spotted(2, 8), 1),
        (spotted(2, 8, 8) / 255, 1),
        (spotted(2, 8, 8), 0),
        (spotted(0, 8, 8), 1),
    ):
        with pytest.raises(ValueError, match=f"got {images.dtype} .*copies = {copies}"):
            augmented(images, copies, seed=0)
