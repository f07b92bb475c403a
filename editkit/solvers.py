"""Closed-form weight edits: one equation for every method.

For a linear layer ``W`` (d_v, d_k), an edit wants the outputs of some keys ``K`` (d_k, n) changed by
``R`` (d_v, n) and everything else disturbed as little as possible:

    min over ΔW of  tr(ΔW A ΔWᵀ) + Σ_i d_i ‖ΔW k_i − r_i‖²
    ⇒ ΔW = R (Kᵀ M K + D⁻¹)⁻¹ Kᵀ M,   M = A⁻¹ (or A⁻¹ restricted to an allowed subspace)

A method (:mod:`editkit.methods`) is a pair: a *precision* ``M`` (a function ``X ↦ M X``, factored once and
reused) and a *slack* ``D⁻¹``. The system solved is n × n, at most 2 d_k × 2 d_k, in float64. A matrix that is only
positive semi-definite gets the smallest ridge that lets it be factored, and the result says how large it is.

Earlier edits are further columns of ``K``, ``R`` and ``D``. With residual 0 such a column adds
``d_p k_p k_pᵀ`` to ``A`` (which is how AlphaEdit's ``K_p K_pᵀ`` comes in); with the residual
``v_p − W k_p`` the edit is also pulled back to its value ``v_p``. Any set of columns can be replaced by at most
d_k others that say the same, see :func:`compress`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

RANK_NOISE = 1e-12  # of eigenvalues, relative to the largest: what rounding in float32 keys may leave of a 0
RIDGE_STEPS = (0.0, 1e-10, 1e-8, 1e-6, 1e-4)  # relative to the mean diagonal, tried in turn


class Precision(NamedTuple):
    """``M`` and ``A`` as functions, with the ridge that the factorisation needed (absolute; mostly 0)."""

    apply: Callable[[Tensor], Tensor]  # (d_k, m) float64 → (d_k, m)
    cost: Callable[[Tensor], Tensor]  # X ↦ A X, for X in the range of M
    ridge: float = 0.0


class Subspace(NamedTuple):
    """A subspace of the keys, by an orthonormal basis of it or, where that is smaller, of its complement."""

    basis: Tensor  # (d_k, m) float64
    complement: bool = False  # the basis spans what is left out

    def project(self, X: Tensor) -> Tensor:
        """Return ``P X`` for X (d_k, n), without forming the projector ``P`` (d_k, d_k)."""
        spanned = self.basis @ (self.basis.T @ X)
        return X - spanned if self.complement else spanned


class Factor(NamedTuple):
    """A Cholesky factor and the ridge that made it possible."""

    lower: Tensor  # (n, n)
    ridge: float  # absolute, added to the diagonal; 0 when the matrix was positive definite


class Update(NamedTuple):
    """A weight update in factored form; ``delta = left @ right`` has at most the rank of ``R``."""

    left: Tensor  # (d_v, m) float64: the residuals that are not zero
    right: Tensor  # (m, d_k) float64: the direction in which each is written
    ridge: float  # absolute ridge added to Kᵀ M K + D⁻¹; 0 unless it was not positive definite
    cost_ridge: float  # absolute ridge added to A; 0 unless it was not positive definite
    condition_before: float  # 2-norm condition number of Kᵀ M K; infinite where it is singular
    condition: float  # 2-norm condition number of the matrix that was solved
    residual: float  # ‖ΔW K − R‖ / ‖R‖: the missing share of what was asked for; of ΔW as written, once it is
    fit_residual: float = 0.0  # share of ΔW K that a low-rank form lost, see editkit.editing.lowrank

    @property
    def delta(self) -> Tensor:
        return self.left @ self.right  # (d_v, d_k)


def factorize(matrix: Tensor) -> Factor:
    """Compute the Cholesky factor of a symmetric positive semi-definite matrix, with the smallest ridge that works.

    Raises ``ValueError`` for a matrix that is not finite, or indefinite beyond the largest ridge tried.
    """
    if not torch.isfinite(matrix).all():
        raise ValueError("the matrix to factorise holds a value that is not finite")
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    scale = matrix.diagonal().abs().mean().item() or 1.0
    for step in RIDGE_STEPS:
        lower, failed = torch.linalg.cholesky_ex(matrix + step * scale * identity)
        # Rounding lets a singular matrix through with a pivot at noise level: that is a failure too.
        pivots = lower.diagonal().square()
        if not failed and pivots.min() > 1e-14 * pivots.max():
            return Factor(lower, step * scale)
    raise ValueError(f"not positive semi-definite, even with a ridge of {RIDGE_STEPS[-1]:g} × its mean diagonal")


def inverse_precision(cost: Tensor) -> Precision:
    """Return ``X ↦ A⁻¹ X`` for a cost matrix ``A`` (d_k, d_k), factored once."""
    factor = factorize(cost.double())
    L = factor.lower
    return Precision(lambda X: torch.cholesky_solve(X, L), lambda X: L @ (L.T @ X), factor.ridge)


def null_space_precision(space: Subspace, l2: float) -> Precision:
    """Return ``X ↦ P X / l2``, ``P`` projecting onto ``space``, the directions that the kept keys leave free."""
    return Precision(lambda X: space.project(X) / l2, lambda X: l2 * X)


def identity_precision() -> Precision:
    """Return ``M = A = I``: every change of the weight costs alike, whatever comes in."""
    return Precision(lambda X: X, lambda X: X)


def restricted_precision(space: Subspace, cost: Tensor) -> Precision:
    """Return ``X ↦ M X`` for a cost ``A`` (d_k, d_k) inside a subspace and ∞ outside.

    With an orthonormal basis B of the subspace ``M = B (BᵀAB)⁻¹ Bᵀ``; with one Q of its complement the same is
    ``A⁻¹ − A⁻¹Q (QᵀA⁻¹Q)⁻¹ QᵀA⁻¹``, so that the smaller of the two systems is solved.
    """
    cost, basis = cost.double(), space.basis
    if not space.complement:
        inner = factorize(basis.T @ cost @ basis)
        L = inner.lower
        return Precision(lambda X: basis @ torch.cholesky_solve(basis.T @ X, L), lambda X: cost @ X, inner.ridge)
    whole = inverse_precision(cost)
    if not basis.shape[1]:  # nothing is left out
        return whole
    through = whole.apply(basis)  # A⁻¹Q: (d_k, m)
    L = factorize(basis.T @ through).lower
    return Precision(
        lambda X: whole.apply(X) - through @ torch.cholesky_solve(through.T @ X, L), lambda X: cost @ X, whole.ridge
    )


def solve(K: Tensor, R: Tensor, precision: Precision, slack: float | Tensor) -> Update:
    """Compute ``ΔW = R (Kᵀ M K + D⁻¹)⁻¹ Kᵀ M`` by a Cholesky solve in float64, of n × n or at most 2 d_k × 2 d_k.

    Args:
        K: keys, (d_k, n).
        R: residuals ``V − W K``, (d_v, n).
        precision: ``X ↦ M X`` with ``M`` symmetric positive semi-definite.
        slack: ``D⁻¹``, a number or one per edit (n,); 0 asks for equality.

    Raises ``ValueError`` where shapes disagree, ``n = 0``, the slack is negative or a value is not finite.
    """
    if K.ndim != 2 or R.ndim != 2 or K.shape[1] != R.shape[1] or K.shape[1] == 0:
        raise ValueError(f"K {tuple(K.shape)} and R {tuple(R.shape)} need the same number of columns, at least one")
    K, R = K.double(), R.double()
    slack = torch.as_tensor(slack, dtype=K.dtype, device=K.device).expand(K.shape[1])
    if (slack < 0).any():
        raise ValueError(f"slack must be 0 or more, got {slack.min().item():g}")
    if not (torch.isfinite(K).all() and torch.isfinite(R).all()):
        raise ValueError("K or R holds a value that is not finite")
    F, X, slack = _fewest(K, R, slack)
    moved = precision.apply(F)  # M F: (d_k, m)
    gram = F.T @ moved  # (m, m)
    gram = (gram + gram.T) / 2
    system = gram + slack.diag()
    factor = factorize(system)
    asked = X.any(0)
    left, right = X[:, asked], torch.cholesky_solve(moved.T, factor.lower)[asked]
    conditions = _condition(gram), _condition(system, factor.ridge)
    return Update(left, right, factor.ridge, precision.ridge, *conditions, missed(left @ (right @ K), R))


def mean_eigenvalue(K: Tensor, precision: Precision) -> float:
    """Compute the mean eigenvalue of ``Kᵀ M K``, the scale against which a slack is small or large."""
    return (K.double() * precision.apply(K.double())).sum().item() / K.shape[1]


def missed(changes: Tensor, wanted: Tensor) -> float:
    """Compute ``‖changes − wanted‖ / ‖wanted‖`` (Frobenius) of outputs (d_v, n); 0 where both are 0."""
    return ((changes - wanted).norm() / wanted.norm().clamp_min(torch.finfo(wanted.dtype).tiny)).item()


def clamp(update: Update, W: Tensor, largest: float) -> Update:
    """Scale an update down so far that ``‖W + ΔW‖`` (Frobenius) does not pass ``largest``.

    ``residual`` stays as it was. Where ``‖W‖`` itself is larger, the update becomes 0.
    """
    if math.isinf(largest) or (W + (delta := update.delta)).norm() <= largest:
        return update
    a, b, c = delta.square().sum(), (W * delta).sum(), W.square().sum() - largest**2
    share = ((b.square() - a * c).sqrt() - b) / a  # the root of a·s² + 2·b·s + c = 0 in [0, 1)
    return update._replace(left=update.left * share.clamp(0.0, 1.0)) if c < 0 else update._replace(left=update.left * 0)


def compress(K: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Return at most d_k columns ``F, X`` that stand for all of ``K`` (d_k, p) and ``V`` (d_v, p) in a solve.

    They keep ``F Fᵀ = K Kᵀ`` and ``X Fᵀ = V Kᵀ``, which is all that a solve with one weight for all columns
    sees: for p > d_k they are these two moments of the past in factored form, by a QR decomposition of Kᵀ.
    """
    if K.shape[1] <= K.shape[0]:
        return K, V
    Q, upper = torch.linalg.qr(K.T)  # (p, d_k), (d_k, d_k)
    return upper.T, V @ Q


def _fewest(K: Tensor, R: Tensor, slack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys, residuals and slacks of which the solve is the same: beyond d_k columns d_k that stand for all.

    ``ΔW = (R D Kᵀ) (I + M (K D Kᵀ))⁻¹ M`` sees two moments, weighted by ``D``; equality (``D⁻¹ = 0``) has none. Columns
    that only hold a key (residual 0) stay apart: mixed with the others they would raise the rank of ``ΔW``.
    """
    if K.shape[1] <= K.shape[0] or not (slack > 0).all():
        return K, R, slack
    asked = R.any(0)
    parts = [_moments(K[:, some], R[:, some], slack[some]) for some in (asked, ~asked) if some.any()]
    keys, residuals, slacks = zip(*parts, strict=True)
    return torch.cat(keys, 1), torch.cat(residuals, 1), torch.cat(slacks)


def _moments(K: Tensor, R: Tensor, slack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return at most d_k columns of one slack with the same weighted moments, see :func:`compress`."""
    if K.shape[1] <= K.shape[0]:
        return K, R, slack
    weights = (slack.mean() / slack).sqrt()
    F, X = compress(K * weights, R * weights)
    return F, X, slack.mean().expand(F.shape[1])


def _condition(matrix: Tensor, ridge: float = 0.0) -> float:
    """Return the 2-norm condition number of a symmetric positive semi-definite matrix, infinite where singular."""
    values = torch.linalg.eigvalsh(matrix) + ridge
    smallest, largest = values[0].item(), values[-1].item()
    noise = len(matrix) * torch.finfo(matrix.dtype).eps * abs(largest)
    return largest / smallest if smallest > noise else float("inf")


def null_space(C: Tensor, threshold: float) -> Subspace:
    """Return the span of the eigenvectors of ``C`` (d_k, d_k) whose eigenvalue is below ``threshold``.

    AlphaEdit, arXiv 2410.02355 section 3.1: changes confined to it leave the kept keys' outputs alone.
    Raises ``ValueError`` where no eigenvalue is that small.
    """
    values, vectors = torch.linalg.eigh(C.double())
    if values[0] >= threshold:
        raise ValueError(
            f"nullspace_threshold = {threshold:g}: no eigenvalue is below it, the smallest is {values[0]:.3g}"
        )
    small = values < threshold
    complement = bool(2 * small.sum() > len(C))
    return Subspace(vectors[:, ~small if complement else small], complement)


def unspanned(C: Tensor) -> Subspace:
    """Return what keys ``K₀`` (d_k, n) of second moment ``C`` (d_k, d_k) do not span, ``P = I − K₀(K₀ᵀK₀)⁻¹K₀ᵀ``.

    It is the null space of ``K₀K₀ᵀ``: eigenvalues up to ``RANK_NOISE`` times the largest count as 0. Keys that depend
    on each other, for which ``K₀ᵀK₀`` has no inverse, span what an independent set of them does.
    Raises ``ValueError`` where the keys span everything: ``P`` is 0 then, and nothing may be edited.
    """
    values, vectors = torch.linalg.eigh(C.double())
    spanned = values > RANK_NOISE * values[-1]
    if spanned.all():
        raise ValueError(
            f"nullspace = 'kept': the kept keys span all {len(C)} directions, P = I − K₀(K₀ᵀK₀)⁻¹K₀ᵀ is 0 and nothing "
            "may be edited; keep fewer, or choose directions by nullspace_threshold"
        )
    complement = bool(2 * spanned.sum() <= len(C))
    return Subspace(vectors[:, spanned if complement else ~spanned], complement)
