"""Figures of what repairs of an image classifier bring and cost: by weight, by number, by layer, by class."""

import textwrap
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from editkit.figures import claims
from editkit.figures.style import (
    GREY,
    INK,
    RULE,
    SERIES,
    WIDTH,
    add_line,
    as_label,
    aside,
    below,
    count,
    finish,
    log_axis,
    method_style,
    methods_in,
    name_rows,
    panels,
)
from editkit.methods import CONTROLS, look

LOWEST_KEPT = 0.8  # a frontier is shown from here on


def frontier_curves(frame: pd.DataFrame, budget: float | None) -> go.Figure:
    """Plot what repairs bring against what they cost, a curve a method; what was chosen by the budget stands out.

    Args:
        frame: one row a method and point of its curve, columns method, point (what was promised, 0 for nothing; curves
            run along it), at_budget (whether the budget chose it), fixed and generality (shares of the edited images
            and of their copies), kept (share of right val predictions) and heldout_change (points).
        budget: the share of right val predictions that must stay, or None.
    """
    brings = {"fixed": "images fixed", "generality": "copies right"}
    costs = {"kept": "kept on validation", "heldout_change": "held-out accuracy, change (points)"}
    spacing = {"horizontal_spacing": 0.05, "vertical_spacing": 0.07}
    figure = make_subplots(2, 2, shared_xaxes=True, shared_yaxes=True, **spacing)
    where = [(y, x, {"row": i, "col": j}) for i, y in enumerate(brings, 1) for j, x in enumerate(costs, 1)]
    curves = {method: frame[frame.method == method].sort_values("point") for method in methods_in(frame)}
    for method, rows in curves.items():
        for y, x, at in where:
            hover = f"{x} %{{x:.4g}}, {y} %{{y:.3f}} promised %{{customdata:.3g}}"
            line = _line_style(method) | {"marker_size": 6, "showlegend": at == where[0][2]}
            add_line(figure, rows[x], rows[y], hover, customdata=rows.point, **line, **at)
    ring = {"mode": "markers", "marker": {"size": 13, "line": {"color": INK, "width": 1.6}}, "showlegend": False}
    for method, rows in curves.items():
        chosen = rows[rows.at_budget.astype(bool)]
        for y, x, at in where:
            figure.add_scatter(x=chosen[x], y=chosen[y], legendgroup=method, hoverinfo="skip", **ring, **at)
            figure.data[-1].marker.update(color=look(method).colour, symbol=look(method).marker)
    left = min(max(frame.kept.min(), LOWEST_KEPT), 1.0 if budget is None else budget)
    shown = frame[frame.kept >= left] if (frame.kept >= left).any() else frame
    figure.update_xaxes(range=_padded([left, 1.0]), col=1)
    figure.update_xaxes(range=_padded([0.0, *shown.heldout_change]), col=2)
    figure.update_yaxes(range=[-0.04, 1.04], tickformat=".1f")
    for place, title in enumerate(costs.values(), start=1):
        figure.update_xaxes(title_text=title, row=2, col=place)
    for place, title in enumerate(brings.values(), start=1):
        figure.update_yaxes(title_text=title, row=place, col=1)
        if budget is not None:
            _budget_line(figure, budget, (left, 1.0), row=place)
    figure.update_xaxes(zeroline=True, zerolinecolor=RULE, col=2)
    subtitle = "a curve a method, controls dotted" + ("" if budget is None else "; large: chosen by the budget")
    subtitle += f"; where less than {left:g} is kept, not shown" if frame.kept.min() < left else ""
    chosen = frame[frame.at_budget.astype(bool)] if frame.at_budget.any() else frame.drop_duplicates("method")
    claim = claims.at_budget(chosen, "With nothing promised" if budget is None else f"With {budget:g} promised")
    return _legend_below(finish(figure, claim, subtitle, height=640))


def edits_at_budget(frame: pd.DataFrame, budget: float | None) -> go.Figure:
    """Plot what each method reaches at the budget by the number of images repaired at once.

    Args:
        frame: one row a method and number, columns method, n_edits, fixed, generality, test_kept (shares) and
            heldout_change (points).
        budget: the share of right val predictions that must stay, or None.
    """
    titles = {"fixed": "images fixed (share)", "test_kept": "kept, held out (share)"}
    titles["heldout_change"] = "held-out change (points)"
    figure = panels(titles.values(), 3, size=13, horizontal_spacing=0.09)
    methods = methods_in(frame)
    for place, method in enumerate(methods):
        rows = frame[frame.method == method].sort_values("n_edits")
        x = rows.n_edits * aside(place, len(methods), 0.05)
        for panel, column in enumerate(titles, start=1):
            at = {"row": 1, "col": panel, "showlegend": panel == 1}
            hover = "%{customdata[0]} edits: %{y:.4g} (copies right: %{customdata[1]:.3f})"
            about = rows[["n_edits", "generality"]].to_numpy()
            add_line(figure, x, rows[column], hover, customdata=about, **_line_style(method), **at)
    log_axis(figure, frame.n_edits, "images edited")
    figure.update_xaxes(tickfont_size=11, title_font_size=14)
    figure.update_yaxes(tickformat=".1f", range=[-0.04, 1.04], col=1)
    figure.update_yaxes(range=_padded([*frame.test_kept, budget or 1.0]), col=2)
    figure.update_yaxes(zeroline=True, zerolinecolor=RULE, col=3)
    subtitle = "controls dotted; nothing promised"
    if budget is not None:
        subtitle = f"controls dotted; dashed: the budget, {budget:g}, which was held on validation"
        figure.add_hline(y=budget, line={"dash": "dash", "color": GREY, "width": 1.5}, row=1, col=2)
    most = frame[frame.n_edits == frame.n_edits.max()]
    claim = claims.at_budget(most, f"Of {count(int(frame.n_edits.max()), 'image')} at once")
    return _legend_below(finish(figure, claim, subtitle, height=400))


def layer_sweep(frame: pd.DataFrame, budget: float | None) -> go.Figure:
    """Plot what is repaired by where it is edited, and in the best layer by how far targets go.

    Args:
        frame: one row a place and margin, columns layers (as "[8]"), chosen ("one layer", "traced", "the last three";
            "margin" for other margins in the best layer), margin (logits), weight, fixed, generality, kept and best
            (whether this row was chosen).
        budget: the share of right val predictions that must stay, or None.
    """
    single = frame[frame.chosen == "one layer"]
    single = single[single.margin == single.margin.iloc[0]] if len(single) else single
    single = single.assign(x=single.layers.str.strip("[]").astype(int)).sort_values("x")
    start, n = (int(single.x.min()), int(single.x.max()) + 1) if len(single) else (0, 1)
    wide = n - start
    sets = frame[frame.chosen.isin(["traced", "the last three"])]
    sets = sets.assign(x=[n - 1 + wide * (0.17 + 0.23 * place) for place in range(len(sets))])  # labels need room
    best = frame[frame.best.astype(bool) | (frame.chosen == "margin")].layers
    tried = frame[frame.layers.isin(best)].sort_values("margin")
    tried = tried.drop_duplicates("margin").assign(x=lambda rows: [_margin(value) for value in rows.margin])
    figure = panels(("by layer", "by margin"), 2, column_widths=[0.7, 0.3], horizontal_spacing=0.04, shared_yaxes=True)
    parts = [(single, "lines+markers", 1), (sets, "markers", 1), (tried, "lines+markers", 2)]
    series = {"fixed": "images fixed", "generality": "copies right"}
    for (column, name), colour, symbol in zip(series.items(), SERIES, ("circle", "diamond"), strict=False):
        style = {"line_color": colour, "marker_symbol": symbol, "legendgroup": column, "name": name}
        for place, (rows, mode, panel) in enumerate(parts):
            about = np.array([rows.layers, rows.weight, rows.kept], dtype=object).T
            hover = "%{customdata[0]}: %{y:.3f} at weight %{customdata[1]:.3g}, %{customdata[2]:.3f} kept"
            at = {"row": 1, "col": panel, "showlegend": place == 0, "mode": mode}
            add_line(figure, rows.x, rows[column], hover, customdata=about, **style, **at)
    ring = {"symbol": "circle-open", "size": 15, "color": INK, "line": {"width": 2}}
    rings = [(rows[rows.best.astype(bool)], panel) for rows, _, panel in parts]
    for place, (rows, panel) in enumerate([one for one in rings if len(one[0])]):
        told = {"mode": "markers", "marker": ring, "name": "chosen", "showlegend": place == 0, "hoverinfo": "skip"}
        figure.add_scatter(x=[*rows.x] * 2, y=[*rows.fixed, *rows.generality], row=1, col=panel, **told)
    ticks = single[:: -(-wide // 14)]
    layers = ["<br>".join(textwrap.wrap(text.strip("[]"), 10)) for text in sets.layers]
    text = [f"{name.replace('the ', '')}<br>{some}" for name, some in zip(sets.chosen, layers, strict=True)]
    labels = {"tickvals": [*ticks.x, *sets.x], "ticktext": [*map(str, ticks.x), *text], "tickangle": 0}
    end = n - 0.5 if sets.empty else sets.x.max() + 0.13 * wide
    figure.update_xaxes(**labels, tickfont_size=12, range=[start - 0.5, end], title_text="layer, or layers", col=1)
    title = f"margin in layer {best.iloc[0].strip('[]')} (logits)" if len(best) else "margin (logits)"
    order = {"type": "category", "categoryorder": "array", "categoryarray": [*tried.x], "tickangle": 0}
    figure.update_xaxes(**order, title_text=title, title_font_size=14, col=2)
    figure.update_yaxes(range=[-0.04, 1.04], tickformat=".1f").update_yaxes(title_text="share", col=1)
    subtitle = (
        f"left: targets stop at a margin of {_margin(single.margin.iloc[0])}" if len(single) else "sets of layers"
    )
    if budget is not None:
        subtitle += f"; each at the least weight that keeps {budget:g} on validation"
    return finish(figure, claims.place(frame), subtitle, height=430)


def common_direction(directions: pd.DataFrame, moved: pd.DataFrame) -> go.Figure:
    """Show how alike the targets' shifts are, and what a repair does to images that were right, by class.

    Args:
        directions: one row an edited image, columns index, true (its class) and cosine (of its target's shift with the
            mean shift).
        moved: one row a method and class of right val images, columns split ("val"), class, method, shift (of the
            margin of that class in logits: mean) and spread (standard deviation), broken (share no longer right) and n.
    """
    names = list(dict.fromkeys([*moved["class"], *directions.true]))
    short = [as_label(name if len(name) <= 18 else f"{name[:17]}…") for name in names]
    names = list(map(as_label, names))
    titles = ("cosine with the mean shift", "margin of right images", "no longer right")
    spacing = {"column_widths": [0.36, 0.36, 0.28], "horizontal_spacing": 0.04, "shared_yaxes": True}
    figure = panels(titles, 3, size=13, **spacing)
    dots = {
        "boxpoints": "all",
        "pointpos": 0,
        "jitter": 0.7,
        "marker": {"color": SERIES[-3], "size": 4, "opacity": 0.6},
    }
    dots |= {"orientation": "h", "fillcolor": "rgba(0,0,0,0)", "line": {"color": INK, "width": 1}, "showlegend": False}
    hover = {"text": directions["index"], "hovertemplate": "image %{text}: %{x:.3f}<extra></extra>"}
    places = [names.index(as_label(name)) for name in directions.true]
    figure.add_box(x=directions.cosine, y=places, row=1, col=1, **dots, **hover)
    moved, methods = moved[moved.split == "val"], methods_in(moved)
    for place, method in enumerate(methods):
        rows = moved[moved.method == method]
        y = [names.index(as_label(name)) + below(place, len(methods), 0.7) for name in rows["class"]]
        colour = look(method).colour
        at: dict[str, Any] = {"y": y, "customdata": rows[["class", "n"]].to_numpy(), "mode": "markers"}
        at |= {"hovertemplate": "%{customdata[0]}: %{x:.3g}, %{customdata[1]} images"}
        at |= {**method_style(method), "marker_color": colour, "marker_size": 7}
        about = {"array": rows.spread, "thickness": 1.2, "width": 0, "color": colour}
        figure.add_scatter(x=rows["shift"], error_x=about, row=1, col=2, **at)
        figure.add_scatter(x=rows.broken, showlegend=False, row=1, col=3, **at)
    for column, title in enumerate(("cosine", "mean shift ± sd (logits)", "share"), start=1):
        figure.update_xaxes(title_text=title, zeroline=True, zerolinecolor=RULE, col=column)
    figure.update_xaxes(range=[-1.05, 1.05], tickvals=[-1, 0, 1], col=1)
    figure.update_xaxes(range=[-0.005, 1.15 * max([0.02, *moved.broken])], nticks=4, col=3)
    name_rows(figure, short, rules=True)
    subtitle = (
        f"left: targets of {count(len(directions), 'image')}, a dot each; right: right validation images, by class"
    )
    height = 230 + len(names) * max(34, 6 * len(methods) + 6)
    return _legend_below(finish(figure, claims.directions(directions), subtitle, height=height))


def _margin(value: float) -> str:
    return "none" if not np.isfinite(value) else f"{value:g}"


def _line_style(method: str) -> dict[str, Any]:
    """Return a method's properties of a line: an editor's is solid, a control's dotted."""
    return method_style(method) | {"line_dash": "dot" if method in CONTROLS else "solid"}


def _budget_line(figure: go.Figure, budget: float, ends: tuple[float, float], row: int) -> None:
    """Draw a budget across the axis of what is kept, with its name at the side where there is room."""
    at = {"row": row, "col": 1}
    figure.add_vline(x=budget, line={"dash": "dash", "color": GREY, "width": 1.5}, **at)
    side = {"xanchor": "right" if budget > sum(ends) / 2 else "left", "yanchor": "bottom", "showarrow": False}
    words = {"text": f"budget {budget:g}", "font": {"size": 12, "color": "#56606D"}, "bgcolor": "rgba(255,255,255,0.8)"}
    figure.add_annotation(x=budget, y=-0.03, **side, **words, **at)


def _padded(values: list[float]) -> list[float]:
    pad = 0.06 * (max(values) - min(values)) or 0.01
    return [min(values) - pad, max(values) + pad]


def _legend_below(figure: go.Figure) -> go.Figure:
    """Make room below for a legend of long names; the title keeps its distance from the top."""
    rows, used = 1, 0.0
    for name in [trace.name for trace in figure.data if trace.name and trace.showlegend is not False]:
        width = 48 + 6 * len(name)  # pixels: a symbol and its text
        rows, used = (rows + 1, width) if used + width > WIDTH - 110 else (rows, used + width)
    height = figure.layout.height + 20 * rows
    return figure.update_layout(legend_font_size=12, margin_b=66 + 20 * rows, height=height, title_y=1 - 26 / height)
