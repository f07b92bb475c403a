"""Figures of edits: scores, losses, seconds."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from editkit.figures.style import (
    COLOURS,
    NAMES,
    SCORES,
    count,
    finish,
    interval,
    look,
    method_colour,
    method_name,
    methods_in,
    ramp,
)


def scores_by_batch(frame: pd.DataFrame, *, moment: str | None = None) -> go.Figure:
    """ES, PS, NS and S against the number of edits in the model, a line a method, in four panels.

    Args:
        frame: one row a method × batch_size × seed × moment, with columns ES, PS, NS, S.
        moment: which rows the lines show, by default ``final`` ones where there are any, else
            ``immediate`` ones; ``pre`` rows give the dashed grey line.
    """
    figure = make_subplots(2, 2, subplot_titles=list(SCORES.values()), vertical_spacing=0.2)
    after, before = after_and_before(frame, moment)
    methods, sizes = methods_in(after), sorted(after["batch_size"].unique())
    for panel, score in enumerate(SCORES):
        where = {"row": panel // 2 + 1, "col": panel % 2 + 1}
        for place, method in enumerate(methods):
            group = after[after["method"] == method].groupby("batch_size")[score]
            mean = group.mean()
            # Set side by side, so that equal scores do not hide each other.
            x = mean.index.to_numpy() * 2 ** (0.07 * (place - (len(methods) - 1) / 2))
            figure.add_scatter(
                x=x,
                y=mean,
                error_y=interval(mean, group.min(), group.max()),
                customdata=mean.index,
                hovertemplate="%{customdata} edits: %{y:.3f}",
                mode="lines+markers",
                showlegend=panel == 0,
                **look(method),
                **where,
            )
        if len(before):
            figure.add_scatter(
                x=[min(sizes) / 1.25, max(sizes) * 1.25],
                y=[before[score].mean()] * 2,
                mode="lines",
                line={"dash": "dash", "color": COLOURS["pre"], "width": 1.5},
                name=NAMES["pre"],
                legendgroup="pre",
                showlegend=panel == 0,
                **where,
            )
    figure.update_xaxes(
        type="log",
        tickvals=sizes,
        ticktext=[str(size) for size in sizes],
        title_text="edits in the model",
    )
    figure.update_yaxes(range=[-0.03, 1.04], tickformat=".1f")
    figure.update_yaxes(title_text="share of prompts", col=1)
    figure.update_annotations(font_size=14)
    figure.update_layout(margin_t=112)
    return finish(figure, "Scores against batch size", over_seeds(after), height=680)


def score_bars(frame: pd.DataFrame, *, moment: str | None = None) -> go.Figure:
    """ES, PS, NS and S as bars, grouped by method, with a dot a seed.

    Args:
        frame: one row a method × seed × moment, with columns ES, PS, NS, S.
        moment: which rows the coloured bars show, by default as in :func:`scores_by_batch`;
            ``pre`` rows give the grey ones.
    """
    figure = go.Figure()
    after, before = after_and_before(frame, moment)
    groups = [("pre", before)] if len(before) else []
    groups += [(method, after[after["method"] == method]) for method in methods_in(after)]
    for method, rows in groups:
        figure.add_bar(
            x=list(SCORES),
            y=[rows[score].mean() for score in SCORES],
            name=method_name(method),
            legendgroup=method,
            offsetgroup=method,
            marker={"color": method_colour(method), "opacity": 0.75},
            hovertemplate="%{x}: %{y:.3f}",
        )
        # The untouched model has a row a method and seed; one dot a seed is enough.
        seeds = rows.groupby("seed")[list(SCORES)].mean() if "seed" in rows else rows[list(SCORES)]
        dots = seeds.melt(var_name="score", value_name="value")
        figure.add_scatter(
            x=dots["score"],
            y=dots["value"],
            mode="markers",
            offsetgroup=method,
            showlegend=False,
            legendgroup=method,
            marker={"color": "white", "size": 6, "line": {"color": "#1D232B", "width": 1.2}},
            hovertemplate=f"{method_name(method)}, one seed: %{{y:.3f}}<extra></extra>",
        )
    figure.update_layout(barmode="group", scattermode="group", bargap=0.18)
    figure.update_xaxes(tickvals=list(SCORES), ticktext=list(SCORES.values()))
    figure.update_yaxes(range=[0, 1.04], title_text="share of prompts", tickformat=".1f")
    seeds = after["seed"].nunique() if "seed" in after else 1
    return finish(figure, "Scores by method", f"bars: mean over {count(seeds, 'seed')}; dots: single seeds")


def loss_curves(frame: pd.DataFrame) -> go.Figure:
    """Loss of the target optimisation by step: median over edits, with the 10 to 90 % band.

    Args:
        frame: columns step, loss; one row an edit and step.
    """
    bands = frame.groupby("step")["loss"].quantile([0.1, 0.5, 0.9]).unstack()
    band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    figure = go.Figure()
    figure.add_scatter(x=bands.index, y=bands[0.9], showlegend=False, **band)
    figure.add_scatter(
        x=bands.index,
        y=bands[0.1],
        fill="tonexty",
        fillcolor="rgba(0,114,178,0.18)",
        name="10 to 90 % of edits",
        **band,
    )
    figure.add_scatter(
        x=bands.index,
        y=bands[0.5],
        mode="lines+markers",
        name="median",
        line={"color": COLOURS["memit"], "width": 2},
        marker={"size": 5},
        hovertemplate="step %{x}: %{y:.3f}",
    )
    figure.update_xaxes(title_text="optimisation step")
    figure.update_yaxes(title_text="loss (nats)", rangemode="tozero")
    edits = int(frame.groupby("step").size().max())
    return finish(figure, "Optimising the targets v*", f"over {count(edits, 'edit')}")


def seconds_bars(frame: pd.DataFrame) -> go.Figure:
    """Seconds a method spends on each stage, stacked.

    Args:
        frame: column method and one ``seconds_<stage>`` column a stage, in the order in which they
            are stacked; several rows of a method (seeds) are averaged.
    """
    figure = go.Figure()
    methods = methods_in(frame)
    columns = [name for name in frame if name.startswith("seconds_")]
    if not columns:
        raise ValueError(f"no seconds_<stage> column; the frame has {', '.join(frame)}")
    mean = frame.groupby("method")[columns].mean().loc[methods]
    for column, colour in zip(columns, ramp(len(columns)), strict=True):
        figure.add_bar(
            y=[method_name(method) for method in methods],
            x=mean[column],
            orientation="h",
            name=column.removeprefix("seconds_"),
            marker_color=colour,
            hovertemplate="%{x:.2f} s",
        )
    figure.update_layout(barmode="stack", bargap=0.35, legend_traceorder="normal")
    figure.update_xaxes(title_text="seconds")
    figure.update_yaxes(autorange="reversed")
    rows = int(frame.groupby("method").size().max())
    subtitle = "one run" if rows == 1 else f"mean over {rows} runs"
    return finish(figure, "Where the time goes", subtitle, height=240 + 40 * len(methods))


def after_and_before(frame: pd.DataFrame, moment: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of one moment after editing, and those of the untouched model."""
    present = set(frame["moment"])
    moment = moment or ("final" if "final" in present else "immediate")
    if moment not in present:
        raise ValueError(f"no rows of moment {moment!r}; the frame has {', '.join(sorted(present))}")
    return frame[frame["moment"] == moment], frame[frame["moment"] == "pre"]


def over_seeds(frame: pd.DataFrame) -> str:
    seeds = frame["seed"].nunique()
    if seeds == 1:
        return "one seed"
    return f"lines: mean over {seeds} seeds; bars: smallest to largest seed"
