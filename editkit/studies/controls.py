"""What editors are compared with: how each control is made of facts, by which parameters, and the choice of these.

What it then scores on the same facts is for :mod:`editkit.studies.evaluation` to say.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import pandas as pd
from tqdm.auto import tqdm

from editkit.config import Count, Parameters, Positive
from editkit.editing.spec import EditSpec
from editkit.facts import Fact
from editkit.facts.fact import part_of
from editkit.language.controls import Control, cost, measure
from editkit.language.finetune import (
    FinetuneSpec,
    LocFTSpec,
    TunedAdapter,
    TunedMatrix,
    Watch,
    finetune_matrix,
    unwatched,
)
from editkit.language.grace import LookUp
from editkit.language.incontext import InContext, Oracle
from editkit.language.metrics import summarize
from editkit.studies.runs import Cell, measurement_key, once
from editkit.studies.setting import Draw, Setting

ControlName = Literal["lora", "locft", "incontext", "incontext_oracle", "grace"]
GRIDS: dict[str, dict[str, list[Any]]] = {  # the combinations that tune_control tries, by control
    "lora": {"lora_control_lr": [0.003, 0.01, 0.03], "lora_control_steps": [25, 50]},
    "locft": {"locft_lr": [5.0e-4, 2.0e-3, 0.01, 0.02, 0.04], "locft_batch_size": [8, 32, 100]},
    "grace": {"grace_eps": [0.1, 0.2, 0.4, 0.6, 0.8, 1.0]},
}


class ControlParams(Parameters):
    """What editors are compared with, at the editors' layers; the parameters of a control begin with its name."""

    controls: list[ControlName] = ["locft", "incontext_oracle", "grace"]
    """Controls of facts beside no edit: fine-tuning (lora; locft: one matrix), facts in the prompt, a look-up of v*."""
    lora_control_rank: Count = 8
    """Rank of fine-tuning by LoRA."""
    lora_control_lr: Positive = 0.01
    """Learning rate of fine-tuning by LoRA."""
    lora_control_steps: Count = 50
    """Steps of fine-tuning by LoRA at most, each on all facts."""
    locft_lr: Positive = 0.02
    """Learning rate of fine-tuning one matrix (LocFT-BF); of .01, .02 and .04 the best by S on SmolLM2's tune facts."""
    locft_batch_size: Count = 8
    """Facts of a step at most in fine-tuning one matrix."""
    locft_epochs: Count = 25
    """Passes over the facts at most in fine-tuning one matrix."""
    grace_eps: Positive = 0.6
    """Largest radius of a stored key in the look-up, as a share of the key's norm."""


def _editors(setting: Setting) -> EditSpec:
    """Return what controls share with editors: the layers, and how v* is found."""
    return setting.spec("memit").resolve(setting.lm)


Maker = Callable[[Setting, int, Sequence[Fact], ControlParams], Control | Oracle]


def _lora(
    setting: Setting, seed: int, facts: Sequence[Fact], params: ControlParams, watch: Watch = unwatched
) -> TunedAdapter:
    layers = _editors(setting).layers
    rank, lr, steps = params.lora_control_rank, params.lora_control_lr, params.lora_control_steps
    spec = FinetuneSpec(layers, rank, lr, steps, seed)
    return TunedAdapter.train(setting.lm, facts, spec, progress=setting.progress, watch=watch)


def locft_spec(setting: Setting, seed: int, params: ControlParams) -> LocFTSpec:
    """Specify how LocFT-BF trains the last of the editors' layers."""
    how: dict[str, Any] = {
        "lr": params.locft_lr,
        "batch_size": params.locft_batch_size,
        "num_steps": params.locft_epochs,
    }
    return LocFTSpec(layer=_editors(setting).layers[-1], seed=seed, **how)


def _locft(
    setting: Setting, seed: int, facts: Sequence[Fact], params: ControlParams, watch: Watch = unwatched
) -> TunedMatrix:
    spec = locft_spec(setting, seed, params)
    return finetune_matrix(setting.lm, facts, spec, progress=setting.progress, watch=watch)


def look_up(setting: Setting, seed: int, facts: Sequence[Fact], params: ControlParams) -> LookUp:
    """Look up facts at the last of the editors' layers, with the targets of memit."""
    where: dict[str, Any] = {"store": setting.store, "progress": setting.progress}
    return LookUp.of(setting.lm, facts, _editors(setting), setting.contexts[seed], eps=params.grace_eps, **where)


def own_parameters(name: str, params: ControlParams) -> dict[str, Any]:
    """Return the parameters of one control, by their names."""
    return {field: getattr(params, field) for field in ControlParams.model_fields if field.startswith(f"{name}_")}


MAKERS: dict[str, Maker] = {
    "lora": _lora,
    "locft": _locft,
    "incontext": lambda setting, seed, facts, params: InContext(setting.lm, facts),
    "incontext_oracle": lambda setting, seed, facts, params: Oracle(setting.lm, facts),
    "grace": look_up,
}


class Trainer(NamedTuple):
    """How a control is trained that may be looked at on its way."""

    train: Callable[[Setting, int, Sequence[Fact], ControlParams, Watch], TunedAdapter | TunedMatrix]
    rate: str  # name of the parameter
    budget: str  # the same, of what it takes at most
    unit: str  # of the budget


TRAINERS = {
    "locft": Trainer(_locft, "locft_lr", "locft_epochs", "epoch"),
    "lora": Trainer(_lora, "lora_control_lr", "lora_control_steps", "step"),
}


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

    Returns a row a combination: scores, ``seconds`` of making, ``delta_norm``, ``parameters`` and what was tried, by
    falling S; one that diverged has no scores and comes last. Raises ``ValueError`` for a control without a grid and
    where there are no facts for tuning.
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
            row, _ = _tried(tuning, seed, facts, name, ControlParams(**(params.model_dump() | tried)))
        except FloatingPointError:  # this is what it says of itself
            row = tried | {"S": math.nan}
        rows.append(row)
    return pd.DataFrame(rows).sort_values("S", ascending=False, ignore_index=True)


def _tried(setting: Setting, seed: int, facts: Sequence[Fact], name: str, params: ControlParams) -> Cell:
    """Make a control of facts and score them under it, or read what was found before."""
    own = own_parameters(name, params)
    key = measurement_key(setting, seed, __name__) | {"control": name, "own": own}
    key |= {"spec": _editors(setting).model_dump()}

    def measured() -> Cell:
        control = MAKERS[name](setting, seed, facts, params)
        frame = measure(control, facts, progress=setting.progress)
        return {"n_facts": len(facts), **summarize(frame), **cost(control), **own}, frame

    return once(setting.store, key, measured)
