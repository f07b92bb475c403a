"""A run's tables of scores to look through: filtered by what was varied, and read at one rung of the ladder."""

from collections.abc import Callable, Collection
from pathlib import Path

import pandas as pd

from editkit.language.metrics import ENDING, LETTER
from editkit.methods import label
from editkit.studies.results import Results

FIRST = "final_summary"  # the table that is opened, where a run has it
FILTERS = {  # what may have been varied, and what it is called
    "method": "method",
    "batch_size": "batch size",
    "lora_rank": "rank",
    "replay": "replay",
    "replay_rate": "replay rate",
    "lora_fit": "fit",
    "neighbour_budget": "promise",
    "part": "part",
    "arrival": "arrival",
    "moment": "moment",
    "seed": "seed",
}
RUNGS = {rung: [f"{letter}{ending}" for letter in LETTER.values()] for rung, ending in ENDING.items()}
ALL, NONE = "all", "–"


class RunTables:
    """The tables of one run that hold scores of edits; :attr:`changed` is called when another choice was made.

    Raises ``ValueError`` for a folder that holds no such table.
    """

    def __init__(self, run_dir: str | Path):
        results = Results(run_dir)
        self.changed: Callable[[], None] = lambda: None
        paths = sorted((results.folder / "results").glob("*.csv"), key=lambda path: (path.stem != FIRST, path.stem))
        found = {path.stem: results.load(path.stem) for path in paths if path.stat().st_size > 1}
        self.tables = {name: table for name, table in found.items() if "method" in table and rungs_of(table)}
        if not self.tables:
            raise ValueError(f"{results.folder} holds no table of scores in results/: run a chapter into it first")
        self.name = next(iter(self.tables))
        self.rung = rungs_of(self.table)[0]
        self.kept: dict[str, str] = {}  # the value that each filter lets through, as it is shown

    @property
    def table(self) -> pd.DataFrame:
        return self.tables[self.name]

    @property
    def rungs(self) -> list[str]:
        """The rungs that the table holds."""
        return rungs_of(self.table)

    @property
    def filters(self) -> dict[str, list[str]]:
        """What was varied in the table, with the values there are, as they are shown."""
        found = {name: shown_values(self.table[name]) for name in FILTERS if name in self.table}
        return {name: sorted(set(values), key=_order) for name, values in found.items() if values.nunique() > 1}

    @property
    def rows(self) -> pd.DataFrame:
        """The rows that all filters let through, and that have the rung."""
        kept = self.table[RUNGS[self.rung][0]].notna()
        for name, value in self.kept.items():
            kept &= shown_values(self.table[name]) == value
        return self.table[kept]

    @property
    def names(self) -> pd.Series:
        """What each of the rows is called: its configuration, or all that was varied in it."""
        rows = self.rows
        if "configuration" in rows:
            return rows.configuration
        told = rows["method"].map(label)
        for name in self.filters:
            values = shown_values(rows[name])
            if name != "method" and len({*values} - {NONE}) > 1:  # what all rows share tells none from another
                told += (f", {FILTERS[name]} " + values).where(values != NONE, "")
        return told

    def choose(self, name: str | None = None, rung: str | None = None, **kept: str) -> None:
        """Choose a table, a rung, and values of filters; ``ALL`` takes a filter off. Another table has none on.

        Raises ``ValueError`` for what the run, or the table, does not have.
        """
        _check("table", name or self.name, self.tables)
        if name and name != self.name:
            self.name, self.kept = name, {}
            self.rung = self.rung if self.rung in self.rungs else self.rungs[0]
        _check("rung", rung or self.rung, self.rungs)
        self.rung, filters = rung or self.rung, self.filters
        for column, value in kept.items():
            _check("filter", column, filters)
            _check(column, value, [ALL, *filters[column]])
        self.kept = {column: value for column, value in {**self.kept, **kept}.items() if value != ALL}
        self.changed()


def rungs_of(table: pd.DataFrame) -> list[str]:
    """List the rungs of which a table holds all three scores."""
    return [rung for rung, names in RUNGS.items() if all(name in table and table[name].notna().any() for name in names)]


def shown_values(column: pd.Series) -> pd.Series:
    """Write a column's values as they are shown: numbers short, and a dash where there is none."""
    return column.map(lambda value: f"{value:g}" if isinstance(value, float) else str(value), na_action="ignore").where(
        column.notna(), NONE
    )


def _order(value: str) -> tuple[bool, float, str]:
    """Numbers by size, then words; a dash first."""
    number = value.replace(".", "", 1).isdigit()
    return value != NONE, float(value) if number else float("inf"), value


def _check(what: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{what} = {value!r}: must be one of {', '.join(allowed)}")
