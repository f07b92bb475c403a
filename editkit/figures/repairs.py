"""Figures of image classifiers and their repair."""

import textwrap
from collections.abc import Sequence
from itertools import cycle

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from editkit.figures.style import (
    COLOURS,
    OTHERS,
    SERIES,
    WIDTH,
    count,
    cover,
    finish,
    interval,
    look,
    method_name,
    methods_in,
)

GALLERY = 12  # most images in a gallery
COLUMNS = 4
MARGIN = 12  # pixels left and right of a gallery
IMAGE = 0.95  # width of an image, where 1 is the distance to the next
CAPTION_WIDTH = 30  # characters in a line over an image


def training_curve(history: pd.DataFrame) -> go.Figure:
    """Training loss and validation accuracy by epoch.

    Args:
        history: columns epoch, loss (nats), val_accuracy; one row an epoch.
    """
    panels = {"loss": "training loss", "val_accuracy": "validation accuracy"}
    figure = make_subplots(1, 2, subplot_titles=list(panels.values()), horizontal_spacing=0.14)
    for place, column in enumerate(panels):
        figure.add_scatter(
            x=history.epoch,
            y=history[column],
            mode="lines+markers",
            line={"color": SERIES[place], "width": 2},
            marker={"size": 7},
            hovertemplate="epoch %{x}: %{y:.4f}<extra></extra>",
            row=1,
            col=place + 1,
        )
    figure.update_xaxes(title_text="epoch", tickformat="d", dtick=-(-len(history) // 10))
    figure.update_yaxes(title_text="nats", rangemode="tozero", col=1)
    figure.update_yaxes(title_text="share of images", col=2)
    figure.update_annotations(font_size=14)
    figure.update_layout(margin_t=112)
    best = history.val_accuracy.max()
    finish(figure, "Fine-tuning", f"{count(len(history), 'epoch')}; best validation accuracy {best:.1%}", height=380)
    return figure.update_layout(showlegend=False, margin_b=60)


def confusion_maps(before: pd.DataFrame, after: pd.DataFrame, names: Sequence[str]) -> go.Figure:
    """Confusion matrices before and after a repair, and their difference; cells with 0 are left blank.

    Args:
        before, after: images of each true class (rows) by the class that was said
            (:func:`editkit.vision.evaluation.confusion`).
        names: of the classes; long ones are cut in the figure.
    """
    counts = before.to_numpy(), after.to_numpy()
    difference = counts[1] - counts[0]
    most, widest = max(table.max() for table in counts), max(abs(difference).max(), 1)
    figure = make_subplots(1, 3, subplot_titles=("before", "after", "after − before"), horizontal_spacing=0.03)
    places, short = list(range(len(names))), [name if len(name) <= 14 else f"{name[:13]}…" for name in names]
    seen = {"colorscale": "Blues", "zmin": 0, "zmax": most}
    moved = {"colorscale": "RdBu", "zmin": -widest, "zmax": widest}
    for panel, table in enumerate((*counts, difference), start=1):
        form = "+d" if panel == 3 else "d"
        figure.add_heatmap(
            z=table,
            x=places,
            y=places,
            text=[[f"{value:{form}}".replace("-", "−") if value else "" for value in row] for row in table],
            texttemplate="%{text}",
            textfont={"size": 13 - min(len(names) // 2, 4)},
            customdata=[[f"{true}, said to be {said}" for said in names] for true in names],
            hovertemplate="%{customdata}: %{z}<extra></extra>",
            **(moved if panel == 3 else seen),
            xgap=1,
            ygap=1,
            showscale=False,
            row=1,
            col=panel,
        )
    labels = {"tickvals": places, "ticktext": short, "tickfont_size": 11, "showgrid": False}
    figure.update_xaxes(**labels, title_text="said", tickangle=-90 if max(map(len, short)) > 2 else 0)
    figure.update_yaxes(**labels, autorange="reversed")
    figure.update_yaxes(title_text="true", col=1)
    figure.update_yaxes(showticklabels=False, ticks="", matches="y")
    figure.update_yaxes(showticklabels=True, ticks="outside", col=1)
    figure.update_annotations(font_size=14)
    figure.update_layout(margin_t=112)
    subtitle = f"{counts[0].sum():,} images; in the difference, blue: more than before, red: fewer"
    finish(figure, "Which classes are taken for which", subtitle, height=470)
    return figure.update_layout(showlegend=False, margin_b=60)


def repair_bars(frame: pd.DataFrame) -> go.Figure:
    """What each method repairs and what it costs: means over seeds, with bars from the smallest to the largest.

    Args:
        frame: one row a method and seed, columns fixed (share of the edited images), kept (share of the correct
            validation predictions) and heldout_change (percentage points of held-out accuracy).
    """
    panels = {
        "fixed": ("edited images fixed", "share"),
        "kept": ("correct val predictions kept", "share"),
        "heldout_change": ("held-out accuracy", "change (points)"),
    }
    figure = make_subplots(1, 3, subplot_titles=[title for title, _ in panels.values()], horizontal_spacing=0.04)
    looks = _looks(frame)
    names = [method_name(method) for method in looks]
    for panel, (column, (_, unit)) in enumerate(panels.items(), start=1):
        groups = frame.groupby("method")[column]
        mean, low, high = (table.loc[list(looks)] for table in (groups.mean(), groups.min(), groups.max()))
        form = "{:+.2f}" if column == "heldout_change" else "{:.3f}"
        figure.add_bar(
            y=names,
            x=mean,
            orientation="h",
            error_x=interval(mean, low, high),
            marker={"color": [look["line"]["color"] for look in looks.values()], "opacity": 0.6},
            hovertemplate="%{y}: %{x:.4f}<extra></extra>",
            row=1,
            col=panel,
        )
        # The right of the panel is for the numbers, out of the way of bars and intervals.
        left, right = (0.0, 1.0) if unit == "share" else (min(low.min(), 0.0), max(high.max(), 0.0))
        width = (right - left) or 1.0
        figure.add_scatter(
            y=names,
            x=[right + 0.38 * width] * len(names),
            mode="text",
            text=[form.format(value).replace("-", "−") for value in mean],
            textposition="middle left",
            textfont={"size": 12},
            hoverinfo="skip",
            row=1,
            col=panel,
        )
        figure.update_xaxes(range=[left - 0.03 * width, right + 0.4 * width], title_text=unit, nticks=5, col=panel)
    for panel in (1, 2):
        figure.update_xaxes(tickvals=[0, 0.5, 1], col=panel)
    figure.update_xaxes(zeroline=True, zerolinecolor="#9AA3AE", showgrid=False, col=3)
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=names)
    figure.update_yaxes(showticklabels=False, ticks="")
    figure.update_yaxes(showticklabels=True, col=1)
    figure.update_annotations(font_size=13)
    figure.update_layout(margin_t=112, bargap=0.3)
    seeds = frame.seed.nunique()
    subtitle = "one seed" if seeds == 1 else f"mean over {seeds} seeds; bars: smallest to largest seed"
    finish(figure, "Repairs compared", subtitle, height=190 + 34 * len(names))
    return figure.update_layout(showlegend=False, margin_b=60)


def leakage_curves(frame: pd.DataFrame) -> go.Figure:
    """What an edit does to other images (leakage), against its success and against the null-space threshold.

    Args:
        frame: columns method, threshold (nan for a method that has none: a point, and a line across), leakage,
            success; several rows of a method and threshold (seeds) are averaged.
    """
    figure = make_subplots(1, 2, horizontal_spacing=0.1, shared_yaxes=True)
    mean = frame.groupby(["method", "threshold"], dropna=False)[["leakage", "success"]].mean().reset_index()
    thresholds = sorted(frame.threshold.dropna().unique())
    for method, style in _looks(frame).items():
        rows = mean[mean.method == method].sort_values("threshold")
        figure.add_scatter(
            x=rows.success,
            y=rows.leakage,
            mode="lines+markers",
            customdata=rows.threshold,
            hovertemplate="threshold %{customdata:.2g}: success %{x:.3f}, leakage %{y:.3g}",
            **style,
            row=1,
            col=1,
        )
        curve = rows.dropna(subset="threshold")
        figure.add_scatter(
            x=curve.threshold,
            y=curve.leakage,
            mode="lines+markers",
            showlegend=False,
            hovertemplate="threshold %{x:.2g}: leakage %{y:.3g}",
            **style,
            row=1,
            col=2,
        )
        for value in rows[rows.threshold.isna()].leakage:
            across = style | {"line": style["line"] | {"dash": "dash"}}
            hover = "leakage %{y:.3g}"
            figure.add_scatter(
                x=thresholds,
                y=[value] * len(thresholds),
                mode="lines",
                showlegend=False,
                hovertemplate=hover,
                **across,
                row=1,
                col=2,
            )
    figure.update_xaxes(title_text="success (share of edits)", col=1)
    ticks = {"tickvals": thresholds, "ticktext": [f"{threshold:g}" for threshold in thresholds]}
    figure.update_xaxes(type="log", title_text="null-space threshold", **ticks, col=2)
    decades = np.log10(mean.leakage.max() / mean.leakage[mean.leakage > 0].min())
    figure.update_yaxes(type="log", exponentformat="power", dtick=1 if decades > 2 else None)
    figure.update_yaxes(title_text="leakage", col=1)
    return finish(figure, "Leakage", "left: a point a threshold; right, dashed: methods without a threshold")


def gallery(images: np.ndarray, maps: np.ndarray | None, captions: Sequence[str]) -> go.Figure:
    """A grid of images with captions over them, and under each, where given, the same with a map laid over it.

    Args:
        images: (n, h, w) or (n, h, w, 3) uint8, at most ``GALLERY``.
        maps: (n, side, side), or None; each has its own scale, bright where it is high.
        captions: one an image, as "serous (0.91) → mucinous (0.62)".

    Raises ``ValueError`` for too many images, and maps or captions that are not one an image.
    """
    counts = {len(images), len(captions), len(images if maps is None else maps)}
    if len(counts) > 1 or not 1 <= len(images) <= GALLERY:
        raise ValueError(
            f"a gallery needs 1 to {GALLERY} images, with a caption and a map (or no maps) each; got {len(images)} "
            f"images, {len(captions)} captions and {'no' if maps is None else len(maps)} maps"
        )
    layers = 1 if maps is None else 2
    lines = [textwrap.wrap(caption, CAPTION_WIDTH) for caption in captions]
    cell = (WIDTH - 2 * MARGIN) / COLUMNS  # pixels of an image with its gap: the unit of both axes
    head = (14 * max(map(len, lines)) + 10) / cell
    tall = head + layers * IMAGE + (1 - IMAGE)
    total = tall * -(-len(images) // COLUMNS)
    subtitle = "before → after" if maps is None else "before → after; below, with its map laid over it"
    figure = finish(go.Figure(), "Repaired images", subtitle, height=round(total * cell) + 90)
    for number, (image, caption) in enumerate(zip(images, lines, strict=True)):
        left, top = number % COLUMNS, number // COLUMNS * tall + head
        colour = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image
        for layer in range(layers):
            figure.add_image(
                z=colour, hoverinfo="skip", **cover(left, top + layer * IMAGE, IMAGE, image.shape, image.shape)
            )
        if maps is not None:
            figure.add_heatmap(
                z=maps[number],
                colorscale="Inferno",
                opacity=0.55,
                showscale=False,
                hovertemplate="%{z:.3g}<extra></extra>",
                **cover(left, top + IMAGE, IMAGE, image.shape, maps[number].shape),
            )
        words = {"text": "<br>".join(caption), "align": "left", "font_size": 11, "showarrow": False}
        figure.add_annotation(x=left, y=top, xanchor="left", yanchor="bottom", **words)
    figure.update_xaxes(visible=False, range=[0, COLUMNS], constrain="domain")
    figure.update_yaxes(visible=False, range=[total, 0], constrain="domain")
    margin = {"l": MARGIN, "r": MARGIN, "t": 80, "b": 10}
    return figure.update_layout(showlegend=False, margin=margin)


def _looks(frame: pd.DataFrame) -> dict[str, dict]:
    """Each method's name and look; those without a colour of their own get the other colours in turn."""
    others = cycle(OTHERS)
    looks = {}
    for method in methods_in(frame):
        looks[method] = look(method)
        if method not in COLOURS:
            looks[method]["line"]["color"] = next(others)
    return looks
