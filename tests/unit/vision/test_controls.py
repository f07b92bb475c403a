"""Repairs of the classifier's head, against autograd and direct solutions, on tiny random models."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from editkit import VisionModel
from editkit.vision.controls import (
    FinetuneSpec,
    HeadSpec,
    _importance,
    edit_head,
    features,
    finetune,
    fisher,
    load_changes,
    restored,
    save_changes,
)
from editkit.vision.data import ImageSet

CLOSED = HeadSpec(ridge=0.1)


@pytest.fixture
def vit(tiny_vit):
    return tiny_vit()


@pytest.fixture
def sets(vit):
    """Four images to edit, which are all wrong, and forty to keep, of which all but the last five are right."""
    images = np.random.default_rng(0).integers(0, 256, (44, 28, 28)).astype(np.uint8)
    images[::2] //= 3
    whole = ImageSet(images, np.zeros(44, np.int64), np.arange(44))
    said = vit.head(features(vit, whole)).argmax(1).numpy()
    labels = np.where((np.arange(44) < 4) | (np.arange(44) >= 39), (said + 1) % 3, said)
    whole = ImageSet(images, labels, np.arange(44))
    return whole.select(range(4)), whole.select(range(4, 44))


def tuned(vit, edits, kept=None, method="plain", *, layers=1, lr=0.01, steps=2, penalty=1.0, **options):
    spec = FinetuneSpec(finetune_layers=layers, finetune_lr=lr, finetune_steps=steps, finetune_penalty=penalty)
    return finetune(vit, edits, edits if kept is None else kept, method, spec, progress=False, **options)


def weights(vit):
    return {name: tensor.clone() for name, tensor in vit.model.state_dict().items()}


def changed(vit, before):
    return {name for name, tensor in vit.model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("family", ["dinov2", "vit"])
def test_the_head_on_its_features_is_the_model(tiny_vit, sets, family):
    model = tiny_vit(family)
    x = features(model, sets[1])
    with torch.no_grad():
        assert torch.allclose(model.head(x), model.forward(model.pixels(sets[1].images)), atol=1e-5)
    assert features(model, sets[1].select([])).shape == (0, model.head.in_features)


def test_the_fisher_is_the_expected_squared_gradient(vit, sets):
    x, head = features(vit, sets[1])[:6], vit.head.requires_grad_()
    expected = torch.zeros(3, x.shape[1] + 1)
    for row in x:
        logs = head(row).log_softmax(0)
        for log in logs:
            weight, bias = torch.autograd.grad(log, (head.weight, head.bias), retain_graph=True)
            expected += log.exp().detach() * torch.cat([weight, bias[:, None]], 1).square() / len(x)
    assert torch.allclose(fisher(head, x).float(), expected, rtol=1e-4, atol=1e-7)


def test_closed_form_wins_by_the_margin_at_the_least_cost(vit, sets):
    edits, kept = sets
    before, x, old = weights(vit), features(vit, edits).double(), vit.head.weight.double()
    logits, y = vit.head(x.float()).double(), torch.tensor(edits.labels)
    log = edit_head(vit, edits, kept, "closed", HeadSpec(margin=2.0, ridge=0.1), progress=False)
    assert changed(vit, before) == {"classifier.weight"} and log.step.tolist() == [1]
    assert log.edited_accuracy[0] == 1 and 0 < log.kept_accuracy[0] <= 1
    delta = vit.head.weight.double() - old
    assert log.change[0] == pytest.approx(delta.norm().item(), rel=1e-4)

    rows = torch.arange(len(y))
    others = logits.clone()
    others[rows, y] = -torch.inf
    wanted = logits.clone()
    wanted[rows, y] = others.amax(1) + 2
    assert torch.allclose(vit.head(x.float()).double(), wanted, atol=1e-4)

    x_kept = features(vit, kept.select(range(35))).double()  # the ones that are right
    C = x_kept.T @ x_kept / 35
    A = C + 0.1 * C.diagonal().mean() * torch.eye(len(C))
    n, d = x.shape
    system = torch.cat([torch.cat([A, x.T], 1), torch.cat([x, torch.zeros(n, n)], 1)])
    direct = torch.linalg.solve(system, torch.cat([torch.zeros(d, 3), wanted - logits]))[:d].T
    assert torch.allclose(delta, direct, atol=1e-4 * direct.abs().max())
    assert log.penalty[0] == pytest.approx((direct @ C @ direct.T).trace().item(), rel=1e-3)


def test_closed_form_leaves_alone_what_wins_already_and_slack_holds_back(vit, sets):
    edits, kept = sets
    right = kept.select(range(3))
    before = weights(vit)
    with restored(vit):
        assert edit_head(vit, right, kept, "closed", HeadSpec(margin=1e-9), progress=False).change[0] == 0
    with restored(vit):
        exact = edit_head(vit, edits, kept, "closed", CLOSED, progress=False).change[0]
    assert not changed(vit, before)
    assert (
        0 < edit_head(vit, edits, kept, "closed", HeadSpec(ridge=0.1, slack=1e3), progress=False).change[0] < exact / 10
    )


def test_ewc_repairs_the_head_alone(vit, sets):
    before = weights(vit)
    spec = HeadSpec(ewc_lambda=0.1, head_lr=0.02)
    log = edit_head(vit, *sets, "ewc", spec, progress=False)
    assert changed(vit, before) == {"classifier.weight", "classifier.bias"}
    assert log.edited_accuracy.iloc[-1] == 1 and (log.edited_accuracy[:-1] < 1).all()
    assert log.step.tolist() == list(range(1, len(log) + 1)) and (log.penalty > 0).all()
    assert list(log) == "step loss edited_accuracy penalty kept_accuracy change taken_back seconds".split()
    assert not any(p.requires_grad or p.grad is not None for p in vit.model.parameters())


def test_a_huge_penalty_holds_the_head_where_it_is(vit, sets):
    free, held = (HeadSpec(ewc_lambda=value, head_lr=1e-4) for value in (0.0, 1e12))
    with restored(vit):
        loose = edit_head(vit, *sets, "ewc", free, progress=False)
    before = vit.head.weight.clone()
    log = edit_head(vit, *sets, "ewc", held, progress=False)
    assert log.edited_accuracy.max() == 0 and log.kept_accuracy.min() == 1 and len(log) == held.head_steps
    assert torch.allclose(vit.head.weight, before, atol=1e-3)
    assert log.change.iloc[-1] < loose.change.iloc[-1] / 5 and (loose.penalty == 0).all()


@pytest.mark.parametrize("layers, parts", [(0, {"head"}), (1, {"head", "2"}), (3, {"head", "0", "1", "2"})])
def test_finetuning_changes_the_last_layers_until_all_are_right(vit, sets, layers, parts):
    before = weights(vit)
    log = tuned(vit, sets[0], layers=layers, steps=100)
    assert log.edited_accuracy.iloc[-1] == 1 and len(log) < 100 and log.change.is_monotonic_increasing
    found = {name.split(".layer.")[1].split(".")[0] if ".layer." in name else "head" for name in changed(vit, before)}
    assert found == parts
    assert not vit.model.training and not any(p.requires_grad for p in vit.model.parameters())


def test_the_seed_draws_the_batches_of_many_images(vit, sets):
    many = sets[1].select(np.arange(80) % 40)

    def losses(seed):
        with restored(vit):
            return tuned(vit, many, layers=0, lr=1e-3, seed=seed).loss.tolist()

    assert losses(0) == losses(0) != losses(1)


def test_all_is_put_back_bit_for_bit_also_after_an_error(vit, sets):
    before = weights(vit)
    with restored(vit):
        tuned(vit, sets[0], layers=3)
        assert changed(vit, before)
    assert not changed(vit, before)
    with pytest.raises(KeyboardInterrupt), restored(vit):
        edit_head(vit, *sets, "closed", CLOSED, progress=False)
        assert changed(vit, before)
        raise KeyboardInterrupt
    assert not changed(vit, before)


def test_what_a_control_changed_is_saved_and_put_into_the_same_model_alone(tiny_vit, vit, sets, tmp_path):
    about = {"model": vit.name, "weights": vit.fingerprint(), "method": "made up"}
    with restored(vit) as before:
        tuned(vit, sets[0])
        path, wanted = save_changes(vit, before, tmp_path / "edits" / "one.safetensors", about), weights(vit)
        names = changed(vit, before)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == names and json.loads(file.metadata()["editkit"]) == about
    load_changes(vit, path)
    assert not changed(vit, wanted)
    with pytest.raises(ValueError, match=f"made from weights {about['weights']}, tiny-dinov2 has "):
        load_changes(vit, path)
    other = tiny_vit("vit")
    mark = other.fingerprint()
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-9])
    for file, message in ((path, "is no weight of tiny-vit"), (tmp_path / "cut.safetensors", "does not hold changed")):
        with pytest.raises(ValueError, match=message):
            load_changes(other, file)
    assert other.fingerprint() == mark


def test_what_diverges_leaves_no_trace(vit, sets):
    before = weights(vit)
    with pytest.raises(FloatingPointError, match="head, ewc: diverged at step"):
        edit_head(vit, *sets, "ewc", HeadSpec(head_lr=1e36), progress=False)
    with pytest.raises(FloatingPointError, match="fine-tuning, plain, lr 1e\\+30: diverged at step"):
        tuned(vit, sets[0], lr=1e30, steps=50)
    assert not changed(vit, before) and not any(p.requires_grad for p in vit.model.parameters())


def test_what_cannot_be_done_is_refused(vit, sets):
    edits, kept = sets
    hidden = ImageSet(kept.images, kept.labels, kept.indices, held_out=True)
    for pair, purpose in (((hidden, kept), "editing the head"), ((edits, hidden), "keeping the head")):
        with pytest.raises(ValueError, match=f"must not be used for {purpose}"):
            edit_head(vit, *pair, "closed", CLOSED, progress=False)
    with pytest.raises(ValueError, match="must not be used for fine-tuning on edits"):
        tuned(vit, hidden)
    for pair in ((edits.select([]), kept), (edits, kept.select(range(35, 40)))):
        with pytest.raises(ValueError, match=f"got {len(pair[0])}, and .* right of {len(pair[1])}"):
            edit_head(vit, *pair, "closed", CLOSED, progress=False)
    for images, layers in ((edits.select([]), 1), (edits, 4)):
        with pytest.raises(ValueError, match=f"0 to 3 layers; got {len(images)} images, finetune_layers = {layers}"):
            tuned(vit, images, layers=layers)
    for method in ("ewc", "rehearsal"):
        with pytest.raises(ValueError, match=f"fine-tuning, {method}: needs kept images, got none"):
            tuned(vit, edits, kept.select([]), method)
        with pytest.raises(ValueError, match="held-out images .* must not be used for keeping what is right"):
            tuned(vit, edits, hidden, method)


@pytest.mark.parametrize("method, penalties", [("l2", (0.0, 1.0, 1e2, 1e6)), ("ewc", (0.0, 1e2, 1e4, 1e6))])
def test_a_larger_penalty_pulls_harder(vit, sets, method, penalties):
    changes = []
    with restored(vit):
        plain = tuned(vit, sets[0], sets[1], steps=3, lr=1e-3).change
    for penalty in penalties:
        with restored(vit):
            changes.append(tuned(vit, sets[0], sets[1], method, steps=3, lr=1e-3, penalty=penalty).change)
    assert len(plain) == 3 and changes[0].tolist() == pytest.approx(plain.tolist(), rel=1e-3), "a weight of 0 is plain"
    assert len({one.iloc[0] for one in changes}) == 1, "the first step starts where no penalty is due, to the last bit"
    last = [one.iloc[-1] for one in changes]
    assert last == sorted(last, reverse=True) and last[-1] < last[0]


def test_the_importance_of_weights_is_their_mean_squared_gradient_under_the_models_answers(vit, sets):
    kept, head = sets[1], vit.head.requires_grad_()
    found = _importance(vit, kept, [head.weight, head.bias], np.random.default_rng(3))
    rng, expected = np.random.default_rng(3), [torch.zeros_like(head.weight), torch.zeros_like(head.bias)]
    part = kept.select(rng.permutation(len(kept))[:64])
    for x in features(vit, part).detach():
        logs = head(x).log_softmax(0)
        p = logs.detach().double().exp().numpy()
        answer = rng.choice(3, p=p / p.sum())
        for entry, gradient in zip(expected, torch.autograd.grad(logs[answer], [head.weight, head.bias]), strict=True):
            entry += gradient.square() / len(part)
    for one, other in zip(found, expected, strict=True):
        assert one.norm() > 0 and torch.allclose(one, other, rtol=1e-3, atol=1e-7)


def test_rehearsal_takes_as_many_kept_images_a_step_as_edited_ones(vit, sets, monkeypatch):
    edits, kept = sets
    places = {image.tobytes(): index for part in sets for image, index in zip(part.images, part.indices, strict=True)}
    batches, pixels = [], VisionModel.pixels

    def watched(model, images):
        batches.append([places[image.tobytes()] for image in images])
        return pixels(model, images)

    monkeypatch.setattr(VisionModel, "pixels", watched)
    for method, others in (("plain", 0), ("rehearsal", 4)):
        batches.clear()
        with restored(vit):
            log = tuned(vit, edits, kept, method, lr=1e-5)
        rehearsed = [batch for batch in batches if set(batch) <= {*kept.indices}]
        assert [len(batch) for batch in rehearsed] == [others] * (len(log) if others else 0)
    assert set(rehearsed[0]) != set(rehearsed[1]), "others each time"


@pytest.mark.parametrize("control", ["finetuning", "ewc"])
def test_the_step_that_breaks_a_promise_is_taken_back(vit, sets, control):
    def run(steps, holds=None):
        if control == "finetuning":
            return tuned(vit, sets[0], lr=1e-4, steps=steps, holds=holds)
        spec = HeadSpec(head_lr=1e-4, head_steps=steps)
        return edit_head(vit, *sets, "ewc", spec, holds=holds, progress=False)

    with restored(vit):
        run(2)
        wanted = weights(vit)
    answers = iter([True, True, False])
    log = run(10, lambda: next(answers))
    assert log.taken_back.tolist() == [False, False, True] and not changed(vit, wanted)
    assert log.change.is_monotonic_increasing and not any(p.requires_grad for p in vit.model.parameters())
