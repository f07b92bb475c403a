"""The figure of probes: a row a kind with what is known of it, a marker a method."""

import numpy as np
import pandas as pd
import pytest

from editkit import figures
from editkit.facts import KINDS

CELLS = [("pre", 0.1), ("memit", 0.6), ("rome", 0.4)]
ROWS = [
    {"method": method, "kind": kind, "score": score, "value": value, "low": value - 0.05, "high": value + 0.1}
    | {"asked": 40, "known": known}
    for method, value in CELLS
    for kind, known in (("relation", 30), ("two_hop", 12), ("logical", 0))
    for score in ("success", "accuracy")
]
SCORES = pd.DataFrame(ROWS).assign(n=10, seeds=2, clusters=7)


def test_the_figure_is_labelled_and_vector(labelled):
    labelled(figures.probe_dots(SCORES), bare=["yaxis", "yaxis2"])


def test_kinds_say_how_much_of_them_is_known_and_those_without_are_left_out():
    figure = figures.probe_dots(SCORES)
    rows = [f"{KINDS['two_hop'].label}<br>12 of 40 known", f"{KINDS['relation'].label}<br>30 of 40 known"]
    assert list(figure.layout.yaxis.ticktext) == rows
    assert "95%" in figure.layout.title.subtitle.text and "2 seeds" in figure.layout.title.subtitle.text


def test_every_method_has_its_colour_its_place_and_its_intervals():
    figure = figures.probe_dots(SCORES)
    assert len(figure.data) == 6 and {trace.name for trace in figure.data} == {"no edit", "MEMIT", "ROME"}
    memit = next(trace for trace in figure.data if trace.name == "MEMIT")
    assert memit.marker.color == "#0072B2" and np.allclose(memit.x, 0.6)
    assert np.allclose(memit.error_x.array, 0.1) and np.allclose(memit.error_x.arrayminus, 0.05)
    heights = {trace.name: trace.y[0] for trace in figure.data}
    assert len(set(heights.values())) == 3 and all(abs(y) < 0.5 for y in heights.values())
    assert sum(trace.showlegend is not False for trace in figure.data) == 3


def test_nothing_known_is_refused():
    with pytest.raises(ValueError, match="no known probe to show, of 18 rows"):
        figures.probe_dots(SCORES.assign(known=0))
