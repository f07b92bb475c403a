"""Figures of the explorer of a run's results."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from editkit.figures.style import RULE, as_label, count, finish, interval, method_style, methods_in, panels

ROW = 22  # pixels of a row


def scores_explored(frame: pd.DataFrame, scores: Sequence[str]) -> go.Figure:
    """Draw scores as dots, a row a configuration and a panel a score, with intervals where there are some.

    Args:
        frame: columns name (of a row; equal ones share a line), method, and the scores, with ``{score}_low`` and
            ``{score}_high`` where their intervals are known.
        scores: of each panel, in [−1, 1].
    """
    figure = panels(scores, len(scores), shared_yaxes=True, horizontal_spacing=0.03)
    names = [as_label(name) for name in frame["name"]]
    for method in methods_in(frame):
        mine = (frame["method"] == method).to_numpy()
        rows, y = frame[mine], [name for name, own in zip(names, mine, strict=True) if own]
        for panel, score in enumerate(scores, start=1):
            style = method_style(method)
            dots = {"mode": "markers", "marker": {"size": 8, "color": style["line_color"]}, "name": style["name"]}
            dots["marker"]["symbol"] = style["marker_symbol"]
            if f"{score}_low" in rows:
                dots["error_x"] = interval(rows[score], rows[f"{score}_low"], rows[f"{score}_high"])
            hover = f"%{{y}}: {score} %{{x:.3f}}<extra></extra>"
            figure.add_scatter(x=rows[score], y=y, hovertemplate=hover, showlegend=False, row=1, col=panel, **dots)
    least = np.nanmin([*frame[list(scores)].to_numpy(dtype=float).ravel(), 0.0])
    figure.update_xaxes(range=[min(-0.04, 1.04 * least), 1.04], zeroline=True, zerolinecolor=RULE)
    order = {"categoryorder": "array", "categoryarray": list(dict.fromkeys(names)), "autorange": "reversed"}
    figure.update_yaxes(type="category", **order)
    height = 150 + ROW * len(dict.fromkeys(names))
    return finish(figure, "Scores", f"{count(len(frame), 'row')} of the table below", height=height, legend=False)
