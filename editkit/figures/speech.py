"""The figure of free speech: what succeeds and what is said, by the number of edits."""

import pandas as pd
import plotly.graph_objects as go

from editkit.figures import claims
from editkit.figures.style import (
    GREY,
    add_line,
    aside,
    behind,
    finish,
    interval,
    log_axis,
    method_style,
    methods_in,
    panels,
    places,
)
from editkit.methods import UNTOUCHED

TITLES = {"rewrite": "rewrites", "paraphrase": "paraphrases"}
DASHES = {"success": ("solid", "succeeds"), "said": ("dot", "is said")}


def speech(frame: pd.DataFrame) -> go.Figure:
    """Plot success (solid) and what is said (dotted, open) with intervals against the number of edits, a panel a kind.

    Args:
        frame: columns method, batch_size, kind, rung, value, low, high, n, seeds and clusters
            (:func:`editkit.studies.speech.speech_scores`); the untouched model is not drawn.

    Raises ``ValueError`` for a frame without edits.
    """
    edited = frame[(frame["method"] != UNTOUCHED) & frame["kind"].isin(TITLES)]
    if edited.empty:
        raise ValueError("no edits to show: give at least one method and batch size")
    kinds = [kind for kind in TITLES if (edited["kind"] == kind).any()]
    methods, sizes = methods_in(edited), sorted(edited["batch_size"].unique())
    figure = panels([TITLES[kind] for kind in kinds], len(kinds), shared_yaxes=True, horizontal_spacing=0.05)
    for kind, where in zip(kinds, places(len(kinds), len(kinds)), strict=True):
        for place, method in enumerate(methods):
            for rung, (dash, name) in DASHES.items():
                own = (edited["kind"] == kind) & (edited["method"] == method) & (edited["rung"] == rung)
                rows = edited[own].sort_values("batch_size")
                bars = {"customdata": rows.batch_size, "error_y": interval(rows.value, rows.low, rows.high)}
                style = method_style(method) | {"line_dash": dash} | where
                style["marker_symbol"] += "-open" * (rung == "said")
                style["showlegend"] = where["showlegend"] and rung == "success"
                hover = f"{name}, %{{customdata}} edits: %{{y:.3f}}"
                add_line(figure, rows.batch_size * aside(place, len(methods), 0.12), rows.value, hover, **bars, **style)
    for dash, name in DASHES.values():
        figure.add_scatter(x=[None], y=[None], mode="lines", name=name, line={"color": GREY, "dash": dash, "width": 2})
    log_axis(figure, sizes, "edits in the model")
    figure.update_yaxes(range=[-0.03, 1.04], tickformat=".1f")
    figure.update_yaxes(title_text="share of prompts", col=1)
    return finish(figure, claims.speech(edited, TITLES), behind(edited[edited.batch_size == sizes[-1]]), height=440)
