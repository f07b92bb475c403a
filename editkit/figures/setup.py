"""Figures of a model's insides: hidden states and keys."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from editkit.figures import claims
from editkit.figures.style import GREY, add_line, finish, log_scale, panels, places, ramp


def spectrum(
    eigenvalues: Mapping[int, Sequence[float]],
    threshold: float | None = None,
    *,
    over: str = "ordinary text",
    unit: str = "key units²",
) -> go.Figure:
    """Plot the eigenvalues of the second moment of each layer's keys, descending, on a log axis.

    Args:
        eigenvalues: layer to values in any order; those at or below zero are rounding, left out.
        threshold: AlphaEdit's bound of the null space, drawn as a line.
        over: what the keys come from.
        unit: of the eigenvalues.
    """
    figure = go.Figure()
    for layer, colour in zip(sorted(eigenvalues), ramp(len(eigenvalues)), strict=True):
        values = np.sort(np.asarray(eigenvalues[layer], dtype=float))[::-1]
        values = values[values > 0]
        look = {"mode": "lines", "line": {"color": colour, "width": 2}, "hovertemplate": "%{x}: %{y:.2e}"}
        figure.add_scatter(x=np.arange(1, len(values) + 1), y=values, name=f"layer {layer}", **look)
    if threshold is not None:
        figure.add_hline(threshold, line={"dash": "dash", "color": GREY, "width": 1.5})
        note = {"text": f"null space below {threshold:g}", "x": 1, "xref": "paper", "xanchor": "right"}
        # Annotations on a log axis are placed by exponent.
        figure.add_annotation(y=np.log10(threshold), yanchor="bottom", showarrow=False, **note)
    figure.update_xaxes(title_text="rank of the eigenvalue")
    log_scale(
        figure, np.concatenate([np.ravel(values) for values in eigenvalues.values()]), title_text=f"eigenvalue ({unit})"
    )
    return finish(
        figure, claims.spectrum(eigenvalues, threshold), f"C = E[k kᵀ], the second moment of the keys of {over}"
    )


def position_norms(frame: pd.DataFrame) -> go.Figure:
    """Plot the norm of the hidden state by token position, a line a layer, on a log axis.

    Args:
        frame: columns start_token (bool: a panel each), layer, position, norm; several rows of one position are
            averaged.
    """
    titles = {True: "with the start token", False: "without it"}
    figure = panels(titles.values(), 2, shared_yaxes=True)
    layers = sorted(frame["layer"].unique())
    for with_start, where in zip(titles, places(2, 2), strict=True):
        for layer, colour in zip(layers, ramp(len(layers)), strict=True):
            rows = frame[(frame["layer"] == layer) & (frame["start_token"] == with_start)]
            mean = rows.groupby("position")["norm"].mean()
            look = {"name": f"layer {layer}", "legendgroup": str(layer), "line_color": colour, "marker_size": 5}
            add_line(figure, mean.index, mean, "position %{x}: %{y:.1f}", **look, **where)
    figure.update_xaxes(title_text="token position")
    log_scale(figure, frame["norm"])
    figure.update_yaxes(title_text="norm (model units)", col=1)
    return finish(
        figure,
        claims.position_norms(frame),
        "hidden states by position: residual stream after a layer, median over texts",
    )
