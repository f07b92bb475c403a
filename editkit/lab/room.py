"""What the rooms of the laboratory have in common: widgets that show a state and pass on what somebody does to them."""

import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import ipywidgets as w
import plotly.graph_objects as go
import plotly.io as pio

from editkit.lab import markup

WIDE = w.Layout(width="98%")
WRAP = w.Layout(flex_flow="row wrap", align_items="center")


class Room(w.VBox):
    """Widgets over a state; :attr:`notice` tells in place what could not be done."""

    def __init__(self) -> None:
        self.notice, self._quiet_here = w.HTML(), threading.local()
        super().__init__()

    @contextmanager
    def _quiet(self):
        """Set widgets without taking that for what somebody chose, who may do so meanwhile in another thread."""
        self._quiet_here.on = True
        try:
            yield
        finally:
            self._quiet_here.on = False

    def _guarded(self, act: Callable[[Any], None]) -> Callable[[Any], None]:
        return lambda change: None if getattr(self._quiet_here, "on", False) else self._act(lambda: act(change))

    def _act(self, act: Callable[[], None]) -> None:
        """Do what somebody asked for, and tell in place why not where it cannot be done."""
        try:
            act()
        except (ValueError, RuntimeError) as problem:
            self.notice.value = markup.notice([], str(problem))

    def _button(self, words: str, act: Callable[[], None]) -> w.Button:
        button = w.Button(description=words, layout=w.Layout(width="auto"))
        button.on_click(lambda _: self._act(act))
        return button


def draw(place: w.Output, figure: go.Figure | None) -> None:
    """Show a figure in an output, from whatever thread; None empties it."""
    data = [] if figure is None else [pio.renderers["plotly_mimetype"].to_mimebundle(figure.to_dict())]
    place.outputs = tuple({"output_type": "display_data", "data": bundle, "metadata": {}} for bundle in data)
