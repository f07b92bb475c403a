"""Maps on a solved update that restrain it: in many small changes (RECT), or in large singular values (PRUNE).

RECT (arXiv 2401.04700; ``set_min_to_zero`` in ``easyeditor/models/rome/rome_main.py`` of
github.com/JasonForJoy/Model-Editing-Hurt) keeps the elements of ΔW that change the weight most, relative to what it
was, ``|ΔW_ij / W_ij|``, and sets the rest to 0. It is a share of elements that is kept: 0.2 there;
``memit/memit_rect_main.py`` of github.com/scalable-model-editing/knowledge-editing-regularization keeps 0.4 for MEMIT.

PRUNE (arXiv 2405.16821; ``func_logn`` in ``easyeditor/editors/bi_editor_loadw.py`` of github.com/mjy1111/PRUNE) brings
down the singular values of all edits' sum T = W − W₀ that reach the largest one σ of W₀:

    F(s) = s  for s < σ,      F(s) = log_α s − log_α σ + σ  otherwise.

The published code applies it once, after the last edit. Here the weights hold F of the free sum T after each step: F
has an inverse, so that T is read off what is written.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from editkit.config import Parameters
from editkit.solvers import Update


class RestraintSpec(Parameters):
    """What is done to an update between its solution and the weights."""

    delta_map: Literal["none", "rect", "prune"] = "none"
    """Map on a solved update: rect keeps the elements of the largest relative change alone, prune restrains singular
    values of the sum of all updates that are larger than any of the weights."""
    rect_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of an update's elements that rect keeps."""
    prune_base: Annotated[float, Field(gt=1, allow_inf_nan=False)] = math.e
    """Base α of prune's logarithm (published: 1.2, 1.5, 2 and e)."""


def rect(update: Update, W: Tensor, share: float) -> Update:
    """Set the elements of ΔW with the smallest ``|ΔW / W|`` to 0, so that a ``share`` of all stays.

    What is left is of full rank as a rule; it comes as itself times an identity.

    Args:
        W: the weight before, (d_v, d_k).
    """
    delta = update.delta
    change = (delta / W).abs().nan_to_num(nan=0.0, posinf=math.inf).flatten()  # 0 / 0: nothing changes
    dropped = change.topk(int(len(change) * (1 - share)), largest=False).indices
    kept = delta.flatten().index_fill(0, dropped, 0.0).view_as(delta)
    identity = torch.eye(min(delta.shape), dtype=delta.dtype, device=delta.device)
    left, right = (identity, kept) if delta.shape[0] <= delta.shape[1] else (kept, identity)
    return update._replace(left=left, right=right)


def restrained(values: Tensor, largest: float, base: float) -> Tensor:
    """Compute PRUNE's ``F`` of singular values; see the module.

    Args:
        largest: singular value of the weights before any edit.
    """
    over = values.clamp_min(largest)  # where values are smaller, F is not looked at
    return torch.where(values >= largest, (over.log() - math.log(largest)) / math.log(base) + largest, values)


def freed(values: Tensor, largest: float, base: float) -> Tensor:
    """Compute the inverse of :func:`restrained`."""
    over = values.clamp_min(largest)
    return torch.where(values >= largest, largest * base ** (over - largest), values)


def prune(update: Update, before: Tensor, largest: float, base: float) -> Update:
    """Restrain the sum of earlier updates and this one, by a correction of this one.

    Args:
        before: what earlier updates add up to as written, (d_v, d_k).
        largest: singular value of the weights before any edit, above 0.
    """
    freeing = _correction(before, freed, largest, base)
    free = before + freeing[0] @ freeing[1] + update.delta
    restraining = _correction(free, restrained, largest, base)
    if not len(freeing[1]) + len(restraining[1]):
        return update
    left, right = zip((update.left, update.right), freeing, restraining, strict=True)
    return update._replace(left=torch.cat(left, dim=1), right=torch.cat(right))


def _correction(
    total: Tensor, change: Callable[[Tensor, float, float], Tensor], largest: float, base: float
) -> tuple[Tensor, Tensor]:
    """Factor what a change of the singular values that reach ``largest`` adds to a matrix."""
    U, values, Vh = torch.linalg.svd(total, full_matrices=False)
    over = values >= largest
    return U[:, over] * (change(values, largest, base) - values)[over], Vh[over]
