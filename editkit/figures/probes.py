"""The figure of probes: what follows from edits, and what they leave alone, by kind and method."""

import pandas as pd
import plotly.graph_objects as go

from editkit.facts.probe import KINDS
from editkit.figures import claims
from editkit.figures.style import add_dots, below, count, finish, methods_in, name_rows, panels, places

TITLES = {"success": "P(answer) > P(rival)", "accuracy": "every token first choice"}
SPREAD = 0.6  # of a kind's row, over which methods are set one below another


def probe_dots(frame: pd.DataFrame) -> go.Figure:
    """Plot success and accuracy on known probes with intervals: a row a kind, a marker a method, a panel a score.

    Each kind says how many of its probes the untouched model answers; those alone count.

    Args:
        frame: columns method, kind, score ("success" or "accuracy"), value, low, high, asked, known, n, seeds and
            clusters (:func:`editkit.studies.probe_tables.probe_scores`).

    Raises ``ValueError`` for a frame without rows, or where no kind has a probe that counts.
    """
    shown = frame[frame["known"] > 0]
    if shown.empty:
        raise ValueError(f"no known probe to show, of {len(frame)} rows")
    kinds = [kind for kind in KINDS if (shown["kind"] == kind).any()]
    methods = methods_in(shown)
    figure = panels(TITLES.values(), 2, shared_yaxes=True, horizontal_spacing=0.04)
    for score, where in zip(TITLES, places(2, 2), strict=True):
        for place, method in enumerate(methods):
            rows = shown[(shown["method"] == method) & (shown["score"] == score)].set_index("kind").reindex(kinds)
            told = [KINDS[kind].label for kind in kinds]
            add_dots(figure, rows, method, below(place, len(methods), SPREAD), customdata=told, **where)
    names = [_named(kind, shown[shown["kind"] == kind]) for kind in kinds]
    name_rows(figure, names, rules=True)
    figure.update_xaxes(range=[-0.03, 1.04], tickformat=".1f", title_text="share of known probes")
    seeds = count(int(shown["seeds"].max()), "seed")
    about = f"probes that the untouched model answers; 95% intervals over facts of {seeds}"
    claim = claims.probes(shown, {kind: KINDS[kind].label for kind in kinds})
    return finish(figure, claim, about, 220 + 52 * len(kinds))


def _named(kind: str, rows: pd.DataFrame) -> str:
    """Name a kind, with how many of its probes are known; the same for every method on the same facts."""
    known, asked = (sorted(set(rows[name])) for name in ("known", "asked"))
    return f"{KINDS[kind].label}<br>{_range(known)} of {_range(asked)} known"


def _range(numbers: list[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
