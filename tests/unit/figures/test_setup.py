"""Figures of a model's insides."""

import pandas as pd

from editkit import figures

NORMS = {"start_token": [True, True, False, False], "layer": 3, "position": [0, 1, 0, 1], "norm": [900.0, 20, 950, 25]}


def spectrum():
    return figures.spectrum({4: [3.0, 1e-3, 0.1], 5: [2.0, -1e-9]}, threshold=0.02)


def test_figures_are_labelled_and_vector(labelled):
    labelled(spectrum())
    labelled(figures.position_norms(pd.DataFrame(NORMS)), bare=["yaxis2"])


def test_spectrum_is_sorted_and_positive():
    figure = spectrum()
    assert [list(trace.y) for trace in figure.data] == [[3.0, 0.1, 1e-3], [2.0]]
    assert figure.layout.shapes[0].y0 == 0.02
