"""Figures of edits that arrive one batch after another."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from editkit.figures.style import COLOURS, SERIES, finish

DASHES = ("solid", "dash", "dot", "dashdot")


def retention_map(matrix: pd.DataFrame, *, title: str, score: str = "ES") -> go.Figure:
    """A score of the edits of each step (rows) as measured at later steps (columns); blank before they were made.

    Args:
        matrix: index ``edited_at``, columns ``measured_at``
            (:func:`editkit.forgetting.retention_matrix`).
    """
    figure = go.Figure(
        go.Heatmap(
            z=matrix.to_numpy(),
            x=[str(step) for step in matrix.columns],
            y=[str(step) for step in matrix.index],
            zmin=0,
            zmax=1,
            colorscale="Viridis",
            colorbar={"title": {"text": score}, "thickness": 14},
            hovertemplate=f"edited at %{{y}}, measured at %{{x}}: {score} %{{z:.2f}}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="measured at step", type="category", showgrid=False, nticks=17)
    figure.update_yaxes(title_text="edited at step", type="category", autorange="reversed", showgrid=False, nticks=17)
    finish(figure, title, "each cell: the edits of one step, as the model holds them later", height=520)
    return figure.update_layout(showlegend=False)


def forgetting_curves(curves: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Mean scores of edits against their age, a panel a score, a line a run.

    Args:
        curves: score to a frame with index ``age`` in steps and one column a run.
    """
    figure = make_subplots(1, len(curves), horizontal_spacing=0.12)
    for panel, (score, frame) in enumerate(curves.items(), start=1):
        for number, run in enumerate(frame):
            _add_line(figure, frame[run], run, number, panel, "age %{x}: %{y:.3f}")
        figure.update_yaxes(title_text=score, range=[0, 1.04], tickformat=".1f", col=panel)
    figure.update_xaxes(title_text="age of the edits (steps)")
    return finish(figure, "Forgetting", "edits of all steps, by the number of steps since")


def along_the_sequence(steps: pd.DataFrame) -> go.Figure:
    """Perplexity and divergence on held-out text and growth of the weights, against the edits made.

    Args:
        steps: columns run, edits, perplexity, kl, growth; a run's seeds are averaged. Steps where nothing was
            measured are left out of the first two panels.
    """
    panels = {
        "perplexity": "perplexity",
        "kl": "KL from the model before (nats)",
        "growth": "‖W‖ / ‖W‖ before",
    }
    figure = make_subplots(1, 3, subplot_titles=list(panels.values()), horizontal_spacing=0.14)
    for number, (run, rows) in enumerate(steps.groupby("run", sort=False)):
        for panel, column in enumerate(panels, start=1):
            curve = rows.groupby("edits")[column].mean()
            _add_line(figure, curve, str(run), number, panel, "%{x} edits: %{y:.3g}")
    figure.update_xaxes(title_text="edits made")
    figure.update_yaxes(title_text="perplexity", type="log", row=1, col=1)
    figure.update_yaxes(title_text="nats", row=1, col=2)
    figure.update_yaxes(title_text="ratio", row=1, col=3)
    figure.update_annotations(font_size=13)
    figure.update_layout(margin_t=112)
    return finish(figure, "What the sequence does to the model", "held-out text, and the norm of the edited weights")


def differences(frame: pd.DataFrame, *, title: str, subtitle: str) -> go.Figure:
    """Paired differences with intervals, a row a run; filled where the interval excludes 0.

    Args:
        frame: columns run, value, low, high.
    """
    certain = (frame.low > 0) | (frame.high < 0)
    figure = go.Figure(
        go.Scatter(
            x=frame.value,
            y=frame.run,
            mode="markers",
            error_x={
                "array": frame.high - frame.value,
                "arrayminus": frame.value - frame.low,
                "thickness": 1.5,
                "width": 4,
            },
            marker={
                "size": 10,
                "color": [COLOURS["memit"] if sure else "white" for sure in certain],
                "line": {"color": COLOURS["memit"], "width": 2},
            },
            showlegend=False,
            hovertemplate="%{y}: %{x:+.3f}<extra></extra>",
        )
    )
    figure.add_vline(0, line={"color": COLOURS["pre"], "width": 1.5, "dash": "dash"})
    figure.update_xaxes(title_text="difference of final S")
    figure.update_yaxes(autorange="reversed", title_text="")
    return finish(figure, title, subtitle, height=200 + 34 * len(frame))


def _add_line(figure: go.Figure, curve: pd.Series, run: str, number: int, panel: int, hover: str) -> None:
    """One run's line in one panel, without what was not measured; ``number`` of the run chooses the look."""
    curve = curve.dropna()
    figure.add_scatter(
        x=curve.index,
        y=curve,
        mode="lines+markers",
        name=run,
        legendgroup=run,
        showlegend=panel == 1,
        line={
            "width": 2,
            "dash": DASHES[number // len(SERIES) % len(DASHES)],
            "color": SERIES[number % len(SERIES)],
        },
        marker={"size": 6},
        hovertemplate=hover,
        row=1,
        col=panel,
    )
