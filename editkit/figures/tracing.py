"""Figures of causal tracing in language models, after figures 1, 2 and 3 of ROME (arXiv 2202.05262)."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from editkit.figures import claims
from editkit.figures.style import INK, RULE, SERIES, add_line, as_label, count, finish, interval, panels, places
from editkit.language.tracing import POSITIONS

KINDS = {"residual": "residual stream", "mlp": "MLP", "attention": "attention"}
COLOURS = dict(zip(KINDS, ("Purples", "Greens", "Reds"), strict=True))  # as in the paper
ROW = 24  # pixels of a token


def trace_heat_maps(traces: pd.DataFrame) -> go.Figure:
    """Map the probability that one fact's states bring back, token by layer, a panel a kind, on one scale.

    Colour begins at the corrupted probability, as in the published figures; noised tokens have a star.

    Args:
        traces: one fact's rows of :func:`editkit.language.tracing.trace`.

    Raises ``ValueError`` for the rows of several facts or of none.
    """
    if traces.fact.nunique() != 1:
        raise ValueError(f"traces are of {count(traces.fact.nunique(), 'fact')}: this figure is of one")
    first, noised = traces.iloc[0], set(traces.token[traces.position.str.endswith(" subject")])
    rows = traces.drop_duplicates(["kind", "layer", "token"]).sort_values("token", kind="stable")
    texts = rows.text.map(as_label)
    names = {token: f"{text}{'*' * (token in noised)}" for token, text in zip(rows.token, texts, strict=True)}
    rows = rows.assign(told=rows.token.map(names) + ", layer " + rows.layer.astype(str), row=rows.token)
    figure = _maps(rows.assign(value=rows.restored), list(names), first.corrupted)
    figure.update_yaxes(ticktext=list(names.values()))
    best = rows.loc[rows.restored.idxmax()]
    title = (
        f"P({as_label(first.answer)}) returns to {best.restored:.2f} where “{as_label(best.text.strip())}” is restored"
    )
    subtitle = f"{KINDS[best.kind]}, layer {best.layer}; clean {first.clean:.3f}, corrupted {first.corrupted:.3f}; "
    return _finish_maps(figure, title, f"{subtitle}* noised; one state restored at a time")


def effect_heat_maps(effects: pd.DataFrame) -> go.Figure:
    """Map the average indirect effect, position by layer, a panel a kind, on one scale from 0.

    Args:
        effects: columns kind, position, layer, value, low, high, n, clusters
            (:func:`editkit.studies.locate.indirect_effects`).
    """
    told = [
        f"{POSITIONS[one.position]}, layer {one.layer}: [{one.low:.3f}, {one.high:.3f}]" for one in effects.itertuples()
    ]
    shown = [name for name in POSITIONS if name in set(effects.position)]
    figure = _maps(effects.assign(told=told, row=effects.position), shown, 0.0)
    figure.update_yaxes(ticktext=[POSITIONS[name] for name in shown])
    return _finish_maps(figure, claims.most_restored(effects, KINDS, POSITIONS), _behind(effects))


def effect_curves(effects: pd.DataFrame) -> go.Figure:
    """Plot the average indirect effect by layer with its 95% interval, a panel a kind, a line a position.

    Args:
        effects: as of :func:`effect_heat_maps`.
    """
    figure = panels(KINDS.values(), 3, horizontal_spacing=0.04, shared_yaxes=True)
    for where, kind in zip(places(3, 3), KINDS, strict=True):
        for colour, (position, name) in zip(SERIES, list(POSITIONS.items())[1:], strict=False):
            rows = effects[(effects.kind == kind) & (effects.position == position)].sort_values("layer")
            fill = {"line_width": 0, "mode": "lines", "hoverinfo": "skip", "legendgroup": position}
            band = {**where, "showlegend": False}
            figure.add_scatter(x=rows.layer, y=rows.high, **fill, **band)
            shade = "rgba({}, {}, {}, 0.2)".format(*hex_to_rgb(colour))
            figure.add_scatter(x=rows.layer, y=rows.low, fill="tonexty", fillcolor=shade, **fill, **band)
            line = {"name": name, "legendgroup": position, "line_color": colour, "mode": "lines"}
            hover = f"{name}, layer %{{x}}: %{{y:.3f}}<extra></extra>"
            add_line(figure, rows.layer, rows.value, hover, **line, **where)
    _layer_axes(figure)
    figure.update_yaxes(zeroline=True, zerolinecolor=RULE).update_yaxes(title_text="probability returned", col=1)
    return finish(figure, claims.last_subject_token(effects), _behind(effects))


def traced_and_swept(layers: pd.DataFrame, found: Mapping[str, Any], score: str = "S") -> go.Figure:
    """Plot what tracing finds in each layer over what edits of that layer reach; the best layer of each has a ring.

    Args:
        layers: columns layer, traced, traced_low, traced_high, swept, swept_low, swept_high, n
            (:func:`editkit.studies.locate.side_by_side`).
        found: its :func:`editkit.studies.locate.agreement`.
        score: the score that was swept.
    """
    titles = {"traced": "traced: effect of MLPs at the subject's last token", "swept": f"swept: {score} of edits there"}
    figure = panels(titles.values(), 1, vertical_spacing=0.14, shared_xaxes=True)
    for number, (column, colour) in enumerate(zip(titles, SERIES, strict=False), start=1):
        where = {"row": number, "col": 1, "showlegend": False}
        bars = interval(layers[column], layers[f"{column}_low"], layers[f"{column}_high"])
        hover = "layer %{x}: %{y:.3f}<extra></extra>"
        add_line(figure, layers.layer, layers[column], hover, error_y=bars, line_color=colour, **where)
        best = layers[layers.layer == found[f"{column}_layer"]]
        ring = {"symbol": "circle-open", "size": 15, "color": INK, "line": {"width": 2}}
        figure.add_scatter(x=best.layer, y=best[column], mode="markers", marker=ring, hoverinfo="skip", **where)
    figure.update_xaxes(title_text="layer", row=2).update_xaxes(tickformat="d")
    figure.update_yaxes(title_text="probability", zeroline=True, zerolinecolor=RULE, row=1)
    figure.update_yaxes(title_text=score, range=[-0.03, 1.03], tickformat=".1f", row=2)
    lost = f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]".replace("-", "−")
    rho = found["rank_correlation"]
    subtitle = f"rank correlation {f'{rho:+.2f}' if rho == rho else 'not defined'}".replace("-", "−")
    subtitle += f"; {score} in the traced layer less that in the best: {lost}; {count(int(layers.n.max()), 'fact')}"
    return finish(figure, claims.traced_and_swept(found), subtitle, 560, legend=False)


def _maps(frame: pd.DataFrame, rows: list, low: float) -> go.Figure:
    """Draw a heat map a kind, all on one scale from ``low`` up, each with its bar below it.

    Args:
        frame: columns kind, row, layer, value, and told, which is shown beside the value.
        rows: those to draw, from the top.
    """
    figure = panels(KINDS.values(), 3, horizontal_spacing=0.03, shared_yaxes=True)
    high = max(frame.value.max(), low + 1e-6)
    for where, kind in zip(places(3, 3), KINDS, strict=True):
        at = {"row": where["row"], "col": where["col"]}
        tables = frame[frame.kind == kind].pivot(index="row", columns="layer", values=["value", "told"])
        value, told = (tables[name].loc[rows] for name in ("value", "told"))
        middle = sum(figure.get_subplot(**at).xaxis.domain) / 2
        bar = {"orientation": "h", "x": middle, "xanchor": "center", "len": 0.27, "thickness": 10, "nticks": 4}
        bar |= {"y": 0, "yref": "container", "yanchor": "bottom", "tickfont_size": 11}
        scale = {"zmin": low, "zmax": high, "colorscale": COLOURS[kind], "colorbar": bar}
        hover = {"customdata": told.to_numpy(), "hovertemplate": "%{customdata}: %{z:.3f}<extra></extra>"}
        figure.add_heatmap(z=value.to_numpy(float), x=list(value), **hover, **scale, **at)
    _layer_axes(figure)
    ticks = {"tickvals": list(range(len(rows))), "tickfont_size": 12, "showgrid": False}
    return figure.update_yaxes(**ticks, range=[len(rows) - 0.5, -0.5])


def _finish_maps(figure: go.Figure, title: str, subtitle: str) -> go.Figure:
    height = 236 + ROW * len(figure.data[0].z)
    return finish(figure, title, subtitle, height, legend=False).update_layout(margin_b=118)


def _layer_axes(figure: go.Figure) -> None:
    figure.update_xaxes(title_text="middle of the layers", tickformat="d", showgrid=False)
    figure.update_xaxes(title_text="layer", col=1)


def _behind(effects: pd.DataFrame) -> str:
    facts, clusters = int(effects.n.max()), int(effects.clusters.max())
    behind = f"{count(facts, 'fact')}, {count(clusters, 'cluster')}"
    return f"average indirect effect: P(answer) restored less corrupted; 95% intervals; {behind}"
