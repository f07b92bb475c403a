"""A study of repairs, stage by stage: data, train, locate, edit, eval. Notebook and command line share it.

What is slow is kept: fine-tuning and tracing are read where they were done before for the same data, model and
parameters. Every repair starts from the same fine-tuned model, which is put back bit for bit afterwards.
"""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from editkit.cache import Store, from_json_tensor, json_tensor, source_hash
from editkit.config import LAST_LAYERS, METHODS, Count, EditSpec, Method, NonNegative, Parameters, Positive, RunParams
from editkit.memory import peak_mb, reset_peak
from editkit.models import VisionModel, load_vit
from editkit.tracing import layer_statistics, rank_layers
from editkit.vision.augment import augmented
from editkit.vision.data import ImageData, ImageSet, Protocol, load_images
from editkit.vision.editing import RepairSession, check_spec, kept_moments, leakage, repairs
from editkit.vision.evaluation import Panel, compare, confusion, per_class, predict, summary
from editkit.vision.head import HeadSpec, edit_head, features, finetune, restored
from editkit.vision.tracing import TraceSpec, trace
from editkit.vision.training import Training, TrainSpec, load_checkpoint, metrics, train

NO_EDIT = "pre"
HEADS = {"head, closed form": "closed", "head, EWC": "ewc"}
FINE_TUNING = "fine-tuning"
CONTROLS = (*HEADS, FINE_TUNING)
WATCHED = 256  # kept images, at most, that are classified again after each step

S = TypeVar("S", bound=Parameters)


class StudySpec(TrainSpec, TraceSpec, HeadSpec):
    """Every option of a study; fine-tuning's, tracing's and the head's are among them under their own names."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of the fresh head, the order of the training images, the noise of tracing and the augmented copies."""
    data: str = "digits"
    """digits, a MedMNIST flag, or the path of an .npz file in MedMNIST's layout."""
    protocol: Protocol = "official"
    """official: the data set's own splits. held-out: a fifth of all images set aside before anything else."""
    size: Count = 28
    """Pixels of MedMNIST's file: 28, 64, 128 or 224."""
    folder: str = ""
    """Where MedMNIST's files are; empty for ~/.medmnist."""
    n_train: Annotated[int, Field(ge=0)] = 0
    """Training images that are fine-tuned on; 0 takes all."""
    image_noise: NonNegative = 0.0
    """Standard deviation of noise added to every image, as a share of the full range."""
    model: str = "dinov2-small"
    """dinov2-small, a hub id, or a local folder."""
    image_size: Annotated[int, Field(ge=0)] = 0
    """Pixels that the model sees; 0 for what it was trained on."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where it runs; auto takes a GPU where there is one."""
    checkpoint: str = ""
    """File of weights to use instead of fine-tuning."""
    edit_method: Annotated[list[Method], Field(min_length=1)] = ["alphaedit", "emmet", "memit", "rome"]
    """Editors; the first one's predictions are shown in full."""
    edit_layers: list[Annotated[int, Field(ge=0)]] = []
    """Layers to edit; empty leaves it to tracing."""
    num_edit_layers: Annotated[int, Field(ge=0)] = 3
    """Layers that tracing chooses; 0 does not trace and takes the last three."""
    max_edits: Annotated[int, Field(ge=0)] = 0
    """Misclassified images that are edited; 0 takes all."""
    sequential: bool = False
    """One image after another, instead of all in one batch."""
    copies: Count = 4
    """Augmented copies of each edited image, on which generalisation is measured."""
    finetune_layers: Annotated[int, Field(ge=0)] = 3
    """Last layers that the fine-tuning control trains, with the head."""
    finetune_lr: Positive = 1.0e-5
    """Its learning rate."""
    finetune_steps: Count = 30
    """Its steps at most."""
    edit_options: dict[str, Any] = {}
    """Further hyperparameters of the editors, such as nullspace_threshold, replay or edit_mode."""

    @classmethod
    def of(cls, params: RunParams, seed: int) -> Self:
        """The study of a report's parameters: those that begin with ``vit_``, and the device."""
        given = {name.removeprefix("vit_"): value for name, value in params if name.startswith("vit_")}
        return cls(seed=seed, device=params.device, **{n: v for n, v in given.items() if n in cls.model_fields})

    def part(self, kind: type[S]) -> S:
        """The options that are ``kind``'s."""
        return kind(**self.model_dump(include=set(kind.model_fields)))


@dataclass(frozen=True)
class Repaired:
    """What one method did to the model."""

    method: str
    layers: list[int]  # whose weights it changes, besides the head's for controls
    log: pd.DataFrame  # editors: one row an edit; controls: one row a step
    after: dict[str, np.ndarray]  # probabilities (n, labels) of val, test, edited, copies
    leakage: float  # ‖ΔW K₀‖ / (‖ΔW‖ ‖K₀‖), the largest of the edited layers; nan for controls
    seconds: float
    peak_memory_mb: float


class Study:
    """One data set, one model, one seed.

    Args:
        store: where fine-tuned models, statistics and traces are cached.
        progress: show progress bars.

    Raises ``ValueError`` for options that do not fit each other, the data or the model, when they are met.
    """

    def __init__(self, spec: StudySpec, *, store: Store | None = None, progress: bool = True):
        self.spec, self.store, self.progress = spec, store or Store(), progress
        if "method" in spec.edit_options or "layers" in spec.edit_options:
            raise ValueError("edit_options holds method or layers: edit_method and edit_layers say them")
        if len(set(spec.edit_method)) < len(spec.edit_method):
            raise ValueError(f"edit_method = {spec.edit_method}: each once")

    @cached_property
    def data(self) -> ImageData:
        spec = self.spec
        return load_images(
            spec.data,
            protocol=spec.protocol,
            size=spec.size,
            folder=spec.folder or None,
            n_train=spec.n_train or None,
            noise=spec.image_noise,
        )

    @cached_property
    def vit(self) -> VisionModel:
        """The model to be repaired: fine-tuned, or read from the checkpoint."""
        return self._fine_tuned[0]

    @cached_property
    def training(self) -> Training | None:
        """What fine-tuning did; None where a checkpoint was read."""
        return self._fine_tuned[1]

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Accuracy, macro F1, negative log-likelihood and calibration error on train, val and test before any edit."""
        return self.training.metrics if self.training else metrics(self.vit, self.data)

    @cached_property
    def _fine_tuned(self) -> tuple[VisionModel, Training | None]:
        spec = self.spec
        vit = load_vit(
            spec.model,
            labels=self.data.labels,
            image_size=spec.image_size or None,
            seed=spec.seed,
            device=spec.device,
        )
        needed = {name: getattr(spec, name) for name in ("num_edit_layers", "finetune_layers")}
        needed["edit_layers"] = 1 + max(spec.edit_layers, default=0)
        for name, layers in needed.items():
            if layers > vit.n_layers:
                raise ValueError(
                    f"{name} = {getattr(spec, name)}: {vit.name} has {vit.n_layers} layers, counted from 0"
                )
        for method in spec.edit_method:  # nothing is trained for options that no editor takes
            try:
                check_spec(self._edit_spec(method, sorted(spec.edit_layers) or None, {}).resolve(vit))
            except ValueError as problem:
                raise ValueError(f"edit_method {method} with edit_options {spec.edit_options}: {problem}") from None
        if spec.checkpoint:
            load_checkpoint(vit, self.data, spec.checkpoint)
            return vit, None
        return vit, train(vit, self.data, spec.part(TrainSpec), store=self.store, progress=self.progress)

    @cached_property
    def _open(self) -> np.ndarray:
        """Probabilities of all open images of the training split."""
        return predict(self.vit, self.data.open, progress=self.progress)

    @cached_property
    def candidates(self) -> ImageSet:
        """Images of the training split that the model gets wrong, at most ``max_edits``."""
        wrong = np.flatnonzero(self._open.argmax(1) != self.data.open.labels)
        return self.data.open.select(wrong[: self.spec.max_edits or None])

    @cached_property
    def kept(self) -> ImageSet:
        """Images of the training split that it gets right, whose outputs shall stay."""
        return self.data.open.select(self._open.argmax(1) == self.data.open.labels)

    @cached_property
    def parts(self) -> dict[str, ImageSet]:
        """What a repair is judged by: val, test (held out), the edited images, and augmented copies of them."""
        edited, n = self.candidates, self.spec.copies
        images = augmented(edited.images, n, self.spec.seed + 1) if len(edited) else edited.images
        copies = ImageSet(images, edited.labels.repeat(n), edited.indices.repeat(n))
        return {"val": self.data.val, "test": self.data.test, "edited": edited, "copies": copies}

    @cached_property
    def before(self) -> dict[str, np.ndarray]:
        """Probabilities before any edit, by the names of :attr:`parts`."""
        return self._predictions(self.layers[0][0])

    @cached_property
    def _panels(self) -> dict[str, Panel]:
        return {name: Panel(self.vit, part, self.layers[0][0]) for name, part in self.parts.items()}

    @cached_property
    def _watched(self) -> Panel:
        drawn = np.random.default_rng(self.spec.seed).permutation(len(self.kept))[:WATCHED]
        return Panel(self.vit, self.kept.select(drawn), self.layers[0][0])

    @cached_property
    def _kept_features(self) -> Tensor:
        return features(self.vit, self.kept)

    @cached_property
    def traced(self) -> pd.DataFrame:
        """:func:`editkit.vision.tracing.trace` of candidates, for the class that the model wrongly says."""
        spec = self.spec.part(TraceSpec)
        part = self.candidates.select(np.arange(min(len(self.candidates), spec.max_samples)))
        key = {"weights": self.vit.fingerprint(), "images": part.hash(), "code": source_hash()}
        key |= {"pixels": self.vit.preprocessing, "spec": spec.model_dump()}
        if (found := self.store.get("trace", key)) is not None:
            return pd.DataFrame(from_json_tensor(found["json"]))
        said = predict(self.vit, part).argmax(1)
        frame = trace(self.vit, part, said, spec, progress=self.progress)
        self.store.put("trace", key, {"json": json_tensor(frame.to_dict(orient="list"))})
        return frame

    @cached_property
    def layers(self) -> tuple[list[int], str]:
        """Layers to edit, and who chose them: the user, else tracing, else they are the last three."""
        if self.spec.edit_layers:
            return sorted(self.spec.edit_layers), "given"
        if self.spec.num_edit_layers and len(self.candidates):
            return rank_layers(layer_statistics(self.traced), self.spec.num_edit_layers), "traced"
        return list(range(max(0, self.vit.n_layers - LAST_LAYERS), self.vit.n_layers)), "the last three"

    def ordered(self, *, sequential: bool) -> "Study":
        """The same study, its images edited one after another or all at once; what was computed is shared."""
        other = copy(self)
        other.spec = self.spec.model_copy(update={"sequential": sequential})
        return other

    def repair(self, method: str, *, save: Path | None = None, **changes: Any) -> Repaired:
        """Repair the candidates by one of ``METHODS`` or ``CONTROLS``, judge, and put the model back.

        Args:
            save: folder where an editor's updates are written: ``{method}.safetensors``, or an adapter's folder.
            changes: of an editor's hyperparameters.

        Raises ``ValueError`` for another method, and where there is nothing to repair.
        """
        if method not in (*METHODS, *CONTROLS):
            raise ValueError(f"unknown method {method!r}: must be one of {', '.join((*METHODS, *CONTROLS))}")
        if not len(self.candidates):
            raise ValueError(f"{self.vit.name} misclassifies no training image of {self.data.name}: nothing to repair")
        _ = self.before  # of the model as it is
        if method in METHODS:
            return self._edit(method, save, changes)
        if method in HEADS:
            _ = self._kept_features  # the pass over what is kept is in nobody's seconds
        n = self.vit.n_layers
        layers = list(range(n - self.spec.finetune_layers, n)) if method == FINE_TUNING else []
        with restored(self.vit):
            reset_peak(self.vit.device)
            start = time.perf_counter()
            log = self._control(method).assign(method=method, seed=self.spec.seed)
            seconds, memory = time.perf_counter() - start, peak_mb(self.vit.device)
            after = self._predictions(min(layers, default=n))
            return Repaired(method, layers, log, after, float("nan"), seconds, memory)

    @contextmanager
    def session(self, method: str, **changes: Any) -> Iterator[RepairSession]:
        """A session that repairs candidates by a method, with the study's layers and options; undone afterwards."""
        _ = self.before, self._watched  # of the model as it is
        spec = self._edit_spec(method, self.layers[0], changes)
        data = {"images": self.candidates, "kept": self.kept}
        session = RepairSession(self.vit, spec, **data, store=self.store, progress=False)
        try:
            yield session
        finally:
            session.undo()

    def _edit_spec(self, method: str, layers: list[int] | None, changes: Mapping[str, Any]) -> EditSpec:
        options = {"layers": layers, "seed": self.spec.seed, **self.spec.edit_options, **changes}
        return EditSpec(method=method, **options)

    def costs(self, layers: Sequence[int]) -> dict[int, Tensor]:
        """:func:`editkit.vision.editing.kept_moments` of the model before any edit."""
        return kept_moments(self.vit, self.kept, layers, store=self.store, progress=self.progress)

    def leakages(self, thresholds: Sequence[float], methods: Sequence[Method]) -> pd.DataFrame:
        """Leakage and success of each method, AlphaEdit at each threshold, all images edited at once.

        Columns method, threshold (nan for the others), leakage, success, kept and norm.

        ``kept`` is the share of right val predictions that stay, ``norm`` is ‖ΔW‖ of all layers together. A threshold
        below which some layer has no eigenvalue is left out, with a warning.
        """
        least = max(torch.linalg.eigvalsh(C)[0].item() for C in self.costs(self.layers[0]).values())
        usable = [threshold for threshold in thresholds if threshold > least]
        if len(usable) < len(thresholds):
            warnings.warn(f"thresholds up to {least:.2g} are left out: no eigenvalue is that small", stacklevel=2)
        rows = []
        for method in methods:
            for threshold in usable if method == "alphaedit" else [float("nan")]:
                changes = {"nullspace_threshold": threshold} if method == "alphaedit" else {}
                with self.session(method, **changes) as session:
                    costs = self.costs(session.spec.layers)
                    made = session.edit(repairs(self.candidates)).deltas
                    val, edited = (self._panels[name].predict(session.spec.layers[0]) for name in ("val", "edited"))
                success = float((edited.argmax(1) == self.candidates.labels).mean())
                kept = compare(self.data.val.labels, self.before["val"], val)["locality"]
                row = {"method": method, "threshold": threshold, "leakage": _leaked(made, costs), "success": success}
                rows.append(row | {"kept": kept, "norm": _norm(made)})
        return pd.DataFrame(rows)

    def report(self, repaired: Sequence[Repaired]) -> pd.DataFrame:
        """One row a method, the untouched model first.

        ``fixed`` of the edited images and ``generalisation`` to their copies (shares), ``kept`` (share of the val
        predictions that were right and still are), fixed and broken images and McNemar's p on val and test, scores
        on test, and ``heldout_change`` of test accuracy in points.
        """
        return pd.DataFrame([self._judged(one) for one in (self._untouched, *repaired)])

    def predictions(self, repaired: Sequence[Repaired]) -> pd.DataFrame:
        """One row a held-out image and method (``pre`` first): index, true, said, and the classes' probabilities."""
        test = self.data.test
        frames = []
        for one in (self._untouched, *repaired):
            said = [self.data.labels[i] for i in one.after["test"].argmax(1)]
            true = [self.data.labels[i] for i in test.labels]
            frame = pd.DataFrame({"method": one.method, "index": test.indices, "true": true, "said": said})
            columns = [f"p({name})" for name in self.data.labels]
            frames.append(frame.join(pd.DataFrame(one.after["test"], columns=columns)))
        return pd.concat(frames, ignore_index=True)

    def classes(self, repaired: Sequence[Repaired]) -> pd.DataFrame:
        """Precision, recall and F1 of each class on held-out images, a row a method (``pre`` first) and class."""
        tables = [
            per_class(self.data.test.labels, one.after["test"], self.data.labels)
            .rename_axis("class")
            .reset_index()
            .assign(method=one.method)
            for one in (self._untouched, *repaired)
        ]
        return pd.concat(tables, ignore_index=True)

    def confusions(self, one: Repaired) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Confusion matrices on held-out images, before and after."""
        found = (self.before["test"], one.after["test"])
        before, after = (confusion(self.data.test.labels, p, self.data.labels) for p in found)
        return before, after

    @property
    def _untouched(self) -> Repaired:
        """The control without any edit."""
        return Repaired(NO_EDIT, [], pd.DataFrame(), self.before, float("nan"), 0.0, 0.0)

    def _predictions(self, changed: int) -> dict[str, np.ndarray]:
        """Of all parts, where only layers from ``changed`` on are not those of the untouched model."""
        return {name: panel.predict(changed) for name, panel in self._panels.items()}

    def _edit(self, method: str, save: Path | None, changes: dict[str, Any]) -> Repaired:
        items = repairs(self.candidates)
        steps = [[item] for item in items] if self.spec.sequential else [items]
        names, labels, rows, total = self.data.labels, self.candidates.labels, [], {}
        with self.session(method, **changes) as session:
            layers = session.spec.layers
            costs = self.costs(layers)
            for step, group in enumerate(steps, start=1):
                made = session.edit(group).deltas
                total = {layer: total.get(layer, 0) + delta for layer, delta in made.items()}
                leaked, norm = _leaked(total, costs), _norm(made)
                said = self._watched.predict(layers[0]).argmax(1)
                broken = float((said != self._watched.part.labels).mean())
                places = range(step - 1, step) if self.spec.sequential else range(len(items))
                now = predict(self.vit, self.candidates.select(list(places)))
                for place, p in zip(places, now, strict=True):
                    row = {"method": method, "step": step, "index": int(self.candidates.indices[place])}
                    first, true = self.before["edited"][place], labels[place]
                    row |= {"true": names[true], "before": names[first.argmax()], "p_true_before": first[true]}
                    row |= {"after": names[p.argmax()], "p_true_after": p[true], "delta_norm": norm}
                    rows.append(row | {"leakage": leaked, "kept_broken": broken, "kept_watched": len(said)})
            seconds = sum(result.seconds["total"] for result in session.results)
            memory = max(result.peak_memory_mb for result in session.results)
            after = self._predictions(layers[0])
            if save and session.adapters is None:
                session.save(save / f"{method}.safetensors")
            elif save:
                session.save_adapter(save / method)
        final = after["edited"]
        log = pd.DataFrame(rows).assign(final=[names[i] for i in final.argmax(1)])
        log["p_true_final"] = final[np.arange(len(labels)), labels]
        log["seed"], log["layers"] = self.spec.seed, str(layers)
        return Repaired(method, layers, log, after, leaked, seconds, memory)

    def _control(self, method: str) -> pd.DataFrame:
        if method == FINE_TUNING:
            options = {"layers": self.spec.finetune_layers, "lr": self.spec.finetune_lr}
            options |= {"steps": self.spec.finetune_steps, "seed": self.spec.seed}
            return finetune(self.vit, self.candidates, **options, progress=self.progress)
        images, spec = (self.candidates, self.kept), self.spec.part(HeadSpec)
        known = {"kept_features": self._kept_features, "progress": self.progress}
        return edit_head(self.vit, *images, HEADS[method], spec, **known)

    def _judged(self, one: Repaired) -> dict[str, Any]:
        labels = {name: part.labels for name, part in self.parts.items()}
        edited, copies = ((one.after[n].argmax(1) == labels[n]).mean() for n in ("edited", "copies"))
        val, test = (compare(labels[n], self.before[n], one.after[n]) for n in ("val", "test"))
        scores, was = (summary(labels["test"], found["test"]) for found in (one.after, self.before))
        row = {"method": one.method, "seed": self.spec.seed, "model": self.vit.name, "dataset": self.data.name}
        row |= {"layers": str(one.layers), "n_edits": len(self.candidates)}
        row |= {"fixed": edited, "generalisation": copies, "kept": val["locality"]}
        row |= {f"val_{name}": val[name] for name in ("fixed", "broken", "mcnemar_p")}
        row |= {f"test_{name}": test[name] for name in ("fixed", "broken", "mcnemar_p")}
        row |= {f"test_{name}": scores[name] for name in ("accuracy", "macro_f1", "nll", "ece")}
        row |= {"heldout_change": 100 * (scores["accuracy"] - was["accuracy"]), "leakage": one.leakage}
        return row | {"seconds": one.seconds, "peak_memory_mb": one.peak_memory_mb}


def _leaked(total: Mapping[int, Tensor], costs: Mapping[int, Tensor]) -> float:
    """The largest leakage of updates ``ΔW`` by layer."""
    return max(leakage(delta, costs[layer]) for layer, delta in total.items())


def _norm(total: Mapping[int, Tensor]) -> float:
    """‖ΔW‖ of all layers together."""
    return sum(delta.square().sum().item() for delta in total.values()) ** 0.5
