"""The look of every figure, and how one becomes a picture.

Methods bring label, colour and marker along (:mod:`editkit.methods`). Lines that stand for no method take Okabe and
Ito's palette, distinct for colour-blind readers too; those that have an order take a ramp from dark to light.
"""

import html
import math
import os
import subprocess
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import kaleido
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from choreographer.browsers.chromium import Chromium
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from editkit.methods import CONTROLS, METHODS, UNTOUCHED, label, look

WIDTH = 760
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7A00")
BLUE, GREY, INK, RULE = SERIES[0], look(UNTOUCHED).colour, "#1D232B", "#9AA3AE"
SCORES = {"ES": "efficacy (ES)", "PS": "paraphrases (PS)", "NS": "neighbourhood (NS)", "S": "harmonic mean (S)"}
INSTALL_BROWSER = (
    "install Chrome, Chromium or Edge (Debian: apt-get install chromium; elsewhere: choreo_get_chrome), or set "
    "BROWSER_PATH to one"
)

TITLE, LINE = 17, 88  # size of a title, and the characters of that size that fit beside one another

_AXIS = {"showline": True, "linecolor": RULE, "gridcolor": "#E6EAEE", "zeroline": False}
_AXIS |= {"ticks": "outside", "tickcolor": RULE, "automargin": True}
_AXIS |= {"title": {"standoff": 8, "font": {"size": 14}}}
pio.templates["editkit"] = go.layout.Template(
    layout={
        "width": WIDTH,
        "height": 450,
        "colorway": SERIES,
        "font": {"family": "Liberation Sans, Arial, Helvetica, sans-serif", "size": 13, "color": INK},
        "title": {"x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 12}, "font": {"size": TITLE}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 70, "r": 20, "t": 90, "b": 60},
        "legend": {"bgcolor": "rgba(255,255,255,0)"},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hoverlabel": {"font": {"size": 13}},
    }
)


def use_notebook_style() -> None:
    """Show figures in the form that JupyterLab and the report draw, and tables with their whole texts."""
    pio.renderers.default = "plotly_mimetype"
    pd.set_option("display.max_colwidth", 120, "display.max_rows", 200)


def find_browser() -> str | None:
    """Find a Chrome, Chromium or Edge that starts: ``BROWSER_PATH`` where set, else the usual places."""
    chosen = os.environ.get("BROWSER_PATH")
    places = [chosen] if chosen else [Chromium.find_browser(skip_local=local) for local in (False, True)]
    return next((str(place) for place in dict.fromkeys(places) if place and _starts(str(place))), None)


def _starts(browser: str) -> bool:
    """Tell whether a browser starts; one does not whose libraries are missing, or that only says how to install one."""
    if not os.access(browser, os.X_OK):
        return False
    if os.name == "nt":  # where it would open a window
        return True
    try:
        return not subprocess.run([browser, "--version"], capture_output=True, timeout=60).returncode
    except (OSError, subprocess.SubprocessError):
        return False


def save(figure: go.Figure, path: str | Path, *tables: str) -> Path | None:
    """Write a figure as PNG, twice its size in pixels, and note in it (``layout.meta``) its name and tables.

    Args:
        tables: names of the run's tables (:class:`editkit.studies.results.Results`) that the figure shows.

    Returns the path; where no browser is found to draw it, writes a page (``.html``) in its place, which opens with
    the network off, warns (once) and returns None.
    """
    path, browser = Path(path), find_browser()
    figure.update_layout(meta={"picture": path.stem, "tables": list(tables)})
    page = path.with_suffix(".html")
    path.parent.mkdir(parents=True, exist_ok=True)
    (page if browser else path).unlink(missing_ok=True)  # of an earlier run
    if browser is None:
        figure.write_html(page, include_plotlyjs="directory")
        warnings.warn(f"no browser to draw PNG figures, HTML in their place: {INSTALL_BROWSER}", stacklevel=1)
        return None
    _serve(browser)
    kaleido.write_fig_sync(figure, str(path), opts={"format": "png", "scale": 2})
    return path


def as_svg(figure: go.Figure | dict[str, Any], browser: str) -> bytes:
    """Draw a figure as a vector picture, ``WIDTH`` pixels wide where it says no other."""
    _serve(browser)
    picture = kaleido.calc_fig_sync(figure, opts={"format": "svg", "width": WIDTH})
    return picture if isinstance(picture, bytes) else picture.encode()


def _serve(browser: str) -> None:
    """Start the one browser that draws all figures of a process, which takes seconds."""
    kaleido.start_sync_server(path=browser, silence_warnings=True, mathjax=False)


def show(figure: go.Figure, path: str | Path, *tables: str) -> go.Figure:
    """Save a figure (:func:`save`) and return it, for the end of a cell."""
    save(figure, path, *tables)
    return figure


def panels(titles: Iterable[str], columns: int, *, size: int = 14, **spacing: Any) -> go.Figure:
    """Make an empty figure of titled panels, so many in a row.

    Args:
        size: of the panels' titles.
        spacing: what :func:`plotly.subplots.make_subplots` takes.
    """
    titles = list(titles)
    figure = make_subplots(-(-len(titles) // columns), columns, subplot_titles=titles, **spacing)
    return figure.update_annotations(font_size=size).update_layout(margin_t=112)


def places(number: int, columns: int) -> list[dict[str, Any]]:
    """Number panels by row and column, as a trace takes them; traces of the first alone enter the legend."""
    return [{"row": n // columns + 1, "col": n % columns + 1, "showlegend": n == 0} for n in range(number)]


def score_panels(top: float) -> go.Figure:
    """Make four empty panels, one for each of ``SCORES``, their axes from 0 to ``top``."""
    figure = panels(SCORES.values(), 2, vertical_spacing=0.2).update_yaxes(range=[-0.03, top], tickformat=".1f")
    return figure.update_yaxes(title_text="share of prompts", col=1)


def add_line(figure: go.Figure, x: Any, y: Any, hover: str, **more: Any) -> None:
    """Add a line with markers; ``more`` are properties of the trace."""
    style = {"mode": "lines+markers", "line_width": 2, "marker_size": 7}
    figure.add_scatter(x=x, y=y, hovertemplate=hover, **(style | more))


def add_level(figure: go.Figure, ticks: Sequence[float], value: float, name: str, dash: str, **more: Any) -> None:
    """Add a grey line across a logarithmic axis with these ticks."""
    line = {"dash": dash, "color": GREY, "width": 1.5}
    ends = [min(ticks) / 1.25, max(ticks) * 1.25]
    figure.add_scatter(x=ends, y=[value] * 2, mode="lines", line=line, name=name, legendgroup=name, **more)


def log_axis(figure: go.Figure, values: Iterable[float], title: str, **where: int) -> None:
    """Make an x axis logarithmic, with ticks where something was measured."""
    ticks = sorted(set(values))
    text = [f"{tick:g}" for tick in ticks]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=text, title_text=title, **where)


def log_scale(figure: go.Figure, values: Iterable[float], **where: Any) -> None:
    """Make a y axis logarithmic, with :func:`log_ticks`."""
    figure.update_yaxes(type="log", **log_ticks(values), **where)


def log_ticks(values: Iterable[float]) -> dict[str, Any]:
    """Return ticks of a logarithmic axis: whole numbers at powers of ten, or at 1, 2 and 5 times where these are few.

    Plotly's own would name what lies between two powers by its first digit alone.
    """
    known = [value for value in values if value > 0] or [1.0]
    powers = range(math.floor(math.log10(min(known))), math.ceil(math.log10(max(known))) + 1)
    times = (1, 2, 5) if max(known) < 300 * min(known) else (1,)
    ticks = [float(f"{digit}e{power}") for power in powers for digit in times]
    return {"tickvals": ticks, "ticktext": [f"{tick:,.10g}" for tick in ticks]}


def as_label(text: str) -> str:
    """Write a text so that plotly shows it as it is: it reads tags, and a token may look like one, or be a line."""
    return html.escape(text).replace("\n", "↵")


def aside(place: int, number: int, step: float) -> float:
    """Return the factor that sets one of several lines aside on a logarithmic axis, so that none hides another."""
    return 2 ** (step * (place - (number - 1) / 2))


def below(place: int, number: int, spread: float) -> float:
    """Return how far off the middle of a row or column one of several points stands, so that none hides another."""
    return spread * ((place + 0.5) / number - 0.5)


def name_rows(figure: go.Figure, names: Sequence[str], *, rules: bool = False) -> None:
    """Name the rows 0, 1, … of every panel, the first on top, with a rule between each two where asked for."""
    rows = {"range": [len(names) - 0.5, -0.5], "tickvals": list(range(len(names))), "ticktext": list(names)}
    figure.update_yaxes(**rows, showgrid=False)
    for number in range(1, len(names)) if rules else ():
        figure.add_hline(y=number - 0.5, line={"color": RULE, "width": 0.5})


def add_dots(figure: go.Figure, rows: pd.DataFrame, method: str, off: float, **more: Any) -> None:
    """Add a method's points with intervals, one a row, ``off`` its middle; ``more`` are properties of the trace.

    Args:
        rows: columns value, low, high; in the order of the panel's rows.
    """
    colour = look(method).colour
    bars = interval(rows.value, rows.low, rows.high, thickness=1.2, width=2, color=colour)
    style = {**method_style(method), "mode": "markers", "marker_color": colour, "error_x": bars}
    y = [number + off for number in range(len(rows))]
    figure.add_scatter(x=rows.value, y=y, hovertemplate="%{customdata}: %{x:.3f}", **{**style, **more})


def finish(figure: go.Figure, title: str, subtitle: str, height: int = 450, *, legend: bool = True) -> go.Figure:
    """Give a figure its title, its size and, at the bottom, its legend."""
    # Places measured from the container's top keep their distance whatever the height.
    head: dict[str, Any] = {"text": title, "subtitle": {"text": subtitle, "font": {"size": 13, "color": "#56606D"}}}
    head |= {"y": 1 - 26 / height, "yref": "container", "yanchor": "top"}
    head |= {"font": {"size": TITLE * LINE / max(LINE, len(title))}}  # plotly breaks no line, and cuts it off
    below = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": 0, "yref": "container", "yanchor": "bottom"}
    figure.update_layout(template="editkit", title=head, height=height, width=WIDTH, legend=below, showlegend=legend)
    # Pixels over the plot's bottom edge: tick labels, the axis title and one or two rows of legend.
    rows = -(-sum(getattr(trace, "showlegend", False) is not False for trace in figure.data) // 6)
    return figure.update_layout(margin_b=75 + 24 * rows if legend else 60)


def interval(value: pd.Series, low: pd.Series, high: pd.Series, **style: Any) -> dict[str, Any]:
    """Return error bars from ``low`` to ``high``."""
    return {"array": high - value, "arrayminus": value - low} | (style or {"thickness": 1.2, "width": 3})


def methods_in(frame: pd.DataFrame) -> list[str]:
    """List a frame's methods in the order of figures."""
    present = set(frame["method"])
    known = [name for name in (*METHODS, *CONTROLS) if name in present]
    return known + sorted(present.difference(known))


def method_style(method: str) -> dict[str, Any]:
    """Return a method's properties of a line with markers."""
    own = look(method)
    line = {"line_color": own.colour, "marker_symbol": own.marker, "marker_size": 8}
    return {"name": label(method), "legendgroup": method} | line


def ramp(number: int) -> list[str]:
    """Return ordered colours, dark to light, for things that have an order and no name."""
    return sample_colorscale("Viridis", list(np.linspace(0, 0.85, number))) if number else []


def count(number: int, thing: str) -> str:
    """Say how many of a thing there are."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def over_seeds(frame: pd.DataFrame, prefix: str = "") -> str:
    """Describe the seeds behind a figure's means and bars."""
    seeds = frame["seed"].nunique()
    return "one seed" if seeds == 1 else f"{prefix}mean over {seeds} seeds; bars: smallest to largest seed"


def behind(frame: pd.DataFrame) -> str:
    """Describe the facts behind a figure's intervals: columns n, seeds and clusters, which its rows share."""
    row = frame.iloc[0]
    return f"95% intervals; {count(row.n, 'fact')} of {count(row.seeds, 'seed')}, {count(row.clusters, 'cluster')}"
