"""Figures of what things cost."""

from collections.abc import Mapping
from typing import Any

import numpy as np
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
    log_ticks,
    method_style,
    panels,
    places,
)

PRECISION_LABELS = {
    "ultraedit": "M = I",
    "memit": "MEMIT (C)",
    "emmet": "EMMET (equality)",
    "alphaedit": "AlphaEdit (null space)",
}


def speedups(frame: pd.DataFrame) -> go.Figure:
    """Draw how many times faster than the reference something is, with lowest and highest, on a log axis.

    Args:
        frame: columns name, ratio, lowest, highest.
    """
    ratio = frame["ratio"]
    bar: dict[str, Any] = {
        "orientation": "h",
        "marker_color": BLUE,
        "textposition": "inside",
        "insidetextanchor": "start",
    }
    bar |= {"error_x": interval(ratio, frame["lowest"], frame["highest"], color=INK), "showlegend": False}
    text = [f"{times:.1f} ×" for times in ratio]
    figure = go.Figure(go.Bar(y=frame["name"], x=ratio, text=text, hovertemplate="%{x:.1f} ×", **bar))
    figure.add_vline(x=1, line_color=GREY, line_dash="dot")
    figure.update_xaxes(type="log", title_text="times as fast as the reference", **log_ticks([1.0, *ratio]))
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


def scores_by_search(frame: pd.DataFrame) -> go.Figure:
    """Plot S against the seconds that the residual of an edit took to find, a line a precision, with 95% intervals.

    The interval is that of the difference to the first search. What took one step is no search, and off the lines.

    Args:
        frame: columns search, method, edits, steps, targets (seconds of all edits), S, S_change, S_low, S_high.
    """
    figure = go.Figure()
    frame = frame.assign(seconds=frame.targets / frame.edits)
    for method, rows in frame.groupby("method", sort=False):
        rows, style = rows.sort_values("seconds"), method_style(str(method))
        style["name"] = PRECISION_LABELS.get(str(method), style["name"])
        for searched, part in rows.groupby(rows.steps > 1, sort=False):
            exact = part.S - part.S_change
            look = {"error_y": interval(part.S, exact + part.S_low, exact + part.S_high), "customdata": part.search}
            look |= {"mode": "lines+markers" if searched else "markers", "showlegend": bool(searched)}
            add_line(figure, part.seconds, part.S, "%{customdata}: %{y:.2f}, %{x:.3g} s", **style, **look)
    for name, rows in frame.groupby("search", sort=False):
        top = {
            "x": np.log10(rows.seconds.mean()),
            "y": rows.S.max(),
            "yshift": 18,
            "xanchor": "left",
            "yanchor": "bottom",
        }
        figure.add_annotation(text=name, textangle=-30, showarrow=False, font_size=11, **top)
    ticks = log_ticks(frame.seconds)
    figure.update_xaxes(type="log", title_text="seconds for the residual of an edit", **ticks)
    figure.update_yaxes(title_text="S", range=[0, 1.2], tickvals=[0, 0.2, 0.4, 0.6, 0.8, 1])
    subtitle = "one batch; a line each precision of the equation, a point each search; bars: 95%, of the difference"
    return finish(figure, claims.searches(frame), subtitle)


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


def thousands(frame: pd.DataFrame) -> go.Figure:
    """Plot S, with 95% intervals, and the perplexity of prose against the edits of one batch, a colour an editor.

    Args:
        frame: columns editor, method, d_k, edits, judged, S, S_low, S_high, perplexity, perplexity_before.
    """
    figure = panels((f"S of the first {frame.judged.max()} edits", "perplexity of prose, × before"), 2)
    for editor, rows in frame.groupby("editor", sort=False):
        style = method_style(str(rows["method"].iloc[0])) | {"name": editor, "legendgroup": editor}
        style |= {"line_dash": DASHES[list(frame.editor.unique()).index(editor) % len(DASHES)]}
        left, right = places(2, 2)
        bars = interval(rows.S, rows.S_low, rows.S_high)
        add_line(figure, rows.edits, rows.S, "%{x} edits: %{y:.2f}", error_y=bars, **style, **left)
        times = rows.perplexity / rows.perplexity_before
        add_line(figure, rows.edits, times, "%{x} edits: × %{y:.3g}", **style, **right)
    log_axis(figure, frame.edits, "edits in one batch")
    figure.update_yaxes(range=[0, 1.03], title_text="S", col=1)
    log_scale(figure, frame.perplexity / frame.perplexity_before, col=2)
    for place in (1, 2):
        figure.add_vline(x=frame.d_k.max(), line_color=GREY, line_dash="dot", row=1, col=place)
    subtitle = "fast targets; dotted: as many edits as a key has dimensions; bars: 95%"
    return finish(figure, claims.thousands(frame), subtitle)
