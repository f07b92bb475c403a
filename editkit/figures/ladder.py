"""The figure of the ladder: what methods reach on each rung of evaluation, and how they rank there."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from editkit.figures import claims
from editkit.figures.style import add_line, behind, finish, interval, method_style, methods_in, panels
from editkit.methods import UNTOUCHED

RUNGS = ("success", "accuracy", "said", "judged", "exact")  # from the weakest to the strictest, as metrics.py has them
KINDS = {"rewrite": "rewrite", "paraphrase": "paraphrases", "neighbourhood": "neighbourhood (right answer)"}
SPREAD = 0.4  # of the distance between rungs, over which methods are set side by side


def ranks_by_rung(frame: pd.DataFrame) -> go.Figure:
    """Plot scores with intervals over the rungs, a line a method and a panel a kind of prompt; below, ranks.

    Methods whose scores are equal share the better rank; the untouched model has none.

    Args:
        frame: columns method, kind (rewrite, paraphrase, neighbourhood), rung (of ``RUNGS``), value, low, high, n,
            seeds, clusters; one row a method, kind and rung.

    Raises ``ValueError`` for a frame without rows, and a kind or rung that there is no place for.
    """
    _check(frame)
    kinds = [kind for kind in KINDS if (frame["kind"] == kind).any()]
    rungs = [rung for rung in RUNGS if (frame["rung"] == rung).any()]
    methods = methods_in(frame)
    place = {rung: number for number, rung in enumerate(rungs)}
    spacing: dict[str, Any] = {"row_heights": [0.68, 0.32], "vertical_spacing": 0.07, "horizontal_spacing": 0.06}
    figure = panels([KINDS[kind] for kind in kinds] + [""] * len(kinds), len(kinds), shared_xaxes=True, **spacing)
    ranks = _ranked(frame)
    for column, kind in enumerate(kinds, start=1):
        for aside, method in zip(_aside(len(methods)), methods, strict=True):
            rows = ranks[(ranks["kind"] == kind) & (ranks["method"] == method)]
            rows = rows.sort_values("rung", key=lambda names: names.map(place))
            about = {"customdata": rows["rung"], **method_style(method)}
            bars = {"error_y": interval(rows.value, rows.low, rows.high), "showlegend": column == 1}
            x = rows["rung"].map(place) + aside
            add_line(figure, x, rows.value, "%{customdata}: %{y:.3f}", row=1, col=column, **bars, **about)
            if method != UNTOUCHED:
                more = {"row": 2, "col": column, "showlegend": False}
                add_line(figure, rows["rung"].map(place), rows["rank"], "%{customdata}: rank %{y}", **more, **about)
    figure.update_xaxes(range=[-0.5, len(rungs) - 0.5], tickvals=list(place.values()), showticklabels=False)
    figure.update_xaxes(ticktext=rungs, showticklabels=True, tickfont_size=10, tickangle=0, title_text="rung", row=2)
    figure.update_yaxes(range=[-0.03, 1.04], tickformat=".1f", row=1)
    figure.update_yaxes(range=[len(methods) + 0.5, 0.5], dtick=1, row=2)
    figure.update_yaxes(title_text="share of prompts", row=1, col=1)
    figure.update_yaxes(title_text="rank", row=2, col=1)
    return finish(figure, claims.rungs(frame, KINDS, rungs), behind(frame), height=640)


def _check(frame: pd.DataFrame) -> None:
    if frame.empty:
        raise ValueError("a ladder of no rows: give at least one method, kind and rung")
    for column, known in (("kind", KINDS), ("rung", RUNGS)):
        if other := sorted(set(frame[column]).difference(known)):
            raise ValueError(f"{column} {other[0]!r} has no place on the ladder: must be one of {', '.join(known)}")


def _ranked(frame: pd.DataFrame) -> pd.DataFrame:
    """Add column rank, 1 for the best of a kind and rung; nan for the untouched model."""
    edited = frame[frame["method"] != UNTOUCHED]
    return frame.assign(rank=edited.groupby(["kind", "rung"])["value"].rank(ascending=False, method="min"))


def _aside(number: int) -> np.ndarray:
    return SPREAD * (np.arange(number) - (number - 1) / 2) / max(number, 2)
