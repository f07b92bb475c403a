"""What editors are compared with, on the same facts by the same scores: one tidy row a cell, resumable."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field
from tqdm.auto import tqdm

from editkit.config import Count, Parameters, Positive
from editkit.facts import Fact
from editkit.facts.fact import part_of
from editkit.language.controls import Control, Untouched, measure
from editkit.language.finetune import FinetuneSpec, LocFTSpec, TunedAdapter, finetune_matrix
from editkit.language.grace import LookUp
from editkit.language.incontext import InContext, Oracle
from editkit.language.metrics import summarize
from editkit.methods import UNTOUCHED
from editkit.models.peak import peak_mb, reset_peak
from editkit.studies.runs import Cell, check_batches, measurement_key, once
from editkit.studies.setting import Draw, Setting

ControlName = Literal["pre", "lora", "locft", "incontext", "incontext_oracle", "grace"]
GRIDS: dict[str, dict[str, list[Any]]] = {  # the combinations that tune_control tries, by control
    "lora": {"lora_control_lr": [0.003, 0.01, 0.03], "lora_control_steps": [25, 50]},
    "locft": {"locft_lr": [1.0e-4, 2.0e-4, 5.0e-4, 1.0e-3], "locft_batch_size": [8, 32, 100]},
    "grace": {"grace_eps": [0.1, 0.2, 0.4, 0.6, 0.8, 1.0]},
}


class ControlParams(Parameters):
    """What editors are compared with, at the editors' layers; the parameters of a control begin with its name."""

    controls: Annotated[list[ControlName], Field(min_length=1)] = ["pre", "locft", "incontext_oracle", "grace"]
    """Controls of facts: no edit (pre), fine-tuning (lora; locft: one matrix), facts in the prompt, a look-up of v*."""
    lora_control_rank: Count = 8
    """Rank of fine-tuning by LoRA."""
    lora_control_lr: Positive = 0.01
    """Learning rate of fine-tuning by LoRA."""
    lora_control_steps: Count = 50
    """Steps of fine-tuning by LoRA at most, each on all facts."""
    locft_lr: Positive = 5.0e-4
    """Learning rate of fine-tuning one matrix (LocFT-BF)."""
    locft_batch_size: Count = 100
    """Facts of a step at most in fine-tuning one matrix."""
    locft_epochs: Count = 25
    """Passes over the facts at most in fine-tuning one matrix."""
    grace_eps: Positive = 0.4
    """Largest radius of a stored key in the look-up, as a share of the key's norm."""


Maker = Callable[[Setting, int, Sequence[Fact], ControlParams], Control | Oracle]


def _lora(setting: Setting, seed: int, facts: Sequence[Fact], params: ControlParams) -> Control:
    layers = setting.spec("memit").resolve(setting.lm).layers
    rank, lr, steps = params.lora_control_rank, params.lora_control_lr, params.lora_control_steps
    return TunedAdapter.train(setting.lm, facts, FinetuneSpec(layers, rank, lr, steps, seed), progress=setting.progress)


def _locft(setting: Setting, seed: int, facts: Sequence[Fact], params: ControlParams) -> Control:
    how = {"lr": params.locft_lr, "batch_size": params.locft_batch_size, "num_steps": params.locft_epochs}
    layer = setting.spec("memit").resolve(setting.lm).layers[-1]
    spec = LocFTSpec(layer=layer, seed=seed, **how)
    return finetune_matrix(setting.lm, facts, spec, progress=setting.progress)


def _grace(setting: Setting, seed: int, facts: Sequence[Fact], params: ControlParams) -> Control:
    spec = setting.spec("memit").resolve(setting.lm)
    where = {"store": setting.store, "progress": setting.progress}
    return LookUp.of(setting.lm, facts, spec, setting.contexts[seed], eps=params.grace_eps, **where)


MAKERS: dict[str, Maker] = {
    UNTOUCHED: lambda setting, seed, facts, params: Untouched(setting.lm),
    "lora": _lora,
    "locft": _locft,
    "incontext": lambda setting, seed, facts, params: InContext(setting.lm, facts),
    "incontext_oracle": lambda setting, seed, facts, params: Oracle(setting.lm, facts),
    "grace": _grace,
}


def run_controls(
    setting: Setting, params: ControlParams, batch_sizes: Sequence[int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score each control at each batch size as :func:`editkit.studies.runs.run_baselines` scores editors.

    The facts of a seed are cut into batches; a control is made of each on the untouched model, which is scored under it
    on the batch. No edit has one cell a seed.

    Returns the tidy table (one row a cell: scores, ``seconds`` of making, ``delta_norm``, ``parameters`` and what the
    control was made by) and the scores of every prompt, both with columns as there.
    Raises ``ValueError`` for a size that does not divide the facts, and for more facts in a prompt than there are
    positions for.
    """
    rows, prompts = [], []
    for seed, draw in setting.draws.items():
        check_batches(len(draw.facts), batch_sizes)
        cells = [(name, size) for name in params.controls for size in ([0] if name == UNTOUCHED else batch_sizes)]
        bar = tqdm(cells, desc=f"{setting.dataset}, seed {seed}", unit="cell", disable=not setting.progress)
        for name, size in bar:
            bar.set_postfix_str(f"{name}, {size} at once")
            row, frame = _cell(setting, seed, name, params, size)
            where = {"method": name, "model": setting.lm.name, "dataset": setting.dataset}
            where |= {"batch_size": size, "seed": seed}
            rows.append(where | row)
            prompts.append(frame.assign(**where, moment=row["moment"]))
    return pd.DataFrame(rows), pd.concat(prompts, ignore_index=True)


def tune_control(
    setting: Setting,
    name: ControlName,
    params: ControlParams,
    *,
    n_facts: int = 128,
    grid: Mapping[str, Sequence[Any]] | None = None,
) -> pd.DataFrame:
    """Try every combination of some parameters of a control on one batch of facts for tuning.

    Each combination is read from the store where it was tried before, so an interrupted search goes on where it was.

    Args:
        grid: values by the names of parameters; those of ``GRIDS`` where not given.

    Returns a row a combination as :func:`run_controls` does, by falling S; one that diverged has no scores and comes
    last. Raises ``ValueError`` for a control without a grid and where there are no facts for tuning.
    """
    if grid is None and name not in GRIDS:
        raise ValueError(f"{name} has nothing to tune: give a grid, or take one of {', '.join(GRIDS)}")
    facts = list(setting.tune[:n_facts])
    if not facts or any(part_of(fact) != "tune" for fact in facts):
        raise ValueError(f"n_facts = {n_facts}: tuning needs facts, all of the tune part")
    seed = next(iter(setting.draws))  # whose context prefixes are taken
    tuning = replace(setting, draws={seed: Draw(facts, [], len(facts))})
    grid, rows = GRIDS[name] if grid is None else grid, []
    for values in tqdm(list(itertools.product(*grid.values())), desc=f"tuning {name}", disable=not setting.progress):
        tried = dict(zip(grid, values, strict=True))
        try:
            row, _ = _cell(tuning, seed, name, ControlParams(**(params.model_dump() | tried)), len(facts))
        except FloatingPointError:  # this is what it says of itself
            row = tried | {"S": math.nan}
        rows.append(row)
    return pd.DataFrame(rows).sort_values("S", ascending=False, ignore_index=True)


def _cell(setting: Setting, seed: int, name: str, params: ControlParams, size: int) -> Cell:
    own = {field: value for field, value in params if field.startswith(f"{name}_")}
    spec = setting.spec("memit").resolve(setting.lm).model_dump()  # layers, and how v* is found
    key = measurement_key(setting, seed, __name__) | {"control": name, "own": own, "spec": spec, "batch_size": size}
    return once(setting.store, key, partial(_measure, setting, seed, name, params, size))


def _measure(setting: Setting, seed: int, name: str, params: ControlParams, size: int) -> Cell:
    """Measure batches of ``size`` facts, 0 for all at once, each under a control of its own."""
    facts, frames, costs, memory, scoring = setting.draws[seed].facts, [], [], 0.0, 0.0
    step = size or len(facts)
    for begin in range(0, len(facts), step):
        batch = facts[begin : begin + step]
        reset_peak(setting.lm.device)
        control = MAKERS[name](setting, seed, batch, params)
        costs.append((control.seconds, control.delta_norm, control.parameters))
        memory = max(memory, peak_mb(setting.lm.device))
        start = time.perf_counter()
        frames.append(measure(control, batch, progress=setting.progress).assign(batch=len(frames) + 1))
        scoring += time.perf_counter() - start
    frame = pd.concat(frames, ignore_index=True)
    seconds, norms, parameters = zip(*costs, strict=True)
    row = {
        "moment": UNTOUCHED if name == UNTOUCHED else "immediate",
        "n_facts": len(facts),
        **summarize(frame),
        "seconds_scoring": scoring,
        "seconds": sum(seconds),
        "delta_norm": sum(norms) / len(norms),
        "parameters": max(parameters),
        "peak_memory_mb": memory,
        **{field: value for field, value in params if field.startswith(f"{name}_")},
    }
    return row, frame
