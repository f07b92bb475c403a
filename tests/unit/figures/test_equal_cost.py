"""The figure of equal cost: editors as points, fine-tuning as curves."""

import numpy as np
import pandas as pd

from editkit import figures

POINTS = [("pre", "pre", 0.0, 0.0), ("memit", "exact", 50.0, 0.1), ("memit", "fast", 5.0, 0.2)]
POINTS += [("locft", "4 epochs", 40.0, 0.32), ("locft", "1 epoch", 10.0, 0.02)]
FRAME = pd.DataFrame(
    [
        {"method": method, "variant": variant, "seconds": seconds, "kl": kl, "score": score, "value": 0.5}
        for method, variant, seconds, kl in POINTS
        for score in ("ES", "PS", "NS", "S", "EA")
    ]
).assign(low=0.4, high=0.7, n=64, seeds=1, clusters=64)


def test_the_figure_is_labelled(labelled):
    labelled(figures.equal_cost(FRAME, ["locft"]), bare=["yaxis2", "yaxis4"])


def test_a_curve_goes_through_its_budgets_and_an_editor_is_a_point_for_each_search():
    figure = figures.equal_cost(FRAME, ["locft"])
    for axis, cost in (("x", [10, 40]), ("x2", [0.02, 0.32])):
        traces = {trace.name: trace for trace in figure.data if trace.xaxis == axis}
        assert traces.keys() == {"MEMIT, exact", "MEMIT, fast", "LocFT-BF"}
        assert list(traces["LocFT-BF"].x) == cost and traces["LocFT-BF"].mode == "lines+markers"
        assert list(traces["LocFT-BF"].customdata) == ["1 epoch", "4 epochs"]
        assert traces["MEMIT, fast"].marker.symbol == "square-open" and len(traces["MEMIT, fast"].x) == 1
        assert np.allclose(traces["MEMIT, exact"].error_y.array, 0.2)
    assert sum(trace.showlegend for trace in figure.data) == 3
    assert "64 facts" in figure.layout.title.subtitle.text
