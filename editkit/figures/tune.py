"""The figure of a search for hyperparameters."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from editkit.figures.style import BLUE, GREY, INK, SERIES, as_label, count, finish, panels

COLUMNS = 3
HEIGHT = 230  # of a row of panels
LOOKS = {  # how trials are drawn, the later ones on top
    "first": ("ended after the first batch", {"symbol": "circle-open", "size": 6, "color": GREY}),
    "batch": ("whole batch", {"symbol": "circle", "size": 7, "color": BLUE}),
    "start": ("start", {"symbol": "diamond", "size": 11, "color": SERIES[1], "line": {"color": INK, "width": 1}}),
    "best": ("best", {"symbol": "star", "size": 14, "color": SERIES[2], "line": {"color": INK, "width": 1}}),
}


def sensitivity(trials: pd.DataFrame, importances: pd.DataFrame, *, title: str, subtitle: str) -> go.Figure:
    """Plot S against each hyperparameter of a search, a dot a trial, and how much each decides.

    Args:
        trials: one row a trial and hyperparameter, with columns trial, hyperparameter, value, log, S, moment, start,
            best (:func:`editkit.studies.tune_file.trial_table`).
        importances: columns hyperparameter and importance, largest first; without rows there is no panel of them.
    """
    names = list(dict.fromkeys([*importances.hyperparameter, *trials.hyperparameter]))
    number = len(names) + bool(len(importances))
    rows = -(-number // COLUMNS)
    cells: list[list[dict[str, Any] | None]] = [
        [{} if row * COLUMNS + place < number else None for place in range(COLUMNS)] for row in range(rows)
    ]
    figure = panels([""] * number, COLUMNS, specs=cells, horizontal_spacing=0.09, vertical_spacing=0.3 / rows)
    for place, name in enumerate(names):
        part, at = trials[trials.hyperparameter == name], _at(place)
        for look, (label, marker) in LOOKS.items():
            shown = part[part[look]] if look in ("start", "best") else part[part.moment == look]
            hover = f"trial %{{customdata}}: {name} %{{x:.3g}}, S %{{y:.3f}}<extra></extra>"
            dots = {"mode": "markers", "marker": marker, "hovertemplate": hover, "customdata": shown.trial}
            more = {"name": label, "legendgroup": look, "showlegend": not place}
            figure.add_scatter(x=shown.value, y=shown.S, **dots, **more, **at)
        figure.update_xaxes(title_text=name, type="log" if part.log.any() else "linear", **at)
        figure.update_yaxes(title_text="S", range=[-0.03, 1.04], tickformat=".1f", **at)
    if len(importances):
        at = _at(len(names))
        bar = {"orientation": "h", "marker_color": GREY, "showlegend": False, "hovertemplate": "%{y}: %{x:.2f}"}
        figure.add_bar(x=importances.importance, y=importances.hyperparameter, **bar, **at)
        figure.update_xaxes(title_text="importance", range=[0, 1], **at)
        figure.update_yaxes(title_text="hyperparameter", autorange="reversed", **at)
    about = f"{as_label(subtitle)}; {count(trials.trial.nunique(), 'trial')} of one batch of facts each"
    return finish(figure, f"What S depends on: {title}", about, height=160 + HEIGHT * rows)


def _at(place: int) -> dict[str, int]:
    return {"row": place // COLUMNS + 1, "col": place % COLUMNS + 1}
