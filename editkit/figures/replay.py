"""Figures of edits that arrive one batch after another."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from editkit.figures import claims
from editkit.figures.style import (
    BLUE,
    GREY,
    INK,
    SCORES,
    SERIES,
    add_line,
    behind,
    below,
    finish,
    interval,
    log_ticks,
    method_style,
    methods_in,
    name_rows,
    panels,
    places,
)
from editkit.methods import CONTROLS, METHODS, UNTOUCHED

FEW = 12  # steps up to which a map writes its numbers
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def retention_map(matrix: pd.DataFrame, *, title: str, score: str = "ES") -> go.Figure:
    """Map a score of the edits of each step (rows) as measured at later steps (columns); blank before they were made.

    Args:
        matrix: index ``edited_at``, columns ``measured_at`` (:func:`editkit.studies.tables.retention_matrix`).
    """
    columns, rows = ([str(step) for step in steps] for steps in (matrix.columns, matrix.index))
    scale = {"zmin": 0, "zmax": 1, "colorscale": "Viridis", "colorbar": {"title": {"text": score}, "thickness": 14}}
    scale |= {"texttemplate": "%{z:.2f}"} if max(matrix.shape) <= FEW else {}
    hover = f"edited at %{{y}}, measured at %{{x}}: {score} %{{z:.2f}}<extra></extra>"
    figure = go.Figure(go.Heatmap(z=matrix.to_numpy(), x=columns, y=rows, hovertemplate=hover, **scale))
    axis = {"type": "category", "showgrid": False, "nticks": 17}
    figure.update_xaxes(title_text="measured at step", **axis)
    figure.update_yaxes(title_text="edited at step", autorange="reversed", **axis)
    about = "each cell: the edits of one step, as the model holds them later"
    finish(figure, claims.retention(matrix, title, score), about, height=min(520, 190 + 34 * len(rows)))
    return figure.update_layout(showlegend=False)


def forgetting_curves(curves: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Plot mean scores of edits against their age, a panel a score, a line a run.

    Args:
        curves: score to a frame with index ``age`` in steps and one column a run.
    """
    figure = make_subplots(1, len(curves), horizontal_spacing=0.12)
    for panel, (score, frame) in enumerate(curves.items(), start=1):
        looks = _looks(frame)
        for run in frame:
            where = {"row": 1, "col": panel, "showlegend": panel == 1}
            _add_run(figure, frame[run], run, where, "age %{x}: %{y:.3f}", **looks[run])
        figure.update_yaxes(title_text=score, range=[0, 1.04], tickformat=".1f", col=panel)
    figure.update_xaxes(title_text="age of the edits (steps)")
    return finish(figure, claims.forgetting(curves), "edits of all steps, by the number of steps since")


def along_the_sequence(steps: pd.DataFrame) -> go.Figure:
    """Plot divergence on each kind of text and growth of the weights, against the edits made.

    Args:
        steps: columns run, edits, kl_text, kl_prose, kl_subjects, growth; a run's seeds are averaged. Steps where
            nothing was measured are left out of the panels of divergence.
    """
    columns = {"kl_text": "more of C's text", "kl_prose": "other prose", "kl_subjects": "near the facts"}
    columns |= {"growth": "‖W‖ / ‖W‖ before"}
    figure = panels(columns.values(), 2, size=13, horizontal_spacing=0.14, vertical_spacing=0.27)
    looks = _looks(steps.run.unique())
    for run, rows in steps.groupby("run", sort=False):
        for where, column in zip(places(len(columns), 2), columns, strict=True):
            curve = rows.groupby("edits")[column].mean()
            _add_run(figure, curve, str(run), where, "%{x} edits: %{y:.3g}", **looks[run])
    figure.update_xaxes(title_text="edits made")
    figure.update_yaxes(title_text="KL (nats)")
    figure.update_yaxes(title_text="ratio", row=2, col=2)
    subtitle = "divergence from the untouched model, and the norm of the edited weights"
    return finish(figure, claims.wear(steps), subtitle, height=610)


def differences(frame: pd.DataFrame, *, title: str, subtitle: str) -> go.Figure:
    """Plot paired differences with intervals, a row a run; filled where the interval excludes 0.

    Args:
        frame: columns run, value, low, high.
    """
    certain = (frame.low > 0) | (frame.high < 0)
    fill = [BLUE if sure else "white" for sure in certain]
    bars = interval(frame.value, frame.low, frame.high, thickness=1.5, width=4, color=INK)
    look: dict[str, Any] = {"mode": "markers", "error_x": bars, "showlegend": False}
    look |= {"marker": {"size": 10, "color": fill, "line": {"color": BLUE, "width": 2}}}
    figure = go.Figure()
    figure.add_scatter(x=frame.value, y=frame.run, hovertemplate="%{y}: %{x:+.3f}<extra></extra>", **look)
    figure.add_vline(0, line={"color": GREY, "width": 1.5, "dash": "dash"})
    figure.update_xaxes(title_text="difference of final S")
    figure.update_yaxes(autorange="reversed", title_text="")
    return finish(figure, claims.differences(frame, title), subtitle, height=200 + 34 * len(frame))


def foretold(areas: pd.DataFrame, names: Mapping[str, str]) -> go.Figure:
    """Plot the area under the ROC curve of each predictor of loss with its interval, a panel a score.

    Args:
        areas: columns method, score, predictor, value, low, high, one row of each
            (:func:`editkit.studies.foretold.areas`).
        names: predictor to what it is called.

    Raises ``ValueError`` where no area is known.
    """
    shown = areas.dropna(subset="value")
    if shown.empty:
        raise ValueError(f"no area to show, of {len(areas)} rows")
    methods, scores = methods_in(shown), shown["score"].unique()
    figure = panels([f"lost: {score}" for score in scores], len(scores), shared_yaxes=True, horizontal_spacing=0.06)
    for score, where in zip(scores, places(len(scores), len(scores)), strict=True):
        for place, method in enumerate(methods):
            rows = shown[(shown["method"] == method) & (shown["score"] == score)].set_index("predictor").reindex(names)
            aside = below(place, len(methods), 0.5)  # of a predictor's row
            bars = interval(rows.value, rows.low, rows.high, thickness=1.5, width=3)
            line = {"x": rows.value, "y": [number + aside for number in range(len(names))], "error_x": bars}
            look = {**method_style(method), "mode": "markers", "hovertemplate": "AUC %{x:.3f}"}
            figure.add_scatter(**line, **look, **where)
    name_rows(figure, list(names.values()))
    figure.add_vline(0.5, line={"color": GREY, "width": 1.5, "dash": "dash"})
    figure.update_xaxes(range=[0, 1.02], tickformat=".1f", title_text="AUC")
    subtitle = "areas under the ROC curve with 95% intervals; dashed: no better than chance"
    return finish(figure, claims.foretold(shown, names), subtitle, height=240 + 46 * len(names))


def ways_compared(gaps: pd.DataFrame, by: str, names: Mapping[str, str], *, title: str, subtitle: str) -> go.Figure:
    """Plot what each way of making edits changes of S and of exact rewrites (EA), a row a way, a colour a method.

    Args:
        gaps: columns method, score, value, low, high, and ``by``, which says the way: differences from one reference,
            paired by fact (:func:`editkit.studies.damage.differences`, :func:`editkit.studies.ordering.differences`).
        names: what the ways are, for people; those without a row are left out.
    """
    shown = {way: told for way, told in names.items() if way in set(gaps[by])}
    scores, methods = {"S": "S", "EA": "exact rewrites (EA)"}, methods_in(gaps)
    figure = panels(scores.values(), len(scores), shared_yaxes=True, horizontal_spacing=0.05)
    for score, where in zip(scores, places(len(scores), len(scores)), strict=True):
        for place, method in enumerate(methods):
            rows = gaps[(gaps.method == method) & (gaps.score == score)].set_index(by).reindex(shown)
            aside = below(place, len(methods), 0.5)
            line = {"x": rows.value, "y": [number + aside for number in range(len(shown))]}
            bars = interval(rows.value, rows.low, rows.high, thickness=1.5, width=3)
            look = {**method_style(method), "mode": "markers", "hovertemplate": "%{x:+.3f}", "error_x": bars}
            figure.add_scatter(**line, **look, **where)
    name_rows(figure, list(shown.values()))
    figure.add_vline(0, line={"color": GREY, "width": 1.5, "dash": "dash"})
    figure.update_xaxes(title_text="difference")
    return finish(figure, title, f"{subtitle}; paired by fact, 95% intervals", height=240 + 40 * len(shown))


def steps_or_at_once(points: pd.DataFrame) -> go.Figure:
    """Plot what is left of edits, and the perplexity of prose, a row a way of arriving, a colour a method.

    Args:
        points: columns method, run, batch_size, steps, ESaid, perplexity, score (S and EA; others are left out),
            value, low, high, n, seeds and clusters (:func:`editkit.studies.at_once.points`). The untouched model is a
            dashed line.
    """
    before, made = points[points.method == UNTOUCHED], points[points.method != UNTOUCHED]
    made = pd.concat([made[made.method == method] for method in methods_in(made)])
    rows = made.drop_duplicates(["run", "batch_size"]).reset_index(drop=True)
    titles = {"S": "S", "EA": "first choice (filled), said (open)", "perplexity": "perplexity of prose"}
    figure = panels(titles.values(), 3, size=13, shared_yaxes=True, horizontal_spacing=0.04)
    for method, own in rows.groupby("method", sort=False):
        look = {**method_style(str(method)), "mode": "markers", "y": own.index}
        for score, where in zip(("S", "EA"), places(3, 3), strict=False):
            of = own[["run", "batch_size"]].merge(made[made.score == score])
            bars = interval(of.value, of.low, of.high, thickness=1.5, width=3)
            figure.add_scatter(x=of.value, error_x=bars, hovertemplate="%{x:.3f}", **look, **where)
        look |= {"showlegend": False}
        figure.add_scatter(x=own.perplexity, hovertemplate="%{x:,.1f}", **look, row=1, col=3)
        look["marker_symbol"] += "-open"
        figure.add_scatter(x=own.ESaid, hovertemplate="said: %{x:.3f}", **look, row=1, col=2)
    values = {"S": before.value[before.score == "S"], "EA": before.value[before.score == "EA"]}
    for column, of in enumerate([*values.values(), before.perplexity], start=1):
        figure.add_vline(of.iloc[0], line={"color": GREY, "width": 1.5, "dash": "dash"}, row=1, col=column)
    name_rows(figure, [f"{r.run}, {r.steps:,} × {r.batch_size:,}" for r in rows.itertuples()])
    figure.update_xaxes(range=[-0.02, 1.02], tickformat=".1f", title_text="share of prompts")
    figure.update_xaxes(range=None, title_text="", tickformat=None, row=1, col=3)
    figure.update_xaxes(type="log", **log_ticks(points.perplexity), row=1, col=3)
    subtitle, height = f"{behind(made)}; dashed: no edit", 160 + 34 * len(rows)
    return finish(figure, claims.arriving(rows), subtitle, height, legend=False)


def protection(points: pd.DataFrame) -> go.Figure:
    """Plot what is learned and what is kept against how much is written, a panel a score, a point a threshold.

    Args:
        points: columns method, threshold, norm, score (S, NS, kl_prose, kl_subjects; others are left out), value, low,
            high, see :func:`editkit.studies.nullspace.points`; low and high may be nan.
    """
    titles = {"S": SCORES["S"], "NS": SCORES["NS"], "kl_prose": "KL on other prose", "kl_subjects": "KL near the facts"}
    found = [score for score in titles if score in set(points.score)]
    figure = panels((titles[score] for score in found), 2, size=13, horizontal_spacing=0.14, vertical_spacing=0.2)
    for score, where in zip(found, places(len(found), 2), strict=True):
        for method in methods_in(points):
            rows = points[(points.method == method) & (points.score == score)].sort_values("norm")
            look = method_style(method) | {"error_y": interval(rows.value, rows.low, rows.high), "mode": "markers"}
            hover = "threshold %{customdata:g}, ‖ΔW‖ %{x:.3g}: %{y:.3g}"
            add_line(figure, rows.norm, rows.value, hover, **look, customdata=rows.threshold, **where)
        title = "nats" if score.startswith("kl") else "share of prompts"
        figure.update_yaxes(title_text=title, row=where["row"], col=where["col"])
    figure.update_xaxes(title_text="‖ΔW‖")
    subtitle = "at each threshold both write as much; bars: 95%, over facts, of KL over orders"
    return finish(figure, "Does the null space protect more than C?", subtitle, height=560)


def _looks(runs: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Give each run ("EMMET, hold") its method's colour and marker, and a dash for what else it is called.

    A name that is no method's takes a colour by its turn.
    """
    parts = {run: run.partition(", ") for run in runs}
    kinds = list(dict.fromkeys(kind for _, _, kind in parts.values()))
    known = {one.label: one for one in (*METHODS.values(), *CONTROLS.values())}
    looks = {}
    for number, (run, (name, _, kind)) in enumerate(parts.items()):
        own = known.get(name)
        looks[run] = {
            "line_color": own.colour if own else SERIES[number % len(SERIES)],
            "marker_symbol": own.marker if own else "circle",
            "line_dash": DASHES[kinds.index(kind) % len(DASHES)],
        }
    return looks


def _add_run(figure: go.Figure, curve: pd.Series, run: str, where: dict[str, Any], hover: str, **look: Any) -> None:
    """Add one run's line to the panel at ``where``, without what was not measured."""
    curve = curve.dropna()
    add_line(figure, curve.index, curve, hover, name=run, legendgroup=run, **{**look, "marker_size": 6}, **where)
