"""Cells of a sweep on Dask: what they share is made first, then every cell on a worker that holds the model.

Dask sends the cells and sends them again where a worker is lost; what has been found is in the store alone, from where
a worker reads a cell that is finished, and goes on with a sequence after its last stored step.
"""

import math
import warnings
from concurrent.futures import CancelledError
from threading import Lock
from typing import Any

import torch
from distributed import Client, Future, KilledWorker, Worker, WorkerPlugin, as_completed, get_worker
from tqdm.auto import tqdm

from editkit.cache import Store, digest, entry_key
from editkit.models import LanguageModel, load_lm
from editkit.studies import sweep_cells
from editkit.studies.sweep import SweepCell
from editkit.studies.sweep_cells import Bench, Outcome, note_failure
from editkit.studies.sweep_cost import Pace, shown
from editkit.studies.sweep_plan import Job, Plan

BAR = "{desc}: {n_fmt} of {total_fmt} cells |{bar}| {elapsed}{postfix}"


class SchedulerLost(Exception):
    """The scheduler went away; what it had been told of and is not in the store has to be sent again."""


class OnWorker(WorkerPlugin):
    """A sweep on a worker: its model and settings, loaded once, when the first cell comes."""

    def __init__(self, plan: Plan):
        self.name, self._plan = plan.id, plan
        self._bench: Bench | None = None
        self._lm: LanguageModel | None = None

    def setup(self, worker: Worker) -> None:
        self.address, self.alone = worker.address, Lock()  # one cell at a time changes the model

    @property
    def bench(self) -> Bench:
        """The sweep on this worker's model. Raises ``ValueError`` where results would be others than planned."""
        if self._bench is None:
            params, surroundings = self._plan.bench.params, self._plan.surroundings
            if not self._plan.sees_store():
                raise ValueError(
                    f"worker {self.address} does not see the store {self._plan.root}; set EDITKIT_CACHE to a folder "
                    "that all workers share"
                )
            lm = load_lm(params.model, **params.loading)
            if lm.device.type == "cpu":
                torch.set_num_threads(1)
            found = entry_key(sweep_cells.__name__, lm)
            if other := [name for name, value in surroundings.items() if found[name] != value]:
                raise ValueError(
                    f"worker {self.address} has another {' and '.join(other)} than the sweep was planned with; "
                    "packages, device and weights must be the same on all workers and where a sweep is planned"
                )
            self._lm, self._bench = lm, self._plan.bench.with_model(lm, Store(self._plan.root))
        return self._bench

    def check(self) -> None:
        """Drop the model where a failed cell has left its weights changed."""
        if self._lm is not None and self._lm.fingerprint() != self._plan.surroundings["model"]["weights"]:
            self._lm = self._bench = None


def run_job(sweep: str, job: Job) -> str:
    """Make on a worker what cells share; returns the problem where that fails, which its cells will have too."""
    here: OnWorker = get_worker().plugins[sweep]
    with here.alone:
        bench = here.bench
        try:
            job.run(bench)
        except Exception as problem:  # whatever it is: the cells that it concerns tell of it
            return f"{type(problem).__name__}: {problem}"
    return ""


def run_cell(sweep: str, name: str, cell: SweepCell) -> Outcome:
    """Run a cell on a worker. Raises ``ValueError`` where it is not the one that was planned."""
    here: OnWorker = get_worker().plugins[sweep]
    with here.alone:
        work = here.bench.work(cell)
        if work.name != name:
            raise ValueError(f"{cell} is {work.name} on worker {here.address}, and was planned as {name}")
        outcome = work.run()
        if outcome.problem:
            here.check()
    return outcome


def run(plan: Plan, client: Client, found: dict[str, Outcome], *, progress: bool = True) -> None:
    """Make what cells share, then run every pending cell that ``found`` lacks, and note there what became of it.

    Raises :class:`SchedulerLost`, and what a worker raises that cannot load the sweep.
    """
    try:
        client.register_plugin(OnWorker(plan))
    except OSError:
        raise SchedulerLost from None
    pending = {name: cell for name, cell in plan.pending.items() if name not in found}
    if not pending:
        return
    _share(plan, client, progress)
    pace, left = plan.pace, dict(pending)
    keys = {name: f"{plan.id}-{name}" for name in pending}
    sent = {client.submit(run_cell, plan.id, *item, key=keys[item[0]], pure=False): item[0] for item in pending.items()}
    count = {"total": len(plan.cells), "initial": len(plan.cells) - len(left)}
    with tqdm(**count, desc="sweep", bar_format=BAR, disable=not progress) as bar:
        _say_left(bar, pace, left, client)
        for future in as_completed(sent, loop=client.loop):
            name = sent[future]
            found[name] = outcome = _outcome(plan, future, name)
            cell = left.pop(name)
            if outcome.problem:
                bar.write(f"failed: {cell}: {outcome.problem}")
            else:
                pace.learn(cell, outcome.seconds)
            bar.update()
            _say_left(bar, pace, left, client)


def _share(plan: Plan, client: Client, progress: bool) -> None:
    futures = [
        client.submit(run_job, plan.id, job, key=f"{plan.id}-{digest(repr(job))[:32]}", pure=False) for job in plan.jobs
    ]
    for future in tqdm(
        as_completed(futures, loop=client.loop),
        total=len(futures),
        desc="v*, second moments and scores that cells share",
        unit="part",
        disable=not progress,
    ):
        try:
            problem = result_of(future)
        except KilledWorker as lost:
            problem = str(lost)
        if problem:
            warnings.warn(f"what cells share could not all be made: {problem}", stacklevel=3)


def _outcome(plan: Plan, future: Future, name: str) -> Outcome:
    try:
        return result_of(future)
    except KilledWorker as lost:
        if plan.sees_store():
            note_failure(Store(plan.root), name, lost)
        return Outcome(name, math.nan, f"every worker that ran it was lost ({lost.allowed_failures + 1} in all)")


def result_of(future: Future) -> Any:
    """Wait for a result; raises what was raised on the worker, and :class:`SchedulerLost`."""
    try:
        return future.result()
    except CancelledError:
        raise SchedulerLost from None
    except OSError:  # of the connection, unless it is the worker's own
        if future.status == "error":
            raise
        raise SchedulerLost from None


def _say_left(bar: tqdm, pace: Pace, left: dict[str, SweepCell], client: Client) -> None:
    """Say how long the rest will take, by the seconds of finished cells that are alike."""
    try:
        workers = len(client.nthreads())  # each runs one cell at a time, whatever its threads
    except OSError:
        raise SchedulerLost from None
    if not workers:
        bar.set_postfix_str("no worker yet")
        return
    rest = pace.left(left.values())
    on, unknown = f"on {workers} worker{'s' * (workers > 1)}", f"{rest.unknown} cells of which none that is alike is"
    if left and rest.unknown == len(left) and not rest.seconds:
        bar.set_postfix_str(f"how long is not known: {unknown} finished, {on}")
        return
    told = f"about {shown(rest.on(workers))} left {on}"
    bar.set_postfix_str(told + f" and {unknown} finished" * bool(rest.unknown))
