"""Residuals of one gradient: what an edit asks for without a search for a target ``v*``.

UltraEdit (arXiv 2505.14679; ``editor/ultraedit.py``, ``nets.py`` and ``util.py`` of github.com/XiaojieGu/UltraEdit)
runs the model once on prompt and new object, and takes at every token that predicts one of the object's the input of an
edited matrix, ``k`` (d_k), and the gradient of the loss by its output, ``g`` (d_v). Both are normalised together,

    [k̂, ĝ] = ([k, g] − mean) / (std + ε),      residual  r = −gradient_lr · ‖k̂‖² · ĝ,

by the mean and standard deviation of all ``[k, g]`` so far, those of earlier edits among them, over all edited matrices
(which have one shape). With the raw ``k`` as keys and these ``r`` as residuals its update is the one equation with
M = I and D⁻¹ = I; any other precision takes the same columns. Every edited matrix is given its own residual, at once.

The published statistics count ``m · var`` of a mini-batch of m columns, var being the unbiased estimate; that is kept.
A single column's is not a number there; here it is 0.
"""

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from editkit.config import Count, Parameters, Positive

EPSILON = torch.finfo(torch.float32).eps  # the published statistics are float32's


class GradientSpec(Parameters):
    """How residuals are made of gradients, where target_mode is gradient."""

    gradient_lr: Positive | None = None
    """Factor on the normalised gradient (``lr`` of UltraEdit)."""
    gradient_batch: Count = 10
    """Edits whose loss is averaged over tokens, and whose gradients enter the running statistics, at once."""
    gradient_at: Literal["answer", "subject"] = "answer"
    """Tokens where gradients are taken: answer, all that predict the new object (published); subject, its last one."""


class RunningStatistics(NamedTuple):
    """Mean and spread of all vectors so far, as ``RunningMeanStd`` of UltraEdit's ``nets.py`` keeps them."""

    n: int = 0
    mean: Tensor | None = None  # (dim,)
    spread: Tensor | None = None  # (dim,) sum of squared deviations; over count − 1 it is the variance

    def updated(self, x: Tensor) -> "RunningStatistics":
        """Return the statistics with further vectors, the rows of ``x`` (m, dim)."""
        m, n = len(x), self.n + len(x)
        mean, spread = (x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])) if self.mean is None else self[1:]
        delta = x.mean(0) - mean
        own = m * x.var(0) if m > 1 else 0.0
        return RunningStatistics(n, mean + m * delta / n, spread + own + self.n * m * delta**2 / n)

    def normalise(self, x: Tensor) -> Tensor:
        """Return ``(x − mean) / (std + ε)``, (m, dim)."""
        return (x - self.mean) / ((self.spread / (self.n - 1 + EPSILON)).sqrt() + EPSILON)


class Columns(NamedTuple):
    """Keys and what is asked of them, column by column; an edit has one for each of its tokens that count."""

    keys: dict[int, Tensor]  # layer → (d_k, m) float64
    asked: dict[int, Tensor]  # layer → (d_v, m) float64: gradients, or the residuals made of them
    owner: Tensor  # (m,) the edit that a column belongs to
    parts: tuple[int, ...]  # how many columns each mini-batch has, in order

    def of(self, edits: Sequence[int]) -> "Columns":
        """Return the columns of some edits, which are numbered anew."""
        place = {edit: number for number, edit in enumerate(edits)}
        owners = self.owner.tolist()
        chosen = [column for column, edit in enumerate(owners) if edit in place]
        owner = torch.tensor([place[owners[column]] for column in chosen])
        keys, asked = ({layer: X[:, chosen] for layer, X in side.items()} for side in (self.keys, self.asked))
        return Columns(keys, asked, owner, (len(chosen),))


def residuals(columns: Columns, before: RunningStatistics, rate: float) -> tuple[Columns, RunningStatistics]:
    """Make residuals of gradients. Returns them and the statistics with these columns, by which they are normalised.

    Args:
        before: statistics of all earlier columns.
        rate: ``gradient_lr``.

    Warns where nothing is asked for: a first column alone is its own mean. Raises ``FloatingPointError`` for a gradient
    that is not finite.
    """
    joined = {layer: torch.cat([K, columns.asked[layer]]).T for layer, K in columns.keys.items()}  # (m, d_k + d_v)
    statistics, begin = before, 0
    for part in columns.parts:
        for features in joined.values():
            statistics = statistics.updated(features[begin : begin + part])
        begin += part
    asked = {}
    for layer, features in joined.items():
        if not torch.isfinite(features).all():
            raise FloatingPointError(f"layer {layer}: a key or a gradient is not finite; the weights stay as they were")
        k, g = statistics.normalise(features).split([len(columns.keys[layer]), len(columns.asked[layer])], dim=1)
        asked[layer] = -rate * (k.square().sum(1) * g.T)
    if not any(R.any() for R in asked.values()):
        warnings.warn(
            "the gradients of these edits are all alike: normalised they are 0, and nothing is asked for; edit more at "
            "once",
            stacklevel=5,
        )
    return columns._replace(asked=asked), statistics
