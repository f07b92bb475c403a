"""Figures of the report: a tidy frame in, a plotly figure out.

Every method keeps one colour (Okabe and Ito's palette, distinct for colour-blind readers too) and
one marker; the untouched model is grey. Nothing here reads files or draws by itself.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import kaleido
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from choreographer.browsers.chromium import Chromium
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

WIDTH = 760
NAMES = {
    "rome": "ROME",
    "memit": "MEMIT",
    "emmet": "EMMET",
    "alphaedit": "AlphaEdit",
    "pre": "no edit",
}
COLOURS = {
    "rome": "#D55E00",
    "memit": "#0072B2",
    "emmet": "#009E73",
    "alphaedit": "#CC79A7",
    "pre": "#7F858D",
}
MARKERS = {
    "rome": "circle",
    "memit": "square",
    "emmet": "diamond",
    "alphaedit": "triangle-up",
    "pre": "x",
}
OTHERS = ("#E69F00", "#56B4E9", "#000000", "#F0E442")
SCORES = {
    "ES": "efficacy (ES)",
    "PS": "paraphrases (PS)",
    "NS": "neighbourhood (NS)",
    "S": "harmonic mean (S)",
}
INSTALL_BROWSER = (
    "install Chrome, Chromium or Edge (Debian and Ubuntu: apt-get install chromium), or set BROWSER_PATH to one"
)

_AXIS = {
    "showline": True,
    "linecolor": "#9AA3AE",
    "gridcolor": "#E6EAEE",
    "zeroline": False,
    "ticks": "outside",
    "tickcolor": "#9AA3AE",
    "automargin": True,
    "title": {"standoff": 8},
}
pio.templates["editkit"] = go.layout.Template(
    layout={
        "width": WIDTH,
        "height": 450,
        "colorway": [COLOURS[m] for m in ("memit", "rome", "emmet", "alphaedit")] + list(OTHERS),
        "font": {
            "family": "Liberation Sans, Arial, Helvetica, sans-serif",
            "size": 14,
            "color": "#1D232B",
        },
        "title": {
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "pad": {"l": 12},
            "font": {"size": 17},
        },
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 70, "r": 20, "t": 90, "b": 60},
        "legend": {"bgcolor": "rgba(255,255,255,0)"},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hoverlabel": {"font": {"size": 13}},
    }
)


def use_notebook_style() -> None:
    """Show figures in the form that JupyterLab and the report draw, and tables with their whole texts."""
    pio.renderers.default = "plotly_mimetype"
    pd.set_option("display.max_colwidth", 120)


def find_browser() -> str | None:
    """Path of a Chrome, Chromium or Edge: ``BROWSER_PATH`` where set, else the usual places."""
    path = Chromium.find_browser(skip_local=False)
    return path if path and os.access(path, os.X_OK) else None


def save(figure: go.Figure, path: str | Path) -> Path | None:
    """Write a figure as PNG, twice its size in pixels.

    Returns the path; where no browser is found to draw it, warns (once) and returns None.
    """
    if find_browser() is None:
        warnings.warn(f"no browser to draw PNG figures, none is written: {INSTALL_BROWSER}", stacklevel=1)
        return None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One browser for all figures of a process; starting one takes seconds.
    kaleido.start_sync_server(silence_warnings=True, mathjax=False)
    kaleido.write_fig_sync(figure, str(path), opts={"format": "png", "scale": 2})
    return path


def scores_by_batch(frame: pd.DataFrame, *, moment: str | None = None) -> go.Figure:
    """ES, PS, NS and S against the number of edits in the model, a line a method, in four panels.

    Args:
        frame: one row a method × batch_size × seed × moment, with columns ES, PS, NS, S.
        moment: which rows the lines show, by default ``final`` ones where there are any, else
            ``immediate`` ones; ``pre`` rows give the dashed grey line.
    """
    figure = make_subplots(2, 2, subplot_titles=list(SCORES.values()), vertical_spacing=0.2)
    after, before = _after_and_before(frame, moment)
    methods, sizes = _methods(after), sorted(after["batch_size"].unique())
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
                error_y={
                    "array": group.max() - mean,
                    "arrayminus": mean - group.min(),
                    "thickness": 1.2,
                    "width": 3,
                },
                customdata=mean.index,
                hovertemplate="%{customdata} edits: %{y:.3f}",
                mode="lines+markers",
                showlegend=panel == 0,
                **_look(method),
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
    return _finish(figure, "Scores against batch size", _over_seeds(after), height=680)


def score_bars(frame: pd.DataFrame, *, moment: str | None = None) -> go.Figure:
    """ES, PS, NS and S as bars, grouped by method, with a dot a seed.

    Args:
        frame: one row a method × seed × moment, with columns ES, PS, NS, S.
        moment: which rows the coloured bars show, by default as in :func:`scores_by_batch`;
            ``pre`` rows give the grey ones.
    """
    figure = go.Figure()
    after, before = _after_and_before(frame, moment)
    groups = [("pre", before)] if len(before) else []
    groups += [(method, after[after["method"] == method]) for method in _methods(after)]
    for method, rows in groups:
        figure.add_bar(
            x=list(SCORES),
            y=[rows[score].mean() for score in SCORES],
            name=_name(method),
            legendgroup=method,
            offsetgroup=method,
            marker={"color": _colour(method), "opacity": 0.75},
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
            hovertemplate=f"{_name(method)}, one seed: %{{y:.3f}}<extra></extra>",
        )
    figure.update_layout(barmode="group", scattermode="group", bargap=0.18)
    figure.update_xaxes(tickvals=list(SCORES), ticktext=list(SCORES.values()))
    figure.update_yaxes(range=[0, 1.04], title_text="share of prompts", tickformat=".1f")
    seeds = after["seed"].nunique() if "seed" in after else 1
    return _finish(figure, "Scores by method", f"bars: mean over {_count(seeds, 'seed')}; dots: single seeds")


def spectrum(eigenvalues: Mapping[int, Sequence[float]], threshold: float | None = None) -> go.Figure:
    """Eigenvalues of the second moment of each layer's keys, descending, on a log axis.

    Args:
        eigenvalues: layer to values in any order; those at or below zero are rounding, left out.
        threshold: AlphaEdit's bound of the null space, drawn as a line.
    """
    figure = go.Figure()
    for layer, colour in zip(sorted(eigenvalues), _ramp(len(eigenvalues)), strict=True):
        values = np.sort(np.asarray(eigenvalues[layer], dtype=float))[::-1]
        values = values[values > 0]
        figure.add_scatter(
            x=np.arange(1, len(values) + 1),
            y=values,
            mode="lines",
            name=f"layer {layer}",
            line={"color": colour, "width": 2},
            hovertemplate="%{x}: %{y:.2e}",
        )
    if threshold is not None:
        figure.add_hline(
            threshold,
            line={"dash": "dash", "color": COLOURS["pre"], "width": 1.5},
        )
        figure.add_annotation(
            text=f"null space below {threshold:g}",
            x=1,
            xref="paper",
            xanchor="right",
            y=np.log10(threshold),  # annotations on a log axis are placed by exponent
            yanchor="bottom",
            showarrow=False,
        )
    figure.update_xaxes(title_text="rank of the eigenvalue")
    figure.update_yaxes(type="log", title_text="eigenvalue (key units²)", exponentformat="power", dtick=1)
    return _finish(figure, "Spectrum of the keys' second moment", "C = E[k kᵀ] over ordinary text")


def position_norms(frame: pd.DataFrame) -> go.Figure:
    """Norm of the hidden state by token position, a line a layer, on a log axis.

    Args:
        frame: columns start_token (bool: a panel each), layer, position, norm; several rows of one
            position are averaged.
    """
    panels = {True: "with the start token", False: "without it"}
    figure = make_subplots(1, 2, subplot_titles=list(panels.values()), shared_yaxes=True)
    layers = sorted(frame["layer"].unique())
    for column, with_start in enumerate(panels, start=1):
        for layer, colour in zip(layers, _ramp(len(layers)), strict=True):
            rows = frame[(frame["layer"] == layer) & (frame["start_token"] == with_start)]
            mean = rows.groupby("position")["norm"].mean()
            figure.add_scatter(
                x=mean.index,
                y=mean,
                mode="lines+markers",
                name=f"layer {layer}",
                legendgroup=str(layer),
                showlegend=column == 1,
                line={"color": colour, "width": 2},
                marker={"size": 5},
                hovertemplate="position %{x}: %{y:.1f}",
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="token position")
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    figure.update_yaxes(title_text="norm (model units)", col=1)
    figure.update_annotations(font_size=14)
    figure.update_layout(margin_t=112)
    return _finish(figure, "Hidden states by position", "residual stream after a layer, median over texts")


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
    return _finish(figure, "Optimising the targets v*", f"over {_count(edits, 'edit')}")


def seconds_bars(frame: pd.DataFrame) -> go.Figure:
    """Seconds a method spends on each stage, stacked.

    Args:
        frame: column method and one ``seconds_<stage>`` column a stage, in the order in which they
            are stacked; several rows of a method (seeds) are averaged.
    """
    figure = go.Figure()
    methods = _methods(frame)
    columns = [name for name in frame if name.startswith("seconds_")]
    if not columns:
        raise ValueError(f"no seconds_<stage> column; the frame has {', '.join(frame)}")
    mean = frame.groupby("method")[columns].mean().loc[methods]
    for column, colour in zip(columns, _ramp(len(columns)), strict=True):
        figure.add_bar(
            y=[_name(method) for method in methods],
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
    return _finish(figure, "Where the time goes", subtitle, height=240 + 40 * len(methods))


def _finish(figure: go.Figure, title: str, subtitle: str, height: int = 450) -> go.Figure:
    figure.update_layout(
        template="editkit",
        title={
            "text": title,
            "subtitle": {"text": subtitle, "font": {"size": 13, "color": "#56606D"}},
        },
        height=height,
        width=WIDTH,
        legend={
            "orientation": "h",
            "x": 0.5,
            "xanchor": "center",
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
        },
        showlegend=True,
    )
    # Pixels over the plot's bottom edge: tick labels, the axis title and one or two rows of legend.
    rows = -(-sum(trace.showlegend is not False for trace in figure.data) // 6)
    figure.update_layout(margin_b=75 + 24 * rows)
    # Places measured from the container's top keep their distance whatever the height.
    figure.update_layout(title={"y": 1 - 26 / height, "yref": "container", "yanchor": "top"})
    return figure


def _after_and_before(frame: pd.DataFrame, moment: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of one moment after editing, and those of the untouched model."""
    present = set(frame["moment"])
    moment = moment or ("final" if "final" in present else "immediate")
    if moment not in present:
        raise ValueError(f"no rows of moment {moment!r}; the frame has {', '.join(sorted(present))}")
    return frame[frame["moment"] == moment], frame[frame["moment"] == "pre"]


def _methods(frame: pd.DataFrame) -> list[str]:
    present = set(frame["method"])
    known = [method for method in NAMES if method in present]
    return known + sorted(present - set(known))


def _name(method: str) -> str:
    return NAMES.get(method, method)


def _colour(method: str) -> str:
    return COLOURS.get(method, OTHERS[sum(map(ord, method)) % len(OTHERS)])


def _look(method: str) -> dict:
    return {
        "name": _name(method),
        "legendgroup": method,
        "line": {"color": _colour(method), "width": 2},
        "marker": {"symbol": MARKERS.get(method, "circle"), "size": 8},
    }


def _ramp(count: int) -> list[str]:
    """Ordered colours, dark to light, for things that have an order and no name."""
    return sample_colorscale("Viridis", list(np.linspace(0, 0.85, count))) if count else []


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _over_seeds(frame: pd.DataFrame) -> str:
    seeds = frame["seed"].nunique()
    if seeds == 1:
        return "one seed"
    return f"lines: mean over {seeds} seeds; bars: smallest to largest seed"
