"""The folder of a run: tables with their provenance beside them, and figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from editkit.cache import write_atomic
from editkit.config import Parameters
from editkit.plain import to_json
from editkit.studies.places import checkout

RECORDED = "recorded_"  # how names of tables begin that another run wrote


def elsewhere(parameter: str, run: str) -> str:
    """Say which recorded run asks a question that this one leaves out."""
    return f"{parameter} = 0: not asked here. What follows is recorded: reports/{run} (params/{run}.yaml)"


class Results:
    """``results/*.csv`` and ``figures/*.png`` of one run folder, made where missing."""

    def __init__(self, run_dir: str | Path):
        self.folder = Path(run_dir)

    def save(self, name: str, frame: pd.DataFrame, params: Parameters | None = None, **provenance: Any) -> Path:
        """Write ``results/{name}.csv``; parameters (not the folder) and provenance go to ``{name}.json`` beside it."""
        path = self.folder / "results" / f"{name}.csv"
        if params or provenance:
            stated = params.model_dump(exclude={"run_dir"}) if params else None
            about = {"parameters": stated, **provenance}
            write_atomic(path.with_suffix(".json"), to_json(about, indent=1).encode())
        write_atomic(path, frame.to_csv(index=False).encode())
        return path

    def keep(
        self, tables: Mapping[str, pd.DataFrame], params: Parameters | None = None, **provenance: Any
    ) -> dict[str, pd.DataFrame]:
        """Save tables that share parameters and provenance, by name; return them."""
        for name, frame in tables.items():
            self.save(name, frame, params, **provenance)
        return dict(tables)

    def load(self, name: str) -> pd.DataFrame:
        """Read a table that an earlier notebook of the run wrote. Raises ``ValueError`` for one that is missing."""
        path = self.folder / "results" / f"{name}.csv"
        if not path.is_file():
            raise ValueError(f"{path} does not exist: run the notebook that writes it, with the same run_dir")
        return pd.read_csv(path, keep_default_na=False, na_values=[""])

    def tables(self, *names: str) -> dict[str, pd.DataFrame]:
        """Read those of some tables that are here: of a run in which every chapter may be left out."""
        return {name: self.load(name) for name in names if (self.folder / "results" / f"{name}.csv").is_file()}

    def recorded(self, run: str, *names: str) -> dict[str, pd.DataFrame]:
        """Copy tables of a recorded run, ``reports/{run}`` of the checkout, to this one, under the names of the result.

        Returns them as ``recorded_{name}``, in the order that is asked for; none where one of them is not there.
        """
        source = Results(checkout() / "reports" / run)
        found = source.tables(*names)
        if len(found) < len(names):
            return {}
        for name, frame in found.items():
            self.save(RECORDED + name, frame, recorded_in=f"reports/{run}/results/{name}.csv")
        return {RECORDED + name: frame for name, frame in found.items()}

    def figure(self, name: str) -> Path:
        """Return the path where the figure of that name belongs."""
        return self.folder / "figures" / f"{name}.png"
