"""Low-rank forms of an update: each fit against the problem that it claims to solve."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editkit import EditSpec, solvers
from editkit.editing.lowrank import Problem, alternate, fit, spectrum, truncate

D_V, D_K = 7, 12


def problem(n=6, seed=0, slack=0.5, d_v=D_V):
    g = torch.Generator().manual_seed(seed)
    K, R = torch.randn(D_K, n, generator=g).double(), torch.randn(d_v, n, generator=g).double()
    root = torch.randn(D_K, 3 * D_K, generator=g).double()
    cost = root @ root.T / 10
    slacks = torch.full((n,), slack, dtype=torch.float64)
    made = Problem(K, R, solvers.inverse_precision(cost), slacks)
    return made, solvers.solve(K, R, made.precision, slacks), cost


def objective(delta, made, cost):
    """What the solver minimises, term by term."""
    missed = (delta @ made.K - made.R).square().sum(0)
    return (torch.trace(delta @ cost @ delta.T) + (missed / made.slack).sum()).item()


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_keys_solves_the_editing_problem_at_that_rank(full_spec, rank):
    """No other matrix of that rank does better: gradient descent on B and A from many starts ends at the same value."""
    made, update, cost = problem()
    ours = fit(update, made, full_spec(lora_rank=rank, lora_fit="keys"))
    assert ours.left.shape == (D_V, rank) and ours.right.shape == (rank, D_K)
    reached = objective(ours.delta, made, cost)
    best = float("inf")
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        B = torch.randn(D_V, rank, generator=g).double().requires_grad_()
        A = (0.1 * torch.randn(rank, D_K, generator=g).double()).requires_grad_()
        descent = torch.optim.LBFGS([B, A], max_iter=800, history_size=30, line_search_fn="strong_wolfe")

        def loss(B=B, A=A, descent=descent):
            descent.zero_grad()
            missed = (B @ A @ made.K - made.R).square().sum(0) / made.slack
            value = torch.trace(B @ A @ cost @ A.T @ B.T) + missed.sum()
            value.backward()
            return value

        descent.step(loss)
        best = min(best, loss().item())
    assert reached <= best + 1e-9
    assert reached == pytest.approx(best, rel=1e-4)


def test_svd_is_the_truncated_singular_value_decomposition(full_spec):
    made, update, _ = problem()
    ours = fit(update, made, full_spec(lora_rank=3, lora_fit="svd"))
    U, S, Vh = torch.linalg.svd(update.delta)
    torch.testing.assert_close(ours.delta, U[:, :3] * S[:3] @ Vh[:3], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(spectrum(update), S[:6], rtol=1e-9, atol=1e-12)


def test_steps_begins_at_svd_and_ends_at_keys(full_spec):
    made, update, cost = problem()
    values = [
        objective(fit(update, made, full_spec(lora_rank=2, lora_fit="steps", lora_fit_steps=steps)).delta, made, cost)
        for steps in (1, 2, 4, 400)
    ]
    keys, svd = (
        objective(fit(update, made, full_spec(lora_rank=2, lora_fit=name)).delta, made, cost)
        for name in ("keys", "svd")
    )
    assert svd > values[0] > values[1] > values[2] > values[3] - 1e-9
    assert values[3] == pytest.approx(keys, rel=1e-9)


def test_residual_and_loss_are_those_of_the_written_factors(full_spec):
    made, update, _ = problem()
    ours = fit(update, made, full_spec(lora_rank=2, lora_fit="keys"))
    K, R = made.K, made.R
    assert ours.residual == pytest.approx(((ours.delta @ K - R).norm() / R.norm()).item())
    assert ours.fit_residual == pytest.approx(
        (((update.delta - ours.delta) @ K).norm() / (update.delta @ K).norm()).item()
    )
    assert 0 < ours.fit_residual < 1


@given(
    n=st.integers(1, 9), rank=st.integers(1, 9), seed=st.integers(0, 5), name=st.sampled_from(["svd", "keys", "steps"])
)
def test_rank_is_bounded_and_enough_rank_loses_nothing(n, rank, seed, name):
    made, update, _ = problem(n, seed)
    ours = fit(update, made, EditSpec(method="memit", lora_rank=rank, lora_fit=name))
    assert ours.left.shape[1] == ours.right.shape[0] == (n if rank >= n else min(rank, D_V))
    if rank >= min(n, D_V):
        torch.testing.assert_close(ours.delta, update.delta, rtol=1e-8, atol=1e-10)
    if rank >= n:
        assert ours is update and ours.fit_residual == 0


def test_exact_takes_the_solvers_factors_or_refuses(full_spec):
    made, update, _ = problem()
    assert fit(update, made, full_spec(lora_rank=6, lora_fit="exact")) is update
    with pytest.raises(ValueError, match="rank 6 needs lora_rank = 6 or more, got 5"):
        fit(update, made, full_spec(lora_rank=5, lora_fit="exact"))
    with pytest.warns(UserWarning, match="rank 6 is written"):
        assert fit(update, made, full_spec(lora_rank=5, lora_fit="exact", allow_fallback=True)) is update


def test_more_edits_than_outputs_are_exact_at_the_number_of_outputs(full_spec):
    made, update, _ = problem(n=10, d_v=4)
    ours = fit(update, made, full_spec(lora_rank=4, lora_fit="exact"))
    assert ours.left.shape[1] == 4
    torch.testing.assert_close(ours.delta, update.delta, rtol=1e-8, atol=1e-10)


def test_fallback_doubles_the_rank_until_the_tolerance_holds(full_spec):
    made, update, _ = problem()
    lost = {r: fit(update, made, full_spec(lora_rank=r, lora_fit="keys")).fit_residual for r in (1, 2, 4)}
    assert lost[1] > lost[2] > lost[4] > 0
    chosen = dict(lora_rank=1, lora_fit="keys", allow_fallback=True)
    with pytest.warns(UserWarning, match="rank 4 is written: lora_rank = 1 loses more"):
        ours = fit(update, made, full_spec(lora_tolerance=(lost[2] + lost[4]) / 2, **chosen))
    assert ours.left.shape[1] == 4
    with pytest.warns(UserWarning, match="rank 6 is written"):
        assert fit(update, made, full_spec(lora_tolerance=0.0, **chosen)).fit_residual == 0
    assert fit(update, made, full_spec(lora_tolerance=1.0, **chosen)).left.shape[1] == 1, "and no warning"


@pytest.mark.parametrize("others, weight", [([], 1.0), ([4.0, 2.0], 1.0), ([0.5, 0.1], 10.0)])
def test_equality_counts_as_the_strictest_finite_wish_and_at_least_one(others, weight):
    made, _, cost = problem()
    slack = torch.zeros(6, dtype=torch.float64)
    slack[: len(others)] = torch.tensor(others)
    d = torch.tensor([1 / other for other in others] + [weight] * (6 - len(others))).double()
    T = torch.randn(3, D_K, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(made._replace(slack=slack).gram(T), T @ (cost + (made.K * d) @ made.K.T) @ T.T)


def test_null_space_updates_are_measured_by_the_cost_inside_the_null_space():
    """AlphaEdit's A is l2 · I where its updates live."""
    basis = torch.linalg.qr(torch.randn(D_K, 5, generator=torch.Generator().manual_seed(2)).double()).Q
    precision = solvers.null_space_precision(solvers.Subspace(basis), 2.0)
    made, _, _ = problem()
    slack = torch.ones(6, dtype=torch.float64)
    update = solvers.solve(made.K, made.R, precision, slack)
    gram = Problem(made.K, made.R, precision, slack).gram(update.right)
    expected = update.right @ (2.0 * torch.eye(D_K).double() + made.K @ made.K.T) @ update.right.T
    torch.testing.assert_close(gram, expected)


def test_alternate_and_truncate_agree_at_the_optimum():
    made, update, _ = problem()
    gram = made.gram(update.right)
    B, A = truncate(update.left, update.right, gram, 3)
    torch.testing.assert_close(B.T @ B, torch.eye(3).double())
    C, D = alternate(update.left, update.right, gram, B, 1)
    torch.testing.assert_close(C @ D, B @ A, rtol=1e-7, atol=1e-10)
