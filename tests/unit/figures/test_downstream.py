"""The figure of general ability along a sequence."""

import pandas as pd
import pytest

from editkit import figures

ROWS = [
    (method, task, metric, step, value)
    for method in ("emmet", "memit")
    for task, metric in (("sst2", "acc"), ("mrpc", "acc"), ("mrpc", "f1"), ("cola", "mcc"))
    for step, value in ((0, 0.5), (8, 0.4))
]
FRAME = pd.DataFrame(ROWS, columns=["method", "task", "metric", "step", "value"]).assign(
    stderr=0.05, n=100, few_shots=0, items="a"
)


def test_one_panel_a_task_and_metric_with_standard_errors(labelled):
    figure = figures.downstream_curves(FRAME)
    labelled(figure)
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["sst2: accuracy", "mrpc: accuracy", "mrpc: F1", "cola: Matthews' correlation"]
    assert len(figure.data) == 8 and {line.name for line in figure.data} == {"EMMET", "MEMIT"}
    assert list(figure.data[0].x) == [0, 8] and list(figure.data[0].error_y.array) == [0.05, 0.05]
    assert "100 items a task, 0 shots" in figure.layout.title.subtitle.text
    hidden = [axis for axis in figure.layout if axis.startswith("xaxis") and figure.layout[axis].visible is False]
    assert len(hidden) == 2, "cells without a panel"


def test_a_model_alone_and_one_panel(labelled):
    alone = FRAME[(FRAME.method == "emmet") & (FRAME.task == "sst2")].drop(columns="method")
    figure = figures.downstream_curves(alone)
    labelled(figure)
    assert len(figure.data) == 1 and not figure.layout.showlegend


def test_seeds_are_averaged():
    other = FRAME.assign(value=FRAME.value + 0.2, seed=2)
    figure = figures.downstream_curves(pd.concat([FRAME.assign(seed=1), other]))
    assert list(figure.data[0].y) == pytest.approx([0.6, 0.5])


@pytest.mark.parametrize("changes", [{"items": "b"}, {"few_shots": 3}])
def test_other_items_or_shots_are_not_drawn_as_one_task(changes):
    with pytest.raises(ValueError, match=f"'sst2': {next(iter(changes))} differ"):
        figures.downstream_curves(pd.concat([FRAME, FRAME.assign(**changes)]))


def test_nothing_measured():
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.downstream_curves(FRAME[:0])
