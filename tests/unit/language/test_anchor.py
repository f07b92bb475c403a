"""Norm-anchored targets: by hand, and what they leave alone."""

import pytest
import torch

from editkit import EditSession
from editkit.language.anchor import anchored, mean_norm, measure_anchor
from editkit.language.keys import hidden_states, put_out
from tests.conftest import TEXTS, agree


@pytest.fixture
def start(store, full_spec):
    def build(lm, **changes):
        spec = full_spec("memit", **({"layers": [2], "n_contexts": 0} | changes))
        return EditSession(lm, spec, texts=TEXTS, store=store, progress=False)

    return build


def test_values_get_the_anchors_norm_and_those_of_twice_it_are_dropped():
    v = torch.tensor([[3.0, 0.0, 12.0, 0.0], [4.0, 2.0, 16.0, 0.0]], dtype=torch.float64)
    before = torch.ones_like(v)
    found = anchored(v, before, 9.0)
    wanted = [[5.4, 0.0, 1.0, 0.0], [7.2, 9.0, 1.0, 0.0]]  # 20 is more than 18: what it was; nothing has no direction
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), atol=1e-8, rtol=0)


@pytest.mark.parametrize(("count", "dropped"), [(1, 0), (19, 0), (20, 1), (39, 1), (40, 2), (1000, 50)])
def test_an_anchor_leaves_out_the_largest_twentieth(count, dropped):
    norms = [float(i) for i in range(count)][::-1]
    assert mean_norm(norms) == pytest.approx((count - dropped - 1) / 2)


def test_an_anchor_needs_facts():
    with pytest.raises(ValueError, match="no norms to average"):
        mean_norm([])


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2"])
def test_a_targets_shift_is_moved_so_far_that_the_matrix_puts_out_the_anchors_norm(tiny, facts, start, family):
    lm = tiny(family)
    plain = start(lm).domain
    plain.costs()
    free, h, v0 = plain.targets(facts), hidden_states(lm, facts, 2), put_out(lm, facts, 2)
    norms = (v0 + free.values - h).norm(dim=0)
    anchor = norms.sort().values[2].item() / 2 * 1.01  # one is more than twice as large
    bound = start(lm, norm_anchor=anchor).domain
    bound.costs()
    found = bound.targets(facts)
    assert found.cached == 4, "the search does not depend on it"
    sizes = (v0 + found.values - h).norm(dim=0)
    large = norms > 2 * anchor
    assert large.sum() == 1
    torch.testing.assert_close(sizes[~large], torch.full((3,), anchor), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.values[:, large], h[:, large], rtol=1e-4, atol=1e-4)
    own = v0 + free.values - h
    agree((v0 + found.values - h)[:, ~large], own[:, ~large] * anchor / own[:, ~large].norm(dim=0), 1e-4)


def test_what_is_measured_is_the_mean_norm_of_targets_of_the_bare_prompt(tiny, facts, start):
    lm = tiny()
    session = start(lm)
    session.domain.costs()
    values = session.domain.targets(facts).values
    norms = (put_out(lm, facts, 2) + values - hidden_states(lm, facts, 2)).norm(dim=0)
    assert measure_anchor(lm, facts, session.spec, progress=False) == pytest.approx(norms.mean().item(), rel=1e-3)
