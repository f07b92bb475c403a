"""Edits as low-rank adapters: every rank and fit, fine-tuning beside them, and batches switched off again."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
from pydantic import Field

from editkit.config import Count, Parameters, Positive, Seed
from editkit.editing.lowrank import spectrum
from editkit.language.domain import EditSession
from editkit.language.finetune import FinetuneSpec
from editkit.language.metrics import evaluate, places
from editkit.methods import SequenceMethodName
from editkit.models import LanguageModel
from editkit.studies.runs import check_batches, run_finetuning
from editkit.studies.sequences import Trajectory, run_all
from editkit.studies.setting import Setting
from editkit.studies.tables import SCORES, scores_of

BATCHES = (1, 2, 3)  # of the adapters that are switched off in turn
SENTENCE = "The capital of France is Paris, and that of Italy is Rome."
AGREEMENT = 1e-5  # of two models' logits, relative to their norm
FINETUNED = ["steps", "parameters", "seconds", "peak_memory_mb"]


class LoraParams(Parameters):
    """The chapter on low rank."""

    lora_method: SequenceMethodName = "emmet"
    """Editor whose updates are brought down to a low rank."""
    lora_facts: Annotated[int, Field(ge=3)] = 3
    """Facts edited per seed."""
    lora_batches: Annotated[list[Count], Field(min_length=1)] = [1, 3]
    """Edits of one step; each divides lora_facts."""
    lora_ranks: Annotated[list[Count], Field(min_length=1)] = [1]
    """Ranks of a step's adapter; full rank is always run beside them."""
    lora_fits: Annotated[list[Literal["svd", "keys", "steps"]], Field(min_length=1)] = ["svd", "keys"]
    """Ways of bringing an update down to a rank below its own."""
    lora_replays: Annotated[list[Literal["none", "hold", "history"]], Field(min_length=1)] = ["none", "hold"]
    """How earlier edits take part."""
    lora_seeds: Annotated[list[Seed], Field(min_length=1)] = [1]
    """Each draws other facts and other context prefixes; 0 takes a file's own order."""
    finetune_rates: list[Positive] = [0.03]
    """Learning rates of LoRA fine-tuning, of which the best is reported; empty leaves it out."""
    finetune_steps: Count = 2
    """Steps of LoRA fine-tuning at most."""


def rank_grid(params: LoraParams) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the edits of a step and the changes of a spec of every run: replay, rank and fit.

    A rank of at least the edits of a step needs no fit, so it is run once, as *exact*.
    """
    for size, replay in itertools.product(params.lora_batches, dict.fromkeys(["none", *params.lora_replays])):
        if replay != "none" and size == params.lora_facts:
            continue  # one batch has no earlier edits
        enough = params.lora_facts if replay == "history" else size  # history corrects earlier edits too
        yield size, {"replay": replay}
        yield size, adapter(enough, "exact", replay=replay)
        ranks = [rank for rank in params.lora_ranks if rank < enough]
        yield from ((size, adapter(rank, fit, replay=replay)) for rank in ranks for fit in params.lora_fits)


def stack_grid(params: LoraParams) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the same for one adapter that grows with every step, and for one that is fitted again after it."""
    size, rank = params.lora_batches[0], params.lora_ranks[0]
    for stack, replay in itertools.product(("grow", "fixed"), params.lora_replays):
        yield size, adapter(rank, "keys", replay=replay, lora_stack=stack)


def adapter(rank: int, fit: str, **changes: Any) -> dict[str, Any]:
    """Change a spec to edit by adapters of this rank."""
    return {"edit_mode": "lora", "lora_rank": rank, "lora_fit": fit, **changes}


def run_adapters(setting: Setting, params: LoraParams, grid: Iterable[tuple[int, dict[str, Any]]]) -> Trajectory:
    """Run every configuration of a grid, measured after each step and after the last.

    Raises ``ValueError``, before anything is run, for steps that do not divide the facts, and where two entries come to
    one configuration.
    """
    check_batches(params.lora_facts, params.lora_batches)
    cells = [(setting.spec(params.lora_method, **changes), size) for size, changes in grid]
    return run_all(setting, cells, every=params.lora_facts, drift=False)


def run_finetuned(setting: Setting, params: LoraParams) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fine-tune at every rank with every learning rate, and keep the rate with the highest mean S.

    A rate that diverges on any seed has lost. Returns one row a rank and seed, and the prompts with their rank; both
    are empty where no rate is given or every one diverges.
    """
    layers, tables, prompts = setting.spec(params.lora_method).resolve(setting.lm).layers, [], []
    for rank in params.lora_ranks:
        tried = []
        for rate in params.finetune_rates:
            try:
                tried.append(run_finetuning(setting, FinetuneSpec(layers, rank, rate, params.finetune_steps)))
            except FloatingPointError:
                continue
        if tried:
            rows, scored = max(tried, key=lambda found: found[0].S.mean())
            tables.append(rows)
            prompts.append(scored.assign(rank=rank))
    where: dict[str, Any] = {"method": "finetuning", "model": setting.lm.name, "dataset": setting.dataset}
    where["n_facts"] = params.lora_facts
    table = pd.concat(tables) if tables else pd.DataFrame(columns=["seed", "rank", "lr", *SCORES, *FINETUNED])
    numbers = ["lr", *scores_of(table), *FINETUNED]
    table = table.assign(**where)[[*where, "seed", "rank", *numbers]].astype(dict.fromkeys(numbers, float))
    return table, pd.concat(prompts) if prompts else pd.DataFrame(columns=["rank"])


def update_spectra(setting: Setting, params: LoraParams) -> dict[int, list[float]]:
    """Give the singular values, largest first, of each layer's raw update by the first seed's facts all at once."""
    seed, draw = next(iter(setting.draws.items()))
    session = setting.session(setting.spec(params.lora_method), seed)
    try:
        return {item.layer: spectrum(item.update).tolist() for item in session.edit(draw.facts).updates}
    finally:
        session.undo()


def edit_batches(setting: Setting, params: LoraParams, seed: int, numbers: Sequence[int] = BATCHES) -> EditSession:
    """Start a session and edit these thirds of a seed's facts in this order, each as an adapter of its own."""
    third = params.lora_facts // len(BATCHES)
    form = adapter(third, "exact", lora_stack="batch")
    session = setting.session(setting.spec(params.lora_method, **form), seed)
    for number in numbers:
        session.edit(setting.draws[seed].facts[(number - 1) * third : number * third])
    return session


def run_removal(setting: Setting, params: LoraParams) -> pd.DataFrame:
    """Score three batches with all adapters on, with each switched off, and with each never made.

    Returns the prompts of all seeds with columns seed, moment, batch (of the fact), state ("on", "off", "never made")
    and switched (the batch in that state; 0 where all are on).
    """
    frames = []
    for seed in setting.draws:
        for number in BATCHES:
            session = edit_batches(setting, params, seed, [other for other in BATCHES if other != number])
            frames.append(_score(setting, params, seed).assign(state="never made", switched=number))
            session.undo()
        session = edit_batches(setting, params, seed)
        frames.append(_score(setting, params, seed).assign(state="on", switched=0))
        for number in BATCHES:
            with session.adapters.switched(off=[f"batch_{number}"]):
                frames.append(_score(setting, params, seed).assign(state="off", switched=number))
        session.undo()
    return pd.concat(frames, ignore_index=True)


def read_back(session: EditSession, copy: LanguageModel, folder: Path) -> dict[str, bool]:
    """Check what a saved adapter gives elsewhere, and that the session's model is untouched below it.

    Args:
        session: one whose adapters are all switched on, as they were saved to ``folder``.
        copy: a second copy of the base model, which ``peft`` then changes.

    Returns what is claimed, and whether it holds.
    """
    from peft import PeftModel

    lm, base = session.model, copy.fingerprint()
    ids = torch.tensor([lm.encode(SENTENCE)[0]], device=lm.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute by its old name
        elsewhere = PeftModel.from_pretrained(copy.model, folder)
    with torch.no_grad():
        ours, theirs = lm.model(ids).logits, elsewhere(ids).logits
        session.adapters.merge()
        merged = lm.model(ids).logits
    session.adapters.unmerge()
    session.adapters.disable(*session.adapters)
    return {
        "plain peft gives the same logits": bool((ours - theirs).norm() <= AGREEMENT * ours.norm()),
        "so does the merged model": bool((ours - merged).norm() <= AGREEMENT * ours.norm()),
        "unmerged and switched off, the model is the base model": lm.fingerprint() == base,
    }


def _score(setting: Setting, params: LoraParams, seed: int) -> pd.DataFrame:
    """Score every prompt of the three batches on the model as it stands."""
    third = params.lora_facts // len(BATCHES)
    facts = setting.draws[seed].facts[: len(BATCHES) * third]
    return evaluate(setting.lm, facts).assign(seed=seed, moment="final", batch=places(facts) // third + 1)
