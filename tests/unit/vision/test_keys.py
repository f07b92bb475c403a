"""Keys and hidden states of images, against full passes with hooks."""

import numpy as np
import pytest
import torch

from editkit.vision import forward
from editkit.vision.keys import ImageReader, Repair
from tests.unit.vision.conftest import FAMILIES, IMAGES, hooked


@FAMILIES
@pytest.mark.parametrize("copies", [0, 2])
def test_keys_and_hidden_states_are_those_of_a_full_pass(tiny_vit, monkeypatch, family, copies):
    vit, items = tiny_vit(family), [Repair(103, 0), Repair(100, 1), Repair(104, 2)]
    reader, each = ImageReader(vit, IMAGES, copies, seed=3), 1 + copies
    variants = reader.variants(items)
    assert np.array_equal(variants[::each], IMAGES.images[[3, 0, 4]])
    assert np.array_equal(reader.variants(items[1:2]), variants[each : 2 * each]), "whoever else is there"
    assert len(np.unique(variants, axis=0)) == len(variants) == 3 * each
    keys = hooked(vit, variants, vit.layers[1].mlp.fc2, 0)[:, 0].reshape(3, each, 32)
    after = hooked(vit, IMAGES.images[[3, 0, 4]], vit.layers[1])[:, 0]
    monkeypatch.setattr(forward, "BATCH", 2)
    torch.testing.assert_close(reader.keys(items, 1), keys.mean(1).T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reader.hidden(items, 1), after.T, rtol=1e-4, atol=1e-5)
