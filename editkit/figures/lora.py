"""Figures of low-rank edits."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from editkit.figures.style import COLOURS, SCORES, SERIES, finish, interval, ramp

FITS = ("keys", "svd", "steps", "exact", "fine-tuning")


def lora_rank_vs_metrics(frame: pd.DataFrame, *, subtitle: str) -> go.Figure:
    """ES, PS, NS and S against the rank, a line a fit, with intervals; lines across: full rank, and no edit.

    Args:
        frame: columns fit (also ``raw`` for the edit at full rank and ``none`` for no edit), rank (nan for
            these two), score, value, low, high.
    """
    figure = make_subplots(2, 2, subplot_titles=list(SCORES.values()), vertical_spacing=0.2)
    ranks = sorted(frame["rank"].dropna().unique())
    present = set(frame.fit)
    fits = [fit for fit in FITS if fit in present]
    for panel, score in enumerate(SCORES):
        where = {"row": panel // 2 + 1, "col": panel % 2 + 1}
        part = frame[frame.score == score]
        for place, fit in enumerate(fits):
            rows = part[part.fit == fit].sort_values("rank")
            figure.add_scatter(
                x=rows["rank"] * 2 ** (0.06 * (place - (len(fits) - 1) / 2)),  # side by side, none hides another
                y=rows.value,
                error_y=interval(rows.value, rows.low, rows.high),
                customdata=rows["rank"],
                hovertemplate="rank %{customdata}: %{y:.3f}",
                mode="lines+markers",
                name=fit,
                legendgroup=fit,
                showlegend=panel == 0,
                line={"color": SERIES[place], "width": 2},
                marker={"size": 7},
                **where,
            )
        for name, label, dash in (("raw", "raw, full rank", "solid"), ("none", "no edit", "dash")):
            for value in part[part.fit == name].value:
                figure.add_scatter(
                    x=[min(ranks) / 1.25, max(ranks) * 1.25],
                    y=[value] * 2,
                    mode="lines",
                    line={"dash": dash, "color": COLOURS["pre"], "width": 1.5},
                    name=label,
                    legendgroup=name,
                    showlegend=panel == 0,
                    **where,
                )
    _rank_axis(figure, ranks)
    figure.update_yaxes(range=[-0.03, 1.07], tickformat=".1f")
    figure.update_yaxes(title_text="share of prompts", col=1)
    figure.update_annotations(font_size=14)
    figure.update_layout(margin_t=112)
    return finish(figure, "Scores against the rank of the adapter", subtitle, height=680)


def update_spectrum(values: Mapping[int, list[float]], lost: pd.DataFrame, *, subtitle: str) -> go.Figure:
    """What a rank can hold: share of ‖ΔW‖² in its first singular values, and what fits lose on the edited keys.

    Args:
        values: layer to the singular values of ΔW, largest first.
        lost: columns fit, rank, fit_residual.
    """
    titles = ("share of ‖ΔW‖² in r singular values", "lost on the edited keys")
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.14)
    ranks = sorted(lost["rank"].unique())
    for (layer, singular), colour in zip(values.items(), ramp(len(values)), strict=True):
        energy = np.square(singular)
        figure.add_scatter(
            x=np.arange(1, len(energy) + 1),
            y=np.cumsum(energy) / energy.sum(),
            mode="lines+markers",
            name=f"layer {layer}",
            line={"color": colour, "width": 2},
            marker={"size": 5},
            hovertemplate="%{x} singular values: %{y:.3f}",
            row=1,
            col=1,
        )
    for place, fit in enumerate(fit for fit in FITS if fit in set(lost.fit)):
        curve = lost[lost.fit == fit].groupby("rank").fit_residual.mean()
        figure.add_scatter(
            x=curve.index,
            y=curve,
            mode="lines+markers",
            name=fit,
            line={"color": SERIES[place], "width": 2},
            marker={"size": 7},
            hovertemplate="rank %{x}: %{y:.3f}",
            row=1,
            col=2,
        )
    _rank_axis(figure, sorted({1, 2, *ranks}))
    figure.update_yaxes(range=[-0.03, 1.04], tickformat=".1f")
    figure.update_yaxes(title_text="share", col=1)
    figure.update_yaxes(title_text="‖(ΔW − BA) K‖ / ‖ΔW K‖", col=2)
    figure.update_annotations(font_size=13)
    figure.update_layout(margin_t=112)
    return finish(figure, "How much of an update fits into a rank", subtitle)


def _rank_axis(figure: go.Figure, ranks: list) -> None:
    ticks = [int(rank) for rank in ranks]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[str(rank) for rank in ticks], title_text="rank")
