"""The command that runs a sweep: what it will do, what became of it, and what is left."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from editkit.config import Parameters
from editkit.studies.params import RunParams
from editkit.studies.sweep import SweepParams

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


def sweep(file: str, texts: Mapping[str, Any], say: Callable[[str], None] = say_now) -> bool:
    """Run a sweep by the words of the command line, or say what it would do; returns whether no cell failed.

    Finished cells are not run again, failed ones are. Raises ``ValueError`` where parameters or options are wrong or a
    package is missing, ``OSError`` where a scheduler does not answer.
    """
    options = SweepOptions.from_texts(texts)
    params = SweepFile.load(file)
    try:
        from editkit.studies import sweep_cluster
    except ImportError as missing:
        raise ValueError(f"a sweep runs on Dask, but {missing}: pip install dask distributed") from None
    plan, found = sweep_cluster.sweep(params, options.scheduler, options.workers, only_plan=options.plan, say=say)
    failed = sum(bool(outcome.problem) for outcome in found.values())
    if found:
        say(f"{len(plan.seconds) + len(found) - failed} of {len(plan.cells)} cells are finished")
    if failed:
        say(f"{failed} cell{'s' * (failed > 1)} failed; tracebacks are kept, and the next call runs them again")
    return not failed
