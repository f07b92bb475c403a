"""The command that runs a sweep: what it will do, what became of it, and what is left."""

from collections.abc import Callable, Mapping
from functools import partial
from textwrap import fill
from typing import Annotated, Any

from pydantic import Field

from editkit.config import Parameters
from editkit.studies.params import RunParams
from editkit.studies.sweep import SweepParams

WIDTH = 100  # of the help
say_now = partial(print, flush=True)  # a log shows it while a sweep goes on


class SweepFile(RunParams, SweepParams):
    """A parameter file of a report, with what a sweep takes besides."""


class SweepOptions(Parameters):
    """Where a sweep runs."""

    scheduler: str = "local"
    """Where cells run: local, slurm (by jobqueue.slurm of Dask's configuration), or a Dask scheduler's tcp://host:port."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Number of workers; 0: as many as this machine has GPUs, or cores and memory for, and one job of Slurm."""
    plan: bool = False
    """Print cells, those left out, estimated hours and memory, and run nothing."""
    tables: str = ""
    """Folder in which to write the tables of all finished cells afterwards, as results/*.csv."""
    failed: bool = False
    """Print the cells that failed when they were last run, each with its traceback, and run nothing."""


def keys() -> str:
    """List what a parameter file may say of the matrix alone, each key with its meaning and default."""
    own = {name: SweepParams.model_fields[name] for name in SweepParams.__annotations__}
    lines = (f"{name}: {' '.join(field.description.split())} Default: {field.default}." for name, field in own.items())
    told = "\n".join(fill(line, WIDTH, initial_indent="  ", subsequent_indent="    ") for line in lines)
    return f"keys of the parameter file for the matrix, beside those of a report (params/base.yaml):\n{told}"


def sweep(file: str, texts: Mapping[str, Any], say: Callable[[str], None] = say_now) -> bool:
    """Run a sweep by the words of the command line, or say what it would do; returns whether no cell failed.

    Finished cells are not run again, failed ones are. Raises ``ValueError`` where parameters or options are wrong,
    ``OSError`` where a scheduler does not answer.
    """
    from editkit.studies import sweep_cluster  # Dask takes a second, which other commands need not wait for
    from editkit.studies.results import Results
    from editkit.studies.sweep_cells import Bench
    from editkit.studies.sweep_tables import gather, save

    options = SweepOptions.from_texts(texts)
    if options.plan and options.failed:
        raise ValueError("plan and failed: one of the two can be printed")
    act: sweep_cluster.Act = "plan" if options.plan else "failed" if options.failed else "run"
    params = SweepFile.load(file)
    plan, found = sweep_cluster.sweep(params, options.scheduler, options.workers, act=act, say=say)
    if options.tables:
        written = save(gather(Bench.prepare(params)), Results(options.tables), params)
        say(f"{', '.join(written)}: in {Results(options.tables).folder / 'results'}")
    failed = sum(bool(outcome.problem) for outcome in found.values())
    if found:
        say(f"{len(plan.seconds) + len(found) - failed} of {len(plan.cells)} cells are finished")
    if failed:
        say(f"{failed} cell{'s' * (failed > 1)} failed; --failed prints tracebacks, and the next call runs them again")
    return not failed
