"""Causal tracing, whatever a model reads: clean outputs of some modules are put back into runs that noise destroyed.

How much of a decision's probability returns says how much of it passed through what was put back (arXiv 2202.05262,
section 2). What is noised, and at which positions what is put back, is for language and vision to say.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from editkit.models.base import EditableModel
from editkit.models.hooks import edit_output, run_from, window

KINDS = ("residual", "mlp", "attention")  # of what is put back in a layer
Place = tuple[str, int]  # kind and layer


def module(model: EditableModel, kind: str, layer: int) -> nn.Module:
    """Return the module whose output is the residual stream after a layer, its MLP's output or its attention's."""
    path = {"residual": "", "mlp": model.family.mlp, "attention": model.family.attention}[kind]
    return model.layers[layer].get_submodule(path)


def modules(model: EditableModel) -> dict[Place, nn.Module]:
    """Return all the modules that can be put back, by kind and layer."""
    return {(kind, layer): module(model, kind, layer) for kind in KINDS for layer in range(model.n_layers)}


def restored_layers(kind: str, layer: int, size: int, n_layers: int) -> range:
    """Return the layers whose outputs are put back together: one of the residual stream, a window of the others."""
    return window(layer, 1 if kind == "residual" else size, n_layers)


@contextmanager
def put_back(
    model: EditableModel, start: int, hidden: Tensor, clean: Mapping[Place, Tensor], where: Mapping[Place, Tensor]
) -> Iterator[None]:
    """Begin every pass at layer ``start`` with ``hidden``, and put clean outputs back on its way.

    Args:
        hidden: (rows, positions, d) the residual stream before layer ``start``.
        clean: the outputs to put back, (1 or rows, positions, d) each.
        where: bool (1 or rows, positions): where the clean output takes the place of what the module puts out now.
            A residual stream after layer ``start - 1`` may be among them.
    """
    edits = {module(model, *place): partial(_chosen, mask, clean[place]) for place, mask in where.items()}
    with run_from(model, start, hidden), edit_output(edits):
        yield


def _chosen(mask: Tensor, clean: Tensor, now: Tensor) -> Tensor:
    """Take ``clean`` where the mask says so; OPT's MLP puts out one long row, and layers may lie on several GPUs."""
    rows = now.reshape(-1, mask.shape[-1], now.shape[-1])
    return torch.where(mask[..., None].to(now.device), clean.to(now.device), rows).reshape(now.shape)
