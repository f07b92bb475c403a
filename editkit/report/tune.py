"""The command that tunes a model: a search of each method, its defaults as YAML, and what trials found."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from editkit import figures
from editkit.cache import write_atomic
from editkit.editing.spec import defaults_file
from editkit.methods import label
from editkit.studies.tune import TuneParams, prepare, search, studies
from editkit.studies.tune_file import importances, tell, trial_table, write, yaml_path


def tune(texts: Mapping[str, Any]) -> Iterator[str]:
    """Search by the words of the command line; yields what there is to tell.

    Writes ``<model>.yaml``, and for each method ``<model>-<method>.csv`` and the figure of the same name. Searches that
    are stopped write nothing, but go on where they were when the same is called again.
    Raises ``ValueError``, before anything is loaded, for a file that may not be replaced.
    """
    begun, params = time.monotonic(), TuneParams.from_texts(texts)
    path, methods = yaml_path(params), list(dict.fromkeys(params.method))
    tuning, failed = prepare(params), []
    yield f"study {tuning.file}; once stopped, the same command goes on with it"
    for place, method in enumerate(methods, start=1):
        until = begun + 60 * params.minutes * place / len(methods)
        try:
            yield tell(method, search(tuning, method, until=until, trials=params.trials))
        except ValueError as problem:  # what the other methods found is written all the same
            failed.append(str(problem))
    if not (found := studies(tuning)):
        raise ValueError("; ".join(failed))
    write(path, tuning, found, params)
    for method in [method for method in methods if method in found]:
        table, name = trial_table(found[method]), f"{path.stem}-{method}"
        write_atomic(path.with_name(f"{name}.csv"), table.to_csv(index=False).encode())
        figure = figures.sensitivity(table, importances(found[method]), title=label(method), subtitle=params.model)
        figures.save(figure, path.with_name(f"{name}.png"))
    yield f"written to {path}; {_found_by(params.model, path)}"
    if failed:
        raise ValueError("; ".join(failed))


def _found_by(model: str, path: Path) -> str:
    """Say whether an edit takes a file of defaults by itself."""
    taken = defaults_file(model)
    if taken and taken.resolve() == path.resolve():
        return "edits of this model take their defaults from it" + " when they are made here" * (not path.is_absolute())
    return f"set EDITKIT_HPARAMS={path.parent.resolve()} for edits to take their defaults from it"
