"""Edits on a model: computed, written, recorded, undone bit for bit."""

import json
import resource
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from editkit import solvers
from editkit.cache import Store, write_atomic
from editkit.config import EditSpec
from editkit.facts import Fact
from editkit.language.keys import edit_keys, hidden_states, sample_contexts
from editkit.language.targets import Targets, optimise_targets
from editkit.models import LanguageModel
from editkit.solvers import Precision, Update
from editkit.statistics import null_space, second_moments
from editkit.texts import load_texts


@dataclass(frozen=True)
class LayerUpdate:
    """One weight update of one layer, with what the solver said of it."""

    layer: int
    update: Update
    norm: float  # ‖ΔW‖ (Frobenius)
    weight_norm: float  # ‖W‖ before


@dataclass(frozen=True)
class EditResult:
    """What one call of :meth:`EditSession.edit` did."""

    facts: list[Fact]
    updates: list[LayerUpdate]
    targets: Targets
    seconds: dict[str, float]  # targets, keys, solve, total
    peak_memory_mb: float  # of the process on a CPU, of the allocator on a GPU

    @property
    def deltas(self) -> dict[int, Tensor]:
        """ΔW (d_v, d_k) per layer, float64."""
        total: dict[int, Tensor] = {}
        for item in self.updates:
            total[item.layer] = total.get(item.layer, 0) + item.update.delta
        return total

    def diagnostics(self) -> pd.DataFrame:
        """One row per weight update: layer, norms, ridge, condition number, residual on the edited keys."""
        return pd.DataFrame(
            {
                "layer": item.layer,
                "edits": item.update.left.shape[1],
                "delta_norm": item.norm,
                "weight_norm": item.weight_norm,
                "residual": item.update.residual,
                "condition": item.update.condition,
                "ridge": item.update.ridge,
                "cost_ridge": item.update.cost_ridge,
            }
            for item in self.updates
        )


@dataclass
class EditSession:
    """A sequence of edits on one model, under one spec.

    >>> session = EditSession(lm, EditSpec(method="emmet"))
    >>> result = session.edit(facts)
    >>> session.undo()

    Args:
        lm: the model; its weights are written to by :meth:`edit`.
        spec: method and hyperparameters; what it leaves out takes the model's defaults.
        texts: ordinary text for the second moment; the offline default where not given.
        contexts: context prefixes; sampled from the model with ``spec.seed`` where not given.
        store: where second moments and targets are cached.
        progress: show progress bars.

    All state (precisions, AlphaEdit's past keys, the weights before) lives here. Sessions on different
    models never meet; on the same model, undo the later one first.
    """

    lm: LanguageModel
    spec: EditSpec
    texts: Sequence[str] | None = None
    contexts: Sequence[str] | None = None
    store: Store = field(default_factory=Store)
    progress: bool = True
    results: list[EditResult] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.spec = self.spec.resolve(self.lm)
        self._original: dict[int, Tensor] = {}
        self._written: dict[int, Tensor] = {}
        self._weights = self.lm.fingerprint()
        self._past_keys: dict[int, list[Tensor]] = {layer: [] for layer in self.spec.layers}
        self._costs: dict[int, Tensor] | None = None
        self._precisions: dict[int, tuple[Precision, float]] = {}

    def edit(self, facts: Sequence[Fact]) -> EditResult:
        """Edit ``facts`` into the model: one batch, or with ROME one after another.

        Targets are optimised on the model as it stands when the call is made. Either every layer is
        written or, on any error, none: a non-finite update raises ``FloatingPointError`` and leaves the
        weights as they were. Raises ``ValueError`` for an empty batch.
        """
        facts = list(facts)
        if not facts:
            raise ValueError("an edit needs at least one fact, got an empty batch")
        start = time.perf_counter()
        if self.lm.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.lm.device)
        self._prepare()
        targets = optimise_targets(self.lm, facts, self.spec, self.contexts, store=self.store, progress=self.progress)
        seconds = {"targets": targets.seconds, "keys": 0.0, "solve": 0.0}
        before = {layer: self.lm.weight(layer).clone() for layer in self.spec.layers}
        groups = [[i] for i in range(len(facts))] if self.spec.method == "rome" else [list(range(len(facts)))]
        updates, keys = [], []
        try:
            for group in groups:
                for item, K in self._spread([facts[i] for i in group], targets.values[:, group], seconds):
                    updates.append(item)
                    keys.append((item.layer, K))
        except BaseException:
            for layer, weight in before.items():
                self.lm.weight(layer).copy_(weight)
            raise
        for layer, K in keys:
            self._past_keys[layer].append(K)
        for layer, weight in before.items():
            self._original.setdefault(layer, weight)
            self._written[layer] = self.lm.weight(layer).clone()
        seconds["total"] = time.perf_counter() - start
        self.results.append(EditResult(facts, updates, targets, seconds, peak_memory_mb(self.lm.device)))
        return self.results[-1]

    def undo(self, last: int | None = None) -> None:
        """Take back the ``last`` edits, or all of them: the weights are then what they were, bit for bit.

        Raises ``ValueError`` for more edits than were made, and ``RuntimeError`` where the weights were
        changed by somebody else since: undoing would lose that change.
        """
        last = len(self.results) if last is None else last
        if not 0 <= last <= len(self.results):
            raise ValueError(f"cannot undo {last} edits: this session made {len(self.results)}")
        for layer, written in self._written.items():
            if not torch.equal(self.lm.weight(layer), written):
                raise RuntimeError(f"layer {layer} was changed outside this session; undo that first")
        kept = self.results[: len(self.results) - last]
        for layer, weight in self._original.items():
            self.lm.weight(layer).copy_(weight)
        for result in kept:  # the same additions in the same order give the same bits
            for item in result.updates:
                self._add(item.layer, item.update)
        for layer in self._written:
            self._written[layer] = self.lm.weight(layer).clone()
        for layer, keys in self._past_keys.items():
            del keys[sum(item.layer == layer for result in kept for item in result.updates) :]
        if not kept:  # nothing is held any more: what others do to the weights now is their affair
            self._original.clear()
            self._written.clear()
        self.results = kept

    def save(self, path: str | Path) -> Path:
        """Write the session's updates, in factored form, with their provenance to one safetensors file.

        Tensors ``{edit}.{layer}.left`` (d_v, n) and ``….right`` (n, d_k), numbered in the order of edits;
        the file's metadata holds the model's name and fingerprint before the session, spec, contexts and facts as JSON.
        """
        if not self.results:
            raise ValueError("nothing to save: this session has made no edit")
        items = [item for result in self.results for item in result.updates]
        tensors = {
            f"{number}.{item.layer}.{side}": getattr(item.update, side).cpu().contiguous()
            for number, item in enumerate(items)
            for side in ("left", "right")
        }
        provenance = {
            "model": self.lm.name,
            "weights": self._weights,
            "spec": self.spec.model_dump(),
            "contexts": list(self.contexts),
            "facts": [fact.id for result in self.results for fact in result.facts],
        }
        path = Path(path)
        write_atomic(path, save_tensors(tensors, {"editkit": json.dumps(provenance)}))
        return path

    def _prepare(self) -> None:
        """What is computed once, on the model before its first edit."""
        if self.contexts is None:
            self.contexts = sample_contexts(self.lm, self.spec.n_contexts, self.spec.context_length, self.spec.seed)
        if self._costs is None:
            texts = load_texts() if self.texts is None else self.texts
            self._costs = second_moments(
                self.lm, self.spec.layers, texts, self.spec.mom2_n_tokens, store=self.store, progress=self.progress
            )

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
        precision, slack = self._precisions[layer]
        if spec.method == "alphaedit" and self._past_keys[layer]:
            precision = solvers.add_history(precision, torch.cat(self._past_keys[layer], dim=1))
        return precision, slack

    def _spread(self, facts: list[Fact], V: Tensor, seconds: dict[str, float]):
        """Update layer after layer, each with an equal share of what is left (MEMIT, arXiv 2210.07229 eq. 20)."""
        layers = self.spec.layers
        for index, layer in enumerate(layers):
            start = time.perf_counter()
            missing = V - hidden_states(self.lm, facts, layers[-1]).to(V)  # (d, n)
            K = edit_keys(self.lm, facts, layer, self.contexts).double()  # (d_k, n)
            seconds["keys"] += time.perf_counter() - start
            start = time.perf_counter()
            precision, slack = self._precision(layer)
            if self.spec.method == "emmet" and len(facts) == 1:
                slack = 0.0
            update = solvers.solve(K, missing / (len(layers) - index), precision, slack)
            if update.ridge or update.cost_ridge:
                warnings.warn(
                    f"layer {layer}: the system was singular; a ridge was added "
                    f"(edits {update.ridge:.2g}, cost {update.cost_ridge:.2g})",
                    stacklevel=4,
                )
            weight_norm = self.lm.weight(layer).norm().item()
            self._add(layer, update)
            seconds["solve"] += time.perf_counter() - start
            yield LayerUpdate(layer, update, update.delta.norm().item(), weight_norm), K

    def _add(self, layer: int, update: Update) -> None:
        weight = self.lm.weight(layer)
        changed = weight + update.delta.to(weight)
        if not torch.isfinite(changed).all():
            raise FloatingPointError(f"layer {layer}: the update is not finite; the weights stay as they were")
        weight.copy_(changed)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far in MB: allocated on a GPU, resident set of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
