"""Which layers to edit and by how much the true class shall lead: by what comes right with the budget held on val.

The images to be repaired choose, with their augmented copies: what is fixed of them is of the choice, as val is of the
budget. Held-out images are not looked at.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from editkit.editing.spec import LAST_LAYERS
from editkit.studies.prepared import Choice, Classifier, repairing
from editkit.studies.repair_spec import RepairSpec
from editkit.studies.tables import layer_statistics, rank_layers
from editkit.vision.augment import augmented
from editkit.vision.data import ImageSet, drawn
from editkit.vision.forward import Panel
from editkit.vision.keys import repairs
from editkit.vision.moments import kept_moments
from editkit.vision.tracing import TraceSpec, stored_trace

CHOSEN_ON = 60  # mistakes, at most, that layers and margin are chosen on
TRIED = ["layers", "chosen", "margin", "weight", "fixed", "generality", "kept", "best"]


def traced(classifier: Classifier, images: ImageSet) -> pd.DataFrame:
    """Trace images for the class that the model predicts (:func:`editkit.vision.tracing.trace`)."""
    spec = classifier.spec.part(TraceSpec)
    return stored_trace(classifier.vit, images, spec, store=classifier.store, progress=classifier.progress)


def choose(classifier: Classifier, wrong: ImageSet, kept: ImageSet) -> Choice:
    """Choose layers and margin: those given, the last ones, those that tracing ranks first, or by a sweep.

    A sweep repairs up to ``CHOSEN_ON`` mistakes by the first editor under the budget: in each single layer of the upper
    half, in those that tracing ranks first and in the last three, all with the first margin, then in the best of
    these with the other margins. Best is what fixes most of the images and of their augmented copies, counted alike.
    Layers that the editor cannot edit are left out, with a warning.

    ``tried`` has columns layers, chosen ("one layer", "traced", "the last three" or "margin"), margin, weight, fixed,
    generality, kept (on val) and best.
    """
    spec, n = classifier.spec, classifier.vit.n_layers
    last, margin, nothing = list(range(max(0, n - LAST_LAYERS), n)), spec.margins[0], pd.DataFrame(columns=TRIED)
    if spec.edit_layers:
        return Choice(sorted(spec.edit_layers), margin, "given", nothing)
    if spec.layer_selection == "last" or not len(wrong) or not spec.edit_method:
        count = min(spec.num_edit_layers, n)
        how = "the last three" if count == LAST_LAYERS else f"the last {count}"
        return Choice(list(range(n - count, n)), margin, how, nothing)
    ranked = rank_layers(layer_statistics(traced(classifier, wrong)), spec.num_edit_layers)
    if spec.layer_selection == "traced":
        return Choice(ranked, margin, "traced", nothing)
    part = wrong.select(drawn(len(wrong), CHOSEN_ON, spec.seed))
    places = [("one layer", [layer]) for layer in range(n // 2, n)] + [("traced", ranked), ("the last three", last)]
    every = sorted({layer for _, layers in places for layer in layers})
    kept_moments(classifier.vit, kept, every, store=classifier.store, progress=classifier.progress)  # all in one pass
    parts = {"val": classifier.data.val, "edited": part, "copies": copied(part, spec)}
    panels = {name: Panel(classifier.vit, images, every[0]) for name, images in parts.items()}
    bar = tqdm(total=len(places) + len(spec.margins) - 1, desc="choosing layers", disable=not classifier.progress)

    def attempts(chosen: str, layers: list[int], margin: float) -> Iterator[dict[str, Any]]:
        try:
            found = _attempt(classifier, panels, kept, layers, margin)
            yield {"layers": layers, "chosen": chosen, "margin": margin, **found}
        except (ValueError, FloatingPointError) as problem:
            warnings.warn(f"layers {layers}, margin {margin:g} are left out: {problem}", stacklevel=3)
        bar.update()

    with bar:
        rows = [row for chosen, layers in places for row in attempts(chosen, layers, margin)]
        if not rows:
            raise ValueError(f"{spec.edit_method[0]} cannot edit any of {[layers for _, layers in places]}")
        best = max(rows, key=_gain)["layers"]
        rows += [row for other in spec.margins[1:] for row in attempts("margin", best, other)]
    best = max(rows, key=_gain)
    tried = pd.DataFrame(rows)[TRIED[:-1]].assign(best=[row is best for row in rows])
    return Choice(best["layers"], best["margin"], "swept", tried.assign(layers=tried.layers.map(str)))


def _gain(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["fixed"] + row["generality"], row["kept"]


def _attempt(
    classifier: Classifier, panels: Mapping[str, Panel], kept: ImageSet, layers: list[int], margin: float
) -> dict[str, float]:
    """Repair some mistakes in these layers by the first editor, measure on val, and put the model back."""
    edited, copies = panels["edited"], panels["copies"]
    how: dict[str, Any] = {"method": classifier.spec.edit_method[0], "layers": layers, "stop_margin": margin}
    with repairing(classifier, edited.part, kept, panels["val"], **how) as opened:
        on_val = opened.domain.promises([])
        budget = opened.edit(repairs(edited.part)).budget
        return {
            "weight": budget.weight if budget else math.nan,
            "fixed": float((edited.predict(layers[0]).argmax(1) == edited.part.labels).mean()),
            "generality": float((copies.predict(layers[0]).argmax(1) == copies.part.labels).mean()),
            **(budget.measured if budget else on_val()),
        }


def copied(part: ImageSet, spec: RepairSpec) -> ImageSet:
    """Make the augmented copies on which generality is measured."""
    images = augmented(part.images, spec.copies, spec.seed + 1) if len(part) else part.images
    return ImageSet(images, part.labels.repeat(spec.copies), part.indices.repeat(spec.copies))
