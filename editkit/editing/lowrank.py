"""Low-rank forms of a weight update: ``ΔW ≈ B A`` with ``B`` (d_v, r) and ``A`` (r, d_k), LoRA's factors.

A solver's update comes as ``ΔW = L T`` with one column of ``L`` for each edit, so its rank is at most the
number of edits, and up to that rank the factors are taken as they are (``exact``). Below it, the best
``B A`` depends on where the difference is measured. For a symmetric positive definite metric ``G``,

    min over rank-r BA of  ‖(ΔW − B A) G^{1/2}‖²    ⇒    B = U_r,  A = U_rᵀ ΔW,

``U_r`` holding the leading eigenvectors of ``ΔW G ΔWᵀ`` (Eckart and Young 1936, after a change of basis):

| fit   | G                  | what it is                                                              |
|-------|--------------------|-------------------------------------------------------------------------|
| svd   | I                  | truncated singular value decomposition                                  |
| keys  | A_cost + K D Kᵀ    | best rank-r solution of the editing problem itself, see below           |
| steps | the same           | a few rounds of alternating least squares, from svd towards keys        |

``A_cost`` is the method's cost of disturbing what is kept, ``K`` the edited keys and ``D`` how strictly each
edit is wanted. The solver minimises ``tr(ΔW A_cost ΔWᵀ) + Σ d_i ‖ΔW k_i − r_i‖²``; completing the square,
this is ``‖(ΔW − ΔW*) G^{1/2}‖²`` plus a constant, ``ΔW*`` being the update at full rank. So ``keys`` solves
the editing problem under the bound on the rank (reduced-rank regression), and never needs ``G`` itself, only
``T G Tᵀ`` (n, n). Where edits ask for equality (d = ∞), the largest finite d of the batch stands for it, or 1
where that is larger.
"""

import warnings
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from editkit.config import Count, NonNegative, Parameters, Positive
from editkit.solvers import Precision, Update, missed


class LoraSpec(Parameters):
    """Whether edits are written as adapters, and of what rank."""

    edit_mode: Literal["raw", "lora"] = "raw"
    """raw writes over the weights; lora leaves them alone and writes low-rank adapters beside them."""
    lora_stack: Literal["grow", "batch", "fixed"] = "grow"
    """Where the next batch goes: grow adds it to the one adapter, whose rank grows; batch gives it an adapter of its
    own; fixed adds it to the one adapter, which is fitted again at the same rank."""
    lora_fit: Literal["exact", "svd", "keys", "steps"] = "keys"
    """How an update of a rank above lora_rank is brought down: exact refuses to, svd truncates it, keys solves the
    editing problem under the bound on the rank, and steps does the same by alternating least squares."""
    lora_rank: Count = 32
    """Largest rank of a batch's update; with lora_stack fixed, of all batches together. For rome every fact is a batch
    of its own, so the rank of an adapter that takes in several is their number, unless lora_stack is fixed."""
    lora_alpha: NonNegative = 0.0
    """LoRA's alpha: factors are stored divided by lora_alpha / rank; 0 takes the rank, so that this scaling is 1."""
    lora_scale: Positive = 1.0
    """Factor on every update that is written to an adapter; 1 is the edit as solved."""
    lora_dropout: NonNegative = 0.0
    """Must be 0: closed-form factors are not trained, so there is nothing that dropout could regularise."""
    lora_fit_steps: Count = 3
    """Rounds of alternating least squares where lora_fit is steps; they lead from svd towards keys."""
    lora_tolerance: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the edits' outputs that a low rank may lose before allow_fallback raises the rank."""
    allow_fallback: bool = False
    """Write a higher rank, with a warning, where lora_tolerance is exceeded."""


class Problem(NamedTuple):
    """What an update was solved for, see :func:`editkit.solvers.solve`."""

    K: Tensor  # (d_k, n) float64
    R: Tensor  # (d_v, n) float64
    precision: Precision
    slack: Tensor  # (n,) D⁻¹

    def gram(self, right: Tensor) -> Tensor:
        """Return ``T G Tᵀ`` (m, m) for ``T`` = right (m, d_k)."""
        finite = 1 / self.slack[self.slack > 0]
        weight = torch.where(self.slack > 0, 1 / self.slack, max([1.0, *finite.tolist()]))
        seen = right @ self.K
        return right @ self.precision.cost(right.T) + (seen * weight) @ seen.T


def fit(update: Update, problem: Problem, spec: LoraSpec) -> Update:
    """Bring an update down to a rank of at most ``spec.lora_rank`` by ``spec.lora_fit``.

    ``fit_residual`` then says what that loses: ``‖(ΔW − B A) K‖ / ‖ΔW K‖``. Where it exceeds
    ``lora_tolerance`` and ``allow_fallback`` is set, the rank is doubled until it does not, with a warning; a
    rank as high as the number of edits loses nothing. Raises ``ValueError`` where ``exact`` needs a higher rank
    than ``lora_rank`` and may not fall back.
    """
    whole, ranks = min(update.left.shape), [spec.lora_rank]
    if spec.lora_fit == "exact" and whole > spec.lora_rank:
        if not spec.allow_fallback:
            raise ValueError(
                f"lora_fit = 'exact': an update of rank {whole} needs lora_rank = {whole} or more, got "
                f"{spec.lora_rank}; raise it, edit fewer at once, set allow_fallback, or choose svd, keys or steps"
            )
        ranks = [whole]
    while spec.allow_fallback and ranks[-1] < whole:
        ranks.append(min(2 * ranks[-1], whole))
    for rank in ranks:
        written = _at_rank(update, problem, rank, spec)
        if written.fit_residual <= spec.lora_tolerance:
            break
    if rank > spec.lora_rank:
        warnings.warn(
            f"rank {rank} is written: lora_rank = {spec.lora_rank} loses more of the edits than "
            f"lora_tolerance = {spec.lora_tolerance:g}",
            stacklevel=2,
        )
    return written


def _at_rank(update: Update, problem: Problem, rank: int, spec: LoraSpec) -> Update:
    L, T = update.left, update.right
    if rank >= L.shape[1]:
        return update
    plain = T @ T.T
    if spec.lora_fit in ("svd", "exact"):  # more edits than outputs: exact at full rank, whatever the metric
        left, right = truncate(L, T, plain, rank)
    elif spec.lora_fit == "keys":
        left, right = truncate(L, T, problem.gram(T), rank)
    else:
        left, right = alternate(L, T, problem.gram(T), truncate(L, T, plain, rank)[0], spec.lora_fit_steps)
    return update._replace(
        left=left,
        right=right,
        residual=missed(left @ (right @ problem.K), problem.R),
        fit_residual=missed(left @ (right @ problem.K), L @ (T @ problem.K)),
    )


def truncate(left: Tensor, right: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return ``B`` (d_v, r), of orthonormal columns, and ``A`` (r, d_k) with the least ``‖(L T − B A) G^{1/2}‖``.

    Args:
        left, right: ``L`` (d_v, m) and ``T`` (m, d_k).
        gram: ``T G Tᵀ`` (m, m).
    """
    basis, upper = torch.linalg.qr(left)  # L = basis · upper, so that the eigenproblem is as small as L is narrow
    vectors = torch.linalg.eigh(upper @ gram @ upper.T).eigenvectors[:, -rank:]
    return basis @ vectors, vectors.T @ upper @ right


def alternate(left: Tensor, right: Tensor, gram: Tensor, B: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Solve the same problem by alternating least squares from ``B``: ``steps`` rounds of A given B, then B given A."""
    for _ in range(steps):
        mix = torch.linalg.lstsq(B, left).solution  # A = mix · T: the best rows for these columns
        B = torch.linalg.solve(mix @ gram @ mix.T, mix @ gram @ left.T).T
    return B, torch.linalg.lstsq(B, left).solution @ right


def spectrum(update: Update) -> Tensor:
    """Return the singular values of ``ΔW``, largest first, at most as many as ``left`` has columns."""
    return torch.linalg.svdvals(torch.linalg.qr(update.left).R @ torch.linalg.qr(update.right.T).R.T)
