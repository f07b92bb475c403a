"""One batch of edits, layer after layer: keys, residuals, solve, write.

Each layer takes an equal share of what is left (MEMIT, arXiv 2210.07229 eq. 20). Earlier edits take part
as more columns of the same system, see :mod:`editkit.editing.replay`.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from editkit import solvers
from editkit.config import EditSpec
from editkit.editing.lora import Problem
from editkit.editing.replay import EditRecord, Item, Moments, ReplayBuffer, columns
from editkit.editing.weights import Overlay, RawWeights
from editkit.solvers import Precision, Update
from editkit.statistics import null_space


class Reader(Protocol):
    """What an editor reads off a model as it stands, for each item at the place where it is edited."""

    def keys(self, items: Sequence[Item], layer: int) -> Tensor:
        """``K`` (d_k, n): input of the edited linear layer, averaged over contexts."""

    def hidden(self, items: Sequence[Item], layer: int) -> Tensor:
        """Residual stream after a layer, (d, n)."""


@dataclass(frozen=True)
class LayerUpdate:
    """One weight update of one layer, with what the solver said of it."""

    layer: int
    update: Update
    edits: int  # new ones
    replayed: int  # earlier edits that took part: records, or all that the moments stand for
    norm: float  # ‖ΔW‖ (Frobenius)
    weight_norm: float  # ‖W‖ before
    growth: float  # ‖W‖ after / ‖W‖ before the session's first edit
    disturbance: float  # root mean square of ΔW k over that of W k for ordinary keys, W before the first edit


class Editor:
    """Method and hyperparameters at work on one model: precisions are factored once and kept.

    Args:
        weights: where updates are written, before the first edit: growth and disturbance are measured against it.
        costs: ``C`` of each edited layer.
    """

    def __init__(self, weights: RawWeights | Overlay, spec: EditSpec, reader: Reader, costs: dict[int, Tensor]):
        self.weights, self.spec, self.reader = weights, spec, reader
        self._costs = costs
        self._precisions: dict[int, tuple[Precision, float]] = {}
        self._norms = {layer: weights.weight(layer).norm().item() for layer in spec.layers}
        self._outputs = {
            layer: _output_norm(weights.weight(layer).double(), None, costs[layer]) for layer in spec.layers
        }
        self._last = weights.weight(spec.layers[-1]).double()

    def write(
        self, items: list[Item], V: Tensor, memory: ReplayBuffer | Moments | None, seconds: dict[str, float]
    ) -> tuple[list[LayerUpdate], list[EditRecord]]:
        """Write one batch into the weights.

        Args:
            items: the new edits.
            V: their targets, (d, n).
            memory: earlier edits that take part; only priorities and counts of uses change.
            seconds: the stages ``keys`` and ``solve`` are added to.

        Returns the update of each layer, and a record of each edit. Raises ``FloatingPointError`` for an
        update that is not finite; layers before it are then written.
        """
        layers, weight = self.spec.layers, self.spec.replay_weight
        replayed = self._recall(memory, len(items))
        # With one layer, what a record stores stays valid; with several, lower layers have moved its keys.
        refreshed = replayed if len(layers) > 1 else []
        pool = items + [record.item for record in refreshed]
        wanted = torch.cat([V, *(record.target[:, None].to(V) for record in refreshed)], dim=1)
        count = memory.count if isinstance(memory, Moments) else len(replayed)
        keys, values, updates = {}, {}, []
        for index, layer in enumerate(layers):
            start = time.perf_counter()
            missing = wanted - self.reader.hidden(pool, layers[-1]).to(V)  # (d, n + refreshed)
            K = self.reader.keys(pool, layer).double()  # (d_k, n + refreshed)
            R = missing.double() / self.weights.lm.gain(layer) / (len(layers) - index)
            seconds["keys"] += time.perf_counter() - start
            start = time.perf_counter()
            W = self.weights.weight(layer).double()
            keys[layer], values[layer] = K[:, : len(items)], (W @ K + R)[:, : len(items)]
            if past := self._past(layer, W, memory, [] if refreshed else replayed):
                K, R = torch.cat([K, past[0]], dim=1), torch.cat([R, past[1]], dim=1)
            precision, slack = self._precision(layer)
            slacks = torch.full((K.shape[1],), slack / weight, dtype=K.dtype, device=K.device)
            # Equality for a lone edit: EMMET is ROME then.
            slacks[: len(items)] = 0.0 if self.spec.method == "emmet" and len(items) == 1 else slack
            update = solvers.solve(K, R, precision, slacks)
            if update.ridge or update.cost_ridge:
                warnings.warn(
                    f"layer {layer}: the system was singular; a ridge was added "
                    f"(edits {update.ridge:.2g}, cost {update.cost_ridge:.2g})",
                    stacklevel=4,
                )
            largest = self.spec.norm_clamp * self._norms[layer]
            update = self.weights.write(layer, update, Problem(K, R, precision, slacks), largest)
            seconds["solve"] += time.perf_counter() - start
            updates.append(self._describe(layer, update, W, len(items), count))
        if replayed:
            memory.use(replayed)
        records = [
            EditRecord(
                item,
                V[:, i],
                {layer: keys[layer][:, i] for layer in layers},
                {layer: values[layer][:, i] for layer in layers},
            )
            for i, item in enumerate(items)
        ]
        return updates, records

    def write_share(self, updates: Sequence[LayerUpdate], share: float) -> list[LayerUpdate]:
        """Write only a share of updates, on the weights that they were computed for."""
        scaled = []
        for item in updates:
            W = self.weights.weight(item.layer).double()
            update = item.update._replace(left=item.update.left * share)
            self.weights.add(item.layer, update.left, update.right)
            scaled.append(self._describe(item.layer, update, W, item.edits, item.replayed))
        return scaled

    def old_residual(self, memory: ReplayBuffer | Moments | None) -> float:
        """What the last layer's weight leaves undone of the edits in memory, as a share of what they asked for."""
        if memory is None or not len(memory):
            return float("nan")
        layer = self.spec.layers[-1]
        K, V = memory.factors(layer)
        return ((V - self.weights.weight(layer).double() @ K).norm() / (V - self._last @ K).norm()).item()

    def _precision(self, layer: int) -> tuple[Precision, float]:
        """The method's precision at a layer, factored once, and its slack."""
        spec = self.spec
        if layer not in self._precisions:
            C = self._costs[layer]
            self._precisions[layer] = {
                "rome": lambda: solvers.rome(C),
                "memit": lambda: solvers.memit(C, spec.mom2_update_weight),
                "emmet": lambda: solvers.emmet(C, spec.mom2_update_weight, spec.update_norm_lambda, spec.emmet_lambda),
                "alphaedit": lambda: solvers.alphaedit(null_space(C, spec.nullspace_threshold), spec.l2),
            }[spec.method]()
        return self._precisions[layer]

    def _recall(self, memory: ReplayBuffer | Moments | None, batch: int) -> list[EditRecord]:
        if not isinstance(memory, ReplayBuffer):
            return []
        memory.prioritise(self.spec.layers[-1], self.weights.weight(self.spec.layers[-1]))
        return memory.sample(memory.amount(self.spec.replay_rate, batch))

    def _past(
        self, layer: int, W: Tensor, memory: ReplayBuffer | Moments | None, replayed: list[EditRecord]
    ) -> tuple[Tensor, Tensor] | None:
        """Keys and residuals of the earlier edits at a layer, as they were stored; None where there are none."""
        if replayed:
            F, X = columns(replayed, layer)
        elif isinstance(memory, Moments) and len(memory):
            F, X = memory.factors(layer)
        else:
            return None
        return F, torch.zeros_like(X) if self.spec.replay == "hold" else X - W @ F

    def _describe(self, layer: int, update: Update, W: Tensor, edits: int, replayed: int) -> LayerUpdate:
        """``W`` is the weight before the update."""
        return LayerUpdate(
            layer,
            update,
            edits,
            replayed,
            norm=update.delta.norm().item(),
            weight_norm=W.norm().item(),
            growth=self.weights.weight(layer).norm().item() / self._norms[layer],
            disturbance=_output_norm(update.left, update.right, self._costs[layer]) / self._outputs[layer],
        )


def _output_norm(left: Tensor, right: Tensor | None, C: Tensor) -> float:
    """Root mean square of ``‖left · right · k‖`` over ordinary keys, ``tr(W C Wᵀ)^{1/2}``; right None stands for I."""
    C = C.to(left)
    moments = C if right is None else right @ C @ right.T
    return ((left @ moments) * left).sum().clamp_min(0).sqrt().item()
