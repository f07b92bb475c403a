"""Figures of what things cost."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from editkit.figures import claims
from editkit.figures.replay import DASHES
from editkit.figures.style import (
    BLUE,
    GREY,
    INK,
    add_line,
    finish,
    interval,
    log_axis,
    log_scale,
    method_style,
    panels,
    places,
)


def speedups(frame: pd.DataFrame) -> go.Figure:
    """Draw how many times faster than the reference something is, with lowest and highest, on a log axis.

    Args:
        frame: columns name, ratio, lowest, highest.
    """
    ratio = frame["ratio"]
    bar = {"orientation": "h", "marker_color": BLUE, "textposition": "inside", "insidetextanchor": "start"}
    bar |= {"error_x": interval(ratio, frame["lowest"], frame["highest"], color=INK), "showlegend": False}
    text = [f"{times:.1f} ×" for times in ratio]
    figure = go.Figure(
        go.Bar(y=frame["name"].str.replace("_", " "), x=ratio, text=text, hovertemplate="%{x:.1f} ×", **bar)
    )
    figure.add_vline(x=1, line_color=GREY, line_dash="dot")
    figure.update_xaxes(type="log", title_text="times faster than the reference", exponentformat="none", dtick="D2")
    figure.update_yaxes(autorange="reversed")
    return finish(
        figure, claims.speedups(frame), "median of the repeats, lowest and highest", height=210 + 36 * len(frame)
    )


def growth(
    frame: pd.DataFrame, x: str, series: Mapping[str, str], *, title: str, subtitle: str, axes: tuple[str, str]
) -> go.Figure:
    """Plot lines over a quantity that doubles and doubles; both axes are logarithmic.

    Args:
        frame: one row a value of ``x``.
        series: column → what the legend calls it.
        axes: titles of the x and the y axis.
    """
    figure = go.Figure()
    for column, name in series.items():
        add_line(figure, frame[x], frame[column], "%{x}: %{y:.3g}", name=name)
    log_axis(figure, frame[x], axes[0])
    log_scale(figure, frame[[*series]].stack(), title_text=axes[1])
    return finish(figure, claims.growth(frame, x, series, title), subtitle)


def scores_by_tokens(frame: pd.DataFrame) -> go.Figure:
    """Plot S and NS against the tokens behind ``C``, a panel a score, a colour a method, a dash a kind of text.

    Args:
        frame: columns text, method, tokens_per_dimension, S, NS.
    """
    figure = panels(("S", "NS"), 2, horizontal_spacing=0.12)
    for (method, kind), rows in frame.groupby(["method", "text"], sort=False):
        style = method_style(str(method))
        dash = DASHES[list(frame.text.unique()).index(kind) % len(DASHES)]
        style |= {"name": f"{style['name']}, {kind}", "legendgroup": f"{method} {kind}", "line_dash": dash}
        for score, where in zip(("S", "NS"), places(2, 2), strict=True):
            add_line(figure, rows.tokens_per_dimension, rows[score], "%{x} × d_k tokens: %{y:.3f}", **style, **where)
    log_axis(figure, frame["tokens_per_dimension"], "tokens for each dimension of a key")
    figure.update_yaxes(title_text="score", col=1)
    return finish(figure, claims.by_tokens(frame), "one batch; a line each method and kind of text")
