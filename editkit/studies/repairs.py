"""A study of repairs: a classifier is fine-tuned, its mistakes are found and measured, and repaired by each method.

Fine-tuning and tracing are slow, so they are read from the store where they were done before for the same data,
model and parameters. Every repair starts from the same fine-tuned model, which is put back bit for bit afterwards.
Layers and margin are those that repair most with the budget held on val: see :func:`choose`.
"""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from editkit.cache import Store
from editkit.methods import METHODS, label
from editkit.models import VisionModel
from editkit.models.peak import peak_mb, reset_peak
from editkit.studies.prepared import Classifier, Prepared, Repaired, load_classifier, repairing
from editkit.studies.repair_choice import choose, copied
from editkit.studies.repair_controls import change
from editkit.studies.repair_spec import CONTROLS, FINETUNED, HEADS, RepairSpec
from editkit.vision.controls import features, restored, save_changes
from editkit.vision.data import ImageData, drawn, load_images
from editkit.vision.domain import RepairSession, check_spec
from editkit.vision.forward import Panel, predict
from editkit.vision.keys import repairs
from editkit.vision.moments import kept_moments, leakage
from editkit.vision.training import TrainSpec, load_checkpoint, metrics, train

WATCHED = 256  # kept images, at most, that are classified again after each step


def prepare(
    spec: RepairSpec, *, data: ImageData | None = None, store: Store | None = None, progress: bool = True
) -> Prepared:
    """Load the data, fine-tune, find the mistakes, choose layers and measure the model before any edit.

    Args:
        data: what :func:`load_data` returned for these options.

    Raises ``ValueError`` for options that do not fit each other, the data or the model.
    """
    return measure(fine_tune(spec, data or load_data(spec), store=store, progress=progress))


def load_data(spec: RepairSpec) -> ImageData:
    """Load the images and their splits, as the study's seed draws them."""
    where: dict[str, Any] = {"size": spec.size, "folder": spec.folder or None}
    splits: dict[str, Any] = {
        "protocol": spec.protocol,
        "held_out_ratio": spec.held_out_ratio,
        "n_train": spec.n_train or None,
    }
    return load_images(spec.data, **where, **splits, noise=spec.image_noise, seed=spec.seed)


def load_each(specs: Sequence[RepairSpec]) -> list[ImageData]:
    """Load the images of studies that differ in their seed; those of which nothing is drawn are loaded once."""
    first = load_data(specs[0])
    return [first, *(load_data(spec) if "seed" in first.about else first for spec in specs[1:])]


def fine_tune(
    spec: RepairSpec, data: ImageData, *, store: Store | None = None, progress: bool = True, resume: bool = True
) -> Classifier:
    """Load the model and fine-tune it, or read its checkpoint, once all options are checked.

    Args:
        resume: as for :func:`editkit.vision.training.train`.
    """
    vit = load_classifier(spec, data)
    _check(spec, vit)
    store, training = store or Store(), None
    if spec.checkpoint:
        load_checkpoint(vit, data, spec.checkpoint)
    else:
        training = train(vit, data, spec.part(TrainSpec), store=store, progress=progress, resume=resume)
    return Classifier(spec, data, vit, training, training.metrics if training else metrics(vit, data), store, progress)


def measure(classifier: Classifier) -> Prepared:
    """Find the mistakes, choose the layers to edit, and measure the model before any edit."""
    spec, data, vit = classifier.spec, classifier.data, classifier.vit
    right = predict(vit, data.open, progress=classifier.progress).argmax(1) == data.open.labels
    wrong = data.open.select(~right & np.isin(data.open.indices, data.editable.indices))
    wrong = wrong.select(drawn(len(wrong), spec.max_edits or len(wrong), spec.seed))
    kept = data.open.select(right)
    choice = choose(classifier, wrong, kept)
    first = choice.layers[0]
    copies = copied(wrong, spec)
    parts = {"val": data.val, "test": data.test, "edited": wrong, "copies": copies}
    panels = {name: Panel(vit, part, first) for name, part in parts.items()}
    return Prepared(
        **vars(classifier),
        candidates=wrong,
        kept=kept,
        choice=choice,
        panels=panels,
        watched=Panel(vit, kept.select(drawn(len(kept), WATCHED, spec.seed)), first),
        kept_features=features(vit, kept),
    )


def subset(prepared: Prepared, n: int) -> Prepared:
    """Take ``n`` of the candidates, drawn by the seed, as if there were no others."""
    places = drawn(len(prepared.candidates), n, prepared.spec.seed)
    rows = {
        "edited": places,
        "copies": (places[:, None] * prepared.spec.copies + np.arange(prepared.spec.copies)).ravel(),
    }
    some = {
        name: Panel(prepared.vit, prepared.panels[name].part.select(at), prepared.layers[0])
        for name, at in rows.items()
    }
    return replace(prepared, candidates=prepared.candidates.select(places), panels=prepared.panels | some)


def costs(prepared: Prepared, layers: Sequence[int]) -> dict[int, Tensor]:
    """Compute ``C`` of layers from the kept images (:func:`editkit.vision.moments.kept_moments`), before any edit."""
    return kept_moments(prepared.vit, prepared.kept, layers, store=prepared.store, progress=prepared.progress)


def classify(panels: Mapping[str, Panel], changed: int) -> dict[str, np.ndarray]:
    """Predict probabilities (n, labels) on all panels, where only layers from ``changed`` on may have changed."""
    return {name: panel.predict(changed) for name, panel in panels.items()}


def session(prepared: Prepared, method: str, **changes: Any) -> AbstractContextManager[RepairSession]:
    """Open a session with the study's layers, margin and options, whose edits are undone afterwards."""
    chosen = {"layers": prepared.layers, "stop_margin": prepared.choice.margin}
    given = (prepared.candidates, prepared.kept, prepared.panels["val"])
    return repairing(prepared, *given, method, **{**chosen, **changes})


def repair(
    prepared: Prepared, method: str, *, save: Path | None = None, sequential: bool | None = None, **changes: Any
) -> Repaired:
    """Repair the candidates by one of ``METHODS`` or ``CONTROLS``, judge the result, and put the model back.

    Args:
        save: folder where the changes are written: ``{method}.safetensors``, or an adapter's folder.
        sequential: edit one image after another; ``prepared.spec`` decides where not given.
        changes: other values of an editor's hyperparameters.

    Raises ``ValueError`` for another method, and where there is nothing to repair.
    """
    if method not in (*METHODS, *CONTROLS):
        raise ValueError(f"unknown method {method!r}: must be one of {', '.join((*METHODS, *CONTROLS))}")
    if not len(prepared.candidates):
        raise ValueError(f"{prepared.vit.name} misclassifies no image of {prepared.data.name}: nothing to repair")
    if method in CONTROLS:
        return _control(prepared, method, save)
    one_by_one = prepared.spec.sequential if sequential is None else sequential
    with session(prepared, method, **changes) as opened:
        return _edit(prepared, opened, one_by_one, save)


def repair_all(prepared: Prepared, methods: Sequence[str], save: Path | None = None) -> list[Repaired]:
    """Repair by each method; one that leaves the finite numbers is left out, with a warning, unless all do."""
    repaired = []
    for method in methods:
        try:
            repaired.append(repair(prepared, method, save=save))
        except FloatingPointError as problem:
            if method == methods[-1] and not repaired:
                raise
            warnings.warn(f"{label(method)} is left out: {problem}", stacklevel=2)
    return repaired


def _check(spec: RepairSpec, vit: VisionModel) -> None:
    """Raise ``ValueError`` for options that do not fit each other or the model, before anything is trained."""
    said = {"method": "edit_method", "layers": "edit_layers", "stop_margin": "margins", "kept_budget": "kept_budget"}
    if odd := sorted(said.keys() & spec.edit_options.keys()):
        raise ValueError(f"edit_options holds {odd[0]}: {said[odd[0]]} says it")
    if not spec.compared:
        raise ValueError("edit_method and controls are empty: name at least one way to repair")
    if len(set(spec.edit_method)) < len(spec.edit_method):
        raise ValueError(f"edit_method = {spec.edit_method}: each once")
    needed = {name: getattr(spec, name) for name in ("num_edit_layers", "finetune_layers")}
    needed["edit_layers"] = 1 + max(spec.edit_layers, default=0)
    for name, layers in needed.items():
        if layers > vit.n_layers:
            raise ValueError(f"{name} = {getattr(spec, name)}: {vit.name} has {vit.n_layers} layers, counted from 0")
    for method in spec.edit_method:
        try:
            check_spec(spec.edit_spec(method, layers=sorted(spec.edit_layers) or None).resolve(vit))
        except ValueError as problem:
            raise ValueError(f"edit_method {method} with edit_options {spec.edit_options}: {problem}") from None


def _edit(prepared: Prepared, opened: RepairSession, sequential: bool, save: Path | None) -> Repaired:
    """Edit the candidates in an open session, one by one or all at once, and log each edit."""
    edited, vit, method, layers = prepared.candidates, prepared.vit, opened.spec.method, opened.spec.layers
    items, names, first = repairs(edited), prepared.data.labels, prepared.before["edited"]
    steps = [[place] for place in range(len(items))] if sequential else [list(range(len(items)))]
    moments, rows, total, leak, weight = costs(prepared, layers), [], dict[int, Tensor](), 0.0, math.nan
    for step, places in enumerate(steps, start=1):
        result = opened.edit([items[place] for place in places])
        made, weight = result.deltas, result.budget.weight if result.budget else math.nan
        total = {layer: total.get(layer, 0) + delta for layer, delta in made.items()}
        norm = sum(delta.square().sum().item() for delta in made.values()) ** 0.5  # ‖ΔW‖ of all layers together
        leak = max((leakage(delta, moments[layer]) for layer, delta in total.items()), default=0.0)
        broken = prepared.watched.predict(layers[0]).argmax(1) != prepared.watched.part.labels
        about = {"delta_norm": norm, "leakage": leak, "kept_broken": float(broken.mean()), "kept_watched": len(broken)}
        about |= {"budget_weight": weight}
        for place, p in zip(places, predict(vit, edited.select(places)), strict=True):
            true = edited.labels[place]
            row = {"method": method, "step": step, "index": int(edited.indices[place]), "true": names[true]}
            row |= {"before": names[first[place].argmax()], "p_true_before": first[place][true]}
            rows.append(row | {"after": names[p.argmax()], "p_true_after": p[true]} | about)
    after = classify(prepared.panels, layers[0])
    if save and opened.adapters is None:
        opened.save(save / f"{method}.safetensors")
    elif save:
        opened.save_adapter(save / method)
    log = pd.DataFrame(rows).assign(final=[names[i] for i in after["edited"].argmax(1)])
    log["p_true_final"] = after["edited"][np.arange(len(edited)), edited.labels]
    log["seed"], log["layers"] = prepared.spec.seed, str(layers)
    seconds = sum(result.seconds["total"] for result in opened.results)
    memory = max(result.peak_memory_mb for result in opened.results)
    return Repaired(method, layers, log, after, leak, seconds, memory, weight)


def _control(prepared: Prepared, method: str, save: Path | None) -> Repaired:
    """Change the head alone, fine-tune or train anew, as far as the budget allows, and put every weight back."""
    spec, vit, wrong = prepared.spec, prepared.vit, prepared.candidates
    tuned = list(range(vit.n_layers - spec.finetune_layers, vit.n_layers))
    layers = [] if method in HEADS else tuned if method in FINETUNED else list(range(vit.n_layers))
    about: dict[str, Any] = {"model": vit.name, "weights": vit.fingerprint(), "method": method}
    about |= {"study": spec.model_dump()}
    with restored(vit) as before:
        reset_peak(vit.device)
        start = time.perf_counter()
        log, weight = change(prepared, method, min(layers, default=vit.n_layers))
        log = log.assign(method=method, seed=spec.seed)
        seconds, memory = time.perf_counter() - start, peak_mb(vit.device)
        after = classify(prepared.panels, min(layers, default=vit.n_layers))
        if save:
            about["items"] = [asdict(item) for item in repairs(wrong)]
            save_changes(vit, before, save / f"{method}.safetensors", about)
    return Repaired(method, layers, log, after, float("nan"), seconds, memory, weight)
