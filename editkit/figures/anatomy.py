"""The anatomy of an edit: a bar an editor, cut into what became of its edits."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from editkit.figures.style import count, finish, interval, methods_in
from editkit.methods import label

# White letters stand on each (4.5 : 1 or more), and what lies side by side differs in lightness too.
COLOURS = {
    "clean": ("#00664B", "clean"),
    "spills": ("#B85C00", "spills (breaks a neighbour)"),
    "narrow": ("#2F6DB5", "narrow (misses a paraphrase)"),
    "both": ("#7A3B86", "both"),
    "does not hold": ("#5B626B", "does not hold"),
}
SEVERAL = 50  # edits from which on a share is written in percent
UNDER = 0.29  # how far below the middle of its bar an interval lies, where no letters are
ROW, BETWEEN, TOP, FOOT = 34, 40, 112, 104  # pixels: a bar, the gap between blocks, above and below


def anatomy_bars(frame: pd.DataFrame, title: str) -> go.Figure:
    """Draw a 100% bar a method, one colour a class, with the interval of the clean ones; a block a panel.

    Args:
        frame: columns panel, method, class, count, value, low, high, n, left_out
            (:func:`editkit.studies.anatomy.anatomy`).
        title: what it comes to.
    """
    parts = {str(name): part for name, part in frame.groupby("panel", sort=False)}
    heights = [part.method.nunique() + 0.6 for part in parts.values()]
    height = round(ROW * sum(heights) + BETWEEN * (len(parts) - 1) + TOP + FOOT)
    space = BETWEEN / (height - TOP - FOOT) if len(parts) > 1 else 0
    figure = make_subplots(
        len(parts), 1, row_heights=heights, vertical_spacing=space, shared_xaxes=True, subplot_titles=list(parts)
    )
    figure.update_annotations(font_size=13, x=0, xanchor="left", yshift=2)
    for row, part in enumerate(parts.values(), start=1):
        for name in COLOURS:
            _add_class(figure, part, name, row)
        _add_intervals(figure, part[part["class"] == "clean"], row)
    figure.update_layout(barmode="stack", bargap=0.24, legend_traceorder="normal", uniformtext_minsize=11)
    figure.update_layout(uniformtext_mode="hide")
    figure.update_xaxes(range=[0, 1], tickformat=".0%", ticks="outside", showgrid=False)
    figure.update_xaxes(title_text="share of edits", row=len(parts), col=1)
    left_out = int(frame.left_out.max())
    apart = f"; {count(left_out, 'edit')} without paraphrase or right neighbour left out" if left_out else ""
    subtitle = f"share of edits, by P(new) against P(true); thin lines: 95% intervals of clean{apart}"
    figure = finish(figure, title, subtitle, height=height)
    return figure.update_layout(margin={"t": TOP, "b": FOOT}, legend_font_size=12)


def _add_class(figure: go.Figure, part: pd.DataFrame, name: str, row: int) -> None:
    methods, (colour, told) = methods_in(part), COLOURS[name]
    rows = part[part["class"] == name].set_index("method").loc[methods]
    names, places = [label(method) for method in methods], list(range(len(methods)))
    figure.add_bar(
        y=places,
        x=rows.value,
        orientation="h",
        name=told,
        legendgroup=name,
        showlegend=row == 1,
        marker={"color": colour, "line": {"color": "white", "width": 1}},
        text=[f"{r.value:.0%}" if r.n >= SEVERAL else f"{r.count} of {r.n}" for r in rows.itertuples()],
        textposition="inside",
        insidetextanchor="start" if name == "clean" else "middle",
        textangle=0,
        textfont={"color": "white", "size": 12},
        customdata=list(zip(rows["count"], rows.n, names, strict=True)),
        hovertemplate=f"%{{customdata[2]}}, {name}: %{{customdata[0]}} of %{{customdata[1]}}<extra></extra>",
        row=row,
        col=1,
    )
    ticks = {"tickvals": places, "ticktext": names, "range": [len(names) - 0.4, -0.6]}
    figure.update_yaxes(**ticks, showline=False, ticklen=6, tickcolor="rgba(0,0,0,0)", showgrid=False, row=row)


def _add_intervals(figure: go.Figure, clean: pd.DataFrame, row: int) -> None:
    """Draw intervals over the bars, white and below the letters."""
    rows = clean.set_index("method").loc[methods_in(clean)].reset_index()
    ends = interval(rows.value, rows.low, rows.high, color="white", thickness=1.6, width=3)
    marker = {"color": "white", "size": 4}
    more = {"mode": "markers", "marker": marker, "showlegend": False, "hoverinfo": "skip", "name": "95% interval"}
    figure.add_scatter(x=rows.value, y=rows.index + UNDER, error_x=ends, **more, row=row, col=1)
