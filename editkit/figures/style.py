"""The look of every figure, and how one becomes a picture.

Every method keeps one colour (Okabe and Ito's palette, distinct for colour-blind readers too) and
one marker; the untouched model is grey.
"""

import os
import warnings
from pathlib import Path

import kaleido
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from choreographer.browsers.chromium import Chromium
from plotly.colors import sample_colorscale

WIDTH = 760
NAMES = {
    "rome": "ROME",
    "memit": "MEMIT",
    "emmet": "EMMET",
    "alphaedit": "AlphaEdit",
    "pre": "no edit",
}
COLOURS = {
    "rome": "#D55E00",
    "memit": "#0072B2",
    "emmet": "#009E73",
    "alphaedit": "#CC79A7",
    "pre": "#7F858D",
}
MARKERS = {
    "rome": "circle",
    "memit": "square",
    "emmet": "diamond",
    "alphaedit": "triangle-up",
    "pre": "x",
}
OTHERS = ("#E69F00", "#56B4E9", "#000000", "#F0E442")
SERIES = (*(COLOURS[method] for method in ("memit", "rome", "emmet", "alphaedit")), *OTHERS)  # for nameless series
SCORES = {
    "ES": "efficacy (ES)",
    "PS": "paraphrases (PS)",
    "NS": "neighbourhood (NS)",
    "S": "harmonic mean (S)",
}
INSTALL_BROWSER = (
    "install Chrome, Chromium or Edge (Debian and Ubuntu: apt-get install chromium), or set BROWSER_PATH to one"
)

_AXIS = {
    "showline": True,
    "linecolor": "#9AA3AE",
    "gridcolor": "#E6EAEE",
    "zeroline": False,
    "ticks": "outside",
    "tickcolor": "#9AA3AE",
    "automargin": True,
    "title": {"standoff": 8},
}
pio.templates["editkit"] = go.layout.Template(
    layout={
        "width": WIDTH,
        "height": 450,
        "colorway": list(SERIES),
        "font": {
            "family": "Liberation Sans, Arial, Helvetica, sans-serif",
            "size": 14,
            "color": "#1D232B",
        },
        "title": {
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "pad": {"l": 12},
            "font": {"size": 17},
        },
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
    pd.set_option("display.max_colwidth", 120)


def find_browser() -> str | None:
    """Path of a Chrome, Chromium or Edge: ``BROWSER_PATH`` where set, else the usual places."""
    path = Chromium.find_browser(skip_local=False)
    return path if path and os.access(path, os.X_OK) else None


def save(figure: go.Figure, path: str | Path) -> Path | None:
    """Write a figure as PNG, twice its size in pixels.

    Returns the path; where no browser is found to draw it, warns (once) and returns None.
    """
    if find_browser() is None:
        warnings.warn(f"no browser to draw PNG figures, none is written: {INSTALL_BROWSER}", stacklevel=1)
        return None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One browser for all figures of a process; starting one takes seconds.
    kaleido.start_sync_server(silence_warnings=True, mathjax=False)
    kaleido.write_fig_sync(figure, str(path), opts={"format": "png", "scale": 2})
    return path


def finish(figure: go.Figure, title: str, subtitle: str, height: int = 450) -> go.Figure:
    figure.update_layout(
        template="editkit",
        title={
            "text": title,
            "subtitle": {"text": subtitle, "font": {"size": 13, "color": "#56606D"}},
        },
        height=height,
        width=WIDTH,
        legend={
            "orientation": "h",
            "x": 0.5,
            "xanchor": "center",
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
        },
        showlegend=True,
    )
    # Pixels over the plot's bottom edge: tick labels, the axis title and one or two rows of legend.
    rows = -(-sum(trace.showlegend is not False for trace in figure.data) // 6)
    figure.update_layout(margin_b=75 + 24 * rows)
    # Places measured from the container's top keep their distance whatever the height.
    figure.update_layout(title={"y": 1 - 26 / height, "yref": "container", "yanchor": "top"})
    return figure


def interval(value: pd.Series, low: pd.Series, high: pd.Series) -> dict:
    """Error bars from ``low`` to ``high``."""
    return {"array": high - value, "arrayminus": value - low, "thickness": 1.2, "width": 3}


def cover(left: float, top: float, side: float, image: tuple[int, ...], cells: tuple[int, ...]) -> dict[str, float]:
    """Where so many rows and columns of cells lie that cover an image of this shape, its longer side ``side``."""
    dy, dx = (side * image[axis] / max(image[:2]) / cells[axis] for axis in (0, 1))
    return {"x0": left + dx / 2, "y0": top + dy / 2, "dx": dx, "dy": dy}


def methods_in(frame: pd.DataFrame) -> list[str]:
    present = set(frame["method"])
    known = [method for method in NAMES if method in present]
    return known + sorted(present - set(known))


def method_name(method: str) -> str:
    return NAMES.get(method, method)


def method_colour(method: str) -> str:
    return COLOURS.get(method, OTHERS[sum(map(ord, method)) % len(OTHERS)])


def look(method: str) -> dict:
    return {
        "name": method_name(method),
        "legendgroup": method,
        "line": {"color": method_colour(method), "width": 2},
        "marker": {"symbol": MARKERS.get(method, "circle"), "size": 8},
    }


def ramp(count: int) -> list[str]:
    """Ordered colours, dark to light, for things that have an order and no name."""
    return sample_colorscale("Viridis", list(np.linspace(0, 0.85, count))) if count else []


def count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
