"""Figures of low-rank edits."""

import numpy as np
import pandas as pd

from editkit import figures

VALUES = [("svd", 4, 0.4), ("keys", 4, 0.5), ("keys", 8, 0.7), ("finetuning", 8, 0.3), ("raw", np.nan, 0.9)]
CURVES = pd.DataFrame(
    [
        {"fit": fit, "rank": rank, "score": score, "value": value, "low": value - 0.1, "high": value + 0.05}
        for score in ("ES", "PS", "NS", "S")
        for fit, rank, value in [*VALUES, ("pre", np.nan, 0.2)]
    ]
).assign(n=30, seeds=1, clusters=14)
LOST = pd.DataFrame({"fit": "keys", "rank": [4, 8], "fit_residual": [0.7, 0.5]})


def lora_rank_vs_metrics():
    return figures.lora_rank_vs_metrics(CURVES, subtitle="made up")


def update_spectrum():
    return figures.update_spectrum({6: [3.0, 1.0]}, LOST, subtitle="made up")


CELLS = pd.DataFrame(
    [
        {"method": method, "rate": rate, "rank": rank, "score": score, "value": value + rate / 5}
        for method in ("emmet", "memit")
        for rate in (0.0, 0.3)
        for rank, value in ((0, 0.7), (4, 0.2), (16, 0.6))
        for score in ("S", "EA", "NS")
    ]
)
CELLS = CELLS.assign(low=CELLS.value - 0.1, high=CELLS.value + 0.05, n=30, seeds=1, clusters=30)


def test_replay_has_a_line_a_rate_over_ranks_and_full_rank_last():
    figure = figures.replay_by_rank(CELLS)
    assert [a.text for a in figure.layout.annotations][:2] == ["MEMIT: S", "MEMIT: exact rewrites (EA)"]
    assert len(figure.data) == 2 * 2 * 2 and [line.name for line in figure.data[:2]] == ["r = 0", "r = 0.3"]
    first, second = figure.data[:2]
    assert list(first.y) == [0.2, 0.6, 0.7] and np.allclose(second.y, [0.26, 0.66, 0.76])
    assert np.allclose(first.error_y.arrayminus, 0.1) and first.line.color != second.line.color
    assert list(figure.layout.xaxis.ticktext) == ["4", "16", "full"] and np.allclose(np.round(first.x), [0, 1, 2])
    assert sum(bool(line.showlegend) for line in figure.data) == 2
    assert figure.layout.title.text == "S is 0.20 to 0.70 without replay, 0.26 to 0.76 with it"


def test_figures_are_labelled_and_vector(labelled):
    labelled(figures.replay_by_rank(CELLS), bare=["yaxis2", "yaxis4"])
    labelled(lora_rank_vs_metrics(), bare=["yaxis2", "yaxis4"])
    labelled(update_spectrum())


def test_ranks_have_a_line_a_fit_with_intervals_and_the_full_rank_across():
    lines = {line.name: line for line in reversed(lora_rank_vs_metrics().data)}
    assert list(lines) and set(lines) == {"keys", "svd", "fine-tuning", "raw, full rank", "no edit"}
    text = lora_rank_vs_metrics().layout.title.subtitle.text
    assert text == "made up; 95% intervals; 30 facts of 1 seed, 14 clusters"
    keys = lines["keys"]
    assert list(keys.customdata) == [4, 8] and list(keys.y) == [0.5, 0.7] and keys.line.color != lines["svd"].line.color
    assert np.allclose(keys.error_y.array, 0.05) and np.allclose(keys.error_y.arrayminus, 0.1)
    assert list(lines["raw, full rank"].y) == [0.9, 0.9] and list(lines["no edit"].y) == [0.2, 0.2]


def test_the_spectrum_of_an_update_is_a_share_of_its_norm():
    share, lost = update_spectrum().data
    assert np.allclose(share.y, [0.9, 1.0]) and list(share.x) == [1, 2]
    assert list(lost.x) == [4, 8] and list(lost.y) == [0.7, 0.5]
