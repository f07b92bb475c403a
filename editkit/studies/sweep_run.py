"""Cells of a sweep on Dask: what they share is made first, then every cell on a worker that holds the model.

Dask sends the cells and sends them again where a worker is lost; what has been found is in the store alone, from where
a worker reads a cell that is finished, and goes on with a sequence after its last stored step.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple
from uuid import uuid4

import torch
from distributed import Client, Future, KilledWorker, Worker, WorkerPlugin, as_completed, get_worker
from tqdm.auto import tqdm

from editkit.cache import Store, digest
from editkit.models import LanguageModel, load_lm
from editkit.studies.sweep import SweepCell, SweepParams
from editkit.studies.sweep_cells import Bench, Outcome, in_one_line, note_failure
from editkit.studies.sweep_cost import Pace, shown
from editkit.studies.sweep_plan import Job, Plan, surroundings_of, survey

TICK = 0.25  # seconds between two looks at the workers while nothing ends
LONELY = 30  # seconds without a worker after which that is said
BAR = "{desc}: {n_fmt} of {total_fmt} cells |{bar}| {elapsed}{postfix}"


class SchedulerLost(Exception):
    """The scheduler went away; what it had been told of and is not in the store has to be sent again."""


class Refusal(NamedTuple):
    """What a worker answers that cannot run a sweep."""

    worker: str  # its address
    problem: str


@dataclass
class Crew:
    """The workers of a client: which of them take no part in a sweep, and what is said where there are none."""

    client: Client
    say: Callable[[str], None] = tqdm.write
    refused: dict[str, str] = field(default_factory=dict)  # problems by address
    _alone: float | None = None  # since when there is no worker; inf once that has been said

    def fit(self) -> list[str]:
        """Return the addresses of the workers that are there and have not refused. Raises :class:`SchedulerLost`."""
        try:
            return [worker for worker in self.client.nthreads() if worker not in self.refused]
        except OSError:
            raise SchedulerLost from None

    def refuse(self, refusal: Refusal) -> None:
        """Leave a worker out, and say so once. Raises ``ValueError`` where it was the last one."""
        if not self.refused.get(refusal.worker):
            self.refused[refusal.worker] = refusal.problem
            if self.fit():
                self.say(f"worker {refusal.worker} takes no part: {refusal.problem}")
        if not self.fit():
            told = "; ".join(f"worker {worker}: {problem}" for worker, problem in self.refused.items())
            raise ValueError(f"no worker can run this sweep: {told}")

    def ended(self, futures: as_completed) -> Iterator[Future]:
        """Yield futures as they end, also those that are added meanwhile; what keeps the rest is told after a while."""
        while futures.count():
            if futures.has_ready():
                yield next(futures)
            else:
                self._look_around()
                with futures.thread_condition:
                    futures.thread_condition.wait(TICK)

    def _look_around(self) -> None:
        if self.fit():
            self._alone = None
            return
        self._alone = self._alone or time.monotonic()
        if time.monotonic() - self._alone >= LONELY:
            self._alone = math.inf
            self.say(
                f"no worker has been there for {LONELY:g} s; start one with 'dask worker "
                f"{self.client.scheduler.address} --nthreads 1', or see in squeue what Slurm's jobs wait for"
            )


class OnWorker(WorkerPlugin):
    """A sweep on a worker: its model and settings, loaded once, when the first cell comes."""

    def __init__(self, plan: Plan):
        self.name, self._plan = plan.id, plan
        self._bench: Bench | None = None
        self._lm: LanguageModel | None = None
        self._problem = ""

    def setup(self, worker: Worker) -> None:
        self.address, self.alone = worker.address, Lock()  # one cell at a time changes the model

    def ready(self) -> Bench | Refusal:
        """Return the sweep on this worker's model, or why it cannot be had here, which is found out once."""
        try:
            return Refusal(self.address, self._problem) if self._problem else self.bench
        except Exception as problem:  # whatever it is: other workers may be able to
            self._problem = in_one_line(problem)
            return Refusal(self.address, self._problem)

    @property
    def bench(self) -> Bench:
        """The sweep on this worker's model. Raises ``ValueError`` where results would be others than planned."""
        if self._bench is None:
            params, surroundings = self._plan.bench.params, self._plan.surroundings
            if not self._plan.sees_store():
                raise ValueError(
                    f"it does not see the store {self._plan.root}; set EDITKIT_CACHE to a folder that all workers share"
                )
            lm = load_lm(params.model, **params.loading)
            if lm.device.type == "cpu":
                torch.set_num_threads(1)
            found = surroundings_of(lm, store := Store(self._plan.root))
            if other := [name for name, value in surroundings.items() if found[name] != value]:
                raise ValueError(
                    f"it has another {' and '.join(other)} than the sweep was planned with; packages, device and "
                    "weights must be the same on all workers and where a sweep is planned"
                )
            self._lm, self._bench = lm, self._plan.bench.with_model(lm, store)
        return self._bench

    def check(self) -> None:
        """Drop the model where a failed cell has left its weights changed."""
        if self._lm is not None and self._lm.fingerprint() != self._plan.surroundings["model"]["weights"]:
            self._lm = self._bench = None


def _on_worker(sweep: str) -> OnWorker:
    """Return a sweep on the worker that this runs on."""
    plugins: Mapping[str, Any] = get_worker().plugins
    return plugins[sweep]


def run_job(sweep: str, job: Job) -> str | Refusal:
    """Make on a worker what cells share; returns the problem where that fails, which its cells will have too."""
    here = _on_worker(sweep)
    with here.alone:
        if isinstance(bench := here.ready(), Refusal):
            return bench
        try:
            job.run(bench)
        except Exception as problem:  # whatever it is: the cells that it concerns tell of it
            return in_one_line(problem)
    return ""


def run_cell(sweep: str, name: str, cell: SweepCell) -> Outcome | Refusal:
    """Run a cell on a worker, unless it is not the one there that was planned."""
    here = _on_worker(sweep)
    with here.alone:
        if isinstance(bench := here.ready(), Refusal):
            return bench
        work = bench.work(cell)
        if work.name != name:
            return Refusal(here.address, f"{cell} is {work.name} there, and was planned as {name}")
        outcome = work.run()
        if outcome.problem:
            here.check()
    return outcome


def planned(crew: Crew, params: SweepParams, **how: Any) -> Plan:
    """Let a worker make the plan, see :func:`editkit.studies.sweep_plan.survey`; raises what it raises there."""
    future = crew.client.submit(survey, params, pure=False, **how)
    (done,) = crew.ended(as_completed([future], loop=crew.client.loop))
    try:
        return result_of(done)
    except KilledWorker:
        raise ConnectionError("every worker that was to plan the sweep was lost; has each enough memory?") from None


def run(plan: Plan, crew: Crew, found: dict[str, Outcome], *, progress: bool = True) -> None:
    """Make what cells share, then run every pending cell that ``found`` lacks, and note there what became of it.

    A worker that cannot run the sweep is told with the reason, and what it was given goes to others.
    Raises :class:`SchedulerLost`, and ``ValueError`` where no worker can run it.
    """
    try:
        crew.client.register_plugin(OnWorker(plan))
    except OSError:
        raise SchedulerLost from None
    pending = {name: cell for name, cell in plan.pending.items() if name not in found}
    if not pending:
        return
    _share(plan, crew, progress)
    pace, left = plan.pace, dict(pending)
    sent = Sent(crew, run_cell, {name: (plan.id, name, cell) for name, cell in pending.items()}, plan.id)
    count = {"total": len(plan.cells), "initial": len(plan.cells) - len(left)}
    with tqdm(**count, desc="sweep", bar_format=BAR, disable=not progress) as bar:
        _say_left(bar, pace, left, crew)
        for name, result in sent.results():
            found[name] = outcome = _lost(plan, name, result) if isinstance(result, KilledWorker) else result
            cell = left.pop(name)
            if outcome.problem:
                bar.write(f"failed: {cell}: {outcome.problem}")
            else:
                pace.learn(cell, outcome.seconds)
            bar.update()
            _say_left(bar, pace, left, crew)


@dataclass
class Sent:
    """Calls of a function that workers make, each by its name; one that a worker refuses goes to the others."""

    crew: Crew
    call: Callable[..., Any]
    arguments: dict[str, tuple]
    prefix: str  # of the keys by which the scheduler knows them
    _open: dict[Future, str] = field(default_factory=dict)

    def results(self) -> Iterator[tuple[str, Any]]:
        """Send all, and yield names and results as they come, a :class:`KilledWorker` where workers were lost."""
        sent = [self._send(name) for name in self.arguments]
        futures = as_completed(sent, loop=self.crew.client.loop)
        for future in self.crew.ended(futures):
            name = self._open.pop(future)
            try:
                result = result_of(future)
            except KilledWorker as lost:
                result = lost
            if isinstance(result, Refusal):
                self.crew.refuse(result)
                futures.add(self._send(name, self.crew.fit()))
            else:
                yield name, result

    def _send(self, name: str, workers: list[str] | None = None) -> Future:
        """Send a call, again to certain workers as long as they are there."""
        key = f"{self.prefix}-{name}" + f"-{uuid4().hex}" * bool(workers)
        where = {"workers": workers, "allow_other_workers": bool(workers)}
        future = self.crew.client.submit(self.call, *self.arguments[name], key=key, pure=False, **where)
        self._open[future] = name
        return future


def _share(plan: Plan, crew: Crew, progress: bool) -> None:
    jobs = {digest(repr(job))[:32]: (plan.id, job) for job in plan.jobs}
    how = {"desc": "v*, second moments and scores that cells share", "unit": "part", "disable": not progress}
    for _, problem in tqdm(Sent(crew, run_job, jobs, plan.id).results(), total=len(jobs), **how):
        if problem:
            warnings.warn(f"what cells share could not all be made: {problem}", stacklevel=3)


def _lost(plan: Plan, name: str, lost: KilledWorker) -> Outcome:
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


def _say_left(bar: tqdm, pace: Pace, left: dict[str, SweepCell], crew: Crew) -> None:
    """Say how long the rest will take, by the seconds of finished cells that are alike."""
    workers = len(crew.fit())  # each runs one cell at a time, whatever its threads
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
