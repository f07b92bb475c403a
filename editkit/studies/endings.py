"""What a sequence of edits comes to: only its end is measured, for any reading of keys and any order of the facts.

Where an editor reads the key of an edit is one of its choices: after the bare prompt or averaged over contexts, in the
model as earlier edits left it. Here that is stated, so that it can be changed alone.
"""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from editkit.editing.session import Session
from editkit.editing.spec import EditSpec
from editkit.facts import Fact, data_hash
from editkit.language.domain import FactDomain
from editkit.language.drift import TextProbe, measure_all
from editkit.language.keys import edit_keys
from editkit.language.metrics import evaluate, summarize
from editkit.models import LanguageModel
from editkit.studies import protocol
from editkit.studies.runs import Cell, check_batches, measurement_key, once, warm_targets
from editkit.studies.setting import Setting

Reading = Literal["clean", "bare", "averaged"]
Order = int | tuple[int, ...]  # 0 as drawn, another number shuffles; or the places of the facts, one after another


class StatedKeys(FactDomain):
    """Facts whose keys are read as stated.

    Args:
        reading: averaged over contexts, as published; bare, after the bare prompt, where targets and what is missing
            of them are read too; clean, the same in the model as it was before the first edit, whatever came since.
        facts: all that will be edited.
        options: of the domain of facts.
    """

    def __init__(self, lm: LanguageModel, spec: EditSpec, reading: Reading, facts: Sequence[Fact], **options: Any):
        super().__init__(lm, spec, **options)
        self.reading, self.facts = reading, facts
        self._clean: dict[int, dict[Fact, Tensor]] = {}

    def costs(self) -> dict[int, Tensor]:
        if self.reading == "clean":
            read = {layer: edit_keys(self.lm, self.facts, layer, ()).T for layer in self.spec.layers}
            self._clean = {layer: dict(zip(self.facts, keys, strict=True)) for layer, keys in read.items()}
        return super().costs()

    def keys(self, items: Sequence[Fact], layer: int) -> Tensor:
        if self.reading == "averaged":
            return super().keys(items, layer)
        if self.reading == "bare":
            return edit_keys(self.lm, items, layer, ())
        return torch.stack([self._clean[layer][item] for item in items], dim=1)


@dataclass(frozen=True)
class Way:
    """A way to make the edits of a seed."""

    spec: EditSpec
    batch_size: int  # edits of a step; divides the facts
    keys: Reading = "averaged"
    order: Order = 0  # of the facts


@contextmanager
def edited(setting: Setting, seed: int, way: Way) -> Iterator[dict[int, Tensor]]:
    """Make all edits of a seed, one step after another; afterwards the model is as it was before.

    Yields the ``ΔW`` (d_v, d_k) of each edited layer that all steps add up to, in the model's own precision. Raises
    ``ValueError`` for a batch size that does not divide the facts.
    """
    facts = in_order(setting.draws[seed].facts, way.order)
    check_batches(len(facts), [way.batch_size])
    spec, lm = seeded(setting, seed, way.spec), setting.lm
    given = {"texts": setting.texts, "contexts": setting.contexts[seed], "heldout": setting.draws[seed].heldout}
    domain = StatedKeys(lm, spec, way.keys, facts, **given, store=setting.store, progress=False)
    session, before = Session(lm, spec, domain), {layer: lm.weight(layer).clone() for layer in spec.layers}
    if spec.targets_from == "base":
        warm_targets(setting, seed, [spec])
    try:
        for begin in range(0, len(facts), way.batch_size):
            session.edit(facts[begin : begin + way.batch_size])
            session.settle()
        yield {layer: lm.weight(layer) - weight for layer, weight in before.items()}
    finally:
        session.undo()


def measured(setting: Setting, seed: int, way: Way, probes: Mapping[str, TextProbe]) -> Cell:
    """Score all edits of a seed after the last step (``moment`` "final"), and what the texts of ``probes`` have felt.

    What was measured before with the same model, data, parameters and code is read from the store.

    Returns a row of scores, ‖ΔW‖ over all layers, drift and seconds, and the scores of every prompt, in which
    ``edited_at`` is the step of an edit.
    """
    facts = setting.draws[seed].facts

    def measure() -> Cell:
        start = time.perf_counter()
        with edited(setting, seed, way) as deltas:
            seconds = time.perf_counter() - start
            frame = evaluate(setting.lm, facts)
            drift = measure_all(setting.lm, probes, True)
        steps = {fact.id: n // way.batch_size + 1 for n, fact in enumerate(in_order(facts, way.order))}
        row = {"moment": "final", "n_facts": len(facts), **summarize(frame), "delta_norm": norm(deltas)}
        return row | drift | {"seconds": seconds}, frame.assign(edited_at=frame.fact.map(steps))

    row, frame = once(setting.store, _key(setting, seed, way) | {"probes": sorted(probes)}, measure)
    origin = protocol.origin(setting, seed)
    return row | origin, frame.assign(moment="final", **origin)


def norm_written(setting: Setting, seed: int, way: Way) -> float:
    """Make all edits of a seed and return ‖ΔW‖ over all layers, or read it from the store."""

    def make() -> dict[str, float]:
        with edited(setting, seed, way) as deltas:
            return {"norm": norm(deltas)}

    return setting.store.plain("norm", _key(setting, seed, way), make)["norm"]


def _key(setting: Setting, seed: int, way: Way) -> dict[str, Any]:
    """Return what determines the edits of a seed."""
    spec, heldout = seeded(setting, seed, way.spec).model_dump(), data_hash(setting.draws[seed].heldout)
    about = {"spec": spec, "batch_size": way.batch_size, "keys": way.keys, "order": way.order, "heldout": heldout}
    return measurement_key(setting, seed, __name__) | about


def norm(deltas: Mapping[int, Tensor]) -> float:
    """Compute ‖ΔW‖ (Frobenius) over all layers."""
    return sum(delta.double().norm().item() ** 2 for delta in deltas.values()) ** 0.5


T = TypeVar("T")


def in_order(items: Sequence[T], order: Order) -> list[T]:
    """Return items, one for each fact of a seed, in an order of the facts."""
    if isinstance(order, tuple):
        return [items[place] for place in order]
    return random.Random(order).sample(items, len(items)) if order else list(items)


def seeded(setting: Setting, seed: int, spec: EditSpec) -> EditSpec:
    """Resolve a spec for the facts of a seed."""
    return spec.resolve(setting.lm).model_copy(update={"seed": seed})
