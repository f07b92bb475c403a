"""Figures of images and of what a classifier does with them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from editkit.figures.style import SERIES, count, cover, finish, interval

KINDS = {"residual": "residual stream (CLS)", "mlp": "MLP", "attention": "attention"}
COLUMNS = 4  # panels in a row


def layer_importance_bars(statistics: pd.DataFrame) -> go.Figure:
    """Probability recovered by restoring a layer, three bars a layer, with intervals.

    Args:
        statistics: columns kind, layer, value, low, high, n (:func:`editkit.tracing.layer_statistics`).
    """
    figure = go.Figure()
    for (kind, name), colour in zip(KINDS.items(), SERIES, strict=False):
        rows = statistics[statistics.kind == kind].sort_values("layer")
        figure.add_bar(
            x=rows.layer,
            y=rows.value,
            error_y=interval(rows.value, rows.low, rows.high),
            name=name,
            marker={"color": colour},
            hovertemplate="layer %{x}: %{y:.3f}",
        )
    figure.update_xaxes(title_text="layer", dtick=1, showgrid=False)
    figure.update_yaxes(title_text="probability recovered", zeroline=True, zerolinecolor="#9AA3AE")
    figure.update_layout(barmode="group", bargap=0.25)
    images = int(statistics.n.max())
    subtitle = f"clean activations put into noisy runs: mean over {count(images, 'image')}"
    return finish(figure, "Where the decision is made", subtitle + (", with 95 % intervals" if images > 1 else ""))


def patch_heat_maps(
    image: np.ndarray, maps: np.ndarray, layers: Sequence[int], *, title: str = "Which patches carry it", subtitle: str
) -> go.Figure:
    """An image, and over it the probability that each patch recovers after some layers.

    Args:
        image: (h, w) or (h, w, 1 or 3) uint8.
        maps: (n, side, side), on one scale around 0 (:func:`editkit.vision.tracing.heat_maps`).
        layers: (n,) whose maps they are.
    """
    rows = -(-(1 + len(layers)) // COLUMNS)
    titles = ["image", *(f"after layer {layer}" for layer in layers)]
    figure = make_subplots(
        rows, COLUMNS, subplot_titles=titles, horizontal_spacing=0.03, vertical_spacing=0.16 / max(1, rows - 1)
    )
    places = [{"row": panel // COLUMNS + 1, "col": panel % COLUMNS + 1} for panel in range(1 + len(layers))]
    patches = cover(-0.5, -0.5, max(image.shape[:2]), image.shape, maps.shape[1:])  # in pixels, whose centres are whole
    for where, layer, values in zip(places[1:], layers, maps, strict=True):
        hover = f"layer {layer}: %{{z:.3f}}<extra></extra>"
        figure.add_heatmap(z=values, coloraxis="coloraxis", opacity=0.7, hovertemplate=hover, **patches, **where)
    reach = float(np.abs(maps).max()) or 1.0  # of all panels, so that colours can be compared
    bar = {"title": {"text": "probability<br>recovered", "font": {"size": 12}}, "thickness": 14}
    figure.update_layout(coloraxis={"colorscale": "RdBu_r", "cmin": -reach, "cmax": reach, "colorbar": bar})
    figure.update_annotations(font_size=14)
    finish(figure, title, subtitle, height=128 + 175 * rows)
    # Only now: ``finish`` counts entries of the legend, and an image has no such property.
    channels = image.reshape(*image.shape[:2], -1)
    for where in places:
        figure.add_image(z=np.broadcast_to(channels, (*channels.shape[:2], 3)), hoverinfo="skip", **where)
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, constrain="domain", constraintoward="top", autorange="reversed")
    for axis in figure.select_yaxes():
        axis.scaleanchor = axis.anchor
    return figure.update_layout(showlegend=False, margin={"l": 12, "r": 12, "b": 16, "t": 112})
