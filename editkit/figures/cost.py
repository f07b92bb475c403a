"""Figures of what things cost."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from editkit.figures.style import COLOURS, finish, look


def speedups(frame: pd.DataFrame) -> go.Figure:
    """How many times faster than the reference, as bars with lowest and highest, on a log axis.

    Args:
        frame: columns name, ratio, lowest, highest.
    """
    figure = go.Figure()
    figure.add_bar(
        y=frame["name"],
        x=frame["ratio"],
        orientation="h",
        marker_color=COLOURS["memit"],
        text=[f"{ratio:.1f} ×" for ratio in frame["ratio"]],
        textposition="inside",
        insidetextanchor="start",
        error_x={
            "array": frame["highest"] - frame["ratio"],
            "arrayminus": frame["ratio"] - frame["lowest"],
            "color": "#1D232B",
        },
        showlegend=False,
        hovertemplate="%{x:.1f} ×",
    )
    figure.add_vline(x=1, line_color=COLOURS["pre"], line_dash="dot")
    figure.update_xaxes(type="log", title_text="times faster than the reference", exponentformat="none", dtick="D2")
    figure.update_yaxes(autorange="reversed")
    return finish(figure, "Speed-ups", "median of the repeats, lowest and highest", height=210 + 36 * len(frame))


def growth(
    frame: pd.DataFrame, x: str, series: Mapping[str, str], *, title: str, subtitle: str, axes: tuple[str, str]
) -> go.Figure:
    """Lines over a quantity that doubles and doubles; both axes are logarithmic.

    Args:
        frame: one row a value of ``x``.
        series: column → what the legend calls it.
        axes: titles of the x and the y axis.
    """
    figure = go.Figure()
    for column, name in series.items():
        figure.add_scatter(
            x=frame[x],
            y=frame[column],
            name=name,
            mode="lines+markers",
            line={"width": 2},
            marker={"size": 7},
            hovertemplate="%{x}: %{y:.3g}",
        )
    _doubling_axis(figure, frame[x], axes[0])
    figure.update_yaxes(type="log", title_text=axes[1], exponentformat="power")
    return finish(figure, title, subtitle)


def scores_by_tokens(frame: pd.DataFrame) -> go.Figure:
    """S (solid) and NS (dashed) against the tokens behind ``C``, a colour a method.

    Args:
        frame: columns method, tokens_per_dimension, S, NS.
    """
    figure = go.Figure()
    for method, rows in frame.groupby("method", sort=False):
        style = look(str(method))
        for score, dash in (("S", "solid"), ("NS", "dash")):
            line = style["line"] | {"dash": dash}
            figure.add_scatter(
                x=rows["tokens_per_dimension"],
                y=rows[score],
                mode="lines+markers",
                **(style | {"line": line, "name": f"{style['name']}, {score}", "legendgroup": f"{method} {score}"}),
                hovertemplate="%{x} × d_k tokens: %{y:.3f}",
            )
    _doubling_axis(figure, frame["tokens_per_dimension"], "tokens for each dimension of a key")
    figure.update_yaxes(title_text="score")
    return finish(figure, "How much text does C need?", "S and NS of one batch")


def _doubling_axis(figure: go.Figure, values: pd.Series, title: str) -> None:
    """A logarithmic x axis that is labelled where something was measured."""
    ticks = sorted(values.unique())
    figure.update_xaxes(type="log", title_text=title, tickvals=ticks, ticktext=[str(tick) for tick in ticks])
