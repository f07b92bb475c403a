"""Edits on a model: computed, written, recorded, undone bit for bit."""

import json
import resource
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from editkit.cache import Store, from_json_tensor, json_tensor, write_atomic
from editkit.config import EditSpec
from editkit.facts import Fact
from editkit.language.keys import sample_contexts
from editkit.language.replay import Moments, ReplayBuffer, make_memory
from editkit.language.spread import Editor, LayerUpdate, add, put_weights, read_weights
from editkit.language.targets import Targets, optimise_targets
from editkit.language.trust import TrustDecision, TrustMonitor
from editkit.models import LanguageModel
from editkit.statistics import second_moments
from editkit.texts import load_texts


@dataclass(frozen=True)
class EditResult:
    """What one call of :meth:`EditSession.edit` did."""

    facts: list[Fact]
    updates: list[LayerUpdate]  # as written; none where the step was rolled back
    targets: Targets
    old_residual: float  # missing of earlier edits at the last layer, as a share of what they asked; nan without memory
    trust: TrustDecision | None
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
        """One row per weight update: layer, edits, norms, ridge, condition numbers, residual on the edited keys."""
        return pd.DataFrame(
            {
                "layer": item.layer,
                "edits": item.edits,
                "replayed": item.replayed,
                "delta_norm": item.norm,
                "weight_norm": item.weight_norm,
                "growth": item.growth,
                "residual": item.update.residual,
                "condition_before": item.update.condition_before,
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
        heldout: facts that are never edited; the trust score watches their neighbours.
        store: where second moments and targets are cached.
        progress: show progress bars.

    All state (precisions, memory of earlier edits, the weights before) lives here. Sessions on different
    models never meet; on the same model, undo the later one first.
    """

    lm: LanguageModel
    spec: EditSpec
    texts: Sequence[str] | None = None
    contexts: Sequence[str] | None = None
    heldout: Sequence[Fact] = ()
    store: Store = field(default_factory=Store)
    progress: bool = True
    results: list[EditResult] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.spec = self.spec.resolve(self.lm)
        self.memory = make_memory(self.spec)
        self._original: dict[int, Tensor] = {}
        self._written: dict[int, Tensor] = {}
        self._weights = self.lm.fingerprint()
        self._settled: tuple[dict[int, Tensor], list[Fact]] | None = None
        self._memories: list[ReplayBuffer | Moments | None] = []  # the memory before each result
        self._editor: Editor | None = None
        self._trust: TrustMonitor | None = None

    def edit(self, facts: Sequence[Fact]) -> EditResult:
        """Edit ``facts`` into the model: one batch, or with ROME one after another.

        Targets are optimised on the model as it stands when the call is made, or with
        ``targets_from: base`` on the model before the first edit. Either every layer is written or, on any
        error, none: a non-finite update raises ``FloatingPointError`` and leaves weights and memory as they
        were. A step below the trust threshold is undone, scaled down or warned of, see
        :attr:`EditResult.trust`. Raises ``ValueError`` for an empty batch.
        """
        facts = list(facts)
        if not facts:
            raise ValueError("an edit needs at least one fact, got an empty batch")
        start = time.perf_counter()
        if self.lm.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.lm.device)
        editor = self._prepare()
        targets = self._targets(facts)
        seconds = {"targets": targets.seconds, "keys": 0.0, "solve": 0.0}
        before = read_weights(self.lm, self.spec.layers)
        memory = None if self.memory is None else self.memory.copy()
        groups = [[i] for i in range(len(facts))] if self.spec.method == "rome" else [list(range(len(facts)))]
        updates, records = [], []
        try:
            for group in groups:
                batch = [facts[i] for i in group]
                written, made = editor.write(batch, targets.values[:, group], self.memory, seconds)
                updates += written
                records += made
            trust = self._judge(updates)
            if trust and trust.action == "scale":
                put_weights(self.lm, before)
                updates = editor.write_share(updates, self.spec.trust_scale)
        except BaseException:
            self._put_back(before, memory)
            raise
        if trust and trust.action == "rollback":
            self._put_back(before, memory)
            updates = []
        old_residual = self._old_residual(before[self.spec.layers[-1]])
        if updates and self.memory is not None:
            self.memory.add(records)
        self._memories.append(memory)
        self._original = self._original or before
        self._written = read_weights(self.lm, before)
        seconds["total"] = time.perf_counter() - start
        peak = peak_memory_mb(self.lm.device)
        self.results.append(EditResult(facts, updates, targets, old_residual, trust, seconds, peak))
        return self.results[-1]

    def undo(self, last: int | None = None) -> None:
        """Take back the ``last`` edits, or all of them: the weights are then what they were, bit for bit.

        Raises ``ValueError`` for more edits than were made since :meth:`settle`, and ``RuntimeError`` where
        the weights were changed by somebody else since: undoing would lose that change.
        """
        everything = last is None
        last = len(self.results) if everything else last
        if not 0 <= last <= len(self.results):
            raise ValueError(f"cannot undo {last} edits: this session made {len(self.results)}")
        for layer, written in self._written.items():
            if not torch.equal(self.lm.weight(layer), written):
                raise RuntimeError(f"layer {layer} was changed outside this session; undo that first")
        kept = self.results[: len(self.results) - last]
        if everything:
            self._settled = None
        put_weights(self.lm, self._settled[0] if self._settled else self._original)
        for result in kept:  # the same additions in the same order give the same bits
            for item in result.updates:
                add(self.lm, item.layer, item.update)
        self._written = read_weights(self.lm, self._written)
        if everything:
            self.memory = make_memory(self.spec)
        elif last:
            self.memory = self._memories[len(kept)]
        del self._memories[len(kept) :]
        if not kept and self._settled is None:  # nothing is held: what others do to the weights is their affair
            self._original.clear()
            self._written.clear()
        self.results = kept

    def settle(self) -> None:
        """Accept the edits so far and drop their updates: from now on they can only be undone all together.

        A long sequence would otherwise keep every update of every step in memory.
        """
        if self.results:
            self._settled = (self._written, self._edited())
            self.results = []
            self._memories.clear()

    def save(self, path: str | Path) -> Path:
        """Write the session's updates, in factored form, with their provenance to one safetensors file.

        Tensors ``{edit}.{layer}.left`` (d_v, n) and ``….right`` (n, d_k), numbered in the order of edits;
        the file's metadata holds the model's name and fingerprint before the session, spec, contexts and facts as JSON.
        """
        if self._settled:
            raise ValueError("the updates of settled edits are gone: save before settling")
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

    def state_dict(self) -> dict[str, Tensor]:
        """What a new session on the untouched model needs to go on from here: weights, memory, facts edited."""
        state = {f"weight.{layer}": weight for layer, weight in self._written.items()}
        state["facts"] = json_tensor([asdict(fact) for fact in self._edited()])
        if self.memory is not None:
            state |= {f"memory.{name}": tensor for name, tensor in self.memory.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where another session under the same spec stood; its edits can only be undone all together.

        Raises ``RuntimeError`` for a session that has made edits, ``ValueError`` for layers that are not its own.
        """
        if self._original:
            raise RuntimeError("this session has made edits of its own: load into a new one")
        weights = {int(n.removeprefix("weight.")): t for n, t in state.items() if n.startswith("weight.")}
        if set(weights) != set(self.spec.layers):
            raise ValueError(f"the state edits layers {sorted(weights)}, this session {self.spec.layers}")
        self._prepare()
        if self.memory is not None:
            part = {
                n.removeprefix("memory."): t.to(self.lm.device) for n, t in state.items() if n.startswith("memory.")
            }
            self.memory = type(self.memory).from_state_dict(part)
        self._original = read_weights(self.lm, weights)
        put_weights(self.lm, weights)
        self._written = read_weights(self.lm, weights)
        self._settled = (self._written, [Fact(**entry) for entry in from_json_tensor(state["facts"])])

    def _prepare(self) -> Editor:
        """What is computed once, on the model before its first edit."""
        if self._editor is None:
            spec, texts = self.spec, load_texts() if self.texts is None else self.texts
            if self.contexts is None:
                self.contexts = sample_contexts(self.lm, spec.n_contexts, spec.context_length, spec.seed)
            costs = second_moments(
                self.lm, spec.layers, texts, spec.mom2_n_tokens, store=self.store, progress=self.progress
            )
            if spec.trust_enable:
                self._trust = TrustMonitor(self.lm, texts, self.heldout, spec)
            self._editor = Editor(self.lm, spec, self.contexts, costs)
        return self._editor

    def _targets(self, facts: list[Fact]) -> Targets:
        optimise = partial(
            optimise_targets, self.lm, facts, self.spec, self.contexts, store=self.store, progress=self.progress
        )
        if self.spec.targets_from == "current":
            return optimise()
        now = read_weights(self.lm, self._original)
        try:
            put_weights(self.lm, self._original)
            return optimise()
        finally:
            put_weights(self.lm, now)

    def _put_back(self, weights: dict[int, Tensor], memory: ReplayBuffer | Moments | None) -> None:
        put_weights(self.lm, weights)
        self.memory = memory

    def _edited(self) -> list[Fact]:
        """Every fact edited so far, rolled-back ones left out."""
        settled = self._settled[1] if self._settled else []
        return settled + [fact for result in self.results if result.updates for fact in result.facts]

    def _judge(self, updates: list[LayerUpdate]) -> TrustDecision | None:
        if self._trust is None:
            return None
        norm = max(item.norm / item.weight_norm for item in updates)
        condition = max(item.update.condition for item in updates)
        decision = self._trust.judge(self.lm, self._edited(), norm, condition)
        if decision.action != "accept":
            warnings.warn(str(decision), stacklevel=3)
        return decision

    def _old_residual(self, before: Tensor) -> float:
        """What the last layer's weight leaves undone of the edits in memory, as a share of what they asked for.

        ``before`` is the weight as the step found it.
        """
        if self.memory is None or not len(self.memory):
            return float("nan")
        layer = self.spec.layers[-1]
        K, V = self.memory.factors(layer)
        original = self._original.get(layer, before).double()
        return ((V - self.lm.weight(layer).double() @ K).norm() / (V - original @ K).norm()).item()


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far in MB: allocated on a GPU, resident set of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
