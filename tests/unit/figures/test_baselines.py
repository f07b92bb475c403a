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
SEEDS = pd.DataFrame([{"method": m, "seed": seed} for m in ("pre", *METHODS) for seed in (1, 2, 3)])
SEEDS = SEEDS.assign(ES=0.8 + SEEDS.seed / 100, PS=0.8, NS=0.8, S=0.8)
SECONDS = pd.DataFrame({"method": ["emmet"] * 2, "seconds_targets": [3.0, 5.0], "seconds_solve": [1.0, 1.0]})
LOSSES = pd.DataFrame({"step": [0, 1] * 4, "loss": [8.0, 1, 7, 2, 6, 3, 5, 4]})


def score_bars(scores=SCORES):
    return figures.score_bars(scores[scores["batch_size"].isin([0, 32])], SEEDS)


def test_figures_are_labelled_and_vector(labelled):
    labelled(figures.scores_by_batch(SCORES), bare=["yaxis2", "yaxis4"])
    labelled(score_bars(), bare=["xaxis"])
    labelled(figures.loss_curves(LOSSES))
    labelled(figures.seconds_bars(SECONDS), bare=["yaxis"])


def test_bars_have_the_colours_of_their_methods_and_intervals():
    some = score_bars(SCORES[SCORES["method"].isin(["pre", "memit", "alphaedit"])])
    bars = {bar.name: bar for bar in some.data if bar.type == "bar"}
    colours = {name: bar.marker.color for name, bar in bars.items()}
    assert colours == {"no edit": "#7F858D", "MEMIT": "#0072B2", "AlphaEdit": "#CC79A7"}
    assert np.allclose(bars["MEMIT"].y, 0.8) and np.allclose(bars["no edit"].y, 0.25)
    assert np.allclose(bars["MEMIT"].error_y.array, 0.05) and np.allclose(bars["MEMIT"].error_y.arrayminus, 0.1)


def test_scores_by_batch_shows_intervals_and_the_untouched_model():
    figure = figures.scores_by_batch(SCORES)
    assert {trace.name for trace in figure.data} == {"no edit", *(row.label for row in METHODS.values())}
    rome, before = (next(t for t in figure.data if t.name == name) for name in ("ROME", "no edit"))
    assert np.allclose(rome.y, 0.8) and list(rome.customdata) == [1, 8, 32]
    assert np.allclose(rome.error_y.array, 0.05) and np.allclose(rome.error_y.arrayminus, 0.1)
    assert np.allclose(before.y, 0.25) and before.line.dash == "dash" and list(before.x) == [0.8, 40]
    assert figure.layout.title.subtitle.text == "95 % intervals; 96 facts of 3 seeds, 40 clusters"


def test_score_bars_have_a_dot_a_seed():
    figure = score_bars()
    dots = [trace for trace in figure.data if trace.type == "scatter"]
    assert len(dots) == 1 + len(METHODS) and all(len(trace.x) == 12 for trace in dots)
    assert figure.layout.title.subtitle.text.endswith("dots: single seeds")


def test_seconds_are_means_over_runs():
    figure = figures.seconds_bars(SECONDS)
    assert {bar.name: list(bar.x) for bar in figure.data} == {"targets": [4.0], "solve": [1.0]}
    assert figure.layout.title.subtitle.text == "mean over 2 runs"
