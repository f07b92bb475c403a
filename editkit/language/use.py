"""What is done to a model after it was edited: it is trained on other text, its weights are rounded, copies are merged.

Everything happens to the weights in place, within a block after which they are as before:

    with restored(lm):
        round_weights(lm, bits=8)
        frame = evaluate(lm, facts)
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D

from editkit.editing.weights import State
from editkit.language.forward.precision import exact_products
from editkit.models import LanguageModel
from editkit.models.base import is_plain

LARGEST_GRADIENT = 1.0  # norm to which a step's gradient is cut


@contextmanager
def restored(lm: LanguageModel) -> Iterator[LanguageModel]:
    """Yield the model; afterwards every weight is as it was, bit for bit, whatever was done to it in the block.

    Takes the memory of a second copy of the weights. Raises ``ValueError`` for a model whose weights are quantised or
    lie outside a GPU's memory.
    """
    weights = dict(lm.model.named_parameters())
    if other := [name for name, weight in weights.items() if not is_plain(weight)]:
        raise ValueError(f"{lm.name}: {other[0]} is quantised or moved out; only plain weights can be put back")
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        yield lm
    finally:
        lm.model.requires_grad_(False)
        for name, weight in weights.items():
            weight.copy_(before[name])


def train_on(lm: LanguageModel, batches: Sequence[Tensor], lr: float) -> list[float]:
    """Train all weights to predict text, one step a batch, with the defaults of transformers' Trainer.

    That is AdamW (arXiv 1711.05101) without weight decay, a learning rate that falls linearly from ``lr`` to 0, and
    gradients cut to a norm of 1. There is no dropout, so that the same batches give the same weights.

    Args:
        batches: of tokens (rows, T), each row after the start token.

    Returns the loss before each step, nats a token. Raises ``FloatingPointError`` where a loss or a gradient leaves the
    finite numbers; the weights are then as the last step left them.
    """
    parameters, losses = list(lm.model.requires_grad_().parameters()), []
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / len(batches))
    try:
        for step, ids in enumerate(batches):
            with exact_products(lm):
                loss = _loss(lm, ids.to(lm.device))
                loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]) or not torch.isfinite(norm):
                raise FloatingPointError(f"training on text diverged at step {step}: lower the learning rate ({lr:g})")
            optimiser.step()
            falling.step()
            optimiser.zero_grad()
    finally:
        lm.model.requires_grad_(False).zero_grad()
    return losses


def _loss(lm: LanguageModel, ids: Tensor) -> Tensor:
    """Average −log P over all tokens (rows, T) but the first of each row."""
    logits = lm.logits(lm.forward(ids)[:, :-1])  # (rows, T − 1, vocabulary)
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def rounded(weight: Tensor, bits: int, channel: int = 0) -> Tensor:
    """Round a weight to integers of so many bits, symmetrically and by itself for each output channel.

    ``q = round(w / s)`` with ``s = max |w| / (2^(bits − 1) − 1)`` over the channel; returns ``q s`` in the weight's own
    type. A channel of zeros stays.

    Args:
        weight: a matrix, of any floating-point type.
        channel: the dimension of outputs.
    """
    exact = weight.double()
    scale = exact.abs().amax(1 - channel, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((exact / scale.where(scale > 0, 1)).round() * scale).to(weight.dtype)


@torch.no_grad()
def round_weights(lm: LanguageModel, bits: int) -> int:
    """Replace the matrix of every linear layer inside the model's layers by what :func:`rounded` makes of it.

    Embeddings and the vocabulary projection are left alone, as libraries for quantisation leave them by default.

    Returns the number of matrices.
    """
    linear = [module for module in lm.layers.modules() if isinstance(module, nn.Linear | Conv1D)]
    for module in linear:
        module.weight.copy_(rounded(module.weight, bits, int(isinstance(module, Conv1D))))
    return len(linear)


def merged(base: State, copies: Sequence[State], share: float) -> State:
    """Add a share of what separates copies of a model from it to the model: ``W + share Σ (W' − W)``.

    A share of 1 adds task vectors (task arithmetic, arXiv 2212.04089, section 2), one of 1 over their number averages
    the copies; one copy with a share α is WiSE-FT (arXiv 2109.01903, equation 1). Taken in float64, rounded once.
    """
    sums = {name: sum(copy[name].double() - weight.double() for copy in copies) for name, weight in base.items()}
    return {name: (weight.double() + share * sums[name]).to(weight.dtype) for name, weight in base.items()}
