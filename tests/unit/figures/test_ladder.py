"""The figure of the ladder: values, intervals and ranks in their places."""

import numpy as np
import pandas as pd
import pytest

from editkit import figures

VALUES = {  # by method: success, accuracy, said
    "pre": (0.1, 0.0, 0.0),
    "rome": (0.9, 0.8, 0.3),
    "memit": (0.95, 0.7, 0.4),
    "emmet": (0.9, 0.6, 0.2),
}
FRAME = pd.DataFrame(
    [
        {"method": method, "kind": kind, "rung": rung, "value": value, "low": value - 0.1, "high": value + 0.02}
        for method, values in VALUES.items()
        for kind in ("rewrite", "paraphrase", "neighbourhood")
        for rung, value in zip(("success", "accuracy", "said"), values, strict=True)
    ]
).assign(n=96, seeds=3, clusters=40)


def test_the_figure_is_labelled(labelled):
    top, right = [f"xaxis{n}" for n in ("", 2, 3)], [f"yaxis{n}" for n in (2, 3, 5, 6)]
    labelled(figures.ranks_by_rung(FRAME.sample(frac=1, random_state=0)), bare=top + right)


def test_values_and_ranks_stand_under_their_rungs():
    figure = figures.ranks_by_rung(FRAME.sample(frac=1, random_state=0))
    values = {trace.name: trace for trace in figure.data if trace.yaxis == "y"}
    assert values.keys() == {"no edit", "ROME", "MEMIT", "EMMET"}
    assert np.allclose(values["MEMIT"].y, VALUES["memit"]) and np.round(values["MEMIT"].x).tolist() == [0, 1, 2]
    assert np.allclose(values["MEMIT"].error_y.array, 0.02) and np.allclose(values["MEMIT"].error_y.arrayminus, 0.1)
    ranks = {trace.name: list(trace.y) for trace in figure.data if trace.yaxis == "y4"}
    assert ranks == {"ROME": [2, 1, 2], "MEMIT": [1, 2, 1], "EMMET": [2, 3, 3]}
    assert list(figure.layout.xaxis4.ticktext) == ["success", "accuracy", "said"]
    assert sum(trace.showlegend for trace in figure.data) == 4
    assert figure.layout.title.subtitle.text == "95% intervals; 96 facts of 3 seeds, 40 clusters"


def test_kinds_that_are_not_there_have_no_panel():
    figure = figures.ranks_by_rung(FRAME[FRAME.kind == "rewrite"])
    assert {trace.yaxis for trace in figure.data} == {"y", "y2"}


def test_what_has_no_place_is_refused():
    with pytest.raises(ValueError, match="rung 'magnitude' has no place on the ladder: must be one of success"):
        figures.ranks_by_rung(FRAME.replace({"rung": {"said": "magnitude"}}))
    with pytest.raises(ValueError, match="no rows"):
        figures.ranks_by_rung(FRAME[:0])
