"""Each plain solver against a printed formula or a library."""

import torch

from editkit.reference.solvers import (
    alphaedit_printed,
    alphaedit_public,
    kkt_equality,
    memit_printed,
    weighted_normal_equations,
)
from tests.conftest import agree


def problem(n: int, d_k: int = 9, d_v: int = 4):
    generator = torch.Generator().manual_seed(n)
    K, R, samples = (torch.randn(*shape, generator=generator).double() for shape in [(d_k, n), (d_v, n), (d_k, 40)])
    return K, R, samples @ samples.T / 40


def test_the_kkt_system_gives_the_printed_update_of_one_edit_and_of_many():
    k, r, C = problem(1)
    direction = torch.linalg.solve(C, k)
    agree(kkt_equality(k, r, C), r @ direction.T / (k.T @ direction))  # ROME, arXiv 2202.05262 eq. 2
    K, R, C = problem(3)
    inverse = torch.linalg.inv(C)
    agree(kkt_equality(K, R, C), R @ torch.linalg.inv(K.T @ inverse @ K) @ K.T @ inverse)  # EMMET, arXiv 2403.14236


def test_the_normal_equations_are_a_stacked_least_squares_problem():
    K, R, C = problem(12)
    weights = torch.rand(12, generator=torch.Generator().manual_seed(0)).double() + 0.1
    root = torch.linalg.cholesky(C)  # tr(ΔW C ΔWᵀ) = ‖ΔW L‖²
    columns = torch.cat([root, K * weights.sqrt()], dim=1)
    wanted = torch.cat([R.new_zeros(4, 9), R * weights.sqrt()], dim=1)
    agree(weighted_normal_equations(K, R, C, weights), torch.linalg.lstsq(columns.T, wanted.T).solution.T)


def test_memit_as_printed_solves_the_normal_equations():
    K, R, C = problem(12)
    agree(memit_printed(K, R, C, 5.0), weighted_normal_equations(K, R, 5.0 * C, torch.ones(12).double()))


def test_alphaedit_is_the_same_in_print_and_in_public_code():
    K, R, C = problem(3)
    free = torch.linalg.eigh(C).eigenvectors[:, :5]
    past = problem(2)[0]
    agree(alphaedit_public(K, R, free @ free.T, past @ past.T, 2.0), alphaedit_printed(K, R, free @ free.T, past, 2.0))
