"""Grids of edits, scored: one tidy row a measurement, resumable cell by cell."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated, Any

import pandas as pd
from pydantic import Field
from tqdm.auto import tqdm

from editkit.cache import Store, digest, entry_key
from editkit.config import Count, Parameters, Seed
from editkit.editing.adapters import AdapterStack
from editkit.editing.budget import Budget
from editkit.editing.spec import EditSpec
from editkit.facts import Fact, data_hash
from editkit.language.finetune import FinetuneSpec, finetune
from editkit.language.gradients import read_gradients
from editkit.language.metrics import evaluate, summarize
from editkit.language.targets import optimise_targets
from editkit.methods import COMPARED, METHODS, UNTOUCHED, MethodName
from editkit.models import LanguageModel
from editkit.models.peak import peak_mb, reset_peak
from editkit.studies import protocol
from editkit.studies.setting import Setting

CONTROL = "memit_control"  # among the looks of methods
Rows = list[dict[str, Any]]
Cell = tuple[dict[str, Any], pd.DataFrame]  # a row of a table, and the scores of every prompt behind it


class BaselineParams(Parameters):
    """The chapter on edits of one batch."""

    methods: Annotated[list[MethodName], Field(min_length=1)] = list(COMPARED)
    """Editors to compare."""
    batch_sizes: Annotated[list[Count], Field(min_length=1)] = [1, 2]
    """Edits held by the model at once."""
    n_facts: Count = 2
    """Facts edited per seed; every batch size divides them."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [1]
    """Each draws other facts and other context prefixes."""
    n_examples: Annotated[int, Field(ge=0)] = 2
    """Before-and-after completions shown."""
    neighbour_budget: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Share of NS before any edit that editors promise to keep on tune facts, beside their fixed λ; 0 leaves it out."""


def check_batches(n_facts: int, batch_sizes: Sequence[int]) -> None:
    """Raise ``ValueError`` for a batch size that does not divide the number of facts."""
    if bad := [size for size in batch_sizes if n_facts % size]:
        raise ValueError(f"batch_sizes = {list(batch_sizes)}: {bad[0]} does not divide n_facts = {n_facts}")


def baseline_specs(setting: Setting, methods: Sequence[str]) -> dict[str, EditSpec]:
    """Specify the methods to compare by name, and beside emmet a control: memit at emmet's layers and weight.

    With C weighed alike and in the same layers, what is left between emmet and the control is emmet's equality (and its
    ridge, where it has one). There is no control where memit's own layers and weight are those already.
    """
    specs = {method: setting.spec(method) for method in methods}
    if "emmet" in specs:
        ours, memit = (setting.spec(method).resolve(setting.lm) for method in ("emmet", "memit"))
        same = {name: getattr(ours, name) for name in ("layers", "mom2_update_weight")}
        if same != {name: getattr(memit, name) for name in same}:
            specs[CONTROL] = setting.spec("memit", **same)
    return specs


def budget_specs(specs: Mapping[str, EditSpec], neighbour_budget: float) -> dict[str, EditSpec]:
    """Let every method promise to keep a share of NS; none does where the share is 0.

    Controls are left out, and methods that edit one fact after another, all of which a search would write at each try.
    """
    promising = [name for name, method in METHODS.items() if neighbour_budget and not method.one_at_a_time]
    promise = {"neighbour_budget": neighbour_budget}
    return {name: spec.model_copy(update=promise) for name, spec in specs.items() if name in promising}


def run_baselines(
    setting: Setting, specs: Mapping[str, EditSpec], batch_sizes: Sequence[int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score each of some specs, by the names of their rows, at each batch size: how well does the model hold it?

    The facts of a seed are cut into batches; every batch is edited into the untouched model, scored right after
    (``moment`` "immediate") and undone. The first row of a seed (``method`` and ``moment`` "pre") is the untouched
    model on the same facts. A cell done before with the same model, data, parameters and code is read from the
    store, so an interrupted run goes on where it was.

    Returns the tidy table (one row a cell: scores, seconds, peak memory, hyperparameters, what promises took;
    ``method`` is the name of the spec, ``seconds`` counts whole edits, their targets found before), and the scores of
    every prompt (:func:`evaluated`) with ``method``, ``batch_size``, ``seed``, ``moment`` and, of edits, ``batch``
    (from 1, in its seed).
    """
    rows, prompts = [], []
    for draw in setting.draws.values():
        check_batches(len(draw.facts), batch_sizes)
    for seed in setting.draws:
        seeded = {name: spec.model_copy(update={"seed": seed}) for name, spec in specs.items()}
        warm_targets(setting, seed, list(seeded.values()))
        origin = protocol.origin(setting, seed)
        cells = [(UNTOUCHED, None, 0)] + [(name, spec, size) for name, spec in seeded.items() for size in batch_sizes]
        bar = tqdm(cells, desc=f"{setting.dataset}, seed {seed}", unit="cell", disable=not setting.progress)
        for method, spec, size in bar:
            bar.set_postfix_str(f"{method}, {size} at once" if spec else "before any edit")
            cell = measure_batches(setting, seed, spec, size) if spec else untouched(setting, seed)
            row, frame = placed(origin, method, size, cell)
            rows.append(row)
            prompts.append(frame)
    return pd.DataFrame(rows), pd.concat(prompts, ignore_index=True)


def placed(origin: Mapping[str, Any], method: str, size: int, cell: Cell) -> Cell:
    """Say of a measured cell, row and prompts, where it belongs: its method, size, and origin as protocol states it."""
    row, frame = cell
    where = {"method": method, "batch_size": size, **origin}
    return where | row, frame.assign(**where, moment=row["moment"])


def measurement_key(setting: Setting, seed: int, code: str = __name__) -> dict[str, Any]:
    """Return what determines a measurement on the facts of a seed, hyperparameters aside.

    Args:
        code: dotted name of the module that measures.
    """
    return entry_key(
        code,
        setting.lm,
        facts=data_hash(setting.draws[seed].facts),
        **_asked_freely(setting),
        texts=digest(list(setting.texts)),
        contexts=list(setting.contexts[seed]),
        **({"drawn": data_hash(setting.drawn[seed])} if seed in setting.drawn else {}),
    )


def _asked_freely(setting: Setting) -> dict[str, int]:
    return {"fluency_facts": setting.fluency_facts, "said_facts": setting.said_facts}


def free_speech(setting: Setting, seed: int, model: LanguageModel, facts: Sequence[Fact]) -> Rows:
    """Let a model speak freely about those of some facts that are among the first drawn of a seed.

    Returns rows of :func:`editkit.language.metrics.evaluate`, of plain values: what is said and exact after the prompts
    of the first ``said_facts``, and GE of the texts on the first ``fluency_facts``.
    """
    drawn, rows = setting.drawn.get(seed, setting.draws[seed].facts), []
    first = set(drawn[: setting.said_facts])
    if asked := [fact for fact in facts if fact in first]:
        rows += evaluate(model, asked, rungs=["said"])[["fact", "kind", "said", "exact"]].to_dict(orient="records")
    first = set(drawn[: setting.fluency_facts])
    if written := [fact for fact in facts if fact in first and fact.generation]:
        from editkit.language.fluency import fluency  # NLTK, which nothing else needs, takes a second

        rows += fluency(model, written)[["fact", "GE"]].assign(kind="generation").to_dict(orient="records")
    return rows


def evaluated(setting: Setting, seed: int, facts: Sequence[Fact]) -> tuple[pd.DataFrame, Rows]:
    """Score every prompt of some facts, and let the model speak freely about them.

    Returns the rows of :func:`editkit.language.metrics.evaluate`, with what is said beside the prompts that were
    answered freely (column ``said``, missing elsewhere; none where nothing was asked), and :func:`free_speech`.
    """
    frame, spoken = evaluate(setting.lm, facts), free_speech(setting, seed, setting.lm, facts)
    if said := [row for row in spoken if "said" in row]:
        asked = frame.index[frame.fact.isin({row["fact"] for row in said})]  # in the same order
        frame["said"] = pd.Series([row["said"] for row in said], asked, dtype=object)
    return frame, spoken


def averaged(spoken: Rows) -> dict[str, float]:
    """Return the scores of :func:`free_speech` for a row of a table: none where nothing was spoken."""
    return summarize(pd.DataFrame(spoken)) if spoken else {}


def untouched(setting: Setting, seed: int) -> Cell:
    """Measure the untouched model on the facts of a seed."""
    facts = setting.draws[seed].facts

    def measure() -> Cell:
        start = time.perf_counter()
        frame, spoken = evaluated(setting, seed, facts)
        scores = summarize(frame) | averaged(spoken)
        seconds = time.perf_counter() - start
        return {"moment": UNTOUCHED, "n_facts": len(facts), **scores, "seconds_scoring": seconds}, frame

    return once(setting.store, measurement_key(setting, seed) | {"spec": None}, measure)


def warm_targets(setting: Setting, seed: int, specs: Sequence[EditSpec]) -> None:
    """Optimise the targets of all facts of a seed together, which is several times faster than batch by batch."""
    facts, contexts = setting.draws[seed].facts, setting.contexts[seed]
    for resolved in (spec.resolve(setting.lm) for spec in specs):
        if resolved.target_mode != "gradient":  # which has none
            optimise_targets(setting.lm, facts, resolved, contexts, store=setting.store, progress=setting.progress)


def target_losses(setting: Setting, seed: int, spec: EditSpec) -> pd.DataFrame:
    """Tabulate the loss of the target optimisation, a row an edit and step until its target has finished.

    Where there is no target the one step is that whose gradient is taken.
    """
    lm, facts, resolved = setting.lm, setting.draws[seed].facts, spec.resolve(setting.lm)
    if resolved.target_mode == "gradient":
        targets = read_gradients(lm, facts, resolved, progress=False)
    else:
        targets = optimise_targets(lm, facts, resolved, setting.contexts[seed], store=setting.store, progress=False)
    losses = pd.DataFrame(targets.losses.numpy()).rename_axis("edit").reset_index()
    return losses.melt("edit", var_name="step", value_name="loss").dropna()


def run_finetuning(setting: Setting, spec: FinetuneSpec) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fine-tune a LoRA adapter on the facts of each seed, score it, and take it off again.

    Returns one row a seed with scores, steps, seconds and peak memory, and the scores of every prompt; both are read
    from the store where the same was done before.
    Raises ``FloatingPointError`` where the loss or the factors leave the finite numbers.
    """
    rows, prompts = [], []
    for seed in setting.draws:
        seeded = replace(spec, seed=seed)
        key = entry_key(
            __name__,
            setting.lm,
            facts=setting.hashes[seed],
            finetuning=asdict(seeded),
            **_asked_freely(setting),
        )
        row, frame = once(setting.store, key, partial(_finetuned, setting, seed, seeded))
        about = {"seed": seed, **protocol.named(setting, seed)}
        rows.append(row | about)
        prompts.append(frame.assign(**about, moment="final"))
    return pd.DataFrame(rows), pd.concat(prompts)


def _finetuned(setting: Setting, seed: int, spec: FinetuneSpec) -> Cell:
    lm, facts = setting.lm, setting.draws[seed].facts
    stack = AdapterStack(lm)
    reset_peak(lm.device)
    try:
        history = finetune(stack, "finetuned", facts, spec, progress=setting.progress)
        memory, parameters = peak_mb(lm.device), stack["finetuned"].n_parameters
        frame, spoken = evaluated(setting, seed, facts)
        scores = summarize(frame) | averaged(spoken)
    finally:
        stack.close()
    cost = {"steps": len(history), "seconds": history.seconds.iloc[-1], "peak_memory_mb": memory}
    return {"rank": spec.rank, "lr": spec.lr, **scores, "parameters": parameters, **cost}, frame


def batches_key(setting: Setting, seed: int, spec: EditSpec, size: int) -> dict[str, Any]:
    """Return what determines a measurement of batches of ``size`` edits, each made in the untouched model."""
    key = measurement_key(setting, seed) | {"spec": spec.resolve(setting.lm).model_dump(), "batch_size": size}
    return key | ({"tune": data_hash(setting.tune)} if spec.neighbour_budget is not None else {})


def measure_batches(setting: Setting, seed: int, spec: EditSpec, size: int) -> Cell:
    """Measure batches of ``size`` edits, each made in the untouched model."""
    return once(setting.store, batches_key(setting, seed, spec, size), partial(_edit, setting, seed, spec, size))


def _edit(setting: Setting, seed: int, spec: EditSpec, size: int) -> Cell:
    session, facts = setting.session(spec, seed), setting.draws[seed].facts
    frames: list[pd.DataFrame] = []
    spoken, seconds, norms, budgets, memory, scoring = [], [], [], [], 0.0, 0.0
    for begin in range(0, len(facts), size):
        batch = facts[begin : begin + size]
        result = session.edit(batch)
        try:
            start = time.perf_counter()
            frame, heard = evaluated(setting, seed, batch)
            frames.append(frame.assign(batch=len(frames) + 1))
            spoken += heard
            scoring += time.perf_counter() - start
        finally:
            session.undo()
        seconds.append(result.seconds)
        norms.append(result.delta_norm)
        memory = max(memory, result.peak_memory_mb)
        budgets += [result.budget] if result.budget else []
    frame = pd.concat(frames, ignore_index=True)
    row = {
        "moment": "immediate",
        "n_facts": len(facts),
        **summarize(frame),
        **averaged(spoken),
        **{f"seconds_{stage}": sum(batch[stage] for batch in seconds) for stage in ("targets", "keys", "solve")},
        "seconds_scoring": scoring,
        "seconds": sum(batch["total"] for batch in seconds),
        "delta_norm": sum(norms) / len(norms),
        "peak_memory_mb": memory,
        "target_precision": result.targets.precision,
        **{name: value for name, value in session.spec if name not in ("method", "seed")},
        **_spent(budgets),
    }
    return row, frame


def _spent(budgets: Sequence[Budget]) -> dict[str, float]:
    """Say what promises took over batches: their median weight, and on average what it keeps and a weight of 0 would.

    ``unwritten`` counts the batches of which nothing was written, as no weight held them.
    """
    if not budgets:
        return {}
    found = {"weight": float(pd.Series([budget.weight for budget in budgets]).median())}
    for name in budgets[0].promised:
        found[f"{name}_kept"] = sum(budget.measured[name] for budget in budgets) / len(budgets)
        found[f"{name}_kept_unweighted"] = sum(budget.tries[0.0][name] for budget in budgets) / len(budgets)
    return found | {"unwritten": sum(not budget.holds for budget in budgets)}


def once(store: Store, key: dict[str, Any], compute: Callable[[], Cell]) -> Cell:
    """Read a cell from the store, or compute and store it."""

    def plain() -> dict[str, Any]:
        row, frame = compute()
        return {"row": row, "frame": frame.to_dict(orient="list")}

    cell = store.plain("cell", key, plain)
    return cell["row"], pd.DataFrame(cell["frame"])
