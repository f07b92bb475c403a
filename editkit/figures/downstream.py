"""Figures of general ability: scores of downstream tasks along a sequence of edits."""

import pandas as pd
import plotly.graph_objects as go

from editkit.figures import claims
from editkit.figures.style import SERIES, add_line, finish, method_style, methods_in, panels, places

COLUMNS = 3
METRICS = {"acc": "accuracy", "acc_norm": "accuracy per character", "f1": "F1", "mcc": "Matthews' correlation"}


def downstream_curves(frame: pd.DataFrame) -> go.Figure:
    """Plot each task's scores with standard errors against the edits made: a panel a task and metric, a line a method.

    Args:
        frame: columns task, metric, value, stderr, n, few_shots, step
            (:func:`editkit.language.downstream.track_downstream`), and method where there are several. Rows that differ
            in anything else, such as the seed, are averaged, their standard errors too: all ask the same items.

    Raises ``ValueError`` for no rows, and for a task of which rows asked different items (column items) or different
    numbers of shots.
    """
    if frame.empty:
        raise ValueError("no downstream task was measured: there is nothing to draw")
    for task, rows in frame.groupby("task", sort=False):
        for name in ("items", "few_shots"):
            if name in rows and rows[name].nunique() > 1:
                raise ValueError(f"task {task!r}: {name} differ between rows, whose scores cannot be compared")
    pairs = list(frame[["task", "metric"]].drop_duplicates().itertuples(index=False))
    titles = [f"{task}: {METRICS.get(metric, metric)}" for task, metric in pairs]
    columns = min(len(pairs), COLUMNS)
    lines = -(-len(pairs) // columns)
    figure = panels(titles, columns, size=13, horizontal_spacing=0.11, vertical_spacing=0.28 / lines)
    methods = methods_in(frame) if "method" in frame else [None]
    for (task, metric), where in zip(pairs, places(len(pairs), columns), strict=True):
        part = frame[(frame["task"] == task) & (frame["metric"] == metric)]
        for method in methods:
            rows = part if method is None else part[part["method"] == method]
            curve = rows.groupby("step")[["value", "stderr"]].mean()
            look = method_style(method) if method else {"line_color": SERIES[0], "name": "the model"}
            bars = {"array": curve.stderr, "thickness": 1.2, "width": 3}
            hover = "%{x} edits: %{y:.3f} ± %{error_y.array:.3f}"
            add_line(figure, curve.index, curve.value, hover, error_y=bars, **look, **where)
    last = frame["step"].max() or 1
    figure.update_xaxes(title_text="edits made", range=[-0.04 * last, 1.04 * last])
    figure.update_yaxes(title_text="score", tickformat=".2f")
    for place in places(lines * columns, columns)[len(pairs) :]:
        cell = {"row": place["row"], "col": place["col"]}
        figure.update_xaxes(visible=False, **cell).update_yaxes(visible=False, **cell)
    return finish(figure, claims.abilities(frame), _behind(frame), height=190 + 230 * lines, legend=methods != [None])


def _behind(frame: pd.DataFrame) -> str:
    fewest, most = frame["n"].min(), frame["n"].max()
    items = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    shots = ", ".join(map(str, sorted(frame["few_shots"].unique())))
    return f"{items} items a task, {shots} shots; bars: one standard error of lm-evaluation-harness"
