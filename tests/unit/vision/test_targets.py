"""Targets of images, against a plain loop over the whole model."""

import numpy as np
import pytest
import torch

from editkit.vision import forward, targets
from editkit.vision.keys import ImageReader
from editkit.vision.targets import optimise_targets
from tests.unit.vision.conftest import FAMILIES, IMAGES, hooked, others


def plain_target(vit, images, label, spec):
    """``v*``, and the probability reached, by full passes of all images with δ added to the CLS token by a hook."""
    h = hooked(vit, images[:1], vit.layers[spec.layers[-1]])[0, 0]
    delta = torch.zeros_like(h, requires_grad=True)
    adam, cls = torch.optim.Adam([delta], lr=spec.v_lr), torch.eye(17)[:, :1]
    handles = [vit.layers[spec.layers[-1]].register_forward_hook(lambda _, args, out: out + cls * delta)]
    handles += [m.register_forward_hook(lambda _, args, out: args[0]) for m in vit.layers[spec.v_loss_layer + 1 :]]
    for step in range(spec.v_num_grad_steps):
        nll = -vit.forward(vit.pixels(images)).log_softmax(1)[:, label].mean()
        if nll <= -np.log(spec.stop_probability) or step == spec.v_num_grad_steps - 1:
            break
        adam.zero_grad()
        (nll + spec.v_weight_decay * delta.norm() / h.norm() ** 2).backward()
        adam.step()
        if delta.norm() > (limit := spec.clamp_norm_factor * h.norm()):
            delta.data *= limit / delta.norm()
    for handle in handles:
        handle.remove()
    return (h + delta).detach(), (-nll).exp().item()


@FAMILIES
@pytest.mark.parametrize(
    "changes",
    [{}, {"n_contexts": 2, "v_weight_decay": 2.0}, {"layers": [0], "v_loss_layer": 1}, {"clamp_norm_factor": 0.2}],
)
def test_targets_equal_a_plain_loop_over_the_whole_model(scaled_vit, start, family, changes):
    vit = scaled_vit(family)
    spec, items = start(vit, v_num_grad_steps=8, **changes).spec, others(vit)
    reader = ImageReader(vit, IMAGES, spec.n_contexts, spec.seed)
    found = optimise_targets(reader, items, spec.layers[-1], spec, progress=False)
    plain = [plain_target(vit, reader.variants([item]), item.label, spec) for item in items]
    torch.testing.assert_close(found.values, torch.stack([value for value, _ in plain], 1), rtol=1e-4, atol=1e-4)
    assert found.probability.tolist() == pytest.approx([probability for _, probability in plain], abs=1e-4)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_batches_of_targets_do_not_matter(tiny_vit, start, monkeypatch, size):
    vit = tiny_vit()
    spec, items = start(vit).spec, others(vit, 5)
    reader, layer = ImageReader(vit, IMAGES, 1, spec.seed), spec.layers[-1]
    alone = [optimise_targets(reader, [item], layer, spec, progress=False) for item in items]
    for room in (forward, targets):
        monkeypatch.setattr(room, "BATCH", size)
    together = optimise_targets(reader, items, layer, spec, progress=False)
    for name, dim in (("values", 1), ("losses", 0), ("probability", 0)):
        expected = torch.cat([getattr(one, name) for one in alone], dim)
        torch.testing.assert_close(getattr(together, name), expected, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert len({int(row.isfinite().sum()) for row in together.losses}) > 1, "some finish before others"
