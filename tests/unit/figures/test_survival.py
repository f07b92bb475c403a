"""The figure of use: a row a use, a marker a method, a panel a score."""

import numpy as np
import pandas as pd
import pytest

from editkit import figures

USES = {"as it is": 0.9, "int8": 0.8, "halves, averaged": 0.5}
FRAME = pd.DataFrame(
    [
        {"method": method, "use": use, "score": score, "value": value, "low": value - 0.1, "high": value + 0.05}
        for method in ("pre", "rome", "memit")
        for use, value in USES.items()
        for score in ("ES", "EA", "PS", "NS", "S")
        if (method, use) != ("pre", "halves, averaged")
    ]
).assign(n=128, seeds=1, clusters=30)


def test_the_figure_is_labelled(labelled):
    labelled(figures.survival(FRAME), bare=["xaxis", "xaxis2", "yaxis", "yaxis2", "yaxis3", "yaxis4"])


def test_uses_have_rows_in_their_order_and_methods_their_intervals():
    figure = figures.survival(FRAME)
    assert (
        list(figure.layout.yaxis.ticktext) == list(USES) and figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]
    )
    first = {trace.name: trace for trace in figure.data if trace.xaxis == "x"}
    assert first.keys() == {"no edit", "ROME", "MEMIT"}
    assert np.allclose(first["ROME"].x, list(USES.values())) and np.round(first["ROME"].y).tolist() == [0, 1, 2]
    assert np.allclose(first["ROME"].error_x.array, 0.05) and np.allclose(first["ROME"].error_x.arrayminus, 0.1)
    assert np.isnan(first["no edit"].x[2]), "what is not done to a model has no marker"
    assert sum(trace.showlegend for trace in figure.data) == 3
    assert "128 facts" in figure.layout.title.subtitle.text


def test_nothing_cannot_be_shown():
    with pytest.raises(ValueError, match="no use to show"):
        figures.survival(FRAME[:0])
