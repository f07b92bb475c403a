"""Maps on an update: by hand-worked matrices, numpy's decomposition, and in sessions."""

import math

import numpy as np
import pytest
import torch

from editkit import EditSession
from editkit.editing.restraint import prune, rect, restrained
from editkit.solvers import Update
from tests.conftest import TEXTS, agree


def update(delta: torch.Tensor) -> Update:
    return Update(delta, torch.eye(delta.shape[1]).to(delta), 0.0, 0.0, 1.0, 1.0, 0.0)


@pytest.fixture
def start(store, full_spec):
    def build(lm, method="memit", **changes):
        spec = full_spec(method, **({"layers": [2], "mom2_update_weight": 0.01} | changes))
        return EditSession(lm, spec, texts=TEXTS, store=store, progress=False)

    return build


def test_rect_keeps_what_changes_most_relative_to_what_was_there():
    W = torch.tensor([[1.0, 10.0, 0.0, -2.0, 0.0], [5.0, 1.0, -1.0, 4.0, 2.0]], dtype=torch.float64)
    delta = torch.tensor([[0.5, 2.0, 0.1, 0.6, 0.0], [3.0, -0.9, 0.2, 0.1, 0.1]], dtype=torch.float64)
    # |ΔW / W|: .5 .2 ∞ .3 0 | .6 .9 .2 .025 .05
    kept = rect(update(delta), W, 0.4).delta
    assert kept.tolist() == [[0.5, 0.0, 0.1, 0.0, 0.0], [3.0, -0.9, 0.0, 0.0, 0.0]]
    assert torch.equal(rect(update(delta), W, 1.0).delta, delta)
    tall = rect(update(delta.T.contiguous()), W.T, 0.4)
    assert torch.equal(tall.delta, kept.T) and tall.right.shape == (2, 2)


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_rect_sets_as_many_to_zero_as_published(share):
    generator = torch.Generator().manual_seed(0)
    delta, W = (torch.randn(7, 9, generator=generator).double() for _ in range(2))
    kept = rect(update(delta), W, share).delta
    change = (delta / W).abs().numpy().flatten()
    zeros = int(change.size * (1 - share))
    lowest = np.argpartition(change, zeros)[:zeros]
    wanted = delta.numpy().flatten()
    wanted[lowest] = 0
    assert np.array_equal(kept.numpy().flatten(), wanted)


@pytest.mark.parametrize("base", [1.2, 1.5, 2.0, math.e])
def test_restrained_values_are_the_printed_function(base):
    values = torch.tensor([40.0, 9.0, 8.0, 7.9, 0.0], dtype=torch.float64)
    wanted = [math.log(s, base) + 8.0 - math.log(8.0, base) if s >= 8 else s for s in values.tolist()]
    assert restrained(values, 8.0, base).tolist() == pytest.approx(wanted)
    assert restrained(values, 8.0, base)[2] == pytest.approx(8.0), "it goes on from what is left alone"


def pruned(total: np.ndarray, original: np.ndarray, base: float) -> np.ndarray:
    """The published way: decompose, restrain, put together."""
    U, s, Vh = np.linalg.svd(total, full_matrices=False)
    largest = np.linalg.svd(original, compute_uv=False)[0]
    return U @ np.diag([math.log(x, base) + largest - math.log(largest, base) if x >= largest else x for x in s]) @ Vh


@pytest.mark.parametrize("base", [1.5, math.e])
def test_pruning_restrains_the_sum_of_all_updates(base):
    generator = torch.Generator().manual_seed(1)
    original, *steps = (torch.randn(6, 9, generator=generator).double() for _ in range(4))
    largest = torch.linalg.matrix_norm(original, 2).item()
    written = free = torch.zeros_like(original)
    for step in steps:
        free = free + 5 * step
        written = written + prune(update(5 * step), written, largest, base).delta
        agree(written, torch.from_numpy(pruned(free.numpy(), original.numpy(), base)), 1e-9)
    small = update(0.01 * steps[0])
    assert prune(small, 0.1 * original, largest, base) is small


def test_a_session_writes_the_restrained_update_and_undoes_it(tiny, facts, start):
    plain, lm = tiny(), tiny()
    mark, W = lm.fingerprint(), lm.weight(2).double()
    delta = start(plain).edit(facts).deltas[2]
    for changes, wanted in (
        ({"delta_map": "rect", "rect_share": 0.3}, rect(update(delta), W, 0.3).delta),
        ({"delta_map": "prune"}, torch.from_numpy(pruned(delta.numpy(), W.numpy(), math.e))),
    ):
        session = start(lm, **changes)
        result = session.edit(facts)
        agree(result.deltas[2], wanted, 1e-8)
        agree(lm.weight(2).double() - W, wanted, 1e-5)
        asked = result.targets.values.shape[1]
        assert result.diagnostics().edits.tolist() == [asked]
        session.undo()
        assert lm.fingerprint() == mark


def test_a_sequence_stays_restrained_by_the_weights_before_it(tiny, facts, start):
    def total(**changes):
        lm = tiny()
        W = lm.weight(2).double()
        session = start(lm, clamp_norm_factor=30.0, v_lr=3.0, **changes)
        steps = [session.edit(batch) for batch in (facts[:2], facts[2:])]
        assert lm.fingerprint() != tiny().fingerprint()
        change = lm.weight(2).double() - W
        session.undo()
        assert torch.equal(lm.weight(2).double(), W) and len(steps) == 2
        return torch.linalg.svdvals(change)[0].item(), torch.linalg.svdvals(W)[0].item()

    free, largest = total()
    bound, _ = total(delta_map="prune", prune_base=10.0)
    assert free > 1.5 * largest, "or there is nothing to restrain"
    assert bound < math.log(free / largest, 10) * 2 + largest < free


def test_maps_do_not_fit_adapters_and_values_are_checked(tiny, start, full_spec):
    with pytest.raises(ValueError, match="delta_map = 'rect': must be 'none' with edit_mode 'lora'"):
        start(tiny(), delta_map="rect", edit_mode="lora")
    for changes, message in (
        ({"delta_map": "clip"}, "delta_map = 'clip'.*'none', 'rect' or 'prune'"),
        ({"rect_share": 0.0}, "rect_share = 0.0.*greater than 0"),
        ({"prune_base": 1.0}, "prune_base = 1.0.*greater than 1"),
    ):
        with pytest.raises(ValueError, match=message):
            full_spec(**changes)
