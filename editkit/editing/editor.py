"""One batch of edits, layer after layer: keys, residuals, solve, write.

Each layer takes an equal share of what is left (MEMIT, arXiv 2210.07229 eq. 20). Earlier edits take part
as further columns of the same system, see :mod:`editkit.editing.replay`.
"""

import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from editkit import solvers
from editkit.editing.domain import Domain
from editkit.editing.gradients import Columns
from editkit.editing.item import Item
from editkit.editing.lowrank import Problem
from editkit.editing.replay import EditRecord, Memory
from editkit.editing.restraint import prune, rect
from editkit.editing.result import LayerUpdate
from editkit.editing.spec import EditSpec
from editkit.editing.weights import Overlay, RawWeights
from editkit.methods import METHODS
from editkit.solvers import Precision, Update

LARGEST_CONDITION = 1e12  # of a solved system: beyond it four of a float64's sixteen digits are left


class Written(NamedTuple):
    """What writing one batch did."""

    updates: list[LayerUpdate]
    records: list[EditRecord]  # of the new edits
    keys_seconds: float
    solve_seconds: float


class Editor:
    """Method and hyperparameters at work on one model: precisions are factored once and kept.

    Args:
        weights: where updates are written; growth and disturbance are relative to the weights as they are now.
        domain: reads keys and hidden states.
        costs: ``C`` of each edited layer.
    """

    def __init__(self, weights: RawWeights | Overlay, spec: EditSpec, domain: Domain[Any], costs: dict[int, Tensor]):
        self.weights, self.spec, self.domain, self.method = weights, spec, domain, METHODS[spec.method]
        self._costs = costs
        self._precisions: dict[int, tuple[Tensor | None, Precision]] = {}
        self._norms = {layer: weights.weight(layer).norm().item() for layer in spec.layers}
        self._outputs = {
            layer: _output_norm(weights.weight(layer).double(), None, costs[layer]) for layer in spec.layers
        }
        self._last = weights.weight(spec.layers[-1]).double()
        copied = spec.layers if spec.delta_map == "prune" else []
        self._originals = {layer: weights.weight(layer).clone() for layer in copied}
        self._largest = {a: torch.linalg.matrix_norm(W.double(), 2).item() for a, W in self._originals.items()}

    def write(self, items: list[Item], V: Tensor, memory: Memory, weight: float = 0.0) -> Written:
        """Write one batch into the weights.

        Args:
            items: the new edits.
            V: their targets, (d, n).
            memory: earlier edits that may take part; only their priorities and counts of use change.
            weight: on what is kept, beyond the method's own, see :mod:`editkit.editing.budget`.

        Raises ``FloatingPointError`` for an update that is not finite; the layers before it are written by then.
        """
        layers, n = self.spec.layers, len(items)
        replayed = memory.recall(self.spec.replay_rate, n, layers[-1], self.weights.weight(layers[-1]))
        # With one layer, what a record stores stays valid; with several, lower layers have moved its keys.
        refreshed = replayed if len(layers) > 1 and self.spec.replay_refresh else []
        pool = items + [record.item for record in refreshed]
        wanted = torch.cat([V, *(record.target[:, None].to(V) for record in refreshed)], dim=1).double()
        keys, values, updates, spent = {}, {}, [], {"keys": 0.0, "solve": 0.0}
        for index, layer in enumerate(layers):
            start = time.perf_counter()
            missing = wanted - self.domain.hidden(pool, layers[-1]).to(wanted)  # (d, n + refreshed)
            W = self.weights.weight(layer).double()
            K = self.domain.keys(pool, layer).to(W)  # (d_k, n + refreshed)
            R = missing.to(W) / self.weights.model.gain(layer).to(W) / (len(layers) - index)
            spent["keys"] += time.perf_counter() - start
            start = time.perf_counter()
            keys[layer], values[layer] = K[:, :n], (W @ K + R)[:, :n]
            past = None if refreshed else memory.past(layer, replayed)
            K, R = self._joined(K, R, W, past, n)
            update = self._solve_and_write(layer, K, R, n, weight, memory)
            spent["solve"] += time.perf_counter() - start
            count = memory.taking_part(replayed)
            # No edit moves what comes into the first edited layer: keys stored there are never stale.
            updates.append(self._describe(layer, update, W, n, count, count if past and index else 0))
        memory.use(replayed)
        _warn_of_condition(updates)
        asked = R[:, :n].norm(dim=0).tolist()  # of the last layer
        records = [
            EditRecord(
                item, V[:, i], {a: keys[a][:, i] for a in layers}, {a: values[a][:, i] for a in layers}, size, size
            )
            for i, (item, size) in enumerate(zip(items, asked, strict=True))
        ]
        return Written(updates, records, spent["keys"], spent["solve"])

    def write_columns(self, items: list[Item], columns: Columns, memory: Memory, weight: float = 0.0) -> Written:
        """Write one batch whose residuals are known for each layer, see :mod:`editkit.editing.gradients`.

        A column is remembered like an edit of its own. The rest is as in :meth:`write`.
        """
        layers, start, updates = self.spec.layers, time.perf_counter(), []
        keys, values = {}, {}
        replayed = memory.recall(self.spec.replay_rate, len(items), layers[-1], self.weights.weight(layers[-1]))
        for index, layer in enumerate(layers):
            W = self.weights.weight(layer).double()
            K, R = columns.keys[layer].to(W), columns.asked[layer].to(W)
            keys[layer], values[layer] = K, W @ K + R
            past, new = memory.past(layer, replayed), K.shape[1]
            update = self._solve_and_write(layer, *self._joined(K, R, W, past, new), new, weight, memory)
            count = memory.taking_part(replayed)
            updates.append(self._describe(layer, update, W, len(items), count, count if past and index else 0))
        memory.use(replayed)
        _warn_of_condition(updates)
        records = [
            EditRecord(
                items[owner],
                values[layers[-1]][:, i],  # there is no v*: what the last layer should put out
                {a: keys[a][:, i] for a in layers},
                {a: values[a][:, i] for a in layers},
            )
            for i, owner in enumerate(columns.owner.tolist())
        ]
        return Written(updates, records, 0.0, time.perf_counter() - start)

    def _joined(
        self, K: Tensor, R: Tensor, W: Tensor, past: tuple[Tensor, Tensor] | None, new: int
    ) -> tuple[Tensor, Tensor]:
        """Return keys and residuals with those of earlier edits after the first ``new`` columns."""
        if past:
            F, X = (side.to(W) for side in past)
            K, R = torch.cat([K, F], dim=1), torch.cat([R, X - W @ F], dim=1)
        if self.spec.replay == "hold":
            R = torch.cat([R[:, :new], torch.zeros_like(R[:, new:])], dim=1)
        return K, R

    def _solve_and_write(self, layer: int, K: Tensor, R: Tensor, new: int, weight: float, memory: Memory) -> Update:
        """Solve for keys and residuals, their first ``new`` columns being new edits; returns the update as written."""
        precision = self._precision(layer, memory)
        slack = self.method.slack(K, precision, self.spec)
        slacks = torch.full((K.shape[1],), slack / self.spec.replay_weight, dtype=K.dtype, device=K.device)
        slacks[:new] = slack + (weight * solvers.mean_eigenvalue(K[:, :new], precision) if weight else 0.0)
        update = solvers.solve(K, R, precision, slacks)
        if update.ridge or update.cost_ridge:
            warnings.warn(
                f"layer {layer}: the system was singular; a ridge was added "
                f"(edits {update.ridge:.2g}, cost {update.cost_ridge:.2g})",
                stacklevel=5,
            )
        largest = self.spec.norm_clamp * self._norms[layer]
        return self.weights.write(layer, self._restrained(layer, update), Problem(K, R, precision, slacks), largest)

    def _restrained(self, layer: int, update: Update) -> Update:
        """Restrain a solved update by the spec's map."""
        W, spec = self.weights.weight(layer).double(), self.spec
        if spec.delta_map == "rect":
            return rect(update, W, spec.rect_share)
        if spec.delta_map == "prune":
            return prune(update, W - self._originals[layer].double(), self._largest[layer], spec.prune_base)
        return update

    def write_share(self, updates: Sequence[LayerUpdate], share: float) -> list[LayerUpdate]:
        """Write only a share of each update, on the weights that they were computed for."""
        scaled = []
        for item in updates:
            W = self.weights.weight(item.layer).double()
            update = item.update._replace(left=item.update.left * share)
            self.weights.add(item.layer, update.left, update.right)
            scaled.append(self._describe(item.layer, update, W, item.edits, item.replayed, item.stale))
        return scaled

    def old_residual(self, memory: Memory) -> float:
        """Return what the last layer's weight misses of the edits in memory, as a share of what they asked for.

        Keys are taken as stored: with several layers they are those of each edit's own step.
        """
        if not len(memory):
            return float("nan")
        layer = self.spec.layers[-1]
        K, V = memory.factors(layer)
        return ((V - self.weights.weight(layer).double() @ K).norm() / (V - self._last @ K).norm()).item()

    def _precision(self, layer: int, memory: Memory) -> Precision:
        """Return the method's precision at a layer, factored once for what ``memory`` has seen."""
        seen = memory.seen(layer)
        if layer not in self._precisions or self._precisions[layer][0] is not seen:
            C = self._costs[layer].to(self.weights.weight(layer).device)
            if seen is None:
                made = self.method.precision(C, self.spec)
            else:
                keys = seen.to(C)
                made = self.method.renewed(C, keys @ keys.T, self.spec)
            self._precisions[layer] = seen, made
        return self._precisions[layer][1]

    def _describe(self, layer: int, update: Update, W: Tensor, edits: int, replayed: int, stale: int) -> LayerUpdate:
        """Describe an update that is written, ``W`` being the weight before it."""
        return LayerUpdate(
            layer,
            update,
            edits,
            replayed,
            norm=update.delta.norm().item(),
            weight_norm=W.norm().item(),
            growth=self.weights.weight(layer).norm().item() / self._norms[layer],
            disturbance=_output_norm(update.left, update.right, self._costs[layer]) / self._outputs[layer],
            stale=stale,
        )


def _warn_of_condition(updates: Sequence[LayerUpdate]) -> None:
    """Warn where rounding may have spoilt a step: its worst layer's system is all but singular."""
    worst = max(updates, key=lambda item: item.update.condition)
    if worst.update.condition > LARGEST_CONDITION:
        warnings.warn(
            f"layer {worst.layer}: the solved system's condition number is {worst.update.condition:.2g}, above "
            f"{LARGEST_CONDITION:.0e}: its keys are nearly dependent, and the update may be mostly rounding",
            stacklevel=5,
        )


def _output_norm(left: Tensor, right: Tensor | None, C: Tensor) -> float:
    """Return the root mean square of ``‖left · right · k‖`` over ordinary keys, ``tr(W C Wᵀ)^{1/2}``; None is I."""
    C = C.to(left)
    moments = C if right is None else right @ C @ right.T
    return ((left @ moments) * left).sum().clamp_min(0).sqrt().item()
