"""Plotly figures as figures of the page: number, caption, source, a still picture and what draws the live one."""

import base64
import html
import math
import re
import warnings
from collections.abc import Mapping
from itertools import count
from typing import Any

import numpy as np
from jinja2 import Environment

from editkit.figures import as_svg
from editkit.plain import to_json
from editkit.report.execute import Chapter
from editkit.report.markdown import plain, slug
from editkit.studies.results import RECORDED

PLOTLY = "application/vnd.plotly.v1+json"
KINDS = {"bar": "bars", "heatmap": "a heat map", "box": "boxes", "image": "pictures"}
TITLE = 62  # pixels that a title and its line of explanation take
WORDS = 900  # characters of a description


class Figures:
    """Writes the figures of a page, which are numbered through it.

    Args:
        environment: of the templates.
        browser: that draws the still pictures; without one there are none.
        hashes: of the run's files, by their names inside its folder.
        commands: that make a chapter again, by its name.
    """

    def __init__(
        self, environment: Environment, browser: str | None, hashes: Mapping[str, str], commands: Mapping[str, str]
    ):
        self.template = environment.get_template("figure.html.j2")
        self.browser, self.hashes, self.commands = browser, hashes, commands
        self.any = False
        self._numbers = count(1)

    def write(self, spec: dict[str, Any], chapter: Chapter, cell: Mapping[str, Any]) -> str:
        """Write a plotly figure that a cell of a chapter shows."""
        self.any = True
        number, layout = next(self._numbers), dict(spec.get("layout", {}))
        made = layout.get("meta") or {}
        claim, explained = caption(layout)
        bare = untitled(spec)
        photo = any(trace.get("type") == "image" for trace in spec["data"]) or bool(layout.get("images"))
        names = made.get("tables", [])
        tables = [f"results/{name}.csv" for name in names]
        run = cell.get("execution_count")
        return self.template.render(
            number=number,
            anchor=f"figure-{slug(made.get('picture') or str(number))}",
            claim=claim,
            explained=explained,
            recorded=any(name.startswith(RECORDED) for name in names),
            alt=describe(spec),
            width=760,
            height=round(float(bare["layout"]["height"])),
            photo=photo,
            columns=_columns(layout),
            scaled=photo or "coloraxis" in layout,
            still=self._still(bare),
            spec=to_json(bare).replace("<", "\\u003c"),
            files={name: self.hashes[name][:12] for name in tables if name in self.hashes},
            place=f"{chapter.name}.ipynb" + (f", In [{run}]" if run else ""),
            command=self.commands[chapter.name],
        )

    def _still(self, spec: dict[str, Any]) -> str:
        if self.browser is None:
            return ""
        try:
            picture = as_svg(spec, self.browser)
        except Exception as error:  # of the browser, of kaleido, of plotly.js: the live figure may yet be drawn
            warnings.warn(f"a figure has no still picture: {error}", stacklevel=2)
            return ""
        return f"data:image/svg+xml;base64,{base64.b64encode(picture).decode()}"


def caption(layout: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a figure's title claims, and the line below it: plotly's subtitle, or what stands in ``<sup>``."""
    title = layout.get("title") or {}
    title = {"text": title} if isinstance(title, str) else title
    text, below = title.get("text") or "", (title.get("subtitle") or {}).get("text") or ""
    if not below and (found := re.fullmatch(r"(.*?)(?:<br\s*/?>)?\s*<sup>(.*)</sup>\s*", text, re.DOTALL)):
        text, below = found.groups()
    claim, under = (plain(re.sub(r"<br\s*/?>", " ", part)) for part in (text, below))
    return claim, re.sub(r"^[a-z](?=[a-z])", lambda first: first[0].upper(), under)  # n = 3 stays


def untitled(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a figure without its title, which the caption says, and lower by it; its width is the page's matter."""
    layout = {"height": 450, **spec.get("layout", {})}
    layout.pop("width", None)
    style = {**(layout.get("template") or {}).get("layout", {})}
    style.pop("width", None)
    layout["template"] = {**(layout.get("template") or {}), "layout": style}
    if layout.pop("title", None):
        margin = {"t": 100, **style.get("margin", {}), **(layout.get("margin") or {})}
        less = min(TITLE, margin["t"] - 20)
        layout |= {"margin": margin | {"t": margin["t"] - less}, "height": layout["height"] - less}
    return {"data": spec["data"], "layout": layout}


def _columns(layout: Mapping[str, Any]) -> int:
    axes = [axis for name, axis in layout.items() if re.fullmatch(r"xaxis\d*", name) and not axis.get("overlaying")]
    return max(1, len({round(axis.get("domain", [0])[0], 3) for axis in axes}))


def numbers(values: Any) -> list[Any]:
    """Return a trace's values as a list: plotly writes arrays as bytes in base64."""
    if isinstance(values, dict):
        flat = np.frombuffer(base64.b64decode(values["bdata"]), np.dtype(values["dtype"]))
        return flat.tolist()
    return list(np.ravel(np.array(values, dtype=object))) if values is not None else []


def _finite(values: Any) -> list[float]:
    return [v for v in numbers(values) if isinstance(v, int | float) and math.isfinite(v)]


def describe(spec: Mapping[str, Any]) -> str:
    """Say what is seen in a figure: what is drawn, over which axes, and from where to where each series goes."""
    traces, layout = spec["data"], spec.get("layout", {})
    kinds = dict.fromkeys(_kind(trace) for trace in traces)
    axes = {side: [a for name, a in layout.items() if re.fullmatch(rf"{side}axis\d*", name)] for side in "xy"}
    said = [f"{', '.join(kinds)}" + (f" in {len(axes['x'])} panels" if len(axes["x"]) > 1 else "")]
    for side, name in (("x", "across"), ("y", "up")):
        titles = dict.fromkeys(plain(((axis.get("title") or {}).get("text")) or "") for axis in axes[side])
        if shown := [title for title in titles if title]:
            said.append(f"{name}: {', '.join(shown)}")
    series = dict.fromkeys(filter(None, map(_series, traces)))
    text = html.unescape("; ".join([*said, *series]))
    text = text[:1].upper() + text[1:]
    return f"{text[:WORDS]}…" if len(text) > WORDS else f"{text}."


def _kind(trace: Mapping[str, Any]) -> str:
    kind = trace.get("type", "scatter")
    return KINDS.get(kind, "lines" if "lines" in trace.get("mode", "lines") else "points")


def _series(trace: Mapping[str, Any]) -> str:
    name, kind = plain(trace.get("name") or ""), trace.get("type", "scatter")
    if kind == "heatmap" and (values := _finite(trace.get("z"))):
        return f"{name or 'values'} from {min(values):.3g} to {max(values):.3g}"
    along = trace.get("x") if trace.get("orientation") == "h" else trace.get("y")
    values = _finite(along)
    if not name or not values or kind == "image":
        return ""
    if kind == "scatter" and len(values) > 1:
        return f"{name} from {values[0]:.3g} to {values[-1]:.3g}"
    return f"{name} {', '.join(f'{value:.3g}' for value in values[:8])}"
