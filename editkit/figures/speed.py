"""Figures of what things cost."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from editkit.figures.style import BLUE, GREY, INK, add_line, finish, interval, log_axis, method_style


def speedups(frame: pd.DataFrame) -> go.Figure:
    """Draw how many times faster than the reference something is, with lowest and highest, on a log axis.

    Args:
        frame: columns name, ratio, lowest, highest.
    """
    ratio = frame["ratio"]
    bar = {"orientation": "h", "marker_color": BLUE, "textposition": "inside", "insidetextanchor": "start"}
    bar |= {"error_x": interval(ratio, frame["lowest"], frame["highest"], color=INK), "showlegend": False}
    text = [f"{times:.1f} ×" for times in ratio]
    figure = go.Figure(go.Bar(y=frame["name"], x=ratio, text=text, hovertemplate="%{x:.1f} ×", **bar))
    figure.add_vline(x=1, line_color=GREY, line_dash="dot")
    figure.update_xaxes(type="log", title_text="times faster than the reference", exponentformat="none", dtick="D2")
    figure.update_yaxes(autorange="reversed")
    return finish(figure, "Speed-ups", "median of the repeats, lowest and highest", height=210 + 36 * len(frame))


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
    figure.update_yaxes(type="log", title_text=axes[1], exponentformat="power")
    return finish(figure, title, subtitle)


def scores_by_tokens(frame: pd.DataFrame) -> go.Figure:
    """Plot S (solid) and NS (dashed) against the tokens behind ``C``, a colour a method.

    Args:
        frame: columns method, tokens_per_dimension, S, NS.
    """
    figure = go.Figure()
    for method, rows in frame.groupby("method", sort=False):
        style = method_style(str(method))
        for score, dash in (("S", "solid"), ("NS", "dash")):
            own = {"name": f"{style['name']}, {score}", "legendgroup": f"{method} {score}", "line_dash": dash}
            add_line(figure, rows.tokens_per_dimension, rows[score], "%{x} × d_k tokens: %{y:.3f}", **(style | own))
    log_axis(figure, frame["tokens_per_dimension"], "tokens for each dimension of a key")
    figure.update_yaxes(title_text="score")
    return finish(figure, "How much text does C need?", "S and NS of one batch")
