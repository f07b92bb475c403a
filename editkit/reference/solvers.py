"""Weight updates as the papers print them and as their public code solves them: K (d_k, n), R (d_v, n)."""

import torch
from torch import Tensor


def kkt_equality(K: Tensor, R: Tensor, A: Tensor) -> Tensor:
    """Minimise tr(ΔW A ΔWᵀ) subject to ΔW K = R by its KKT system [[2A, K], [Kᵀ, 0]], solved directly."""
    d, n = K.shape
    top = torch.cat([2 * A, K], dim=1)
    bottom = torch.cat([K.T, K.new_zeros(n, n)], dim=1)
    right = torch.cat([K.new_zeros(d, len(R)), R.T])
    return torch.linalg.solve(torch.cat([top, bottom]), right)[:d].T


def weighted_normal_equations(K: Tensor, R: Tensor, A: Tensor, weights: Tensor) -> Tensor:
    """Minimise tr(ΔW A ΔWᵀ) + Σ d_i ‖ΔW k_i − r_i‖² by its d_k × d_k normal equations."""
    D = weights.diag()
    return torch.linalg.solve(A + K @ D @ K.T, (R @ D @ K.T).T).T


def memit_printed(K: Tensor, R: Tensor, C: Tensor, weight: float) -> Tensor:
    """Compute ΔW = R Kᵀ (λC + K Kᵀ)⁻¹, arXiv 2210.07229 eq. 14."""
    return R @ K.T @ torch.linalg.inv(weight * C + K @ K.T)


def alphaedit_printed(K: Tensor, R: Tensor, P: Tensor, past: Tensor, l2: float) -> Tensor:
    """Compute ΔW = R KᵀP (K_pK_pᵀP + KKᵀP + λI)⁻¹, arXiv 2410.02355 eq. 14 with its λ."""
    identity = torch.eye(len(P)).to(P)
    return R @ K.T @ P @ torch.linalg.inv(past @ past.T @ P + K @ K.T @ P + l2 * identity)


def alphaedit_public(K: Tensor, R: Tensor, P: Tensor, past: Tensor, l2: float) -> Tensor:
    """Compute the same ΔW as the public code does, from a d_k × d_k system; ``past`` is K_p K_pᵀ."""
    identity = torch.eye(len(P)).to(P)
    return torch.linalg.solve(P @ (K @ K.T + past) + l2 * identity, P @ K @ R.T).T


def betaedit_public(K: Tensor, R: Tensor, P: Tensor, past: Tensor, C: Tensor, weights: tuple[float, float]) -> Tensor:
    """Compute ΔW as the public code of BetaEdit does; ``past`` is K_p K_pᵀ and ``weights`` are its λ₁, λ₂."""
    identity = torch.eye(len(P)).to(P)
    system = P @ (K @ K.T + past + weights[0] * C) + weights[1] * identity
    return torch.linalg.solve(system, P @ K @ R.T).T
