"""Figures of the whole run: methods beside one another, ways of arriving, what an edit costs, keeping and learning."""

import textwrap
from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from editkit.figures.replay import DASHES
from editkit.figures.style import (
    GREY,
    INK,
    SCORES,
    add_line,
    aside,
    below,
    count,
    finish,
    interval,
    log_axis,
    log_ticks,
    method_style,
    methods_in,
    panels,
)
from editkit.methods import UNTOUCHED, label, look

COSTS = {"seconds_an_edit": "seconds an edit", "peak_memory_mb": "peak memory"}
UNITS = {"seconds_an_edit": "seconds (log scale)", "peak_memory_mb": "MB"}
ROW, HEAD, TOP, FOOT = 25, 44, 126, 62  # pixels of a method, between two blocks of them, above and below all
LONGEST = 23  # letters of a method's name in one line
SPREAD = 0.6  # of the distance between sizes, over which methods are set side by side


def methods_compared(frame: pd.DataFrame, title: str) -> go.Figure:
    """Draw ES, PS, NS and S with intervals, a row a method and a block of rows a panel; dashed: NS without any edit.

    Args:
        frame: columns panel, method, and for each score ``S``, ``S_low``, ``S_high``; a row a panel and method.
    """
    figure = _blocks(frame, SCORES)
    for row, part in enumerate(_panels(frame).values(), start=1):
        edits, before = part[part.method != UNTOUCHED], part[part.method == UNTOUCHED]
        for column, score in enumerate(SCORES, start=1):
            _add_dots(figure, edits, score, row, column)
            if score == "NS" and len(before):
                figure.add_vline(
                    before.NS.iloc[0], line={"color": GREY, "width": 1.5, "dash": "dash"}, row=row, col=column
                )
    for column, score in enumerate(SCORES, start=1):
        figure.update_xaxes(range=_range(frame[frame.method != UNTOUCHED], score), nticks=4, col=column)
    figure.update_xaxes(tickformat=".2f")
    _name_axes(figure, dict.fromkeys(SCORES, "share of prompts"))
    return _sized(figure, frame, title, "success with 95% intervals, each score on its own scale; dashed: no edit")


def costs_compared(frame: pd.DataFrame, title: str) -> go.Figure:
    """Draw the seconds of an edit and the peak memory, a row a method.

    Args:
        frame: columns panel, method, and those of ``COSTS``; the untouched model is left out.
    """
    frame = frame[frame.method != UNTOUCHED]
    figure = _blocks(frame, COSTS)
    for row, part in enumerate(_panels(frame).values(), start=1):
        for column, cost in enumerate(COSTS, start=1):
            _add_dots(figure, part, cost, row, column)
    figure.update_xaxes(type="log", col=1, **log_ticks(frame.seconds_an_edit))
    figure.update_xaxes(rangemode="tozero", nticks=6, col=2)
    _name_axes(figure, UNITS)
    return _sized(
        figure,
        frame,
        title,
        "mean over seeds, targets included; what takes no time has no dot; of memory the highest seed",
    )


def sizes_compared(batches: pd.DataFrame, runs: pd.DataFrame, title: str) -> go.Figure:
    """Draw S with intervals by the number of edits at once: left in the untouched model, right in a sequence.

    Args:
        batches: columns method, batch_size, S, S_low, S_high, n, seeds; the untouched model is left out.
        runs: the same of sequences of the same facts in steps of batch_size, with the column replay.
    """
    batches = batches[batches.method != UNTOUCHED]
    told = (("untouched model, immediate", batches), ("one after another, final", runs))
    figure = panels([f"{name}: {_facts(part)}" for name, part in told], 2, size=13, shared_yaxes=True)
    sizes, methods = sorted(batches.batch_size.unique()), methods_in(pd.concat([batches, runs]))
    for place, method in enumerate(methods):
        rows, style = batches[batches.method == method].sort_values("batch_size"), method_style(method)
        x = [sizes.index(size) + below(place, len(methods), SPREAD) for size in rows.batch_size]
        more = {"error_y": interval(rows.S, rows.S_low, rows.S_high), "customdata": rows.batch_size, "mode": "markers"}
        add_line(figure, x, rows.S, "%{customdata} at once: %{y:.3f}", **more, **style, row=1, col=1)
    pairs = list(runs.groupby(["method", "replay"], sort=False))
    kinds = list(runs.replay.unique())
    for place, ((method, kind), rows) in enumerate(pairs):
        rows, style = rows.sort_values("batch_size"), method_style(method)
        x = rows.batch_size * aside(place, len(pairs), 0.12)
        more = {"error_y": interval(rows.S, rows.S_low, rows.S_high), "customdata": rows.batch_size}
        more |= {"line_dash": DASHES[kinds.index(kind)], "showlegend": method not in set(batches.method)}
        hover = f"{kind}, %{{customdata}} a step: %{{y:.3f}}"
        add_line(figure, x, rows.S, hover, **more, **style, row=1, col=2)
    figure.update_xaxes(tickvals=list(range(len(sizes))), ticktext=[f"{size:g}" for size in sizes], row=1, col=1)
    figure.update_xaxes(title_text="edits at once", range=[-0.5, len(sizes) - 0.5], row=1, col=1)
    log_axis(figure, runs.batch_size, "edits a step", row=1, col=2)
    figure.update_xaxes(title_font_size=14)
    figure.update_yaxes(range=_range(pd.concat([batches, runs]), "S"), tickformat=".2f", title_font_size=14)
    figure.update_yaxes(title_text=SCORES["S"], col=1)
    dashes = [f"{'no replay' if kind == 'none' else kind}: {dash}" for kind, dash in zip(kinds, DASHES, strict=False)]
    return finish(figure, title, f"95% intervals; right: {', '.join(dashes)}", height=440)


def keep_against_learn(frame: pd.DataFrame, title: str) -> go.Figure:
    """Plot what is kept (NS) against what is learnt (PS), a marker a configuration and a panel a sample of facts.

    Stepped line and dark rims: the front, what no other configuration of the panel beats in both. Dashed: no edit.

    Args:
        frame: columns panel, configuration, method, front (whether on it), PS, NS and their ``_low`` and ``_high``.
    """
    parts = _panels(frame)
    figure = panels(parts, min(2, len(parts)), size=13, horizontal_spacing=0.1, vertical_spacing=0.2)
    seen = set()
    for place, part in enumerate(parts.values()):
        at = {"row": place // 2 + 1, "col": place % 2 + 1}
        edits, front = part[part.method != UNTOUCHED], part[part.front.astype(bool)].sort_values("PS")
        line = {"color": INK, "width": 1.4, "shape": "vh"}
        figure.add_scatter(x=front.PS, y=front.NS, mode="lines", line=line, showlegend=False, hoverinfo="skip", **at)
        for method in methods_in(edits):
            rows = edits[edits.method == method]
            errors = {"error_x": _faint(rows, "PS", method), "error_y": _faint(rows, "NS", method)}
            more = {"mode": "markers", "text": rows.configuration, "showlegend": method not in seen, **errors}
            more["marker_line"] = {"color": INK, "width": [1.8 * bool(on) for on in rows.front]}
            add_line(
                figure, rows.PS, rows.NS, "%{text}: PS %{x:.3f}, NS %{y:.3f}", **more, **method_style(method), **at
            )
            seen.add(method)
        for value in part.NS[part.method == UNTOUCHED]:
            figure.add_hline(value, line={"color": GREY, "width": 1.5, "dash": "dash"}, **at)
        figure.update_xaxes(range=_range(edits, "PS"), title_text="learnt (PS)", title_font_size=14, **at)
        figure.update_yaxes(
            range=_range(part[part.method != UNTOUCHED], "NS"), title_text="kept (NS)", title_font_size=14, **at
        )
    subtitle = "shares of prompts with 95% intervals; line and dark rims: the front; dashed: NS without any edit"
    return finish(figure, title, subtitle, height=360 + 300 * ((len(parts) - 1) // 2))


def _panels(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(name): part for name, part in frame.groupby("panel", sort=False)}


def _blocks(frame: pd.DataFrame, columns: Mapping[str, str]) -> go.Figure:
    """Make a block a panel, as high as it has methods, with a column a quantity; x axes are shared by all blocks."""
    parts = _panels(frame)
    heights = [_height(part) for part in parts.values()]
    space = HEAD / (ROW * sum(heights) + HEAD * (len(parts) - 1))
    spacing = {"row_heights": heights, "vertical_spacing": space, "horizontal_spacing": 0.03, "shared_xaxes": True}
    figure = make_subplots(len(parts), len(columns), column_titles=list(columns.values()), **spacing)
    figure.update_annotations(font_size=13)
    for row, (name, part) in enumerate(parts.items(), start=1):
        methods = methods_in(part[part.method != UNTOUCHED])
        ticks = {"tickvals": list(range(len(methods))), "ticktext": [_wrapped(label(method)) for method in methods]}
        figure.update_yaxes(range=[len(methods) - 0.3, -0.7], **ticks, tickfont_size=12, row=row)
        figure.update_yaxes(showticklabels=False, ticks="", row=row)
        figure.update_yaxes(showticklabels=True, row=row, col=1)
        top = figure.get_subplot(row, 1).yaxis.domain[1]
        told = {"text": f"<b>{name}</b>", "font_size": 13, "showarrow": False, "xanchor": "left", "yanchor": "bottom"}
        figure.add_annotation(x=0, y=top, xref="paper", yref="paper", yshift=22 if row == 1 else 4, **told)
    return figure


def _name_axes(figure: go.Figure, names: Mapping[str, str]) -> None:
    """Name the x axes of the columns, under the last block."""
    last = len(figure._grid_ref)
    for column, name in enumerate(names.values(), start=1):
        figure.update_xaxes(title_text=name, title_font_size=13, row=last, col=column)


def _add_dots(figure: go.Figure, part: pd.DataFrame, quantity: str, row: int, column: int) -> None:
    for place, method in enumerate(methods_in(part)):
        rows = part[part.method == method]
        more = {"mode": "markers", "showlegend": False}
        if f"{quantity}_low" in rows:
            more["error_x"] = interval(rows[quantity], rows[f"{quantity}_low"], rows[f"{quantity}_high"])
        where = {"row": row, "col": column}
        add_line(figure, rows[quantity], [place] * len(rows), "%{x:.3g}", **more, **method_style(method), **where)


def _sized(figure: go.Figure, frame: pd.DataFrame, title: str, subtitle: str) -> go.Figure:
    parts = _panels(frame).values()
    height = round(ROW * sum(map(_height, parts)) + HEAD * (len(parts) - 1) + TOP + FOOT)
    return finish(figure, title, subtitle, height=height, legend=False).update_layout(margin_t=TOP)


def _height(part: pd.DataFrame) -> float:
    """Return the height of a block in methods."""
    return len(set(part.method) - {UNTOUCHED}) + 0.4


def _faint(rows: pd.DataFrame, score: str, method: str) -> dict:
    ends = interval(rows[score], rows[f"{score}_low"], rows[f"{score}_high"], thickness=1, width=0)
    red, green, blue = (int(look(method).colour[place : place + 2], 16) for place in (1, 3, 5))
    return ends | {"color": f"rgba({red},{green},{blue},0.35)"}


def _range(frame: pd.DataFrame, score: str) -> list[float]:
    """Return an axis over all intervals of a score, with room for a marker; from 0 to 1 where there are none."""
    low, high = frame[f"{score}_low"].min(), frame[f"{score}_high"].max()
    room = 0.05 * (high - low) or 0.01
    return [low - room, high + room] if low == low else [0.0, 1.0]


def _wrapped(text: str) -> str:
    return "<br>".join(textwrap.wrap(text, LONGEST))


def _facts(frame: pd.DataFrame) -> str:
    return f"{count(int(frame.n.iloc[0]), 'fact')} of {count(int(frame.seeds.iloc[0]), 'seed')}"
