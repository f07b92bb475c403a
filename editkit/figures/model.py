"""Figures of a model's insides: hidden states and keys."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from editkit.figures.style import COLOURS, finish, ramp


def spectrum(
    eigenvalues: Mapping[int, Sequence[float]],
    threshold: float | None = None,
    *,
    over: str = "ordinary text",
    unit: str = "key units²",
) -> go.Figure:
    """Eigenvalues of the second moment of each layer's keys, descending, on a log axis.

    Args:
        eigenvalues: layer to values in any order; those at or below zero are rounding, left out.
        threshold: AlphaEdit's bound of the null space, drawn as a line.
        over: what the keys are of.
        unit: of the eigenvalues.
    """
    figure = go.Figure()
    for layer, colour in zip(sorted(eigenvalues), ramp(len(eigenvalues)), strict=True):
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
    figure.update_yaxes(type="log", title_text=f"eigenvalue ({unit})", exponentformat="power", dtick=1)
    return finish(figure, "Spectrum of the keys' second moment", f"C = E[k kᵀ] over {over}")


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
        for layer, colour in zip(layers, ramp(len(layers)), strict=True):
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
    return finish(figure, "Hidden states by position", "residual stream after a layer, median over texts")
