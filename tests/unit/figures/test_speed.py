"""Figures of what things cost."""

import pandas as pd

from editkit import figures

RATIOS = pd.DataFrame({"name": ["targets", "scores"], "ratio": [8.0, 3.0], "lowest": [7.0, 2.9], "highest": [9.0, 3.5]})
WIDTHS = pd.DataFrame({"d_k": [1024, 2048], "ours": [0.1, 0.2], "public code": [1.0, 8.0]})
TOKENS = pd.DataFrame({"method": "emmet", "tokens_per_dimension": [1, 10], "S": [0.8, 0.9], "NS": [0.7, 0.8]})


def test_figures_are_labelled_and_vector(labelled):
    labelled(figures.speedups(RATIOS), bare=["yaxis"])
    labelled(figures.scores_by_tokens(TOKENS))
    words = {"title": "Seconds by width", "subtitle": "one update", "axes": ("d_k", "seconds")}
    widths = figures.growth(WIDTHS, "d_k", {"ours": "ours", "public code": "public code"}, **words)
    labelled(widths)
    assert widths.layout.xaxis.ticktext == ("1024", "2048")
