"""What each stage of a study writes: its tables and figures, by the names of their files."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from editkit import figures
from editkit.config import METHODS
from editkit.results import Results
from editkit.tracing import layer_statistics
from editkit.vision.study import CONTROLS, Repaired, Study
from editkit.vision.tracing import TraceSpec, cls_attention, heat_maps
from editkit.vision.training import save_checkpoint

STAGES = ("data", "train", "locate", "edit", "eval")
SHOWN = 8  # images in the gallery


@dataclass(frozen=True)
class Output:
    """Tables and figures of a stage."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, go.Figure] = field(default_factory=dict)

    def save(self, results: Results, **provenance: Any) -> "Output":
        """Write ``results/*.csv`` and ``figures/*.png``; without a browser there are no figures, and a warning."""
        for name, table in self.tables.items():
            results.save(name, table, **provenance)
        for name, figure in self.figures.items():
            results.save_figure(name, figure)
        return self


def data(study: Study) -> Output:
    """``data_split_info``: which image is in which split, with the hash of its pixels."""
    return Output({"data_split_info": study.data.split_info()})


def train(study: Study) -> Output:
    """``baseline_metrics``, and ``training_history`` where there was one: a checkpoint brings none."""
    tables = {"baseline_metrics": study.metrics}
    if study.training is None:
        return Output(tables)
    history = study.training.history
    return Output(tables | {"training_history": history}, {"training_curve": figures.training_curve(history)})


def locate(study: Study) -> Output:
    """``layer_importance`` of each image, ``layer_statistics`` over them, and a heat map of one image."""
    statistics = layer_statistics(study.traced)
    one = study.candidates.select([0])
    said = int(study.before["edited"][0].argmax())
    layers = sorted({round(place) for place in np.linspace(0, study.vit.n_layers - 1, 7)})
    maps = heat_maps(study.vit, one, said, layers, study.spec.part(TraceSpec), progress=study.progress)
    names = study.data.labels
    subtitle = (
        f"image {one.indices[0]}, of class {names[one.labels[0]]}: probability of {names[said]}, which the model says, "
        "brought back by one patch"
    )
    return Output(
        {"layer_importance": study.traced, "layer_statistics": statistics},
        {
            "layer_importance": figures.layer_importance_bars(statistics),
            "patch_heat_map": figures.patch_heat_maps(one.images[0], maps, layers, subtitle=subtitle),
        },
    )


def repair(study: Study, methods: Sequence[str], save: Path | None = None) -> list[Repaired]:
    """What each method did; one whose numbers leave the finite ones is left out, with a warning, unless all do.

    Args:
        save: folder for each editor's updates, see :meth:`editkit.vision.study.Study.repair`.
    """
    repaired = []
    for method in methods:
        try:
            repaired.append(study.repair(method, save=save if method in METHODS else None))
        except FloatingPointError as problem:
            if method == methods[-1] and not repaired:
                raise
            warnings.warn(f"{method} is left out: {problem}", stacklevel=2)
    return repaired


def edit(repaired: Sequence[Repaired]) -> Output:
    """``edit_log``: one row an edit and editor; ``head_edit_log``: one row a step of the controls.

    An edit is told before and after its step and at the end. What is of a step, not of an edit, stands in each of its
    rows: ``delta_norm`` (‖ΔW‖), ``leakage`` of all updates so far, ``kept_broken`` (share of ``kept_watched`` images).
    """
    logs = {
        name: [one.log for one in repaired if one.method in methods]
        for name, methods in {"edit_log": METHODS, "head_edit_log": CONTROLS}.items()
    }
    return Output({name: pd.concat(rows, ignore_index=True) for name, rows in logs.items() if rows})


def evaluate(study: Study, repaired: Sequence[Repaired]) -> Output:
    """The report on held-out images: a row a method, classes, predictions; confusion and gallery of the first."""
    report, first = study.report(repaired), repaired[0]
    before, after = study.confusions(first)
    cells = before.stack().rename("before").to_frame().assign(after=after.stack())
    cells = cells.assign(difference=cells.after - cells.before, method=first.method).reset_index()
    tables = {
        "evaluation_report": report,
        "class_report": study.classes(repaired).assign(seed=study.spec.seed),
        "predictions": study.predictions(repaired).assign(seed=study.spec.seed),
        "confusion_matrix": cells.assign(seed=study.spec.seed),
    }
    drawn = {
        "confusion_matrix": figures.confusion_maps(before, after, study.data.labels),
        "repair_gallery": gallery(study, first),
    }
    return Output(tables, drawn)


def gallery(study: Study, one: Repaired) -> go.Figure:
    """Edited images: what the model said before and after a repair, and where its CLS token looked before."""
    part = study.candidates.select(np.arange(min(SHOWN, len(study.candidates))))
    captions = []
    for place, label in enumerate(part.labels):
        said = [
            f"{study.data.labels[p.argmax()]} ({p.max():.2f})"
            for p in (study.before["edited"][place], one.after["edited"][place])
        ]
        captions.append(f"{study.data.labels[label]}: {' → '.join(said)}")
    return figures.gallery(part.images, cls_attention(study.vit, part.images), captions)


def run(study: Study, stage: str, folder: Path) -> list[str]:
    """Run a stage, or ``full``, into a run's folder; returns what is to be told of it.

    Besides tables and figures, ``train`` writes the fine-tuned weights, ``edit`` and ``eval`` each editor's updates.
    """
    results, told = Results(folder), []
    about = {"study": study.spec.model_dump(), "data": dict(study.data.about), "data_hash": study.data.hash()}
    wanted = STAGES if stage == "full" else (stage,)
    if "data" in wanted:
        data(study).save(results, **about)
        sizes = [f"{len(part)} {name}" for name, part in (study.data.splits | {"pool": study.data.pool}).items()]
        told.append(f"{study.data.name}: {len(study.data.labels)} classes, images: {', '.join(sizes)}")
        told.append(", ".join(f"{name} {value}" for name, value in study.data.about.items()))
    if "train" in wanted:
        table = train(study).save(results, **about).tables["baseline_metrics"]
        save_checkpoint(study.vit, study.data, folder / "checkpoint.safetensors")
        told.append(table.round(4).to_string(index=False))
    if set(wanted) & {"locate", "edit", "eval"} and not len(study.candidates):
        return [*told, f"{study.vit.name} misclassifies no training image of {study.data.name}: nothing to repair"]
    if "locate" in wanted:
        locate(study).save(results, **about)
    if set(wanted) & {"locate", "edit"}:
        told.append(f"{len(study.candidates)} images to repair; layers to edit: {study.layers[0]} ({study.layers[1]})")
    if set(wanted) & {"edit", "eval"}:
        repaired = repair(study, (*study.spec.edit_method, *CONTROLS), folder / "edits")
        if "edit" in wanted:
            edit(repaired).save(results, **about)
        if "eval" in wanted:
            table = evaluate(study, repaired).save(results, **about).tables["evaluation_report"]
            shown = ["method", "fixed", "generalisation", "kept", "test_accuracy", "heldout_change"]
            told.append(table[shown].round(4).to_string(index=False))
    return told
