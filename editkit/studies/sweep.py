"""The grid of a sweep: every method in every way of arriving, with every memory and rank, and what is left out of it.

Three parts share the parameters of the chapters: *batches*, each made in the untouched model
(:func:`editkit.studies.runs.run_baselines`); *sequences* of single edits, of batches, and of one batch of the same
facts (:func:`editkit.studies.sequences.run_sequence`); and *evaluation* of editors and controls by everything
(:func:`editkit.studies.evaluation.run_evaluation`). Cells are stored by these, under their keys: what a sweep has
found a notebook with the same parameters reads, and the other way round.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from editkit.config import Count, Seed
from editkit.editing.replay import ROUNDING
from editkit.methods import METHODS, UNTOUCHED, label
from editkit.studies.arriving import ArrivingName
from editkit.studies.evaluation import EvaluationParams
from editkit.studies.locate import LocateParams
from editkit.studies.lora import LoraParams, adapter
from editkit.studies.runs import CONTROL, BaselineParams
from editkit.studies.sequences import SequenceParams, ablation_grid
from editkit.studies.setting import SettingParams

Part = Literal["batches", "sequences", "evaluation"]
Changes = dict[str, Any]  # of a method's spec


class SweepParams(LoraParams, SequenceParams, EvaluationParams, BaselineParams, LocateParams, SettingParams):
    """The whole matrix; the axes are those of the chapters."""

    sweep_parts: Annotated[list[Part], Field(min_length=1)] = ["batches", "sequences"]
    """What is swept: batches in the untouched model, sequences of edits, evaluation of editors and controls."""
    sweep_replays: Annotated[list[Literal["published", "none", "buffer", "hold", "history"]], Field(min_length=1)] = [
        "none",
        "buffer",
        "hold",
        "history",
    ]
    """Ways of remembering in sequences; published is each method's own."""
    sweep_steps: list[Count] = []
    """Edits of a step in sequences, 1 where a method knows no batches; empty: 1, sequence_batch and all facts."""
    sweep_edit_modes: Annotated[list[Literal["raw", "lora"]], Field(min_length=1)] = ["raw"]
    """Edits of the weights themselves (raw), as adapters of every rank and fit (lora), or both."""
    sweep_controls: list[ArrivingName] = []
    """Controls that learn the facts of sequences beside the editors, in the same steps."""
    sweep_orders: Annotated[list[Seed], Field(min_length=1)] = [0]
    """Orders in which the facts of a seed arrive: 0 as drawn, others shuffled."""


@dataclass(frozen=True)
class SweepCell:
    """One measurement: what is edited how, on the facts of one seed."""

    part: Part
    method: str  # an editor; in sequences and evaluation also a control, in evaluation "pre", in batches memit's own
    batch_size: int
    seed: int
    changes: tuple[tuple[str, Any], ...] = ()  # of the method's spec
    order: int = 0

    @property
    def like(self) -> tuple[str | int, ...]:
        """What decides how long it takes, the most decisive first: cells of which this is equal take about as long."""
        changed = dict(self.changes)
        mode = changed.get("edit_mode", "raw")
        return self.part, self.batch_size, self.method, changed.get("replay", ""), mode, changed.get("lora_fit", "")

    @property
    def configuration(self) -> str:
        """What it is, whatever its seed and order."""
        told = [f"{name} = {value}" for name, value in self.changes if (name, value) != ("replay", "none")]
        return ", ".join([self.part, label(self.method), f"{self.batch_size} at once", *told])

    def __str__(self) -> str:
        return ", ".join([self.configuration, *[f"order {self.order}"] * bool(self.order), f"seed {self.seed}"])


class LeftOut(NamedTuple):
    """A cell of the product of all axes that is not run."""

    cell: SweepCell
    reason: str


def grid(params: SweepParams) -> tuple[list[SweepCell], list[LeftOut]]:
    """List the cells of a sweep, and those that are impossible or redundant with the reason.

    What a model's hyperparameters refuse is found where they are known, see :func:`editkit.studies.sweep_plan.survey`.
    """
    cells, left = [], []
    for part in dict.fromkeys(params.sweep_parts):
        for cell in dict.fromkeys(_product(params, part)):
            if reason := _reason(params, cell):
                left.append(LeftOut(cell, reason))
            else:
                cells.append(cell)
    return cells, left


def facts_of(params: SweepParams, part: Part) -> int:
    """Return how many facts of a seed a part edits."""
    return {"batches": params.n_facts, "sequences": params.sequence_facts, "evaluation": params.evaluation_facts}[part]


def seeds_of(params: SweepParams, part: Part) -> list[int]:
    """Return the seeds of a part, each once."""
    return list(dict.fromkeys(params.sequence_seeds if part == "sequences" else params.seeds))


def _product(params: SweepParams, part: Part) -> Iterator[SweepCell]:
    """Yield every combination of a part's axes, seeds last, so that a comparison of all methods is complete early."""
    orders = [0] if part == "evaluation" else list(dict.fromkeys(params.sweep_orders))
    for seed in seeds_of(params, part):
        for order in orders:
            for method in _names(params, part):
                for size in _sizes(params, part, method):
                    for changes in _changes(params, part, method, size):
                        yield SweepCell(part, method, size, seed, tuple(changes.items()), order)


def _names(params: SweepParams, part: Part) -> list[str]:
    names = [name for method in params.methods for name in ([method, CONTROL] if method == "emmet" else [method])]
    if part == "sequences":
        names = [*params.sequence_methods, *params.methods, *params.sweep_controls]
    if part == "evaluation":
        names = [UNTOUCHED, *params.methods, *params.controls]
    return list(dict.fromkeys(names))


def _sizes(params: SweepParams, part: Part, method: str) -> list[int]:
    if part == "sequences" and params.sweep_steps:
        return [1] if _alone(method) else list(dict.fromkeys(params.sweep_steps))
    if part == "sequences":
        return sorted({1, params.sequence_batch, params.sequence_facts})
    return list(dict.fromkeys(params.batch_sizes)) if part == "batches" else [params.evaluation_facts]


def _changes(params: SweepParams, part: Part, method: str, size: int) -> Iterator[Changes]:
    """Yield the ways of remembering of a method, each with every form of its updates."""
    if part == "evaluation" or method not in METHODS:
        yield {}
        return
    for memory in _memories(params, part, method):
        for form in _forms(params, method, size, memory):
            yield memory | form


def _memories(params: SweepParams, part: Part, method: str) -> list[Changes]:
    own = params.model_copy(update={"sequence_methods": [method]})
    found = [changes for changes in ablation_grid(own) if changes["replay"] in params.sweep_replays]
    if "buffer" in params.sweep_replays and 0 in params.replay_rates:
        found.append({"replay": "buffer", "replay_rate": 0.0})
    if "published" in params.sweep_replays:
        found.append({})
    if part == "batches":  # one that has nothing to remember is as published
        found = [{}, *(changes for changes in found if changes.get("replay", "none") != "none")]
    return found


def _forms(params: SweepParams, method: str, size: int, memory: Changes) -> list[Changes]:
    """List the forms of an update; a rank of at least its columns needs no fit, and is run once, as *exact*."""
    forms: list[Changes] = [{}] if "raw" in params.sweep_edit_modes else []
    if "lora" in params.sweep_edit_modes:
        forms.append(adapter(_columns(params, method, size, memory), "exact"))
        forms += [adapter(rank, fit) for rank in params.lora_ranks for fit in params.lora_fits]
    return forms


def _alone(method: str) -> bool:
    """Say whether a method, or control, knows no batches."""
    return method in METHODS and METHODS[method].one_at_a_time


def _columns(params: SweepParams, method: str, size: int, memory: Changes) -> int:
    """Return the largest number of edits that an update corrects: new ones, and earlier ones that are pulled back."""
    if _alone(method):
        return 1
    most = max(size, params.sequence_facts)
    if memory.get("replay") == "history":
        return most
    return min(size + _replayed(memory.get("replay_rate", 0.0), size), most)


def _replayed(rate: float, size: int) -> int:
    """Return how many earlier edits a rate replays with a new batch, where there are so many."""
    return math.ceil(rate * size - ROUNDING)


def _repeats(params: SweepParams, cell: SweepCell) -> str:
    """Say to which value that stands before it in its list one of a cell's buffer comes; empty where to none."""
    changed, size, facts = dict(cell.changes), cell.batch_size, facts_of(params, cell.part)
    rate, kept = changed["replay_rate"], changed.get("replay_max_items", 0)
    again = _replayed(rate, size)
    first = next((other for other in params.replay_rates if other and _replayed(other, size) == again), rate)
    if first != rate and params.hyperparameters.get("replay_base", "batch") == "batch":
        return f"a rate of {rate:g} replays {again} with {size} new, as {first:g} does"
    if kept >= facts and (others := [n for n in params.replay_sizes if not n or n >= facts]) and others[0] != kept:
        return f"a buffer of {kept} keeps all {facts} edits, as replay_max_items = {others[0]} does"
    return ""


def _reason(params: SweepParams, cell: SweepCell) -> str:
    """Say why a cell is not run; empty where it is."""
    facts, size, changed = facts_of(params, cell.part), cell.batch_size, dict(cell.changes)
    replay, rank = changed.get("replay", "none"), changed.get("lora_rank", 0)
    if cell.part == "evaluation":
        few = size > params.n_facts
        return f"evaluation_facts = {size} are more than n_facts = {params.n_facts}" if few else ""
    alone = _alone(cell.method)
    columns, batches = _columns(params, cell.method, size, changed), cell.part == "batches"
    unheld = cell.method == "memit_rls" and not batches and changed.get("replay", "hold") != "hold"
    repeated = _repeats(params, cell) if changed.get("replay_rate") else ""
    fitted = changed.get("lora_fit") not in (None, "exact")
    reasons = [
        (facts % size, f"{size} does not divide {facts} facts"),
        (alone and replay != "none", f"{cell.method} replays nothing: emmet is its batched form"),
        (alone and size > 1 and not batches, f"{cell.method} knows no batches: steps of {size} are its single edits"),
        (replay != "none" and batches, "every batch is made in the untouched model: there is nothing to replay"),
        (replay != "none" and size == facts, "one batch has nothing to replay"),
        (replay == "buffer" and not changed.get("replay_rate"), "a replay rate of 0 is no replay"),
        (unheld, "memit_rls is memit that holds all edits: without hold it is memit"),
        (repeated, repeated),
        (cell.order and batches, "every batch is made in the untouched model: there is no order"),
        (cell.order and size == facts, "one batch has no order"),
        (fitted and rank >= columns, f"rank {rank} holds all {columns} edits of an update: exact is that"),
    ]
    return next((reason for holds, reason in reasons if holds), "")
