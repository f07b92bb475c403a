"""Each solver against an independent oracle, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit import solvers
from editkit.editing.spec import load_defaults
from editkit.methods import METHODS, SolverSpec
from editkit.reference.solvers import (
    alphaedit_printed,
    alphaedit_public,
    betaedit_public,
    kkt_equality,
    memit_printed,
    weighted_normal_equations,
)
from editkit.solvers import Subspace, null_space
from tests.conftest import agree

sizes = st.tuples(st.integers(2, 24), st.integers(1, 12), st.integers(1, 30), st.integers(0, 10_000))
relaxed = settings(max_examples=40, deadline=None)


def problem(d_k: int, d_v: int, n: int, seed: int, rank: int | None = None):
    """Keys, residuals and a second moment, the latter of full rank unless told otherwise."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    samples = draw(d_k, rank or 4 * d_k)
    C = samples @ samples.T / samples.shape[1]
    if rank is None:
        C += 0.1 * torch.eye(d_k, dtype=torch.float64)
    return draw(d_k, n), draw(d_v, n), C


def row(method: str, C: torch.Tensor, K: torch.Tensor | None = None, **hyperparameters):
    """Precision and slack of a method; only emmet's slack depends on the keys."""
    spec = SolverSpec(**hyperparameters)
    precision = METHODS[method].precision(C, spec)
    return precision, METHODS[method].slack(C if K is None else K, precision, spec)


def rome(C):
    return row("rome", C)


def memit(C, weight: float):
    return row("memit", C, mom2_update_weight=weight)


def emmet(C, weight: float, ridge: float, slack: float, K: torch.Tensor | None = None):
    return row("emmet", C, K, mom2_update_weight=weight, update_norm_lambda=ridge, emmet_lambda=slack)


@relaxed
@given(sizes)
def test_rome_solves_the_kkt_system(size):
    d_k, d_v, _, seed = size
    K, R, C = problem(d_k, d_v, 1, seed)
    agree(solvers.solve(K, R, *rome(C)).delta, kkt_equality(K, R, C))


@relaxed
@given(sizes, st.booleans())
def test_emmet_with_equality_solves_the_kkt_system_also_for_a_rank_deficient_moment(size, deficient):
    d_k, d_v, n, seed = size
    K, R, C = problem(d_k, d_v, min(n, max(1, d_k // 2)), seed, rank=max(1, d_k // 2) if deficient else None)
    update = solvers.solve(K, R, *emmet(C, 3.0, 0.2, 0.0))
    agree(update.delta, kkt_equality(K, R, 3.0 * C + 0.2 * torch.eye(d_k, dtype=torch.float64)))
    assert update.residual < 1e-8


@relaxed
@given(sizes)
def test_memit_is_the_printed_formula_also_for_more_edits_than_dimensions(size):
    K, R, C = problem(*size)
    agree(solvers.solve(K, R, *memit(C, 5.0)).delta, memit_printed(K, R, C, 5.0))


@relaxed
@given(sizes, st.integers(0, 6))
def test_alphaedit_is_the_printed_formula_with_and_without_history(size, n_past):
    d_k, _, _, seed = size
    K, R, C = problem(*size, rank=max(1, d_k // 2))
    past = problem(d_k, 1, max(n_past, 1), seed + 1)[0][:, :n_past]
    space = null_space(C, 1e-8)
    precision, slack = row("alphaedit", C, nullspace_threshold=1e-8, l2=2.0)
    update = solvers.solve(
        torch.cat([K, past], 1), torch.cat([R, 0 * R[:, :1].expand(-1, n_past)], 1), precision, slack
    )
    P = space.project(torch.eye(d_k, dtype=torch.float64))
    agree(update.delta, alphaedit_printed(K, R, P, past, 2.0))
    agree(update.delta, alphaedit_public(K, R, P, past @ past.T, 2.0))
    outside = update.delta @ (torch.eye(d_k, dtype=torch.float64) - P)
    assert outside.norm() <= 1e-6 * update.delta.norm().clamp_min(1e-12)
    assert (update.delta @ C).norm() <= 1e-6 * update.delta.norm() * C.norm(), "kept keys are disturbed"


@relaxed
@given(sizes, st.integers(0, 6))
def test_betaedit_is_its_public_code_with_and_without_history(size, n_past):
    d_k, _, _, seed = size
    K, R, C = problem(*size)
    past = problem(d_k, 1, max(n_past, 1), seed + 1)[0][:, :n_past]
    threshold = torch.linalg.eigvalsh(C)[seed % d_k].item() * (1 + 1e-6)  # from one direction to all are free
    precision, slack = row("betaedit", C, mom2_update_weight=3.0, nullspace_threshold=threshold, l2=2.0)
    held = torch.cat([R, torch.zeros(len(R), n_past).double()], 1)
    update = solvers.solve(torch.cat([K, past], 1), held, precision, slack)
    P = null_space(C, threshold).project(torch.eye(d_k, dtype=torch.float64))
    agree(update.delta, betaedit_public(K, R, P, past @ past.T, C, (3.0, 2.0)))


@pytest.mark.parametrize("free", [1, 3, 5, 8])
def test_a_restricted_precision_is_the_least_squares_solution_inside_the_subspace(free):
    K, R, A = problem(8, 4, 5, 2)
    basis = torch.linalg.qr(problem(8, 8, 1, 3)[2]).Q
    inside = basis[:, :free]
    reduced = weighted_normal_equations(inside.T @ K, R, inside.T @ A @ inside, torch.ones(5).double()) @ inside.T
    for space in (Subspace(inside), Subspace(basis[:, free:], complement=True)):
        agree(solvers.solve(K, R, solvers.restricted_precision(space, A), 1.0).delta, reduced)


def test_ultraedits_precision_is_ridge_regression():
    K, R, C = problem(9, 4, 5, 0)
    ridge = torch.linalg.solve(K @ K.T + torch.eye(9).double(), K @ R.T).T
    agree(solvers.solve(K, R, *row("ultraedit", C)).delta, ridge)


def test_encores_cost_holds_the_second_moment_a_ridge_and_earlier_keys():
    K, R, C = problem(9, 4, 5, 0)
    past = problem(9, 4, 3, 1)[0]
    precision, slack = row("encore", C, mom2_update_weight=2.0, update_norm_lambda=0.7)
    cost = 2.0 * C + 0.7 * torch.eye(9).double() + past @ past.T
    held = torch.cat([R, torch.zeros(4, 3).double()], 1)
    agree(solvers.solve(torch.cat([K, past], 1), held, precision, slack).delta, memit_printed(K, R, cost, 1.0))


@relaxed
@given(sizes)
def test_weighted_edits_solve_the_weighted_normal_equations(size):
    K, R, C = problem(*size)
    weights = torch.rand(K.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(size[3])) + 0.1
    precision, _ = memit(C, 2.0)
    agree(solvers.solve(K, R, precision, 1 / weights).delta, weighted_normal_equations(K, R, 2.0 * C, weights))


@relaxed
@given(st.integers(1, 40), st.integers(0, 9))
def test_more_edits_than_dimensions_take_a_system_of_the_dimensions(more, seed):
    K, R, C = problem(9, 4, 9 + more, seed)
    weights = torch.rand(K.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1
    precision, _ = memit(C, 2.0)
    update = solvers.solve(K, R, precision, 1 / weights)
    assert update.right.shape == (9, 9) and update.left.shape == (4, 9)
    wanted = weighted_normal_equations(K, R, 2.0 * C, weights)
    agree(update.delta, wanted)
    assert update.residual == pytest.approx(((wanted @ K - R).norm() / R.norm()).item())


@relaxed
@given(st.integers(1, 12), st.integers(10, 40), st.integers(0, 9))
def test_held_keys_beyond_the_dimensions_do_not_raise_the_rank(new, held, seed):
    K, R, C = problem(9, 4, new + held, seed)
    R[:, new:] = 0
    weights = torch.rand(K.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1
    update = solvers.solve(K, R, memit(C, 2.0)[0], 1 / weights)
    assert update.left.shape == (4, min(new, 9))
    agree(update.delta, weighted_normal_equations(K, R, 2.0 * C, weights))


@relaxed
@given(sizes, st.integers(1, 40), st.booleans())
def test_earlier_edits_as_columns_are_their_moments_in_the_normal_equations(size, n_past, pulled):
    K, R, C = problem(*size)
    past, old, _ = problem(size[0], size[1], n_past, size[3] + 1)
    old = old if pulled else 0 * old
    precision, slack = memit(C, 1.0)
    joined = solvers.solve(torch.cat([K, past], 1), torch.cat([R, old], 1), precision, slack)
    cost = C + past @ past.T  # hold: the first moment alone
    oracle = torch.linalg.solve(cost + K @ K.T, (R @ K.T + old @ past.T).T).T  # history: the cross moment as well
    agree(joined.delta, oracle)
    F, X = solvers.compress(past, old)
    assert F.shape[1] <= min(n_past, size[0])
    agree(F @ F.T, past @ past.T)
    agree(solvers.solve(torch.cat([K, F], 1), torch.cat([R, X], 1), precision, slack).delta, oracle)


def test_a_clamped_update_reaches_the_bound_and_a_small_one_is_left_alone():
    K, R, C = problem(12, 5, 3, 0)
    W = problem(12, 5, 1, 1)[0].T.expand(5, 12) * torch.arange(1, 6)[:, None]
    update = solvers.solve(K, 50 * R, *memit(C, 0.01))
    clamped = solvers.clamp(update, W, 1.05 * W.norm())
    assert (W + clamped.delta).norm() == pytest.approx(1.05 * W.norm().item())
    agree(clamped.delta / clamped.delta.norm(), update.delta / update.delta.norm())
    assert solvers.clamp(update, W, float("inf")) is update
    assert solvers.clamp(update, W, 0.5 * W.norm()).delta.norm() == 0


def test_emmet_with_one_edit_is_rome():
    K, R, C = problem(12, 5, 1, 0)
    agree(solvers.solve(K, R, *emmet(C, 7.0, 0.0, 0.0)).delta, solvers.solve(K, R, *rome(C)).delta, 1e-12)


@pytest.mark.parametrize("share", [1e-6, 1e-2, 1.0])
def test_emmet_with_slack_is_memit_with_weight_times_slack(share):
    K, R, C = problem(12, 5, 9, 0)
    precision, slack = emmet(C, 7.0, 0.0, share, K)
    assert slack == pytest.approx(share * torch.linalg.eigvalsh(K.T @ precision.apply(K)).mean().item())
    agree(solvers.solve(K, R, precision, slack).delta, solvers.solve(K, R, *memit(C, 7.0 * slack)).delta)


def test_emmets_default_slack_is_equality_for_one_edit_and_many():
    defaults = load_defaults("smollm2-135m")
    share = (defaults["shared"] | defaults["emmet"])["emmet_lambda"]
    for n in (1, 9):
        K, R, C = problem(12, 5, n, 0)
        update = solvers.solve(K, R, *emmet(C, 7.0, 0.0, share, K))
        assert update.residual < 1e-3
        agree(update.delta, kkt_equality(K, R, C), 1e-2)


def test_rank_deficient_second_moment_gets_a_recorded_ridge():
    K, R, C = problem(10, 4, 1, 0, rank=5)
    update = solvers.solve(K, R, *rome(C))
    assert 0 < update.cost_ridge <= 1e-4 * C.diagonal().mean()
    ridged = C + update.cost_ridge * torch.eye(10, dtype=torch.float64)
    agree(update.delta, kkt_equality(K, R, ridged), 1e-5)  # the ridge leaves a condition number near 1e10
    assert solvers.solve(*problem(10, 4, 1, 0)[:2], *rome(problem(10, 4, 1, 0)[2])).cost_ridge == 0


def test_equal_keys_get_a_recorded_ridge_and_the_mean_of_their_wishes():
    K, R, C = problem(10, 4, 1, 0)
    wishes = torch.cat([R, 3 * R], dim=1)
    update = solvers.solve(K.expand(-1, 2), wishes, *emmet(C, 1.0, 0.0, 0.0))
    assert update.ridge > 0
    agree(update.delta @ K, 2 * R, 1e-3)
    assert update.residual > 0.1, "a contradiction cannot be granted, and the residual says so"


def test_more_equalities_than_dimensions_leave_a_residual():
    K, R, C = problem(6, 4, 15, 0)
    update = solvers.solve(K, R, *emmet(C, 1.0, 0.0, 0.0))
    assert update.ridge > 0 and update.residual > 0.1
    least_squares = R @ torch.linalg.pinv(K)
    agree(update.delta, least_squares, 1e-2)


def test_update_is_factored_with_rank_at_most_the_number_of_edits():
    K, R, C = problem(20, 18, 3, 0)
    update = solvers.solve(K, R, *memit(C, 1.0))
    assert update.left.shape == (18, 3) and update.right.shape == (3, 20)
    assert update.condition < update.condition_before
    held = solvers.solve(K, R * torch.tensor([1.0, 1.0, 0.0]), *memit(C, 1.0))
    assert held.left.shape == (18, 2), "what is only held adds no rank"
    assert torch.linalg.matrix_rank(update.delta) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda K, R, C: (K[:, :0], R[:, :0], *memit(C, 1.0)), "at least one"),
        (lambda K, R, C: (K, R[:, :1], *memit(C, 1.0)), "same number of columns"),
        (lambda K, R, C: (K * float("nan"), R, *memit(C, 1.0)), "not finite"),
        (lambda K, R, C: (K, R / 0, *memit(C, 1.0)), "not finite"),
        (lambda K, R, C: (K, R, memit(C, 1.0)[0], -1.0), "slack"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        solvers.solve(*change(*problem(8, 4, 3, 0)))


def test_an_indefinite_cost_is_refused():
    with pytest.raises(ValueError, match="not positive semi-definite"):
        solvers.inverse_precision(-torch.eye(4, dtype=torch.float64))


def test_no_null_space_is_named_with_the_smallest_eigenvalue():
    with pytest.raises(ValueError, match=r"nullspace_threshold = 0\.5.*smallest is 2"):
        null_space(2 * torch.eye(4, dtype=torch.float64), 0.5)
