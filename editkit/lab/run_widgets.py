"""A run's tables of scores in JupyterLab: dropdowns over :class:`editkit.lab.runs.RunTables`, a figure, a table."""

from pathlib import Path

import ipywidgets as w
import pandas as pd

from editkit import figures
from editkit.lab import markup
from editkit.lab.room import WRAP, Room, draw
from editkit.lab.runs import ALL, FILTERS, RUNGS, RunTables

DRAWN, LISTED = 60, 300  # rows, at most, in the figure and in the table


def explorer(run_dir: str | Path) -> "Explorer":
    """Look through a run's tables of scores: by method, batch size, rank, replay, and rung.

    Raises ``ValueError`` for a folder that holds no such table.
    """
    return Explorer(RunTables(run_dir))


class Explorer(Room):
    """The widgets; :attr:`run` is what they show."""

    def __init__(self, run: RunTables):
        super().__init__()
        self.run, self.filters = run, w.HBox(layout=WRAP)
        self.name = w.Dropdown(options=list(run.tables), description="table")
        self.rung = w.Dropdown(description="rung")
        self.figure, self.table = w.Output(), w.HTML()
        self.name.observe(self._guarded(lambda change: run.choose(change.new)), "value")
        self.rung.observe(self._guarded(lambda change: run.choose(rung=change.new)), "value")
        self.children = [w.HBox([self.name, self.rung]), self.filters, self.notice, self.figure, self.table]
        run.changed = self._changed
        self._changed()

    def _changed(self) -> None:
        run = self.run
        with self._quiet():
            self.name.value = run.name
            self.rung.options = run.rungs
            self.rung.value = run.rung
            if [one.description for one in self.filters.children] != [FILTERS[name] for name in run.filters]:
                self.filters.children = [self._filter(name, values) for name, values in run.filters.items()]
            for name, one in zip(run.filters, self.filters.children, strict=True):
                one.options, one.value = [ALL, *run.filters[name]], run.kept.get(name, ALL)
        rows, scores = run.rows.assign(name=run.names), RUNGS[run.rung]
        told = f"{len(rows)} of {len(run.table)} rows"
        told += f"; the first {DRAWN} are drawn, and {LISTED} listed" if len(rows) > DRAWN else ""
        self.notice.value = markup.notice([told])
        draw(self.figure, figures.scores_explored(rows.head(DRAWN), scores) if len(rows) else None)
        cells = _cells(rows.head(LISTED), scores)
        self.table.value = markup.table(["", "n", *scores], cells) if len(rows) else ""

    def _filter(self, name: str, values: list[str]) -> w.Dropdown:
        one = w.Dropdown(options=[ALL, *values], description=FILTERS[name])
        one.observe(self._guarded(lambda change: self.run.choose(**{name: change.new})), "value")
        return one


def _cells(rows: pd.DataFrame, scores: list[str]) -> list[list[str]]:
    """Write rows as a table's cells: name, number of facts, and scores with their intervals."""
    sizes = rows.get("n", rows.get("n_facts", pd.Series("", rows.index)))
    written = zip(rows["name"], sizes, (row for _, row in rows.iterrows()), strict=True)
    return [[markup.text(name), markup.text(n), *(_score(row, score) for score in scores)] for name, n, row in written]


def _score(row: pd.Series, score: str) -> str:
    low, high = (row.get(f"{score}_{end}") for end in ("low", "high"))
    interval = "" if low is None or pd.isna(low) else f" [{low:.2f}, {high:.2f}]"
    return markup.share(row[score]) + interval
