"""Figures of edits: right data, fixed colours, titles and units."""

import numpy as np
import pandas as pd
import pytest

from editkit import figures
from editkit.methods import METHODS

SCORES = pd.DataFrame(
    [
        {"method": method, "batch_size": size, "seed": seed, "moment": moment}
        | {"ES": value + seed / 100, "PS": value, "NS": value, "S": value}
        for method in METHODS
        for size in (1, 8, 32)
        for seed in (1, 2, 3)
        for moment, value in (("pre", 0.25), ("immediate", 0.9), ("final", 0.8))
    ]
)
SECONDS = pd.DataFrame({"method": ["emmet"] * 2, "seconds_targets": [3.0, 5.0], "seconds_solve": [1.0, 1.0]})
LOSSES = pd.DataFrame({"step": [0, 1] * 4, "loss": [8.0, 1, 7, 2, 6, 3, 5, 4]})


def score_bars():
    return figures.score_bars(SCORES[SCORES["batch_size"] == 32])


def test_figures_are_labelled_and_vector(labelled):
    labelled(figures.scores_by_batch(SCORES), bare=["yaxis2", "yaxis4"])
    labelled(score_bars(), bare=["xaxis"])
    labelled(figures.loss_curves(LOSSES))
    labelled(figures.seconds_bars(SECONDS), bare=["yaxis"])


def test_bars_have_the_colours_of_their_methods():
    some = figures.score_bars(SCORES[SCORES["method"].isin(["memit", "alphaedit"])])
    bars = {bar.name: bar.marker.color for bar in some.data if bar.type == "bar"}
    assert bars == {"no edit": "#7F858D", "MEMIT": "#0072B2", "AlphaEdit": "#CC79A7"}


def test_the_untouched_model_may_have_rows_of_its_own():
    of_its_own = SCORES[SCORES.moment == "pre"].drop_duplicates("seed").assign(method="pre", batch_size=0)
    frame = pd.concat([of_its_own, SCORES[SCORES.moment != "pre"]])
    for figure in (figures.scores_by_batch(frame), figures.score_bars(frame)):
        assert {trace.name for trace in figure.data} >= {"no edit", *(row.label for row in METHODS.values())}
    before = next(t for t in figures.scores_by_batch(frame).data if t.name == "no edit")
    assert np.allclose(before.y, 0.27) and list(before.x) == [0.8, 40]


def test_scores_by_batch_shows_mean_spread_and_pre():
    figure = figures.scores_by_batch(SCORES)
    rome, before = (next(t for t in figure.data if t.name == name) for name in ("ROME", "no edit"))
    assert np.allclose(rome.y, 0.82) and list(rome.customdata) == [1, 8, 32]
    assert np.allclose(rome.error_y.array, 0.01) and np.allclose(rome.error_y.arrayminus, 0.01)
    assert np.allclose(before.y, 0.27) and before.line.dash == "dash"
    immediate = figures.scores_by_batch(SCORES, moment="immediate")
    assert np.allclose(next(t for t in immediate.data if t.name == "ROME").y, 0.92)


def test_one_seed_claims_no_spread():
    single = figures.scores_by_batch(SCORES[SCORES["seed"] == 1])
    assert single.layout.title.subtitle.text == "one seed"


def test_score_bars_have_a_dot_a_seed():
    dots = [trace for trace in score_bars().data if trace.type == "scatter"]
    assert len(dots) == 5 and all(len(trace.x) == 12 for trace in dots)


def test_seconds_are_means_over_runs():
    figure = figures.seconds_bars(SECONDS)
    assert {bar.name: list(bar.x) for bar in figure.data} == {"targets": [4.0], "solve": [1.0]}
    assert figure.layout.title.subtitle.text == "mean over 2 runs"


def test_moments_are_chosen_and_checked():
    without_final = SCORES[SCORES["moment"] != "final"]
    rome = next(t for t in figures.scores_by_batch(without_final).data if t.name == "ROME")
    assert np.allclose(rome.y, 0.92)
    with pytest.raises(ValueError, match="no rows of moment 'final'; the frame has immediate, pre"):
        figures.score_bars(without_final, moment="final")
