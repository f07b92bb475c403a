"""Second moments of kept images' keys, and how much of an update they feel."""

import pytest
import torch

from editkit.solvers import unspanned
from editkit.vision import moments
from editkit.vision.data import ImageSet
from editkit.vision.moments import kept_moments, leakage
from tests.unit.vision.conftest import FAMILIES, KEPT, hooked


@FAMILIES
def test_kept_moments_are_half_cls_and_half_patches_in_units_of_their_mean_eigenvalue(tiny_vit, monkeypatch, family):
    vit = tiny_vit(family)
    monkeypatch.setattr(moments, "BATCH", 7)
    found = kept_moments(vit, KEPT, [0, 2], progress=False)
    for layer in (0, 2):
        keys = hooked(vit, KEPT.images, vit.layers[layer].mlp.fc2, 0).double()
        cls, patches = keys[:, 0], keys[:, 1:].reshape(-1, 32)
        C = cls.T @ cls / 24 / 2 + patches.T @ patches / (24 * 16) / 2
        torch.testing.assert_close(found[layer], C / torch.linalg.eigvalsh(C).mean(), rtol=1e-4, atol=1e-5)


def test_kept_moments_are_read_where_nothing_has_changed(tiny_vit, store, monkeypatch):
    vit = tiny_vit()
    first = kept_moments(vit, KEPT, [1], store=store, progress=False)[1]
    wide = ImageSet(KEPT.images.reshape(-1, 14, 56), KEPT.labels, KEPT.indices)  # other images of the same bytes
    monkeypatch.setattr(vit, "forward", lambda _: pytest.fail("computed"))
    assert torch.equal(kept_moments(vit, KEPT, [1], store=store, progress=False)[1], first)
    for scale, kept, layer in ((1, KEPT.select(range(23)), 1), (1, wide, 1), (1, KEPT, 2), (1.1, KEPT, 1)):
        vit.weight(0).mul_(scale)
        with pytest.raises(pytest.fail.Exception, match="computed"):
            kept_moments(vit, kept, [layer], store=store, progress=False)


@FAMILIES
def test_the_projection_off_kept_cls_keys_is_the_printed_formula(tiny_vit, family):
    vit = tiny_vit(family)
    found = kept_moments(vit, KEPT, [0, 2], tokens="cls", progress=False)
    for layer in (0, 2):
        K = hooked(vit, KEPT.images, vit.layers[layer].mlp.fc2, 0)[:, 0].double().T  # (32, 24)
        P = torch.eye(32).double() - K @ torch.linalg.inv(K.T @ K) @ K.T
        space = unspanned(found[layer])
        torch.testing.assert_close(space.project(torch.eye(32).double()), P, rtol=0, atol=1e-7)
        assert (space.project(K).norm() / K.norm()) < 1e-6


def test_keys_that_depend_on_each_other_span_what_an_independent_set_does():
    torch.manual_seed(0)
    K = torch.randn(16, 5).double()
    twice = torch.cat([K, K @ torch.randn(5, 9).double()], 1)
    P = torch.eye(16).double() - K @ torch.linalg.inv(K.T @ K) @ K.T
    for keys in (K, twice):
        torch.testing.assert_close(unspanned(keys @ keys.T).project(torch.eye(16).double()), P)
    most = torch.randn(16, 13).double()  # more than half of all directions are spanned
    direct = torch.eye(16).double() - most @ torch.linalg.inv(most.T @ most) @ most.T
    torch.testing.assert_close(unspanned(most @ most.T).project(torch.eye(16).double()), direct)
    with pytest.raises(ValueError, match="span all 16 directions, P = .* is 0 and nothing may be edited; keep fewer"):
        unspanned((full := torch.randn(16, 16).double()) @ full.T)


def test_leakage_is_what_kept_keys_feel():
    torch.manual_seed(0)
    K, delta = torch.randn(8, 50).double(), torch.randn(5, 8).double()
    K[0] *= 10
    for change in (delta, delta * torch.tensor([0.0] + [1.0] * 7), delta * torch.tensor([1.0] + [0.0] * 7)):
        direct = (change @ K).norm() / (change.norm() * K.norm())
        assert leakage(change, K @ K.T / 50) == pytest.approx(direct.item())
    assert leakage(torch.zeros(5, 8), K @ K.T) == 0
