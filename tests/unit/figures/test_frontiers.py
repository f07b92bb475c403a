"""Figures of what repairs bring and cost: they hold the data given, and what was chosen stands out."""

import numpy as np
import pandas as pd

from editkit.figures import WIDTH
from editkit.figures.frontiers import LOWEST_KEPT, common_direction, edits_at_budget, frontier_curves, layer_sweep
from editkit.methods import CONTROLS, UNTOUCHED, label, look

METHODS = ["emmet", *(name for name in CONTROLS if name != UNTOUCHED)]  # in the order of figures
FRONTIER = pd.DataFrame(
    [
        ("memit", 10.0, False, 0.1, 0.05, 1.0, 0.5),  # the last first: curves run by point
        ("memit", 1.0, True, 0.6, 0.3, 0.985, -0.5),
        ("memit", 0.0, False, 1.0, 0.8, 0.6, -12.0),
        ("finetuning", 5, True, 0.5, 0.4, 0.99, 0.0),
        ("finetuning", 10, False, 0.9, 0.6, 0.9, -3.0),
    ],
    columns=["method", "point", "at_budget", "fixed", "generality", "kept", "heldout_change"],
)
SWEEP = pd.DataFrame(
    [(f"[{layer}]", "one layer", 5.0, 3.0, layer / 20, layer / 40, 0.98, False) for layer in (10, *range(10), 11)]
    + [
        ("[3, 4, 5]", "traced", 5.0, 2.0, 0.3, 0.2, 0.98, False),
        ("[9, 10, 11]", "the last three", 5.0, 2.0, 0.4, 0.3, 0.98, False),
        ("[11]", "margin", np.inf, 4.0, 0.5, 0.2, 0.98, False),
        ("[11]", "margin", 2.0, 1.0, 0.7, 0.5, 0.98, True),
    ],
    columns=["layers", "chosen", "margin", "weight", "fixed", "generality", "kept", "best"],
)
DIRECTIONS = pd.DataFrame({"index": [7, 8, 9], "true": ["b", "a", "a"], "cosine": [0.5, -0.2, 0.9]})
MOVED = pd.DataFrame(
    [
        (split, name, method, shift, 0.5, 0.02, 40)
        for split, factor in (("val", 1), ("test", 100))
        for name in ("a", "a class with a long name")
        for method, shift in (("memit", -1.0 * factor), ("finetuning", 0.5 * factor))
    ],
    columns=["split", "class", "method", "shift", "spread", "broken", "n"],
)


def test_a_frontier_has_a_curve_a_method_and_its_choice_stands_out():
    figure = frontier_curves(FRONTIER, 0.98)
    curves, chosen = figure.data[:8], figure.data[8:]
    assert [curve.name for curve in curves if curve.showlegend] == ["MEMIT", "fine-tuning"]
    for curve, x, y in zip(
        curves[:4], ("kept", "heldout_change") * 2, ("fixed",) * 2 + ("generality",) * 2, strict=True
    ):
        rows = FRONTIER[FRONTIER.method == "memit"][::-1]
        assert list(curve.x) == list(rows[x]) and list(curve.y) == list(rows[y]) and curve.line.dash == "solid"
    assert {curve.line.dash for curve in curves[4:]} == {"dot"}
    assert [(mark.x[0], mark.y[0]) for mark in chosen[:2]] == [(0.985, 0.6), (-0.5, 0.6)]
    assert all(len(mark.x) == 1 and mark.marker.size > 6 and mark.marker.line.width for mark in chosen)
    assert [mark.marker.color for mark in chosen[::4]] == [look("memit").colour, look("finetuning").colour]
    assert [line.x0 for line in figure.layout.shapes] == [0.98, 0.98], "in both panels of what is kept"
    assert {note.text for note in figure.layout.annotations} == {"budget 0.98"}
    left, right = figure.layout.xaxis.range
    assert LOWEST_KEPT - 0.02 < left < LOWEST_KEPT and 1 < right < 1.02
    assert figure.layout.xaxis2.range[0] > -4, "as far as something of the other panel is shown"
    assert "less than 0.8 is kept, not shown" in figure.layout.title.subtitle.text


def test_a_frontier_without_a_budget_shows_all_that_is_kept():
    figure = frontier_curves(FRONTIER[FRONTIER.kept > 0.8], None)
    assert not figure.layout.shapes and not figure.layout.annotations
    assert 0.89 < figure.layout.xaxis.range[0] < 0.9 and "shown" not in figure.layout.title.subtitle.text


def test_a_low_budget_is_in_sight():
    figure = frontier_curves(FRONTIER, 0.7)
    assert figure.layout.xaxis.range[0] < 0.7 and figure.layout.annotations[0].xanchor == "left"


def test_repairs_at_the_budget_by_number_of_edits():
    rows = [(method, n, 1 / n, 0.5 / n, 0.97, -n / 10) for n in (10, 1, 30) for method in METHODS]
    frame = pd.DataFrame(rows, columns=["method", "n_edits", "fixed", "generality", "test_kept", "heldout_change"])
    figure = edits_at_budget(frame, 0.98)
    assert [line.name for line in figure.data if line.showlegend] == [label(method) for method in METHODS]
    fixed, kept, change = figure.data[:3]
    assert [tuple(one) for one in fixed.customdata] == [(1, 0.5), (10, 0.05), (30, 0.5 / 30)]
    assert np.allclose(fixed.x, [1, 10, 30], rtol=0.25) and list(fixed.y) == [1, 0.1, 1 / 30]
    assert list(kept.y) == [0.97] * 3 and list(change.y) == [-0.1, -1, -3]
    assert len({line.x[0] for line in figure.data}) == len(METHODS), "side by side"
    assert [line.y0 for line in figure.layout.shapes] == [0.98] and figure.layout.yaxis2.range[1] > 0.98
    assert {axis.type for axis in figure.select_xaxes()} == {"log"} and list(figure.layout.xaxis.tickvals) == [
        1,
        10,
        30,
    ]
    assert not edits_at_budget(frame, None).layout.shapes


def test_a_sweep_shows_layers_sets_of_them_and_margins():
    figure = layer_sweep(SWEEP, 0.98)
    fixed, sets, margins = figure.data[:3]
    assert list(fixed.x) == list(range(12)) and np.allclose(fixed.y, np.arange(12) / 20)
    assert list(sets.y) == [0.3, 0.4] and sets.mode == "markers" and min(sets.x) > 12
    assert list(margins.x) == ["2", "5", "none"] and list(margins.y) == [0.7, 0.55, 0.5]
    assert list(figure.data[5].y) == [0.5, 11 / 40, 0.2], "copies"
    assert [trace.name for trace in figure.data if trace.showlegend] == ["images fixed", "copies right", "chosen"]
    (ring,) = (trace for trace in figure.data if trace.name == "chosen")
    assert (list(ring.x), list(ring.y), ring.xaxis) == (["2", "2"], [0.7, 0.5], "x2")
    axis = figure.layout.xaxis
    assert list(axis.ticktext[-2:]) == ["traced<br>3, 4, 5", "last three<br>9, 10, 11"]
    assert axis.range[1] > max(sets.x) and "layer 11" in figure.layout.xaxis2.title.text
    subtitle = figure.layout.title.subtitle.text
    assert subtitle == "left: targets stop at a margin of 5; each at the least weight that keeps 0.98 on validation"
    upper = layer_sweep(SWEEP[7:], 0.98).layout.xaxis
    assert upper.range[0] == 5.5 and upper.tickvals[0] == 6, "from the first layer that was tried"
    alone = layer_sweep(SWEEP[:12].assign(best=SWEEP.layers == "[11]"), None)
    assert "weight" not in alone.layout.title.subtitle.text
    assert [trace.xaxis for trace in alone.data if trace.name == "chosen"] == ["x", "x2"], "in both panels"


def test_directions_and_what_moved_share_their_classes():
    figure = common_direction(DIRECTIONS, MOVED)
    cosines, *bars = figure.data
    assert (list(cosines.x), list(cosines.y), list(cosines.text)) == ([0.5, -0.2, 0.9], [2, 0, 0], [7, 8, 9])
    memit, broken = bars[:2]
    assert list(memit.x) == [-1, -1] and list(memit.error_x.array) == [0.5, 0.5], "of validation images alone"
    assert list(broken.x) == [0.02, 0.02] and [bar.name for bar in bars if bar.showlegend is None] == [
        "MEMIT",
        "fine-tuning",
    ]
    assert memit.marker.color == broken.marker.color == look("memit").colour != bars[2].marker.color
    assert figure.layout.yaxis.ticktext == ("a", "a class with a lo…", "b")
    assert [round(y) for y in memit.y] == [0, 1] and memit.y[0] < bars[2].y[0], "side by side in the row of their class"
    assert max(map(len, figure.layout.yaxis.ticktext)) <= 18 and figure.layout.width == WIDTH
    assert "3 images" in figure.layout.title.subtitle.text
    assert common_direction(DIRECTIONS[:0], MOVED).data and common_direction(DIRECTIONS, MOVED[:0]).data
