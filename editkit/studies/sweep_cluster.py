"""Where the cells of a sweep run: workers of this machine, of a Dask scheduler somewhere, or jobs of Slurm."""

import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import psutil
import torch
from dask_jobqueue import SLURMCluster
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.system import memory_limit

from editkit.models import pick_device
from editkit.models.placement import usable_cores
from editkit.studies.sweep import SweepParams
from editkit.studies.sweep_cells import Outcome
from editkit.studies.sweep_plan import Plan, survey, tell, tell_failed
from editkit.studies.sweep_run import Crew, SchedulerLost, planned, run

LOCAL, SLURM = "local", "slurm"
ADDRESS = re.compile(r"(tcp|tls|ws|wss)://[^/\s]+:\d+")
ANSWER = 10  # seconds within which a scheduler has to answer
AGAIN = 0.5  # seconds until one that hung up is called again
Act = Literal["run", "plan", "failed"]
PATIENCE = 120  # seconds that a lost scheduler has to come back


def check_scheduler(scheduler: str, workers: int) -> None:
    """Raise ``ValueError`` for what is no scheduler or not there, and for workers where it has its own."""
    if scheduler == SLURM:
        if not shutil.which("sbatch"):
            raise ValueError("scheduler = 'slurm': there is no sbatch here; call this where jobs are submitted")
    elif scheduler != LOCAL:
        if not ADDRESS.fullmatch(scheduler):
            raise ValueError(
                f"scheduler = {scheduler!r}: must be {LOCAL}, {SLURM} or the address of a Dask scheduler such as "
                "tcp://host:8786"
            )
        if workers:
            raise ValueError(f"workers = {workers}: the scheduler at {scheduler} has workers of its own")


def sweep(
    params: SweepParams,
    scheduler: str = LOCAL,
    workers: int = 0,
    *,
    act: Act = "run",
    say: Callable[[str], None] = print,
    patience: float = PATIENCE,
    progress: bool = True,
) -> tuple[Plan, dict[str, Outcome]]:
    """Plan a sweep, say what it will do, and run the cells that are not finished; or only say what it would do or
    which cells failed.

    Args:
        scheduler: "local", "slurm" or a Dask scheduler's address. Unless it is local, a worker makes the plan, on
            whose device and packages the results depend.
        workers: processes on this machine (0: as many as it has GPUs, or cores and memory for) or jobs of Slurm (0: 1).
        act: "plan" runs nothing, and times a few facts; "failed" only tells which cells failed, with tracebacks.
        patience: seconds in which a scheduler that was lost may come back; what was in flight is then sent again.

    Returns the plan, and what became of each cell that was run, by its name. Raises ``ValueError`` as
    :func:`check_scheduler` and :func:`editkit.studies.sweep_plan.survey` do, ``OSError`` where there is no
    scheduler, or none any more.
    """
    check_scheduler(scheduler, workers)
    how: dict[str, Any] = {"probe": act == "plan", "progress": progress}
    found, plan = dict[str, Outcome](), None
    wait: float = ANSWER
    told = tell_failed if act == "failed" else tell
    if scheduler == LOCAL:
        plan = survey(params, **how)
        torch.cuda.empty_cache()  # the model is no longer needed here
        workers = workers or default_workers(plan)
        _say_all(say, told(plan, workers))
        if act != "run" or not plan.pending:
            return plan, found
    while True:
        with _connected(scheduler, max(workers, 1), wait) as client:
            crew = Crew(client, say)
            try:
                if plan is None:
                    plan = planned(crew, params, **how)
                    _say_all(say, told(plan, max(1, len(crew.fit()))))
                if act == "run":
                    run(plan, crew, found, progress=progress)
                return plan, found
            except SchedulerLost:
                if not ADDRESS.fullmatch(scheduler):
                    raise ConnectionError("the scheduler is lost; the same command goes on from here") from None
                say(f"the scheduler at {scheduler} is lost, not what is finished; it has {patience:g} s to return")
        wait = patience


def _say_all(say: Callable[[str], None], lines: Iterable[str]) -> None:
    for line in lines:
        say(line)


def default_workers(plan: Plan) -> int:
    """Return how many workers this machine has room for: GPUs, or cores as far as its memory goes."""
    cells = max(1, len(plan.pending))
    if pick_device(plan.bench.params.device).type == "cuda":
        return min(torch.cuda.device_count(), cells)
    allowed = usable_cores()
    cores = min(psutil.cpu_count(logical=False) or allowed, allowed)
    room = _free_mb() / plan.memory_mb
    return max(1, min(cores, int(room), cells))


def _free_mb() -> float:
    """Return the memory in MB that this process may still take: of the machine, and of its control group's limit."""
    allowed = memory_limit() - psutil.Process().memory_info().rss
    return min(psutil.virtual_memory().available, allowed) / 2**20


@contextmanager
def _connected(scheduler: str, workers: int, wait: float) -> Iterator[Client]:
    if scheduler == LOCAL:
        with local_cluster(workers) as cluster, Client(cluster, set_as_default=False) as client:
            yield client
    elif scheduler == SLURM:
        with slurm_cluster(workers) as cluster, Client(cluster, set_as_default=False) as client:
            yield client
    else:
        with _reached(scheduler, wait) as client:
            yield client


def _reached(scheduler: str, wait: float) -> Client:
    """Connect to a scheduler that may be about to go or to come: one that hangs up is called again.

    Raises ``ConnectionError`` where none answers for ``wait`` seconds.
    """
    until = time.monotonic() + wait
    while True:
        try:
            return Client(scheduler, timeout=max(until - time.monotonic(), AGAIN), set_as_default=False)
        except OSError as problem:
            if time.monotonic() >= until:
                raise ConnectionError(
                    f"no Dask scheduler answers at {scheduler} ({' '.join(str(problem).split()):.100}); start one with "
                    f"'dask scheduler', and workers with 'dask worker {scheduler} --nthreads 1'"
                ) from None
        time.sleep(AGAIN)


def local_cluster(workers: int) -> SpecCluster:
    """Start workers on this machine, a process and a thread each, with a GPU of its own where there are GPUs.

    A worker that dies is started again.
    """
    gpus = _visible_gpus()
    common = {"nthreads": 1, "host": "127.0.0.1", "memory_limit": 0, "silence_logs": logging.CRITICAL}
    each = [{"env": {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]}} if gpus else {} for i in range(workers)]
    return SpecCluster(
        workers={number: {"cls": Nanny, "options": common | own} for number, own in enumerate(each)},
        scheduler={"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard": False}},
        silence_logs=logging.CRITICAL,
        name="sweep",
    )


def _visible_gpus() -> list[str]:
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(i) for i in range(torch.cuda.device_count())])[: torch.cuda.device_count()]


def slurm_cluster(workers: int):
    """Ask Slurm for jobs, a worker each, as Dask's configuration says (jobqueue.slurm: queue, memory, walltime, …).

    A job that ends, as at its walltime, is replaced by another one.
    Raises ``ValueError`` where the configuration does not say how much memory a job gets.
    """
    try:
        cluster = SLURMCluster(cores=1, processes=1, python=sys.executable)
    except ValueError:
        raise ValueError(
            "scheduler = 'slurm': say in ~/.config/dask/jobqueue.yaml what a job gets, at least jobqueue.slurm.memory; "
            "a GPU by job-extra-directives: ['--gres=gpu:1']"
        ) from None
    cluster.adapt(minimum_jobs=workers, maximum_jobs=workers)
    return cluster
