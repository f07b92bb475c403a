"""Where cells run: workers that are lost, a scheduler that is lost, and what is refused."""

import os
import signal
import socket
import threading
import time

import dask
import psutil
import pytest
from distributed import Client

from editkit.studies import sweep_cluster
from editkit.studies.sweep_cells import note_failure
from editkit.studies.sweep_cluster import check_scheduler, sweep
from tests.unit.studies.sweeping import assert_same, finished, look, results, serve, start, tables


@pytest.fixture
def here(store, monkeypatch):
    """The store of this test is the one that sweeps take by themselves."""
    monkeypatch.setenv("EDITKIT_CACHE", str(store.root))
    return store


def whole(store):
    """When each entry of batches was written, which unlike those of sequences are written once."""
    return {path: path.stat().st_mtime_ns for path in store.root.glob("cell/*.safetensors")}


def when_some_are_finished(store, act, number=3):
    """Act once some entries of cells are there."""

    def watch():
        while len(results(store)) < number:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_what_it_had_in_hand(sweep_params, here, undisturbed):
    killed, before = [], {}

    def kill():
        before.update(whole(here))
        workers = [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
        killed.append(max(workers, key=lambda process: process.memory_info().rss).pid)
        psutil.Process(killed[0]).send_signal(signal.SIGKILL)

    watch = when_some_are_finished(here, kill)
    plan, found = sweep(sweep_params(), "local", 2, say=lambda _: None, progress=False)
    watch.join(60)
    assert killed and len(found) == 24 and not any(outcome.problem for outcome in found.values())
    after = finished(look(sweep_params(), here))
    assert len(after) == 24 and before and whole(here).items() >= before.items(), "nothing finished is computed again"
    assert_same(tables(sweep_params(), here), undisturbed)
    again, nothing = sweep(sweep_params(), "local", 2, say=lambda _: None, progress=False)
    assert not again.pending and not nothing and finished(again) == after


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_a_scheduler_that_is_killed_and_started_again_costs_what_was_in_flight(
    sweep_params, here, undisturbed, address
):
    servers, said, before = [start(serve, address, str(here.root))], [], {}

    def restart():
        before.update(whole(here))
        servers[0].kill()
        servers[0].join()
        servers.append(start(serve, address, str(here.root)))

    watch = when_some_are_finished(here, restart)
    try:
        plan, found = sweep(sweep_params(), f"tcp://127.0.0.1:{address}", say=said.append, patience=60, progress=False)
    finally:
        watch.join(60)
        for server in servers:
            server.kill()
    assert any("is lost" in line for line in said)
    assert before and whole(here).items() >= before.items(), "nothing finished is computed again"
    assert len(plan.cells) == len(found) == 24 and not any(outcome.problem for outcome in found.values())
    assert_same(tables(sweep_params(), here), undisturbed)


def test_a_scheduler_that_does_not_answer_is_told_with_what_to_start(sweep_params, address, monkeypatch):
    monkeypatch.setattr(sweep_cluster, "ANSWER", 0.5)
    with pytest.raises(ConnectionError, match=f"no Dask scheduler answers at tcp:.*{address} .*'dask scheduler'"):
        sweep(sweep_params(), f"tcp://127.0.0.1:{address}", progress=False)


def test_a_scheduler_that_goes_in_the_middle_of_its_answer_is_called_again(sweep_params, here, address, monkeypatch):
    """As one does that is killed, or started, while it is called."""
    server, failures = start(serve, address, str(here.root)), [ConnectionResetError("gone"), OSError("not there yet")]

    def client(*args, **how):
        if failures:
            raise failures.pop()
        return Client(*args, **how)

    monkeypatch.setattr(sweep_cluster, "Client", client)
    try:
        plan, _ = sweep(sweep_params(), f"tcp://127.0.0.1:{address}", act="failed", say=lambda _: None, progress=False)
    finally:
        server.kill()
    assert len(plan.cells) == 24 and not failures


@pytest.mark.parametrize(
    ("scheduler", "workers", "message"),
    [
        ("lokal", 0, "scheduler = 'lokal': must be local, slurm or the address"),
        ("tcp://", 0, "scheduler = 'tcp://': must be"),
        ("tcp://here", 0, "scheduler = 'tcp://here': must be"),
        ("http://here:80", 0, "must be local, slurm or the address of a Dask scheduler such as tcp://host:8786"),
        ("tcp://here:8786", 2, "workers = 2: the scheduler at tcp://here:8786 has workers of its own"),
    ],
)
def test_what_is_no_scheduler_is_refused_before_anything_is_loaded(scheduler, workers, message):
    with pytest.raises(ValueError, match=message):
        check_scheduler(scheduler, workers)


def test_slurm_needs_its_commands(monkeypatch):
    monkeypatch.setattr(sweep_cluster.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="there is no sbatch here"):
        check_scheduler("slurm", 2)
    monkeypatch.setattr(sweep_cluster.shutil, "which", lambda name: f"/usr/bin/{name}")
    check_scheduler("slurm", 2)


SBATCH = """cp "$1" "$0.$$"
setsid bash "$0.$$" >/dev/null 2>&1 &
echo "Submitted batch job $!"
"""


@pytest.mark.slow
def test_a_job_that_slurm_has_ended_is_replaced(tmp_path, monkeypatch):
    for name, text in {"sbatch": SBATCH, "scancel": 'kill -- "-$1"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    job = {"jobqueue.slurm.memory": "1GB", "distributed.deploy.lost-worker-timeout": "1s"}
    with dask.config.set(job), sweep_cluster.slurm_cluster(1) as cluster, Client(cluster) as client:
        client.wait_for_workers(1, timeout=120)
        ((first, process),) = client.run(os.getpid).items()
        os.killpg(os.getpgid(process), signal.SIGKILL)  # the whole job, as at its walltime
        end = time.monotonic() + 120
        while not (now := client.nthreads().keys() - {first}) and time.monotonic() < end:
            time.sleep(0.5)
        assert len(now) == 1


def test_a_machine_gets_workers_for_its_memory_and_for_what_is_left(sweep_params, store, monkeypatch):
    plan = look(sweep_params(), store)
    monkeypatch.setattr(sweep_cluster.psutil, "cpu_count", lambda logical: 8)
    monkeypatch.setattr(sweep_cluster.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    memory = [10 * plan.memory_mb * 2**20]
    monkeypatch.setattr(sweep_cluster.psutil, "virtual_memory", lambda: type("", (), {"available": memory[0]}))
    monkeypatch.setattr(sweep_cluster, "memory_limit", lambda: 2**60)
    assert sweep_cluster.default_workers(plan) == 6
    memory[0] /= 4
    assert sweep_cluster.default_workers(plan) == 2
    memory[0] /= 100
    assert sweep_cluster.default_workers(plan) == 1
    memory[0] *= 1000  # of a machine that lets this process have less
    own = psutil.Process().memory_info().rss
    monkeypatch.setattr(sweep_cluster, "memory_limit", lambda: own + 3.5 * plan.memory_mb * 2**20)
    assert sweep_cluster.default_workers(plan) in (2, 3)  # this process grows by itself


def test_failed_cells_are_told_with_their_tracebacks_and_nothing_is_run(sweep_params, here, monkeypatch):
    monkeypatch.setattr(sweep_cluster, "local_cluster", lambda *_: pytest.fail("a cluster is started"))
    plan, said = look(sweep_params(), here), []
    name = next(iter(plan.cells))
    try:
        raise FloatingPointError("the update is\nnot finite")
    except FloatingPointError as error:
        note_failure(here, name, error)
    sweep(sweep_params(), act="failed", say=said.append, progress=False)
    assert said[0] == f"{plan.cells[name]}: FloatingPointError: the update is not finite"
    assert said[1] == "  Traceback (most recent call last):"
    assert any("raise FloatingPointError" in line for line in said)
    assert said[-1] == "1 of 24 cells failed when they were last run" and not (here.root / "target").exists()


def test_a_plan_alone_starts_no_worker(sweep_params, here, monkeypatch):
    monkeypatch.setattr(sweep_cluster, "local_cluster", lambda *_: pytest.fail("a cluster is started"))
    said = []
    plan, found = sweep(sweep_params(), act="plan", say=said.append, progress=False)
    assert len(plan.cells) == 24 and not found and "estimated: " in said[-1]
    assert not (here.root / "cell").exists()
