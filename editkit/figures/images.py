"""Figures of image classifiers: what they decide with, and what repairs make of them."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from editkit.figures import claims
from editkit.figures.style import (
    INK,
    RULE,
    SERIES,
    WIDTH,
    add_line,
    as_label,
    count,
    finish,
    interval,
    log_axis,
    log_scale,
    method_style,
    methods_in,
    over_seeds,
    panels,
)
from editkit.methods import label, look

GALLERY = 12  # most images in a gallery
COLUMNS = 4  # images in a row
MARGIN = 12  # pixels left and right of images
IMAGE = 0.95  # width of an image, where 1 is the distance to the next
CAPTION_WIDTH = 30  # characters in a line over an image
KINDS = {"residual": "residual stream (CLS)", "mlp": "MLP", "attention": "attention"}


def training_curve(history: pd.DataFrame) -> go.Figure:
    """Plot training loss and validation accuracy by epoch.

    Args:
        history: columns epoch, loss (nats), val_accuracy; one row an epoch.
    """
    columns = {"loss": "training loss", "val_accuracy": "validation accuracy"}
    figure = panels(columns.values(), 2, horizontal_spacing=0.14)
    for place, column in enumerate(columns):
        where = {"line_color": SERIES[place], "row": 1, "col": place + 1}
        add_line(figure, history.epoch, history[column], "epoch %{x}: %{y:.4f}<extra></extra>", **where)
    figure.update_xaxes(title_text="epoch", tickformat="d", dtick=-(-len(history) // 10))
    figure.update_yaxes(title_text="nats", rangemode="tozero", col=1)
    figure.update_yaxes(title_text="share of images", col=2)
    return finish(
        figure, claims.training(history), f"fine-tuning, {count(len(history), 'epoch')}", height=380, legend=False
    )


def layer_importance_bars(statistics: pd.DataFrame) -> go.Figure:
    """Draw the probability that restoring a layer recovers, three bars a layer, with intervals.

    Args:
        statistics: columns kind, layer, value, low, high, n (:func:`editkit.studies.tables.layer_statistics`).
    """
    figure = go.Figure()
    for (kind, name), colour in zip(KINDS.items(), SERIES, strict=False):
        rows = statistics[statistics.kind == kind].sort_values("layer")
        bar = {"name": name, "marker": {"color": colour}, "hovertemplate": "layer %{x}: %{y:.3f}"}
        figure.add_bar(x=rows.layer, y=rows.value, error_y=interval(rows.value, rows.low, rows.high), **bar)
    figure.update_xaxes(title_text="layer", dtick=1, showgrid=False)
    figure.update_yaxes(title_text="probability recovered", zeroline=True, zerolinecolor=RULE)
    figure.update_layout(barmode="group", bargap=0.25)
    images = int(statistics.n.max())
    subtitle = f"clean activations put into noisy runs: mean over {count(images, 'image')}"
    return finish(figure, claims.layers(statistics, KINDS), subtitle + (", with 95% intervals" if images > 1 else ""))


def patch_heat_maps(
    image: np.ndarray, maps: np.ndarray, layers: Sequence[int], *, title: str = "", subtitle: str
) -> go.Figure:
    """Show an image, and over it the probability that each patch recovers after some layers.

    Args:
        image: (h, w) or (h, w, 1 or 3) uint8.
        maps: (n, side, side), on one scale around 0 (:func:`editkit.vision.tracing.heat_maps`).
        layers: (n,) the layer of each map.
    """
    titles = ["image", *(f"after layer {layer}" for layer in layers)]
    rows = -(-len(titles) // COLUMNS)
    figure = panels(titles, COLUMNS, horizontal_spacing=0.03, vertical_spacing=0.16 / max(1, rows - 1))
    places = [{"row": panel // COLUMNS + 1, "col": panel % COLUMNS + 1} for panel in range(len(titles))]
    patches = cover(-0.5, -0.5, max(image.shape[:2]), image.shape, maps.shape[1:])  # in pixels, whose centres are whole
    for where, layer, values in zip(places[1:], layers, maps, strict=True):
        hover = f"layer {layer}: %{{z:.3f}}<extra></extra>"
        figure.add_heatmap(z=values, coloraxis="coloraxis", opacity=0.7, hovertemplate=hover, **patches, **where)
    reach = float(np.abs(maps).max()) or 1.0  # of all panels, so that colours can be compared
    bar = {"title": {"text": "probability<br>recovered", "font": {"size": 12}}, "thickness": 14}
    figure.update_layout(coloraxis={"colorscale": "RdBu_r", "cmin": -reach, "cmax": reach, "colorbar": bar})
    channels = image.reshape(*image.shape[:2], -1)
    for where in places:
        figure.add_image(z=np.broadcast_to(channels, (*channels.shape[:2], 3)), hoverinfo="skip", **where)
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, constrain="domain", constraintoward="top", autorange="reversed")
    for axis in figure.select_yaxes():
        axis.scaleanchor = axis.anchor
    finish(figure, title or claims.patches(maps, layers), as_label(subtitle), height=128 + 175 * rows, legend=False)
    return figure.update_layout(margin={"l": MARGIN, "r": MARGIN, "b": 16})


def confusion_maps(before: pd.DataFrame, after: pd.DataFrame, names: Sequence[str]) -> go.Figure:
    """Map the confusion matrices before and after a repair, and their difference; cells with 0 are left blank.

    Args:
        before, after: images of each true class (rows) by predicted class (:func:`editkit.vision.metrics.confusion`).
        names: of the classes; long ones are cut in the figure.
    """
    counts = before.to_numpy(), after.to_numpy()
    difference = counts[1] - counts[0]
    most, widest = max(table.max() for table in counts), max(abs(difference).max(), 1)
    figure = panels(("before", "after", "after − before"), 3, horizontal_spacing=0.03)
    ticks, short = list(range(len(names))), [as_label(name if len(name) <= 14 else f"{name[:13]}…") for name in names]
    seen = {"colorscale": "Blues", "zmin": 0, "zmax": most}
    moved = {"colorscale": "RdBu", "zmin": -widest, "zmax": widest}
    grid = {"x": ticks, "y": ticks, "xgap": 1, "ygap": 1, "showscale": False, "texttemplate": "%{text}"}
    grid |= {"textfont": {"size": 13 - min(len(names) // 2, 4)}, "hovertemplate": "%{customdata}: %{z}<extra></extra>"}
    grid["customdata"] = [[as_label(f"{true}, predicted {predicted}") for predicted in names] for true in names]
    for panel, table in enumerate((*counts, difference), start=1):
        form = "+d" if panel == 3 else "d"
        text = [[_signed(f"{value:{form}}") if value else "" for value in row] for row in table]
        figure.add_heatmap(z=table, text=text, row=1, col=panel, **grid, **(moved if panel == 3 else seen))
    labels = {"tickvals": ticks, "ticktext": short, "tickfont_size": 11, "showgrid": False}
    figure.update_xaxes(**labels, title_text="predicted", tickangle=-90 if max(map(len, short)) > 2 else 0)
    figure.update_yaxes(**labels, autorange="reversed", matches="y", showticklabels=False, ticks="")
    figure.update_yaxes(title_text="true", showticklabels=True, ticks="outside", matches=None, col=1)
    subtitle = f"{counts[0].sum():,} images; in the difference, blue: more than before, red: fewer"
    return finish(figure, claims.mistakes(*counts), subtitle, height=470, legend=False)


def repair_bars(frame: pd.DataFrame) -> go.Figure:
    """Draw what each method repairs and what it costs: means over seeds, with bars from the smallest to the largest.

    Args:
        frame: one row a method and seed, columns fixed (reliability: share of the edited images), kept and test_kept
            (locality: shares of the correct validation and test predictions) and heldout_change (percentage points of
            held-out accuracy).
    """
    titles = {
        "fixed": "images fixed",
        "kept": "kept, validation",
        "test_kept": "kept, held out",
        "heldout_change": "held-out accuracy",
    }
    figure = panels(titles.values(), len(titles), size=13, horizontal_spacing=0.03)
    methods = methods_in(frame)
    names = [label(method) for method in methods]
    fill = {"color": [look(method).colour for method in methods], "opacity": 0.6}
    for panel, column in enumerate(titles, start=1):
        groups = frame.groupby("method")[column]
        mean, low, high = (table.loc[methods] for table in (groups.mean(), groups.min(), groups.max()))
        where = {"y": names, "row": 1, "col": panel}
        bar = {"orientation": "h", "marker": fill, "hovertemplate": "%{y}: %{x:.4f}<extra></extra>"}
        figure.add_bar(x=mean, error_x=interval(mean, low, high, thickness=1.2, width=3, color=INK), **bar, **where)
        # The right of the panel is for the numbers, out of the way of bars and intervals.
        share = column != "heldout_change"
        left, right = (0.0, 1.0) if share else (min(low.min(), 0.0), max(high.max(), 0.0))
        width = (right - left) or 1.0
        text = [_signed(f"{value:.3f}" if share else f"{value:+.2f}") for value in mean]
        words = {"mode": "text", "textposition": "middle left", "textfont": {"size": 12}, "hoverinfo": "skip"}
        figure.add_scatter(x=[right + 0.38 * width] * len(names), text=text, **words, **where)
        unit = {"title_text": "share", "tickvals": [0, 0.5, 1]} if share else {"title_text": "change (points)"}
        figure.update_xaxes(range=[left - 0.03 * width, right + 0.4 * width], nticks=5, **unit, col=panel)
    figure.update_xaxes(zeroline=True, zerolinecolor=RULE, showgrid=False, col=len(titles))
    order = {"autorange": "reversed", "categoryorder": "array", "categoryarray": names}
    figure.update_yaxes(**order, showticklabels=False, ticks="")
    figure.update_yaxes(showticklabels=True, col=1)
    figure.update_layout(bargap=0.3)
    return finish(
        figure,
        claims.repaired(frame.groupby("method")[["fixed", "heldout_change"]].mean()),
        over_seeds(frame),
        height=190 + 34 * len(names),
        legend=False,
    )


def leakage_curves(frame: pd.DataFrame) -> go.Figure:
    """Plot what an edit does to other images (leakage), against its reliability and against the null-space threshold.

    Args:
        frame: columns method, nullspace ("kept" for the projection off the kept keys), threshold (nan where there is
            none: a point, and a line across), leakage, success (share of the edited images fixed); several rows of a
            method, null space and threshold (seeds) are averaged.
    """
    figure = make_subplots(1, 2, horizontal_spacing=0.1, shared_yaxes=True)
    of = ["method", "nullspace", "threshold"]
    mean = frame.groupby(of, dropna=False)[["leakage", "success"]].mean().reset_index()
    thresholds = sorted(frame.threshold.dropna().unique())
    left, right = {"row": 1, "col": 1}, {"row": 1, "col": 2, "showlegend": False}
    curves = [(method, kept) for method in methods_in(frame) for kept in (False, True)]
    for method, kept in curves:
        rows = mean[(mean.method == method) & ((mean.nullspace == "kept") == kept)].sort_values("threshold")
        if rows.empty:
            continue
        style = method_style(method)
        if kept:
            style |= {"name": f"{label(method)}, off kept CLS keys", "legendgroup": "kept", "marker_symbol": "star"}
        hover = "threshold %{customdata:.2g}: reliability %{x:.3f}, leakage %{y:.3g}"
        add_line(figure, rows.success, rows.leakage, hover, customdata=rows.threshold, **style, **left)
        curve = rows.dropna(subset="threshold")
        add_line(figure, curve.threshold, curve.leakage, "threshold %{x:.2g}: leakage %{y:.3g}", **style, **right)
        for value in rows[rows.threshold.isna()].leakage:
            across = style | {"mode": "lines", "line_dash": "dot" if kept else "dash"}
            add_line(figure, thresholds, [value] * len(thresholds), "leakage %{y:.3g}", **across, **right)
    figure.update_xaxes(title_text="reliability (share of edits)", col=1)
    log_axis(figure, thresholds, "null-space threshold", col=2)
    log_scale(figure, mean.leakage)
    figure.update_yaxes(title_text="leakage", col=1)
    return finish(
        figure, claims.leakage(mean), "leakage; left: a point a threshold; right, dashed or dotted: without one"
    )


def gallery(
    images: np.ndarray, maps: np.ndarray | None, captions: Sequence[str], *, title: str = "Repaired images"
) -> go.Figure:
    """Set images in a grid, captions over them and under each, where given, the same with a map laid over it.

    Args:
        images: (n, h, w) or (n, h, w, 3) uint8, at most ``GALLERY``.
        maps: (n, side, side), or None; each has its own scale, bright where it is high.
        captions: one an image, as "serous (0.91) → mucinous (0.62)".
        title: what is seen in them.

    Raises ``ValueError`` for too many images, and maps or captions that are not one an image.
    """
    counts = {len(images), len(captions), len(images if maps is None else maps)}
    if len(counts) > 1 or not 1 <= len(images) <= GALLERY:
        raise ValueError(
            f"a gallery needs 1 to {GALLERY} images, with a caption and a map (or no maps) each; got {len(images)} "
            f"images, {len(captions)} captions and {'no' if maps is None else len(maps)} maps"
        )
    layers = 1 if maps is None else 2
    parts = [caption.replace(" → ", "\n→ ").splitlines() for caption in captions]  # what became of it has its own line
    lines = [[line for part in caption for line in textwrap.wrap(part, CAPTION_WIDTH)] for caption in parts]
    cell = (WIDTH - 2 * MARGIN) / COLUMNS  # pixels of an image with its gap: the unit of both axes
    head = (17 * max(map(len, lines)) + 14) / cell
    tall = head + layers  # of images, each with the gap below it
    total = tall * -(-len(images) // COLUMNS)
    figure = go.Figure()
    for number, (image, caption) in enumerate(zip(images, lines, strict=True)):
        left, top = number % COLUMNS, number // COLUMNS * tall + head
        colour = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image
        for layer in range(layers):
            where = cover(left, top + layer, IMAGE, image.shape, image.shape)
            figure.add_image(z=colour, hoverinfo="skip", **where)
        if maps is not None:
            where = cover(left, top + 1, IMAGE, image.shape, maps[number].shape)
            where |= {"opacity": 0.55, "showscale": False, "hovertemplate": "%{z:.3g}<extra></extra>"}
            figure.add_heatmap(z=maps[number], colorscale="Inferno", **where)
        words = {"text": "<br>".join(map(as_label, caption)), "align": "left", "font_size": 11, "showarrow": False}
        figure.add_annotation(x=left, y=top, xanchor="left", yanchor="bottom", **words)
    figure.update_xaxes(visible=False, range=[0, COLUMNS], constrain="domain")
    figure.update_yaxes(visible=False, range=[total, 0], constrain="domain")
    subtitle = "before → after" if maps is None else "before → after; below, with its map laid over it"
    finish(figure, title, subtitle, height=round(total * cell) + 90, legend=False)
    return figure.update_layout(margin={"l": MARGIN, "r": MARGIN, "t": 80, "b": 10})


def cover(left: float, top: float, side: float, image: tuple[int, ...], cells: tuple[int, ...]) -> dict[str, Any]:
    """Place so many rows and columns of cells that they cover an image of this shape, its longer side ``side``."""
    dy, dx = (side * image[axis] / max(image[:2]) / cells[axis] for axis in (0, 1))
    return {"x0": left + dx / 2, "y0": top + dy / 2, "dx": dx, "dy": dy}


def _signed(number: str) -> str:
    return number.replace("-", "−")
