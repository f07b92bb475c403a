"""The figure of use: what is left of edits after training, rounding and merging."""

import pandas as pd
import plotly.graph_objects as go

from editkit.figures.style import add_dots, behind, below, finish, methods_in, name_rows, panels, places

TITLES = {"ES": "ES: new object preferred", "EA": "EA: new object first choice"}
TITLES |= {"PS": "PS: after a paraphrase", "NS": "NS: neighbours kept"}
SPREAD = 0.6  # of a use's row, over which methods are set one below another


def survival(frame: pd.DataFrame) -> go.Figure:
    """Plot ES, EA, PS and NS with intervals: a row a use in the frame's order, a marker a method, a panel a score.

    Args:
        frame: columns method, use, score, value, low, high, n, seeds and clusters
            (:func:`editkit.studies.survival_tables.survival_scores`).

    Raises ``ValueError`` for a frame without rows.
    """
    if frame.empty:
        raise ValueError("no use to show: give at least one method, use and score")
    uses, methods = list(dict.fromkeys(frame["use"])), methods_in(frame)
    figure = panels(TITLES.values(), 2, shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=0.08)
    for score, where in zip(TITLES, places(4, 2), strict=True):
        for place, method in enumerate(methods):
            rows = frame[(frame["method"] == method) & (frame["score"] == score)].set_index("use").reindex(uses)
            add_dots(figure, rows, method, below(place, len(methods), SPREAD), customdata=uses, marker_size=7, **where)
    name_rows(figure, uses, rules=True)
    figure.update_xaxes(range=[-0.03, 1.04], tickformat=".1f")
    figure.update_xaxes(title_text="share of prompts", row=2)
    return finish(figure, "What is left of edits after use", behind(frame), 260 + 90 * len(uses))
