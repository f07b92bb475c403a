"""Figures of image classifiers: they hold the data given, in distinct colours, within the page."""

import numpy as np
import pandas as pd
import pytest

from editkit.figures import WIDTH
from editkit.figures.images import (
    KINDS,
    confusion_maps,
    gallery,
    layer_importance_bars,
    leakage_curves,
    patch_heat_maps,
    repair_bars,
    training_curve,
)
from editkit.methods import CONTROLS, UNTOUCHED, label, look

METHODS = ["emmet", *(name for name in CONTROLS if name != UNTOUCHED)]  # in the order of figures
REPAIRS = pd.DataFrame(
    [
        {
            "method": method,
            "seed": seed,
            "fixed": 0.5 + seed / 10,
            "kept": 0.9,
            "test_kept": 0.8,
            "heldout_change": -1.0 + place,
        }
        for place, method in enumerate(METHODS)
        for seed in (1, 2, 3)
    ]
)
LEAKAGE = pd.DataFrame(
    [
        {
            "method": "alphaedit",
            "nullspace": "threshold",
            "threshold": threshold,
            "leakage": threshold * scale,
            "success": 0.9,
        }
        for threshold in (1e-3, 1e-2)
        for scale in (1.0, 3.0)
    ]
    + [{"method": "memit", "nullspace": "none", "threshold": np.nan, "leakage": 0.2, "success": 0.8}]
    + [{"method": "alphaedit", "nullspace": "kept", "threshold": np.nan, "leakage": 0.1, "success": 0.7}]
)
IMAGES = np.arange(5 * 4 * 6, dtype=np.uint8).reshape(5, 4, 6)


def test_training_shows_loss_and_accuracy_by_epoch():
    figure = training_curve(pd.DataFrame({"epoch": [1, 2], "loss": [1.0, 0.5], "val_accuracy": [0.6, 0.8]}))
    assert [(list(line.x), list(line.y)) for line in figure.data] == [([1, 2], [1.0, 0.5]), ([1, 2], [0.6, 0.8])]
    assert figure.layout.title.subtitle.text == "fine-tuning, 2 epochs"


@pytest.mark.parametrize("classes", [2, 10])
def test_confusion_before_after_and_their_difference(classes):
    before = np.random.default_rng(0).integers(0, 20, (classes, classes))
    after = before.T
    names = [f"a class with a long name, {i}" for i in range(classes)]
    figure = confusion_maps(pd.DataFrame(before), pd.DataFrame(after), names)
    for heat, counts in zip(figure.data, (before, after, after - before), strict=True):
        assert np.array_equal(heat.z, counts)
    first, second, moved = figure.data
    assert (first.zmin, first.zmax) == (second.zmin, second.zmax) == (0, before.max())
    assert moved.zmin == -moved.zmax == -abs(after - before).max()
    fewest = np.unravel_index((after - before).argmin(), before.shape)
    assert moved.text[fewest[0]][fewest[1]] == f"−{abs(moved.zmin)}" and moved.text[0][0] == ""
    assert figure.layout.width == WIDTH and figure.layout.yaxis.autorange == "reversed"
    assert max(map(len, figure.layout.xaxis.ticktext)) <= 14 and names[1] in first.customdata[1][0]


def test_without_a_change_the_difference_is_blank():
    table = pd.DataFrame([[3, 0], [1, 2]])
    moved = confusion_maps(table, table, ["a", "b"]).data[2]
    assert not np.any(moved.z) and moved.zmax == 1 and {text for row in moved.text for text in row} == {""}


def test_repairs_have_means_spread_and_numbers():
    figure = repair_bars(REPAIRS)
    fixed, kept, test_kept, change = (trace for trace in figure.data if trace.type == "bar")
    assert (
        list(fixed.y) == [label(method) for method in METHODS]
        and np.allclose(fixed.x, 0.7)
        and np.allclose(kept.x, 0.9)
        and np.allclose(test_kept.x, 0.8)
    )
    assert np.allclose(fixed.error_x.array, 0.1) and np.allclose(fixed.error_x.arrayminus, 0.1)
    assert list(change.x) == [-1.0 + place for place in range(len(METHODS))]
    colours = fixed.marker.color
    assert (
        colours == tuple(look(method).colour for method in METHODS)
        and len(set(colours)) == len(METHODS)
        and colours == change.marker.color
    )
    numbers = [trace.text for trace in figure.data if trace.type == "scatter"]
    assert numbers[0][0] == "0.700" and list(numbers[3])[:4] == ["−1.00", "+0.00", "+1.00", "+2.00"]
    assert figure.layout.title.subtitle.text == "mean over 3 seeds; bars: smallest to largest seed"
    assert repair_bars(REPAIRS[REPAIRS.seed == 1]).layout.title.subtitle.text == "one seed"


def test_leakage_has_a_point_a_threshold_and_a_line_across_for_none():
    traces = [trace for trace in leakage_curves(LEAKAGE).data if trace.x is not None and len(trace.x)]
    memit = [trace for trace in traces if trace.name == "MEMIT"]
    assert (list(memit[0].x), list(memit[0].y)) == ([0.8], [0.2])
    assert (list(memit[1].x), list(memit[1].y), memit[1].line.dash) == ([1e-3, 1e-2], [0.2, 0.2], "dash")
    against_success, against_threshold = (trace for trace in traces if trace.name == "AlphaEdit")
    assert np.allclose(against_success.x, 0.9) and np.allclose(against_success.y, [2e-3, 2e-2])
    assert np.allclose(against_threshold.x, [1e-3, 1e-2]) and np.allclose(against_threshold.y, [2e-3, 2e-2])
    kept = [trace for trace in traces if trace.name == "AlphaEdit, off kept CLS keys"]
    assert (list(kept[0].x), list(kept[0].y)) == ([0.7], [0.1]) and kept[0].marker.symbol == "star"
    assert (list(kept[1].y), kept[1].line.dash) == ([0.1, 0.1], "dot")
    layout = leakage_curves(LEAKAGE).layout
    assert layout.yaxis.type == layout.yaxis2.type == layout.xaxis2.type == "log" and layout.xaxis.type is None


def test_a_gallery_sets_images_maps_and_captions_in_a_grid():
    maps = np.random.default_rng(0).random((5, 2, 2))
    figure = gallery(IMAGES, maps, [f"class {i} (0.9) → the right class (0.6)" for i in range(5)])
    pictures = [trace for trace in figure.data if trace.type == "image"]
    heats = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(pictures) == 10 and np.array_equal(pictures[0].z, np.stack([IMAGES[0]] * 3, -1))
    assert all(np.array_equal(heat.z, values) for heat, values in zip(heats, maps, strict=True))
    for under, heat in zip(pictures[1::2], heats, strict=True):  # both cover the same place
        assert heat.x0 - heat.dx / 2 == pytest.approx(under.x0 - under.dx / 2) and heat.dx * 2 == pytest.approx(
            6 * under.dx
        )
        assert heat.y0 - heat.dy / 2 == pytest.approx(under.y0 - under.dy / 2) and heat.dy * 2 == pytest.approx(
            4 * under.dy
        )
    notes = figure.layout.annotations
    assert notes[4].text.replace("<br>", " ") == "class 4 (0.9) → the right class (0.6)" and "<br>" in notes[4].text
    assert notes[4].x == notes[0].x and notes[4].y > notes[0].y and figure.layout.width == WIDTH
    colour = np.stack([IMAGES] * 3, -1)
    plain = gallery(colour, None, ["one"] * 5)
    assert (
        len(plain.data) == 5
        and np.array_equal(plain.data[3].z, colour[3])
        and plain.layout.height < figure.layout.height
    )


def test_a_gallery_that_does_not_add_up_is_refused():
    for images, maps, captions in (
        (IMAGES, None, ["one"]),
        (IMAGES, np.ones((2, 2, 2)), ["one"] * 5),
        (IMAGES[:0], None, []),
        (IMAGES.repeat(3, 0), None, ["one"] * 15),
    ):
        with pytest.raises(ValueError, match=f"1 to 12 images.* got {len(images)} images, {len(captions)} captions"):
            gallery(images, maps, captions)


def test_layers_have_a_bar_a_kind_with_intervals():
    rows = [(kind, layer, 0.1 * layer, 0.1 * layer - 0.05, 0.1 * layer + 0.02, 3) for kind in KINDS for layer in (1, 0)]
    figure = layer_importance_bars(pd.DataFrame(rows, columns=["kind", "layer", "value", "low", "high", "n"]))
    assert [bar.name for bar in figure.data] == ["residual stream (CLS)", "MLP", "attention"]
    for bar in figure.data:
        assert list(bar.x) == [0, 1] and list(bar.y) == [0, 0.1]
        assert np.allclose(bar.error_y.array, 0.02) and np.allclose(bar.error_y.arrayminus, 0.05)
    assert len({bar.marker.color for bar in figure.data}) == 3 and "3 images" in figure.layout.title.subtitle.text


def test_patches_lie_over_the_image_on_one_scale():
    maps = np.arange(-8, 24).reshape(2, 4, 4) / 100
    figure = patch_heat_maps(np.full((8, 8), 7, np.uint8), maps, [0, 2], subtitle="made up")
    heats, pictures = figure.data[:2], figure.data[2:]
    assert [np.array_equal(one.z, np.full((8, 8, 3), 7)) for one in pictures] == [True] * 3, "alone, and under each map"
    assert [(one.x0, one.dx, one.y0, one.dy) for one in heats] == [(0.5, 2, 0.5, 2)] * 2, "a patch is 2 × 2 pixels"
    assert [np.array_equal(heat.z, values) for heat, values in zip(heats, maps, strict=True)] == [True, True]
    assert figure.layout.coloraxis.cmax == -figure.layout.coloraxis.cmin == pytest.approx(0.23)
    assert all(axis.autorange == "reversed" for axis in figure.select_yaxes())
    assert [note.text for note in figure.layout.annotations] == ["image", "after layer 0", "after layer 2"]
    colour = np.zeros((8, 6, 3), np.uint8)
    assert np.array_equal(patch_heat_maps(colour, maps, range(2), subtitle="").data[-1].z, colour)
