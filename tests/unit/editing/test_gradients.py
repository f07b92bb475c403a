"""Running statistics and residuals: against numpy, by hand, and what cannot be normalised."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from editkit.editing.gradients import Columns, RunningStatistics, residuals
from editkit.solvers import identity_precision, solve
from tests.conftest import agree

GENERATOR = torch.Generator().manual_seed(0)
DRAWN = torch.randn(3, 5, 7, generator=GENERATOR).double()  # batches of five vectors


def columns(x: torch.Tensor, parts: tuple[int, ...]) -> Columns:
    """Vectors as four elements of a key and three of a gradient."""
    return Columns({1: x[:, :4].T}, {1: x[:, 4:].T}, torch.arange(len(x)), parts)


def test_the_running_mean_is_the_mean_and_the_spread_counts_unbiased_batches():
    statistics = RunningStatistics()
    for x in DRAWN:
        statistics = statistics.updated(x)
    every = DRAWN.flatten(0, 1).numpy()
    means = DRAWN.mean(1).numpy()
    between = 5 * ((means - every.mean(0)) ** 2).sum(0)  # of a sum of squares, exactly; within, 5/4 of it
    within = sum(5 * np.var(x.numpy(), axis=0, ddof=1) for x in DRAWN)
    assert statistics.n == 15 and np.allclose(statistics.mean, every.mean(0))
    assert np.allclose(statistics.spread, within + between)
    z = statistics.normalise(DRAWN[0])
    assert np.allclose(z, (DRAWN[0].numpy() - every.mean(0)) / np.sqrt((within + between) / 14), rtol=1e-6)


def test_single_vectors_spread_by_what_lies_between_them():
    statistics = RunningStatistics()
    for x in DRAWN[0]:
        statistics = statistics.updated(x[None])
    assert np.allclose(statistics.spread, 4 * np.var(DRAWN[0].numpy(), axis=0, ddof=1))


def test_residuals_go_down_the_normalised_gradient_by_the_square_of_the_normalised_key():
    made, statistics = residuals(columns(DRAWN[0], (2, 3)), RunningStatistics(), 0.5)
    z = RunningStatistics().updated(DRAWN[0][:2]).updated(DRAWN[0][2:]).normalise(DRAWN[0])
    for i in range(5):
        wanted = -0.5 * (z[i, :4] ** 2).sum() * z[i, 4:]
        torch.testing.assert_close(made.asked[1][:, i], wanted)
    assert statistics.n == 5 and torch.equal(made.keys[1], DRAWN[0][:, :4].T)
    later, after = residuals(columns(DRAWN[1], (5,)), statistics, 0.5)
    fresh, _ = residuals(columns(DRAWN[1], (5,)), RunningStatistics(), 0.5)
    assert after.n == 10 and not torch.allclose(later.asked[1], fresh.asked[1]), "earlier edits count"


def test_layers_share_one_set_of_statistics():
    both = Columns(
        {1: DRAWN[0][:, :4].T, 2: DRAWN[1][:, :4].T},
        {1: DRAWN[0][:, 4:].T, 2: DRAWN[1][:, 4:].T},
        torch.arange(5),
        (5,),
    )
    made, statistics = residuals(both, RunningStatistics(), 1.0)
    z = RunningStatistics().updated(DRAWN[0]).updated(DRAWN[1]).normalise(DRAWN[1])
    torch.testing.assert_close(made.asked[2], (-z[:, :4].square().sum(1, keepdim=True) * z[:, 4:]).T)
    assert statistics.n == 10


def test_columns_of_some_edits_are_numbered_anew():
    every = columns(DRAWN[0], (5,))._replace(owner=torch.tensor([2, 0, 2, 1, 0]))
    some = every.of([2, 1])
    assert some.owner.tolist() == [0, 0, 1] and torch.equal(some.keys[1], DRAWN[0][[0, 2, 3], :4].T)
    assert torch.equal(some.asked[1], DRAWN[0][[0, 2, 3], 4:].T)


def test_a_first_column_alone_asks_for_nothing_and_says_so():
    with pytest.warns(UserWarning, match="normalised they are 0, and nothing is asked for"):
        made, statistics = residuals(columns(DRAWN[0][:1], (1,)), RunningStatistics(), 1.0)
    assert not made.asked[1].any() and statistics.n == 1


def test_what_is_not_finite_is_refused():
    broken = DRAWN[0].clone()
    broken[2, 5] = float("nan")
    with pytest.raises(FloatingPointError, match="layer 1: a key or a gradient is not finite"):
        residuals(columns(broken, (5,)), RunningStatistics(), 1.0)


def test_updates_are_those_that_the_published_code_computed():
    """``ultraedit.json``: what ``cache`` and ``predict_param_shifts`` of ``editor/ultraedit.py`` with ``nets.py`` of
    github.com/XiaojieGu/UltraEdit returned, unchanged and in float32, for these keys and gradients: two turns of two
    mini-batches, two edited matrices."""
    published = json.loads(Path(__file__).with_name("ultraedit.json").read_text())
    statistics = RunningStatistics()
    for turn in published["turns"]:
        parts, layers = turn["parts"], list(turn["updates"])
        keys, gradients = (
            {a: torch.cat([torch.tensor(part[a][side]).double() for part in parts]).T for a in layers}
            for side in ("keys", "gradients")
        )
        sizes = tuple(len(part[layers[0]]["keys"]) for part in parts)
        read = Columns(keys, gradients, torch.arange(sum(sizes)), sizes)
        made, statistics = residuals(read, statistics, published["lr"])
        for layer, wanted in turn["updates"].items():
            update = solve(keys[layer], made.asked[layer], identity_precision(), 1.0)
            agree(update.delta, torch.tensor(wanted, dtype=torch.float64), 1e-6)
