"""Sweeps in processes of their own, that a test can kill; what is compared of their tables."""

import os
import threading
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
from distributed import Client, LocalCluster

from editkit.cache import Store
from editkit.studies.sweep import SweepParams
from editkit.studies.sweep_cells import Bench
from editkit.studies.sweep_plan import Plan, survey
from editkit.studies.sweep_run import Crew, run
from editkit.studies.sweep_tables import Found, gather

CONTEXT = get_context("forkserver")  # of a clean process that has imported everything
CONTEXT.set_forkserver_preload(["editkit.studies.sweep_cluster", "editkit.language.domain", "transformers"])
QUIET = {"dashboard_address": None, "threads_per_worker": 1, "n_workers": 1, "processes": False, "memory_limit": 0}


def sweep_here(values: dict, root: str) -> None:
    """Run a sweep in this process, on one worker, a thread."""
    os.environ["EDITKIT_CACHE"] = root
    plan = survey(SweepParams(**values), progress=False)
    with LocalCluster(**QUIET) as cluster, Client(cluster) as client:
        run(plan, Crew(client), {}, progress=False)


def serve(port: int, root: str) -> None:
    """Be a scheduler and its worker at a port until killed."""
    os.environ["EDITKIT_CACHE"] = root
    with LocalCluster(**QUIET, scheduler_port=port, protocol="tcp://", host="127.0.0.1"):
        threading.Event().wait()


def start(target, *arguments):
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def finished(plan: Plan) -> dict[str, int]:
    """When each finished cell was written."""
    root = Path(plan.root)
    return {name: next(root.glob(f"*/{name}.safetensors")).stat().st_mtime_ns for name in plan.seconds}


def results(store: Store) -> list[Path]:
    """List the entries of cells, whole or not."""
    kinds = ("sequence", "sequence-part", "cell")
    return [path for kind in kinds for path in store.root.glob(f"{kind}/*.safetensors")]


def look(params: SweepParams, store: Store) -> Plan:
    return survey(params, store=store, progress=False)


def tables(params: SweepParams, store: Store) -> Found:
    return gather(Bench.prepare(params, store=store, progress=False), progress=False)


def assert_same(ours: Found, theirs: Found) -> None:
    """Assert that all that was measured is the same, bit for bit; clocks and memory aside."""
    for name in ("baselines", "prompts"):
        same(getattr(ours, name), getattr(theirs, name))
    for one, other in zip(ours.trajectory, theirs.trajectory, strict=True):
        same(one, other)


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    timeless = [name for name in other if not name.startswith(("seconds", "peak"))]
    pd.testing.assert_frame_equal(one[timeless], other[timeless], check_exact=True)
