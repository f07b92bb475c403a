"""A study of repairs: a classifier is fine-tuned, its mistakes are found and measured, and repaired by each method.

Fine-tuning and tracing are slow, so they are read from the store where they were done before for the same data,
model and parameters. Every repair starts from the same fine-tuned model, which is put back bit for bit afterwards.
"""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import pandas as pd
from pydantic import Field, create_model
from torch import Tensor

from editkit.cache import Store
from editkit.config import Count, NonNegative, Parameters, Positive
from editkit.editing.spec import LAST_LAYERS, EditSpec
from editkit.methods import METHODS, MethodName, label
from editkit.models import VisionModel, load_vit
from editkit.models.peak import peak_mb, reset_peak
from editkit.studies.tables import layer_statistics, rank_layers
from editkit.vision.augment import augmented
from editkit.vision.controls import HeadSpec, edit_head, features, finetune, restored, save_changes
from editkit.vision.data import HELD_OUT, ImageData, ImageSet, Protocol, drawn, load_images
from editkit.vision.domain import RepairSession, check_spec
from editkit.vision.forward import Panel, predict
from editkit.vision.keys import repairs
from editkit.vision.moments import kept_moments, leakage
from editkit.vision.tracing import TraceSpec, stored_trace
from editkit.vision.training import Training, TrainSpec, load_checkpoint, metrics, train

HEADS = {"head_closed": "closed", "head_ewc": "ewc"}  # controls that change the head alone
CONTROLS = (*HEADS, "finetuning")
WATCHED = 256  # kept images, at most, that are classified again after each step

S = TypeVar("S", bound=Parameters)


class RepairSpec(HeadSpec, TraceSpec, TrainSpec):
    """Every option of a study; those of fine-tuning, tracing and the head are among them under their own names."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the fresh head, of splits that are drawn, noise, trained, edited and traced images, and their copies."""
    data: str = "digits"
    """Images: digits, a MedMNIST flag, or the path of an .npz file in MedMNIST's layout."""
    protocol: Protocol = "official"
    """Splits of the images: official for the data set's own, held-out to set a share of all aside before anything."""
    held_out_ratio: Annotated[float, Field(gt=0, lt=1)] = HELD_OUT
    """Share of all images that is set aside where splits are drawn: under protocol held-out, and of the digits."""
    size: Count = 28
    """Pixels of MedMNIST's file: 28, 64, 128 or 224."""
    folder: str = ""
    """Folder of MedMNIST's files; empty for ~/.medmnist."""
    n_train: Annotated[int, Field(ge=0)] = 0
    """Training images that are fine-tuned on; 0 takes all."""
    image_noise: NonNegative = 0.0
    """Standard deviation of noise added to every image, as a share of the full range."""
    model: str = "dinov2-small"
    """Vision Transformer: a known name, a hub id or a local folder."""
    image_size: Annotated[int, Field(ge=0)] = 0
    """Pixels that the Vision Transformer sees; 0 for what it was trained on."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device that the model runs on; auto takes a GPU where there is one."""
    checkpoint: str = ""
    """File with the classifier's weights, to be read instead of fine-tuning; empty fine-tunes."""
    edit_method: Annotated[list[MethodName], Field(min_length=1)] = ["alphaedit", "emmet", "memit", "rome"]
    """Editors of the images; the first one's repairs are shown in full."""
    edit_layers: list[Annotated[int, Field(ge=0)]] = []
    """Layers of the Vision Transformer to edit; empty leaves the choice to tracing."""
    num_edit_layers: Annotated[int, Field(ge=0)] = 3
    """Layers that tracing chooses where none are given; 0 does not trace and takes the last three."""
    max_edits: Annotated[int, Field(ge=0)] = 0
    """Misclassified images that are edited at most, drawn at random; 0 takes all."""
    sequential: bool = False
    """Edit one image after another, instead of all in one batch."""
    copies: Count = 4
    """Augmented copies of each edited image, on which generality is measured."""
    finetune_layers: Annotated[int, Field(ge=0)] = 3
    """Last layers that plain fine-tuning on the edited images trains, with the head."""
    finetune_lr: Positive = 1.0e-5
    """Learning rate of plain fine-tuning on the edited images."""
    finetune_steps: Count = 30
    """Steps of plain fine-tuning on the edited images at most."""
    edit_options: dict[str, Any] = {}
    """Further hyperparameters of the image editors, such as nullspace_threshold, replay or edit_mode."""

    @classmethod
    def of(cls, params: Parameters, seed: int) -> Self:
        """Take a study's options from a report's parameters (:class:`ImageParams` and ``device``)."""
        given = {name: getattr(params, f"vit_{name}") for name in cls.model_fields if name not in OWN}
        return cls(seed=seed, device=params.device, **given)

    def part(self, kind: type[S]) -> S:
        """Return the options that belong to ``kind``."""
        return kind(**self.model_dump(include=set(kind.model_fields)))

    def edit_spec(self, method: str, **options: Any) -> EditSpec:
        """Specify an edit by a method. Raises ``ValueError`` for options that no editor has."""
        return EditSpec(method=method, **{"seed": self.seed, **self.edit_options, **options})


OWN = ("seed", "device")  # a report has these for all of its chapters
# The report's defaults where they differ, so that a notebook opened by hand runs in about a minute.
SMALL = {"n_train": 120, "image_noise": 0.1, "image_size": 28, "epochs": 1, "batch_size": 16, "lr": 1.0e-4}
SMALL |= {"trained_layers": 2, "num_ablations": 2, "max_samples": 2, "edit_method": ["alphaedit", "emmet"]}
SMALL |= {"edit_layers": [11], "max_edits": 8}
FIELDS = {
    f"vit_{name}": (
        Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation,
        Field(default=SMALL.get(name, field.default), description=field.description),
    )
    for name, field in RepairSpec.model_fields.items()
    if name not in OWN
}


class ImageParams(create_model("ImageParams", __base__=Parameters, **FIELDS)):
    """Parameters of the chapter on images: the options of :class:`RepairSpec` as ``vit_<name>``, and more."""

    vit_seeds: Annotated[list[int], Field(min_length=1)] = [0]
    """Seeds of the repairs; each draws another head, other noise, training images and, unless official, splits."""
    vit_thresholds: Annotated[list[Positive], Field(min_length=1)] = [0.01, 0.1]
    """Values of nullspace_threshold to try on images, in units of the mean eigenvalue."""


@dataclass(frozen=True)
class Classifier:
    """The model to be repaired, on its data."""

    spec: RepairSpec
    data: ImageData
    vit: VisionModel
    training: Training | None  # None where a checkpoint was read
    metrics: pd.DataFrame  # scores on train, val and test before any edit
    store: Store  # of fine-tuned models, moments and traces
    progress: bool


@dataclass(frozen=True)
class Prepared(Classifier):
    """A classifier with its mistakes, and all that is measured of it before any edit."""

    candidates: ImageSet  # images of the training split that the model misclassifies, at most ``max_edits``
    kept: ImageSet  # images of the training split that it classifies correctly; its outputs for them should stay
    layers: list[int]  # to edit
    chosen: str  # how they were chosen: "given", "traced" or "the last three"
    panels: dict[str, Panel]  # what a repair is judged by: val, test (held out), edited images, copies of them
    before: dict[str, np.ndarray]  # predicted probabilities (n, labels) by the names of the panels
    watched: Panel  # kept images that are classified again after each step
    kept_features: Tensor  # what the head sees of the kept images


@dataclass(frozen=True)
class Repaired:
    """What one method did to the model."""

    method: str
    layers: list[int]  # whose weights it changes, besides the head's for controls
    log: pd.DataFrame  # editors: one row an edit; controls: one row a step
    after: dict[str, np.ndarray]  # predicted probabilities (n, labels) by the names of the panels
    leakage: float  # ‖ΔW K₀‖ / (‖ΔW‖ ‖K₀‖), the largest of the edited layers; nan for controls
    seconds: float
    peak_memory_mb: float


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
    where = {"size": spec.size, "folder": spec.folder or None}
    splits = {"protocol": spec.protocol, "held_out_ratio": spec.held_out_ratio, "n_train": spec.n_train or None}
    return load_images(spec.data, **where, **splits, noise=spec.image_noise, seed=spec.seed)


def load_each(specs: Sequence[RepairSpec]) -> list[ImageData]:
    """Load the images of studies that differ in their seed; those of which nothing is drawn are loaded once."""
    first = load_data(specs[0])
    return [first, *(load_data(spec) if "seed" in first.about else first for spec in specs[1:])]


def fine_tune(spec: RepairSpec, data: ImageData, *, store: Store | None = None, progress: bool = True) -> Classifier:
    """Load the model and fine-tune it, or read its checkpoint, once all options are checked."""
    size, seed = spec.image_size or None, spec.seed
    vit = load_vit(spec.model, labels=data.labels, image_size=size, seed=seed, device=spec.device)
    _check(spec, vit)
    store, training = store or Store(), None
    if spec.checkpoint:
        load_checkpoint(vit, data, spec.checkpoint)
    else:
        training = train(vit, data, spec.part(TrainSpec), store=store, progress=progress)
    return Classifier(spec, data, vit, training, training.metrics if training else metrics(vit, data), store, progress)


def measure(classifier: Classifier) -> Prepared:
    """Find the mistakes, choose the layers to edit, and measure the model before any edit."""
    spec, data, vit = classifier.spec, classifier.data, classifier.vit
    right = predict(vit, data.open, progress=classifier.progress).argmax(1) == data.open.labels
    wrong = data.open.select(~right)
    wrong = wrong.select(drawn(len(wrong), spec.max_edits or len(wrong), spec.seed))
    kept = data.open.select(right)
    layers, chosen = _layers(classifier, wrong)
    images = augmented(wrong.images, spec.copies, spec.seed + 1) if len(wrong) else wrong.images
    copies = ImageSet(images, wrong.labels.repeat(spec.copies), wrong.indices.repeat(spec.copies))
    parts = {"val": data.val, "test": data.test, "edited": wrong, "copies": copies}
    panels = {name: Panel(vit, part, layers[0]) for name, part in parts.items()}
    return Prepared(
        **vars(classifier),
        candidates=wrong,
        kept=kept,
        layers=layers,
        chosen=chosen,
        panels=panels,
        before=classify(panels, layers[0]),
        watched=Panel(vit, kept.select(drawn(len(kept), WATCHED, spec.seed)), layers[0]),
        kept_features=features(vit, kept),
    )


def traced(classifier: Classifier, images: ImageSet) -> pd.DataFrame:
    """Trace images for the class that the model predicts (:func:`editkit.vision.tracing.trace`)."""
    spec = classifier.spec.part(TraceSpec)
    return stored_trace(classifier.vit, images, spec, store=classifier.store, progress=classifier.progress)


def costs(prepared: Prepared, layers: Sequence[int]) -> dict[int, Tensor]:
    """Compute ``C`` of layers from the kept images (:func:`editkit.vision.moments.kept_moments`), before any edit."""
    return kept_moments(prepared.vit, prepared.kept, layers, store=prepared.store, progress=prepared.progress)


def classify(panels: Mapping[str, Panel], changed: int) -> dict[str, np.ndarray]:
    """Predict probabilities (n, labels) on all panels, where only layers from ``changed`` on may have changed."""
    return {name: panel.predict(changed) for name, panel in panels.items()}


@contextmanager
def session(prepared: Prepared, method: str, **changes: Any) -> Iterator[RepairSession]:
    """Open a session with the study's layers and options, whose edits are undone afterwards."""
    spec = prepared.spec.edit_spec(method, **{"layers": prepared.layers, **changes})
    images = {"images": prepared.candidates, "kept": prepared.kept}
    opened = RepairSession(prepared.vit, spec, **images, store=prepared.store, progress=False)
    try:
        yield opened
    finally:
        opened.undo()


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
    if "method" in spec.edit_options or "layers" in spec.edit_options:
        raise ValueError("edit_options holds method or layers: edit_method and edit_layers say them")
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


def _layers(classifier: Classifier, wrong: ImageSet) -> tuple[list[int], str]:
    """Choose the layers to edit: those given, else those that tracing ranks first, else the last three."""
    spec, n = classifier.spec, classifier.vit.n_layers
    if spec.edit_layers:
        return sorted(spec.edit_layers), "given"
    if spec.num_edit_layers and len(wrong):
        return rank_layers(layer_statistics(traced(classifier, wrong)), spec.num_edit_layers), "traced"
    return list(range(max(0, n - LAST_LAYERS), n)), "the last three"


def _edit(prepared: Prepared, opened: RepairSession, sequential: bool, save: Path | None) -> Repaired:
    """Edit the candidates in an open session, one by one or all at once, and log each edit."""
    edited, vit, method, layers = prepared.candidates, prepared.vit, opened.spec.method, opened.spec.layers
    items, names, first = repairs(edited), prepared.data.labels, prepared.before["edited"]
    steps = [[place] for place in range(len(items))] if sequential else [list(range(len(items)))]
    moments, rows, total = costs(prepared, layers), [], {}
    for step, places in enumerate(steps, start=1):
        made = opened.edit([items[place] for place in places]).deltas
        total = {layer: total.get(layer, 0) + delta for layer, delta in made.items()}
        norm = sum(delta.square().sum().item() for delta in made.values()) ** 0.5  # ‖ΔW‖ of all layers together
        leak = max(leakage(delta, moments[layer]) for layer, delta in total.items())
        broken = prepared.watched.predict(layers[0]).argmax(1) != prepared.watched.part.labels
        about = {"delta_norm": norm, "leakage": leak, "kept_broken": float(broken.mean()), "kept_watched": len(broken)}
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
    return Repaired(method, layers, log, after, leak, seconds, memory)


def _control(prepared: Prepared, method: str, save: Path | None) -> Repaired:
    """Change the head alone, or fine-tune plainly, and put every weight back."""
    spec, vit, wrong, progress = prepared.spec, prepared.vit, prepared.candidates, prepared.progress
    layers = [] if method in HEADS else list(range(vit.n_layers - spec.finetune_layers, vit.n_layers))
    about = {"model": vit.name, "weights": vit.fingerprint(), "method": method, "study": spec.model_dump()}
    with restored(vit) as before:
        reset_peak(vit.device)
        start = time.perf_counter()
        if method in HEADS:
            known = {"kept_features": prepared.kept_features, "progress": progress}
            log = edit_head(vit, wrong, prepared.kept, HEADS[method], spec.part(HeadSpec), **known)
        else:
            options = {"layers": spec.finetune_layers, "lr": spec.finetune_lr, "steps": spec.finetune_steps}
            log = finetune(vit, wrong, **options, seed=spec.seed, progress=progress)
        log = log.assign(method=method, seed=spec.seed)
        seconds, memory = time.perf_counter() - start, peak_mb(vit.device)
        after = classify(prepared.panels, min(layers, default=vit.n_layers))
        if save:
            about["items"] = [asdict(item) for item in repairs(wrong)]
            save_changes(vit, before, save / f"{method}.safetensors", about)
    return Repaired(method, layers, log, after, float("nan"), seconds, memory)
