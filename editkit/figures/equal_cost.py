"""The figure of equal cost: editors as points, fine-tuning as curves over its budget."""

import pandas as pd
import plotly.graph_objects as go

from editkit.figures.style import add_line, behind, finish, interval, method_style, methods_in, panels, places
from editkit.methods import UNTOUCHED, label

TITLES = {"S": "S: harmonic mean of ES, PS, NS", "EA": "EA: new object first choice"}
COSTS = {"seconds": "seconds", "kl": "KL on other prose, nats"}


def equal_cost(points: pd.DataFrame, curves: list[str]) -> go.Figure:
    """Plot S and EA against seconds and against KL: a point an editor and mode of its targets, a line a fine-tuning.

    Args:
        points: columns method, variant, seconds, kl, score (others than S and EA are left out), value, low, high, n,
            seeds and clusters (:func:`editkit.studies.equal_cost_tables.points`).
        curves: the methods that are lines through their variants.
    """
    points = points[points.method != UNTOUCHED]
    figure = panels(
        (title for title in TITLES.values() for _ in COSTS), 2, horizontal_spacing=0.1, vertical_spacing=0.2
    )
    where = iter(places(4, 2))
    for score in TITLES:
        for cost, axis in COSTS.items():
            place = next(where)
            for method in methods_in(points):
                of = points[(points.method == method) & (points.score == score)].sort_values(cost)
                for mode, rows in [(None, of)] if method in curves else of.groupby("variant"):
                    _add(figure, rows, method, mode, cost, **place)
            figure.update_xaxes(type="log", dtick="D2", title_text=axis, row=place["row"], col=place["col"])
    figure.update_xaxes(exponentformat="none")
    figure.update_yaxes(range=[-0.03, 1.04], tickformat=".1f").update_yaxes(title_text="share of prompts", col=1)
    return finish(figure, "Closed form and fine-tuning at equal cost", behind(points), height=720)


def _add(figure: go.Figure, rows: pd.DataFrame, method: str, mode: str | None, cost: str, **place: int) -> None:
    """Add a line through a method's variants, or a point of one: filled where targets are exact."""
    style = method_style(method) | {"error_y": interval(rows.value, rows.low, rows.high, thickness=1.2, width=2)}
    if mode:
        symbol = style["marker_symbol"] + ("" if mode == "exact" else "-open")
        style |= {"name": f"{label(method)}, {mode}", "legendgroup": f"{method} {mode}", "mode": "markers"}
        style |= {"marker_symbol": symbol, "marker_size": 10}
    hover = f"%{{customdata}}: {cost} %{{x:.3g}}, %{{y:.3f}}"
    add_line(figure, rows[cost], rows.value, hover, customdata=rows.variant, **style, **place)
