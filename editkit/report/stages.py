"""What each stage of a study of repairs writes: its tables and figures, by the names of their files."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from editkit import figures
from editkit.methods import METHODS, UNTOUCHED
from editkit.studies import repair_frontier as frontiers
from editkit.studies import repair_tables as tables
from editkit.studies import repairs
from editkit.studies.prepared import Classifier, Prepared, Repaired
from editkit.studies.repair_choice import traced
from editkit.studies.repair_spec import CONTROLS, ImageParams, RepairSpec
from editkit.studies.repair_tables import Done
from editkit.studies.results import Results
from editkit.studies.tables import layer_statistics, spectrum_table
from editkit.vision.data import ImageData
from editkit.vision.files import is_file
from editkit.vision.tracing import TraceSpec, cls_attention, heat_maps
from editkit.vision.training import save_checkpoint

STAGES = ("data", "train", "locate", "tune", "edit", "eval")
RUNS = {**{stage: {stage} for stage in STAGES}, "baseline": {"train"}, "full": {*STAGES}}  # by what may be asked for
SHOWN = 8  # images in the gallery
CHECKPOINT, EDITS = "checkpoint.safetensors", "edits"
TABLES = {
    "data": ["data_split_info"],
    "train": ["baseline_metrics", "training_history"],
    "locate": ["layer_importance", "layer_statistics"],
    "tune": ["layer_sweep"],
    "edit": ["edit_log", "head_edit_log", "target_directions", "moved_margins"],
    "eval": ["evaluation_report", "evaluation_certainty", "class_report", "predictions", "confusion_matrix"],
    "full": ["frontier", "frontier_edits"],
}
DRAWN = {
    "train": ["training_curve"],
    "locate": ["layer_importance", "patch_heat_map"],
    "tune": ["layer_sweep"],
    "edit": ["common_direction"],
    "eval": ["repairs", "confusion_matrix", "repair_gallery", "broken_gallery"],
    "full": ["frontier", "frontier_edits"],
}
WEIGHTS = {"train": [CHECKPOINT], "edit": [f"{EDITS}/<method>.safetensors"], "eval": [f"{EDITS}/<method>.safetensors"]}
FILES = {  # inside a run's folders, by the stage that writes them
    stage: [
        *(f"results/{name}.csv" for name in TABLES[stage]),
        *(f"figures/{name}.png" for name in DRAWN.get(stage, [])),
        *WEIGHTS.get(stage, []),
    ]
    for stage in TABLES
}


@dataclass(frozen=True)
class Folders:
    """Where a run writes: ``results/`` and ``figures/``; the fine-tuned weights and ``edits/``."""

    results: Path
    checkpoints: Path

    def __str__(self) -> str:
        return " and ".join(dict.fromkeys(map(str, (self.results, self.checkpoints))))


@dataclass(frozen=True)
class Output:
    """Tables and figures of a stage."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, go.Figure] = field(default_factory=dict)
    shown: dict[str, list[str]] = field(default_factory=dict)
    """The tables that a figure shows, where these are not all."""

    def save(self, results: Results, **provenance: Any) -> Self:
        """Write ``results/*.csv`` and ``figures/*.png``; without a browser figures are pages, with a warning."""
        results.keep(self.tables, **provenance)
        for name, figure in self.figures.items():
            figures.save(figure, results.figure(name), *self.shown.get(name, self.tables))
        return self

    def show(self) -> None:
        """Show the figures in a notebook."""
        for figure in self.figures.values():
            figure.show()


def data(images: ImageData) -> Output:
    """Tabulate which image is in which split, with the hash of its pixels (``data_split_info``)."""
    return Output({"data_split_info": images.split_info()})


def train(classifier: Classifier) -> Output:
    """Tabulate ``baseline_metrics``, and ``training_history`` where there was one: a checkpoint brings none."""
    scores = {"baseline_metrics": classifier.metrics}
    if classifier.training is None:
        return Output(scores)
    history = classifier.training.history
    return Output(scores | {"training_history": history}, {"training_curve": figures.training_curve(history)})


def locate(prepared: Prepared) -> Output:
    """Tabulate ``layer_importance`` image by image, ``layer_statistics`` over them, and map one image's patches."""
    if not len(prepared.candidates):
        return Output()
    vit, names = prepared.vit, prepared.data.labels
    importance = traced(prepared, prepared.candidates)
    statistics = layer_statistics(importance)
    first = int(np.flatnonzero(prepared.candidates.indices == importance["index"][0])[0])  # the candidate traced first
    one, predicted = prepared.candidates.select([first]), int(prepared.before["edited"][first].argmax())
    layers = sorted({round(place) for place in np.linspace(0, vit.n_layers - 1, 7)})
    maps = heat_maps(vit, one, predicted, layers, prepared.spec.part(TraceSpec), progress=prepared.progress)
    subtitle = (
        f"image {one.indices[0]}, of class {names[one.labels[0]]}: probability of {names[predicted]}, which is "
        "predicted, brought back by one patch"
    )
    return Output(
        {"layer_importance": importance, "layer_statistics": statistics},
        {
            "layer_importance": figures.layer_importance_bars(statistics),
            "patch_heat_map": figures.patch_heat_maps(one.images[0], maps, layers, subtitle=subtitle),
        },
    )


def tune(prepared: Prepared) -> Output:
    """Tabulate ``layer_sweep``: what each choice of layers and margin fixes at the budget, on val."""
    tried = prepared.choice.tried
    if tried.empty:
        return Output()
    return Output({"layer_sweep": tried}, {"layer_sweep": figures.layer_sweep(tried, prepared.spec.promise)})


def costs(prepared: Prepared, repaired: Sequence[Repaired]) -> Output:
    """Tabulate where a repair's cost comes from: ``target_directions`` and ``moved_margins``."""
    alike, changed = frontiers.directions(prepared), frontiers.moved(prepared, repaired)
    found = {"target_directions": alike, "moved_margins": changed}
    return Output(found, {} if alike.empty else {"common_direction": figures.common_direction(alike, changed)})


def frontier(prepared: Prepared, repaired: Sequence[Repaired]) -> Output:
    """Tabulate ``frontier``, a row a method and promise, and ``frontier_edits``, a row a method and number of edits.

    Args:
        repaired: what the study's own repairs did, which are not made again.
    """
    spec = prepared.spec
    if not len(prepared.candidates):
        return Output()
    along = frontiers.frontier(prepared, spec.compared, spec.frontier_budgets, repaired)
    counted = frontiers.by_count(prepared, spec.compared, spec.frontier_edits, repaired)
    return Output(
        {"frontier": along, "frontier_edits": counted},
        {
            "frontier": figures.frontier_curves(along, spec.promise),
            "frontier_edits": figures.edits_at_budget(counted, spec.promise),
        },
    )


def edit(done: Done) -> Output:
    """Tabulate ``edit_log``, a row an edit and editor, and ``head_edit_log``, a row a step of a control.

    ``edit_log`` tells of an edit before its step, after it and at the end. Three columns are the same for all edits of
    a step: ``delta_norm`` (its ‖ΔW‖), ``leakage`` of all updates so far, and ``kept_broken``, the share of the
    ``kept_watched`` images that are no longer right.
    """
    logs = {
        name: [one.log for _, made in done for one in made if one.method in methods]
        for name, methods in {"edit_log": METHODS, "head_edit_log": CONTROLS}.items()
    }
    return Output({name: pd.concat(rows, ignore_index=True) for name, rows in logs.items() if rows})


def evaluate(done: Done) -> Output:
    """Report on held-out images: a row a study and method; classes, predictions and confusions of the first study.

    ``evaluation_certainty`` has a row a method, all studies together (:func:`editkit.studies.repair_tables.certainty`).

    The confusion matrix and the gallery are those of its first method.
    """
    if not done:
        return Output()
    (prepared, repaired), report = done[0], tables.reports(done)
    seed, first, (before, after) = prepared.spec.seed, repaired[0], tables.confusions(prepared, repaired[0])
    cells = before.stack().rename("before").to_frame().assign(after=after.stack())
    cells = cells.assign(difference=cells.after - cells.before, method=first.method).reset_index()
    return Output(
        {
            "evaluation_report": report,
            "evaluation_certainty": tables.certainty(done),
            "class_report": tables.classes(prepared, repaired).assign(seed=seed),
            "predictions": tables.predictions(prepared, repaired).assign(seed=seed),
            "confusion_matrix": cells.assign(seed=seed),
        },
        {
            "repairs": figures.repair_bars(report[report.method != UNTOUCHED]),
            "confusion_matrix": figures.confusion_maps(before, after, prepared.data.labels),
            **galleries(prepared, first),
        },
        {
            "repairs": ["evaluation_report"],
            "confusion_matrix": ["confusion_matrix"],
            "repair_gallery": [],
            "broken_gallery": [],
        },
    )


def gallery(prepared: Prepared, panel: str, one: Repaired, places: np.ndarray, title: str) -> go.Figure:
    """Draw images of a panel with their class before and after a repair, and where their CLS token looked before."""
    part, names = prepared.panels[panel].part.select(places), prepared.data.labels
    captions = []
    for true, *found in zip(part.labels, prepared.before[panel][places], one.after[panel][places], strict=True):
        captions.append(f"{names[true]}: {' → '.join(f'{names[p.argmax()]} ({p.max():.2f})' for p in found)}")
    return figures.gallery(part.images, cls_attention(prepared.vit, part.images), captions, title=title)


def galleries(prepared: Prepared, one: Repaired) -> dict[str, go.Figure]:
    """Draw edited images, and val images that were right and are wrong after a repair, where there are any."""
    labels = {name: panel.part.labels for name, panel in prepared.panels.items()}
    right, still = (found["val"].argmax(1) == labels["val"] for found in (prepared.before, one.after))
    edited, broken = np.arange(min(SHOWN, len(prepared.candidates))), np.flatnonzero(right & ~still)
    fixed = int((one.after["edited"][edited].argmax(1) == labels["edited"][edited]).sum())
    title = f"Of {len(edited)} edited images {fixed or 'none'} {'is' if fixed < 2 else 'are'} right after the repair"
    drawn = {"repair_gallery": gallery(prepared, "edited", one, edited, title)}
    if len(broken):
        title = f"Of {right.sum()} right validation images the repair turns {len(broken)} wrong"
        drawn["broken_gallery"] = gallery(prepared, "val", one, broken[:SHOWN], title)
    return drawn


def leakage(prepared: Prepared, thresholds: Sequence[float], methods: Sequence[str]) -> Output:
    """Tabulate ``vit_leakage`` of each method and threshold, and draw it with the spectrum of ``C``."""
    leaks = tables.leakages(prepared, thresholds, methods)
    if leaks.empty:
        return Output({"vit_leakage": leaks})
    moments = repairs.costs(prepared, prepared.layers)
    values = {layer: torch.linalg.eigvalsh(C).cpu().tolist() for layer, C in moments.items()}
    spec = prepared.spec.edit_spec("alphaedit").resolve(prepared.vit)
    about = {"over": "the kept images", "unit": "their mean = 1"}
    spectrum = figures.spectrum(values, spec.nullspace_threshold, **about)
    return Output(
        {"vit_leakage": leaks, "vit_spectrum": spectrum_table(values)},
        {"leakage": figures.leakage_curves(leaks), "vit_spectrum": spectrum},
        {"leakage": ["vit_leakage"], "vit_spectrum": ["vit_spectrum"]},
    )


def other_images(params: ImageParams) -> Output:
    """Repair the mistakes on the further data sets of a report, first seed: ``other_images``, a row a set and method.

    A data set whose file is neither here nor to be fetched is left out, with a warning.
    """
    rows, drawn = [], {}
    for name in params.vit_data[1:]:
        spec = RepairSpec.of(params, params.vit_seeds[0], name)
        try:
            images = repairs.load_data(spec)
        except (ConnectionError, ValueError) as problem:
            if is_file(spec.data) and Path(spec.data).exists():
                raise
            warnings.warn(f"{name} is left out: {problem}", stacklevel=2)
            continue
        prepared = repairs.prepare(spec, data=images)
        if not len(prepared.candidates):
            warnings.warn(f"{name} is left out: the model makes no mistake on it", stacklevel=2)
            continue
        counted = frontiers.by_count(prepared, spec.compared, spec.frontier_edits)
        rows.append(counted.assign(dataset=images.name, layers=str(prepared.layers), margin=prepared.choice.margin))
        drawn[f"edits_{images.name}"] = figures.edits_at_budget(counted, spec.promise)
    columns = [*frontiers.POINTS, "dataset", "layers", "margin"]
    return Output({"other_images": pd.concat(rows) if rows else pd.DataFrame(columns=columns)}, drawn)


def run(spec: RepairSpec, stage: str, folders: Folders, resume: bool = True) -> Iterator[str]:
    """Run a stage, or a key of ``RUNS``, into a run's folders; yields what there is to tell of it as it is known.

    Besides tables and figures, ``train`` writes the fine-tuned weights, ``edit`` and ``eval`` what each editor and each
    control changed.

    Args:
        resume: go on where an interrupted fine-tuning ended, and read one that was done before.
    """
    images, results = repairs.load_data(spec), Results(folders.results)
    about = {"study": spec.model_dump(), "data": dict(images.about), "data_hash": images.hash()}
    wanted = RUNS[stage]
    # Options that do not fit are refused here, before anything is written.
    classifier = None if wanted == {"data"} else repairs.fine_tune(spec, images, resume=resume)
    if "data" in wanted:
        data(images).save(results, **about)
        sizes = [f"{len(part)} {name}" for name, part in {**images.splits, "pool": images.pool}.items()]
        yield f"{images.name}: {len(images.labels)} classes, images: {', '.join(sizes)}"
        yield ", ".join(f"{name} {value}" for name, value in images.about.items())
    if classifier is None:
        return
    if "train" in wanted:
        table = train(classifier).save(results, **about).tables["baseline_metrics"]
        save_checkpoint(classifier.vit, images, folders.checkpoints / CHECKPOINT)
        yield table.round(4).to_string(index=False)
    if wanted == {"train"}:
        return
    prepared = repairs.measure(classifier)
    if not len(prepared.candidates):
        yield f"{prepared.vit.name} misclassifies no image of {images.name}: nothing to repair"
        return
    if "locate" in wanted:
        locate(prepared).save(results, **about)
    if wanted & {"locate", "tune", "edit"}:
        layers = f"; layers to edit: {prepared.layers} ({prepared.chosen}), margin {prepared.choice.margin:g}"
        yield f"{len(prepared.candidates)} images to repair{layers if spec.edit_method else ''}"
    if "tune" in wanted:
        for table in tune(prepared).save(results, **about).tables.values():
            yield table.round(3).to_string(index=False)
    if wanted <= {"locate", "tune"}:
        return
    done = [(prepared, repairs.repair_all(prepared, spec.compared, folders.checkpoints / EDITS))]
    if "edit" in wanted:
        edit(done).save(results, **about)
        costs(*done[0]).save(results, **about)
    if "eval" in wanted:
        table = evaluate(done).save(results, **about).tables["evaluation_report"]
        shown = ["method", "weight", "fixed", "generality", "kept", "test_kept", "test_accuracy", "heldout_change"]
        yield table[shown].round(4).to_string(index=False)
    if stage == "full":
        frontier(*done[0]).save(results, **about)
