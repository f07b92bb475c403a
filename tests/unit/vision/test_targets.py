"""Targets of images, against a plain loop over the whole model."""

import numpy as np
import pytest
import torch

from editkit.vision import forward, targets
from editkit.vision.keys import ImageReader
from editkit.vision.metrics import lead
from editkit.vision.targets import optimise_targets
from tests.unit.vision.conftest import FAMILIES, IMAGES, hooked, others


def smallest_lead(logits, label):
    """Logits by which a class leads every other one in the row where it leads least."""
    leads = [row[label] - other for row in logits.tolist() for place, other in enumerate(row) if place != label]
    return min(leads)


def plain_target(vit, images, label, spec):
    """``v*``, and the probability reached, by full passes of all images with δ added to the CLS token by a hook."""
    h = hooked(vit, images[:1], vit.layers[spec.layers[-1]])[0, 0]
    delta = torch.zeros_like(h, requires_grad=True)
    adam, cls = torch.optim.Adam([delta], lr=spec.v_lr), torch.eye(17)[:, :1]
    handles = [vit.layers[spec.layers[-1]].register_forward_hook(lambda _, args, out: out + cls * delta)]
    handles += [m.register_forward_hook(lambda _, args, out: args[0]) for m in vit.layers[spec.v_loss_layer + 1 :]]
    for step in range(spec.v_num_grad_steps):
        logits = vit.forward(vit.pixels(images))
        nll = -logits.log_softmax(1)[:, label].mean()
        done = nll <= -np.log(spec.stop_probability) or smallest_lead(logits, label) >= spec.stop_margin
        if done or step == spec.v_num_grad_steps - 1:
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
    [{}, {"n_contexts": 2, "v_weight_decay": 2.0}, {"layers": [0], "v_loss_layer": 1}, {"clamp_norm_factor": 0.2}]
    + [{"stop_margin": 0.0}, {"stop_margin": 2.0, "n_contexts": 2}, {"stop_margin": np.inf}],
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


def leads_under(vit, reader, items, layer, values):
    """The smallest lead of each repair by full passes, the CLS token of image and copies shifted as the image's."""
    found = []
    for item, value in zip(items, values.T, strict=True):
        images = reader.variants([item])
        shift = value - hooked(vit, images[:1], vit.layers[layer])[0, 0]
        hook = vit.layers[layer].register_forward_hook(
            lambda _, args, out, shift=shift: torch.cat([out[:, :1] + shift, out[:, 1:]], dim=1)
        )
        with torch.no_grad():
            found.append(smallest_lead(vit.forward(vit.pixels(images)), item.label))
        hook.remove()
    return found


@FAMILIES
@pytest.mark.parametrize("margin", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("copies", [0, 2])
def test_a_target_stops_at_the_first_step_at_which_its_class_leads_by_the_margin(
    tiny_vit, start, family, margin, copies
):
    vit, items = tiny_vit(family), others(tiny_vit(family))
    how = dict(n_contexts=copies, v_lr=0.1, layers=[1])
    spec = start(vit, stop_margin=margin, **how).spec
    reader = ImageReader(vit, IMAGES, copies, spec.seed)
    found = optimise_targets(reader, items, 1, spec, progress=False)
    steps = found.losses.isfinite().sum(1).tolist()
    assert all(1 < n < spec.v_num_grad_steps for n in steps)
    assert min(leads_under(vit, reader, items, 1, found.values)) >= margin - 1e-4
    for item, n in zip(items, steps, strict=True):
        earlier = start(vit, stop_margin=margin, v_num_grad_steps=n - 1, **how).spec
        before = optimise_targets(reader, [item], 1, earlier, progress=False).values
        assert leads_under(vit, reader, [item], 1, before)[0] < margin + 1e-4, "a step earlier it does not"


def test_an_infinite_margin_never_stops(tiny_vit, start):
    vit = tiny_vit()
    spec, items = start(vit, stop_margin=np.inf).spec, others(vit)
    reader = ImageReader(vit, IMAGES, 0, spec.seed)
    found = optimise_targets(reader, items, 1, spec, progress=False)
    assert found.losses.isfinite().all() and found.losses.shape == (3, spec.v_num_grad_steps)
    assert min(leads_under(vit, reader, items, 1, found.values)) > 1


def test_a_lead_is_that_over_the_largest_other_logit():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(20, 4, generator=generator), torch.randint(4, (20,), generator=generator)
    expected = [smallest_lead(row[None], label) for row, label in zip(logits, labels.tolist(), strict=True)]
    assert lead(logits, labels).tolist() == pytest.approx(expected, abs=1e-6) and min(expected) < 0 < max(expected)


def test_a_target_is_read_from_the_store_where_nothing_that_it_depends_on_differs(tiny_vit, start, store):
    vit, items = tiny_vit(), others(tiny_vit())

    def search(items, seed=0, copies=0, **changes):
        spec = start(vit, n_contexts=copies, seed=seed, **changes).spec
        reader, layer = ImageReader(vit, IMAGES, copies, seed), spec.layers[-1]
        return optimise_targets(reader, items, layer, spec, store=store, progress=False)

    first, again = search(items[:2]), search(items[::-1], method="memit", seed=3)
    assert (first.cached, again.cached) == (0, 2)
    for name, dim in (("values", 1), ("losses", 0), ("probability", 0)):
        one, other = getattr(first, name), getattr(again, name).flip(dim).narrow(dim, 0, 2)
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    for changes in ({"stop_margin": 0.1}, {"v_lr": 0.2}, {"layers": [0]}, {"copies": 1}):
        assert search(items, **changes).cached == 0
    assert search(items, copies=1, seed=1).cached == 0, "other copies"
    assert search([type(item)(item.index, (item.label + 1) % 3) for item in items]).cached == 0
    vit.weight(0).mul_(1.5)
    assert search(items).cached == 0
