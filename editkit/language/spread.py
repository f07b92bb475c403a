"""One batch of edits, layer after layer: keys, residuals, solve, write.

Each layer takes an equal share of what is left (MEMIT, arXiv 2210.07229 eq. 20). Earlier edits take part
as more columns of the same system, see :mod:`editkit.language.replay`.
"""

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit import solvers
from editkit.config import EditSpec
from editkit.facts import Fact
from editkit.language.keys import edit_keys, hidden_states
from editkit.language.replay import EditRecord, Moments, ReplayBuffer, columns
from editkit.models import LanguageModel
from editkit.solvers import Precision, Update
from editkit.statistics import null_space


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


class Editor:
    """Method and hyperparameters at work on one model: precisions are factored once and kept.

    Args:
        lm: the model before its first edit: growth of weights is measured against it.
        costs: ``C`` of each edited layer.
    """

    def __init__(self, lm: LanguageModel, spec: EditSpec, contexts: Sequence[str], costs: dict[int, Tensor]):
        self.lm, self.spec, self.contexts = lm, spec, contexts
        self._costs = costs
        self._precisions: dict[int, tuple[Precision, float]] = {}
        self._norms = {layer: lm.weight(layer).norm().item() for layer in spec.layers}

    def write(
        self, facts: list[Fact], V: Tensor, memory: ReplayBuffer | Moments | None, seconds: dict[str, float]
    ) -> tuple[list[LayerUpdate], list[EditRecord]]:
        """Write one batch into the weights.

        Args:
            facts: the new edits.
            V: their targets, (d, n).
            memory: earlier edits that take part; only priorities and counts of uses change.
            seconds: the stages ``keys`` and ``solve`` are added to.

        Returns the update of each layer, and a record of each edit. Raises ``FloatingPointError`` for an
        update that is not finite; layers before it are then written.
        """
        layers, weight = self.spec.layers, self.spec.replay_weight
        replayed = self._recall(memory, len(facts))
        # With one layer, what a record stores stays valid; with several, lower layers have moved its keys.
        refreshed = replayed if len(layers) > 1 else []
        pool = facts + [record.fact for record in refreshed]
        wanted = torch.cat([V, *(record.target[:, None].to(V) for record in refreshed)], dim=1)
        count = memory.count if isinstance(memory, Moments) else len(replayed)
        keys, values, updates = {}, {}, []
        for index, layer in enumerate(layers):
            start = time.perf_counter()
            missing = wanted - hidden_states(self.lm, pool, layers[-1]).to(V)  # (d, n + refreshed)
            K = edit_keys(self.lm, pool, layer, self.contexts).double()  # (d_k, n + refreshed)
            R = missing.double() / (len(layers) - index)
            seconds["keys"] += time.perf_counter() - start
            start = time.perf_counter()
            W = self.lm.weight(layer).double()
            keys[layer], values[layer] = K[:, : len(facts)], (W @ K + R)[:, : len(facts)]
            if past := self._past(layer, W, memory, [] if refreshed else replayed):
                K, R = torch.cat([K, past[0]], dim=1), torch.cat([R, past[1]], dim=1)
            precision, slack = self._precision(layer)
            slacks = torch.full((K.shape[1],), slack / weight, dtype=K.dtype, device=K.device)
            # Equality for a lone edit: EMMET is ROME then.
            slacks[: len(facts)] = 0.0 if self.spec.method == "emmet" and len(facts) == 1 else slack
            update = solvers.solve(K, R, precision, slacks)
            if update.ridge or update.cost_ridge:
                warnings.warn(
                    f"layer {layer}: the system was singular; a ridge was added "
                    f"(edits {update.ridge:.2g}, cost {update.cost_ridge:.2g})",
                    stacklevel=4,
                )
            update = solvers.clamp(update, W, self.spec.norm_clamp * self._norms[layer])
            add(self.lm, layer, update)
            seconds["solve"] += time.perf_counter() - start
            updates.append(self._describe(layer, update, W, len(facts), count))
        if replayed:
            memory.use(replayed)
        records = [
            EditRecord(
                fact,
                V[:, i],
                {layer: keys[layer][:, i] for layer in layers},
                {layer: values[layer][:, i] for layer in layers},
            )
            for i, fact in enumerate(facts)
        ]
        return updates, records

    def write_share(self, updates: Sequence[LayerUpdate], share: float) -> list[LayerUpdate]:
        """Write only a share of updates, on the weights that they were computed for."""
        scaled = []
        for item in updates:
            W = self.lm.weight(item.layer).double()
            update = item.update._replace(left=item.update.left * share)
            add(self.lm, item.layer, update)
            scaled.append(self._describe(item.layer, update, W, item.edits, item.replayed))
        return scaled

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
        memory.prioritise(self.spec.layers[-1], self.lm.weight(self.spec.layers[-1]))
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
        after = self.lm.weight(layer).norm().item()
        norm, before = update.delta.norm().item(), W.norm().item()
        return LayerUpdate(layer, update, edits, replayed, norm, before, after / self._norms[layer])


def read_weights(lm: LanguageModel, layers: Iterable[int]) -> dict[int, Tensor]:
    """A copy of each layer's edited weight."""
    return {layer: lm.weight(layer).clone() for layer in layers}


def put_weights(lm: LanguageModel, weights: Mapping[int, Tensor]) -> None:
    """Write weights over those of their layers."""
    for layer, weight in weights.items():
        lm.weight(layer).copy_(weight)


def add(lm: LanguageModel, layer: int, update: Update) -> None:
    """Add an update to a layer's weight; ``FloatingPointError`` where the sum is not finite."""
    weight = lm.weight(layer)
    changed = weight + update.delta.to(weight)
    if not torch.isfinite(changed).all():
        raise FloatingPointError(f"layer {layer}: the update is not finite; the weights stay as they were")
    weight.copy_(changed)
