"""Causal tracing: which activations of a clean run bring back an output that noise has destroyed.

Meng et al. 2022 (arXiv 2202.05262, section 2.1). Nothing here knows what a position stands for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from scipy.stats import t
from torch import Tensor, nn

from editkit.hooks import first, replace_forward


@contextmanager
def resume(layers: Sequence[nn.Module], start: int, hidden: Tensor, *, tuple_output: bool = False) -> Iterator[None]:
    """Begin every pass at layer ``start`` with ``hidden`` (rows, positions, d); layers below cost nothing."""
    handle = layers[start].register_forward_pre_hook(lambda module, args: (hidden, *args[1:]))
    try:
        with replace_forward(layers[:start], lambda state: state, tuple_output=tuple_output):
            yield
    finally:
        handle.remove()


@contextmanager
def restore(clean: Mapping[nn.Module, Tensor], where: Tensor) -> Iterator[None]:
    """Put modules' clean outputs (1, positions, d) into a batch of noisy runs, at the positions that are asked for.

    Args:
        clean: module to its output; be it a tensor or a tuple that starts with one, it stays so.
        where: bool (rows, positions), or one row for all.
    """

    def put_back(output: Tensor) -> Callable:
        def hook(module: nn.Module, args: tuple, found: Tensor | tuple) -> Tensor | tuple:
            mixed = torch.where(where[..., None], output, first(found))
            return (mixed, *found[1:]) if isinstance(found, tuple) else mixed

        return hook

    handles = [module.register_forward_hook(put_back(output)) for module, output in clean.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def window(layer: int, size: int, n_layers: int) -> range:
    """``size`` layers centred on ``layer``, fewer at the ends; an even size has the odd one out below."""
    return range(max(0, layer - size // 2), min(n_layers, layer - size // 2 + size))


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Mean and ends of its 95 % t interval; the ends are nan for one value."""
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) == 1:
        return mean, float("nan"), float("nan")
    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return mean, mean - half, mean + half


def layer_statistics(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean recovered probability (value) with its 95 % t interval (low, high) and n, a kind × layer a row.

    Args:
        frame: columns kind, layer, recovered; a row for each input that was traced.
    """
    rows = [
        (kind, layer, *mean_interval(values), len(values))
        for (kind, layer), values in frame.groupby(["kind", "layer"], sort=False).recovered
    ]
    return pd.DataFrame(rows, columns=["kind", "layer", "value", "low", "high", "n"])


def rank_layers(statistics: pd.DataFrame, n: int, kind: str = "mlp") -> list[int]:
    """The ``n`` layers that recover most, in ascending order; of equal ones the lower.

    Raises ``ValueError`` for a kind that was not traced and more layers than there are.
    """
    rows = statistics[statistics.kind == kind]
    if not 1 <= n <= len(rows):
        raise ValueError(f"n = {n}, kind = {kind!r}: {len(rows)} layers of that kind were traced")
    return sorted(rows.sort_values(["value", "layer"], ascending=[False, True]).layer[:n].tolist())
