"""What editors are compared with: the head alone, fine-tuning and training anew, each as far as the budget allows."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from editkit.editing.budget import LARGEST, spend
from editkit.studies.prepared import Prepared, load_classifier
from editkit.studies.repair_spec import FINETUNED, HEADS
from editkit.vision.controls import FinetuneSpec, HeadSpec, edit_head, features, finetune
from editkit.vision.data import joined
from editkit.vision.training import TrainSpec, train


def is_bounded(method: str) -> bool:
    """Return whether a method can be held to a budget: training anew ends where it ends."""
    return method != "retraining"


def change(prepared: Prepared, method: str, lowest: int) -> tuple[pd.DataFrame, float]:
    """Change the model by a control; returns its log, and the head's weight on what is kept where one was sought."""
    spec, vit, wrong, progress = prepared.spec, prepared.vit, prepared.candidates, prepared.progress
    kept = _keeping(prepared, method, lowest)
    holds = (lambda: kept() >= spec.kept_budget) if spec.kept_budget else None
    known: dict[str, Any] = {"kept_features": prepared.kept_features, "progress": progress}
    head = spec.part(HeadSpec)
    if method == "head_ewc":
        return edit_head(vit, wrong, prepared.kept, "ewc", head, holds=holds, **known), math.nan
    if method == "head_closed":
        first, logs = {name: tensor.clone() for name, tensor in vit.head.state_dict().items()}, {}

        def attempt(weight: float) -> dict[str, float]:
            vit.head.load_state_dict(first)
            slacker = head.model_copy(update={"slack": head.slack + weight})
            logs[weight] = edit_head(vit, wrong, prepared.kept, "closed", slacker, **known)
            return {"kept": kept()}

        if not spec.kept_budget:
            attempt(0.0)
            return logs[0.0], math.nan
        budget = spend({"kept": spec.kept_budget}, attempt)
        if budget.holds:
            attempt(budget.weight)
            return logs[budget.weight], budget.weight
        vit.head.load_state_dict(first)
        return logs[LARGEST].assign(taken_back=True), budget.weight
    if method == "retraining":
        return _retrained(prepared), math.nan
    tuning = spec.part(FinetuneSpec)
    options: dict[str, Any] = {"seed": spec.seed, "holds": holds, "progress": progress}
    return finetune(vit, wrong, prepared.kept, FINETUNED[method], tuning, **options), math.nan


def _keeping(prepared: Prepared, method: str, lowest: int) -> Callable[[], float]:
    """Return a measurement of the share of right val predictions that stay right."""
    val, vit = prepared.data.val, prepared.vit
    right = prepared.before["val"].argmax(1) == val.labels
    if method in HEADS:  # what the head reads does not change
        x, labels = features(vit, val)[right], torch.tensor(val.labels[right], device=vit.device)
        return lambda: (vit.head(x).argmax(1) == labels).double().mean().item()
    panel = prepared.panels["val"]
    return lambda: float((panel.predict(lowest).argmax(1) == val.labels)[right].mean())


def _retrained(prepared: Prepared) -> pd.DataFrame:
    """Train again from the start, with the edited images among the training images."""
    spec, data, vit, wrong = prepared.spec, prepared.data, prepared.vit, prepared.candidates
    new = wrong.select(~np.isin(wrong.indices, data.train.indices))
    more = replace(data, splits={**data.splits, "train": joined(data.train, new)})
    fresh = load_classifier(spec, data)
    done = train(fresh, more, spec.part(TrainSpec), store=prepared.store, progress=prepared.progress)
    vit.model.load_state_dict(fresh.model.state_dict())
    return done.history.rename(columns={"epoch": "step"})
