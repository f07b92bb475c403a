"""The figure of use: what is left of edits after training, rounding and merging."""

import pandas as pd
import plotly.graph_objects as go

from editkit.figures.style import RULE, behind, finish, interval, method_style, methods_in, panels, places
from editkit.methods import look

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
            aside = SPREAD * ((place + 0.5) / len(methods) - 0.5)
            bars = interval(rows.value, rows.low, rows.high, thickness=1.2, width=2, color=look(method).colour)
            figure.add_scatter(
                x=rows.value,
                y=[number + aside for number in range(len(uses))],
                mode="markers",
                error_x=bars,
                customdata=uses,
                hovertemplate="%{customdata}: %{x:.3f}",
                **method_style(method) | {"marker_color": look(method).colour, "marker_size": 7},
                **where,
            )
    figure.update_yaxes(range=[len(uses) - 0.5, -0.5], tickvals=list(range(len(uses))), ticktext=uses, showgrid=False)
    for number in range(1, len(uses)):
        figure.add_hline(y=number - 0.5, line={"color": RULE, "width": 0.5})
    figure.update_xaxes(range=[-0.03, 1.04], tickformat=".1f")
    figure.update_xaxes(title_text="share of prompts", row=2)
    return finish(figure, "What is left of edits after use", behind(frame), 260 + 90 * len(uses))
