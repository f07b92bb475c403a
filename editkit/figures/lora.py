"""Figures of low-rank edits."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from editkit.figures import claims
from editkit.figures.style import (
    SCORES,
    SERIES,
    add_level,
    add_line,
    aside,
    behind,
    below,
    finish,
    interval,
    log_axis,
    methods_in,
    panels,
    places,
    ramp,
    score_panels,
)
from editkit.methods import UNTOUCHED, label

FITS = ("keys", "svd", "steps", "exact", "finetuning")
LEVELS = {"raw": ("raw, full rank", "solid"), UNTOUCHED: (label(UNTOUCHED), "dash")}


def lora_rank_vs_metrics(frame: pd.DataFrame, *, subtitle: str) -> go.Figure:
    """Plot ES, PS, NS and S against the rank, a line a fit, with intervals; lines across: full rank, and no edit.

    Args:
        frame: columns fit (also ``raw`` for the edit at full rank and ``pre`` for no edit), rank (nan for these
            two), score, value, low, high, n, seeds, clusters.
    """
    figure = score_panels(top=1.07)
    ranks = [int(rank) for rank in sorted(frame["rank"].dropna().unique())]
    fits = [fit for fit in FITS if fit in set(frame.fit)]
    for score, where in zip(SCORES, places(4, 2), strict=True):
        part = frame[frame.score == score]
        for place, fit in enumerate(fits):
            rows = part[part.fit == fit].sort_values("rank")
            x = rows["rank"] * aside(place, len(fits), 0.06)
            more = {"customdata": rows["rank"], "error_y": interval(rows.value, rows.low, rows.high)}
            more |= {"name": label(fit), "legendgroup": fit, "line_color": SERIES[place]}
            add_line(figure, x, rows.value, "rank %{customdata}: %{y:.3f}", **more, **where)
        for fit, (name, dash) in LEVELS.items():
            for value in part[part.fit == fit].value:
                add_level(figure, ranks, value, name, dash, **where)
    log_axis(figure, ranks, "rank")
    return finish(figure, claims.by_rank(frame), f"{subtitle}; {behind(frame)}", height=680)


def update_spectrum(values: Mapping[int, list[float]], lost: pd.DataFrame, *, subtitle: str) -> go.Figure:
    """Plot what a rank can hold: the share of ‖ΔW‖² in r singular values, and what fits lose on the edited keys.

    Args:
        values: layer to the singular values of ΔW, largest first.
        lost: columns fit, rank, fit_residual.
    """
    titles = ("share of ‖ΔW‖² in r singular values", "lost on the edited keys")
    figure = panels(titles, 2, size=13, horizontal_spacing=0.14)
    for (layer, singular), colour in zip(values.items(), ramp(len(values)), strict=True):
        energy = np.square(singular)
        x, y = np.arange(1, len(energy) + 1), np.cumsum(energy) / energy.sum()
        look = {"name": f"layer {layer}", "line_color": colour, "marker_size": 5}
        add_line(figure, x, y, "%{x} singular values: %{y:.3f}", **look, row=1, col=1)
    for place, fit in enumerate(fit for fit in FITS if fit in set(lost.fit)):
        curve = lost[lost.fit == fit].groupby("rank").fit_residual.mean()
        look = {"name": label(fit), "line_color": SERIES[place]}
        add_line(figure, curve.index, curve, "rank %{x}: %{y:.3f}", **look, row=1, col=2)
    log_axis(figure, [1, 2, *(int(rank) for rank in lost["rank"].unique())], "rank")
    figure.update_yaxes(range=[-0.03, 1.04], tickformat=".1f")
    figure.update_yaxes(title_text="share", col=1)
    figure.update_yaxes(title_text="‖(ΔW − BA) K‖ / ‖ΔW K‖", col=2)
    return finish(figure, claims.singular_values(values), subtitle)


def replay_by_rank(frame: pd.DataFrame) -> go.Figure:
    """Plot S and exact rewrites (EA) with intervals against the rank, a line a replay rate, a row of panels a method.

    Args:
        frame: columns method, rate, rank (0: full, the last on the axis), score (others than S and EA are left out),
            value, low, high, n, seeds and clusters (:func:`editkit.studies.replay_rank.points`).
    """
    scores = {"S": "S", "EA": "exact rewrites (EA)"}
    methods, rates = methods_in(frame), sorted(frame.rate.unique())
    ranks = [*sorted(rank for rank in frame["rank"].unique() if rank), 0]
    titles = [f"{label(method)}: {title}" for method in methods for title in scores.values()]
    figure = panels(titles, 2, horizontal_spacing=0.1, vertical_spacing=0.2)
    cells = [(method, score) for method in methods for score in scores]
    for (method, score), where in zip(cells, places(len(cells), 2), strict=True):
        part = frame[(frame.method == method) & (frame.score == score)]
        for place, (rate, colour) in enumerate(zip(rates, ramp(len(rates)), strict=True)):
            rows = part[part.rate == rate].set_index("rank").reindex(ranks)
            x = [number + below(place, len(rates), 0.3) for number in range(len(ranks))]
            look = {"name": f"r = {rate:g}", "legendgroup": f"{rate:g}", "line_color": colour}
            bars = interval(rows.value, rows.low, rows.high, thickness=1.5, width=3)
            add_line(figure, x, rows.value, "%{y:.3f}", error_y=bars, **look, **where)
    names = [f"{rank}" if rank else "full" for rank in ranks]
    figure.update_xaxes(tickvals=[*range(len(ranks))], ticktext=names, title_text="rank of an update")
    figure.update_yaxes(range=[-0.03, 1.04], tickformat=".1f").update_yaxes(title_text="share of prompts", col=1)
    return finish(figure, claims.replay_and_rank(frame), behind(frame), height=60 + 380 * len(methods))
