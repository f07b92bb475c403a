"""The figure of a search for hyperparameters."""

import pandas as pd

from editkit import figures

TRIALS = pd.DataFrame(
    [
        {"trial": trial, "hyperparameter": name, "value": value, "log": name == "v_lr", "S": S, "moment": moment}
        | {"start": trial == 0, "best": trial == 1}
        for trial, (S, moment) in enumerate([(0.5, "batch"), (0.7, "batch"), (0.1, "first")])
        for name, value in (("last_layer", trial), ("v_lr", 0.1 * (trial + 1)))
    ]
)
IMPORTANCES = pd.DataFrame({"hyperparameter": ["v_lr", "last_layer"], "importance": [0.8, 0.2]})


def sensitivity(importances=IMPORTANCES):
    return figures.sensitivity(TRIALS, importances, title="MEMIT", subtitle="made up")


def test_figures_are_labelled_and_vector(labelled):
    labelled(sensitivity())
    labelled(sensitivity(IMPORTANCES[:0]))


def test_there_is_a_slice_of_s_over_each_hyperparameter_the_most_important_first():
    figure = sensitivity()
    slices = [trace for trace in figure.data if trace.type == "scatter"]
    assert [trace.name for trace in slices] == ["ended after the first batch", "whole batch", "start", "best"] * 2
    first, batch, start, best = slices[:4]
    assert (list(batch.x), list(batch.y), list(batch.customdata)) == ([0.1, 0.2], [0.5, 0.7], [0, 1])
    assert (list(first.y), list(start.y), list(best.y)) == ([0.1], [0.5], [0.7])
    assert figure.layout.xaxis.title.text == "v_lr" and figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis2.title.text == "last_layer" and figure.layout.xaxis2.type == "linear"
    assert "3 trials" in figure.layout.title.subtitle.text
    (bars,) = [trace for trace in figure.data if trace.type == "bar"]
    assert list(bars.x) == [0.8, 0.2] and list(bars.y) == ["v_lr", "last_layer"]


def test_without_importances_there_is_no_panel_of_them():
    assert not [trace for trace in sensitivity(IMPORTANCES[:0]).data if trace.type == "bar"]
