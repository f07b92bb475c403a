"""Figures of edits: scores, losses, seconds."""

import pandas as pd
import plotly.graph_objects as go

from editkit.figures import claims
from editkit.figures.style import (
    BLUE,
    SCORES,
    add_level,
    add_line,
    aside,
    behind,
    count,
    finish,
    interval,
    log_axis,
    method_style,
    methods_in,
    places,
    ramp,
    score_panels,
)
from editkit.methods import UNTOUCHED, label


def scores_by_batch(frame: pd.DataFrame) -> go.Figure:
    """Plot ES, PS, NS and S with intervals against the number of edits in the model, a line a method, in four panels.

    Args:
        frame: columns method, batch_size, score, value, low, high, n, seeds, clusters; the untouched model gives the
            dashed grey line (:func:`editkit.studies.baseline_tables.baseline_scores`).
    """
    figure = score_panels(top=1.04)
    after = frame[frame["method"] != UNTOUCHED]
    methods, sizes = methods_in(after), sorted(after["batch_size"].unique())
    for score, where in zip(SCORES, places(4, 2), strict=True):
        part = frame[frame["score"] == score]
        for place, method in enumerate(methods):
            rows = part[part["method"] == method].sort_values("batch_size")
            x = rows.batch_size * aside(place, len(methods), 0.07)
            more = {"customdata": rows.batch_size, "error_y": interval(rows.value, rows.low, rows.high)}
            add_line(figure, x, rows.value, "%{customdata} edits: %{y:.3f}", **more, **method_style(method), **where)
        for value in part.value[part["method"] == UNTOUCHED]:
            add_level(figure, sizes, value, label(UNTOUCHED), "dash", **where)
    log_axis(figure, sizes, "edits in the model")
    return finish(figure, claims.scores_by_batch(after), behind(after), height=680)


def loss_curves(frame: pd.DataFrame) -> go.Figure:
    """Plot the loss of the target optimisation by step: median over edits, with the 10 to 90% band.

    Args:
        frame: columns step, loss; one row an edit and step.
    """
    bands = frame.groupby("step")["loss"].quantile([0.1, 0.5, 0.9]).unstack()
    band = {"x": bands.index, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    filled = {"fill": "tonexty", "fillcolor": "rgba(0,114,178,0.18)", "name": "10 to 90% of edits"}
    figure = go.Figure()
    figure.add_scatter(y=bands[0.9], showlegend=False, **band)
    figure.add_scatter(y=bands[0.1], **filled, **band)
    median = {"name": "median", "line_color": BLUE, "marker_size": 5}
    add_line(figure, bands.index, bands[0.5], "step %{x}: %{y:.3f}", **median)
    figure.update_xaxes(title_text="optimisation step")
    figure.update_yaxes(title_text="loss (nats)", rangemode="tozero")
    edits = int(frame.groupby("step").size().max())
    return finish(figure, claims.loss(bands[0.5]), f"optimising the targets v* of {count(edits, 'edit')}")


def seconds_bars(frame: pd.DataFrame) -> go.Figure:
    """Draw the seconds that a method spends on each stage, stacked.

    Args:
        frame: column method and one ``seconds_<stage>`` column a stage, in the order in which they are stacked;
            several rows of a method (seeds) are averaged.
    """
    figure = go.Figure()
    methods = methods_in(frame)
    columns = [name for name in frame if name.startswith("seconds_")]
    if not columns:
        raise ValueError(f"no seconds_<stage> column; the frame has {', '.join(frame)}")
    mean = frame.groupby("method")[columns].mean().loc[methods]
    names = [label(method) for method in methods]
    for column, colour in zip(columns, ramp(len(columns)), strict=True):
        bar = {"name": column.removeprefix("seconds_"), "marker_color": colour, "hovertemplate": "%{x:.2f} s"}
        figure.add_bar(y=names, x=mean[column], orientation="h", **bar)
    figure.update_layout(barmode="stack", bargap=0.35, legend_traceorder="normal")
    figure.update_xaxes(title_text="seconds")
    figure.update_yaxes(autorange="reversed")
    rows = int(frame.groupby("method").size().max())
    subtitle = "one run" if rows == 1 else f"mean over {rows} runs"
    return finish(figure, claims.seconds(mean), subtitle, height=240 + 40 * len(methods))
