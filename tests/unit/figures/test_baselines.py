"""Figures of edits: right data, fixed colours, titles and units."""

import numpy as np
import pandas as pd

from editkit import figures
from editkit.methods import METHODS

SAMPLE = {"n": 96, "seeds": 3, "clusters": 40}
CELLS = [(method, size, 0.8) for method in METHODS for size in (1, 8, 32)] + [("pre", 0, 0.25)]
SCORES = pd.DataFrame(
    [
        {"method": method, "batch_size": size, "score": score, "value": value, "low": value - 0.1, "high": value + 0.05}
        for method, size, value in CELLS
        for score in ("ES", "PS", "NS", "S")
    ]
).assign(**SAMPLE)
SECONDS = pd.DataFrame({"method": ["emmet"] * 2, "seconds_targets": [3.0, 5.0], "seconds_solve": [1.0, 1.0]})
LOSSES = pd.DataFrame({"step": [0, 1] * 4, "loss": [8.0, 1, 7, 2, 6, 3, 5, 4]})


def test_figures_are_labelled_and_vector(labelled):
    labelled(figures.scores_by_batch(SCORES), bare=["yaxis2", "yaxis4"])
    labelled(figures.loss_curves(LOSSES))
    labelled(figures.seconds_bars(SECONDS), bare=["yaxis"])


def test_scores_by_batch_shows_intervals_and_the_untouched_model():
    figure = figures.scores_by_batch(SCORES)
    assert {trace.name for trace in figure.data} == {"no edit", *(row.label for row in METHODS.values())}
    rome, before = (next(t for t in figure.data if t.name == name) for name in ("ROME", "no edit"))
    assert np.allclose(rome.y, 0.8) and list(rome.customdata) == [1, 8, 32]
    assert np.allclose(rome.error_y.array, 0.05) and np.allclose(rome.error_y.arrayminus, 0.1)
    assert np.allclose(before.y, 0.25) and before.line.dash == "dash" and list(before.x) == [0.8, 40]
    assert figure.layout.title.subtitle.text == "95% intervals; 96 facts of 3 seeds, 40 clusters"


def test_seconds_are_means_over_runs():
    figure = figures.seconds_bars(SECONDS)
    assert {bar.name: list(bar.x) for bar in figure.data} == {"targets": [4.0], "solve": [1.0]}
    assert figure.layout.title.subtitle.text == "mean over 2 runs"
