"""Cells on a worker: killed at any moment and started again; what fails; what does not belong."""

import random
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster

from editkit.cache import Store
from editkit.language.forward import precision
from editkit.studies import runs, sweep_run
from editkit.studies.sweep_cells import failure
from editkit.studies.sweep_run import Crew, OnWorker, planned, run
from tests.unit.studies.sweeping import QUIET, assert_same, finished, look, results, start, sweep_here, tables


@pytest.fixture
def client():
    threads = torch.get_num_threads()  # a worker that is a thread changes those of this process
    with LocalCluster(**QUIET) as cluster, Client(cluster) as client:
        yield client
    torch.set_num_threads(threads)


def test_cells_are_run_and_read_as_the_chapters_tables(undisturbed):
    assert undisturbed.cells.state.tolist() == ["finished"] * 24


def test_two_sweeps_share_the_workers(sweep_params, store, client, undisturbed):
    here, there = look(sweep_params(), store), look(sweep_params(), Store(store.root.with_name("other")))
    client.register_plugin(OnWorker(here))
    run(there, Crew(client), {}, progress=False)
    found = {}
    run(here, Crew(client), found, progress=False)
    assert len(found) == 24 and not any(outcome.problem for outcome in found.values())
    for plan in (here, there):
        assert_same(tables(sweep_params(), Store(plan.root)), undisturbed)


def test_a_worker_that_does_not_see_the_store_is_refused(sweep_params, store, client, tmp_path):
    elsewhere = replace(look(sweep_params(), store), root=str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="does not see the store .*elsewhere; set EDITKIT_CACHE to a folder that all"):
        run(elsewhere, Crew(client), {}, progress=False)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_gives_the_same_and_computes_nothing_twice(
    sweep_params, sweep_values, store, undisturbed
):
    draw, written, kills = random.Random(0), {}, 0
    while (plan := look(sweep_params(), store)).pending:
        now = finished(plan)
        assert {name: now[name] for name in written} == written, "a finished cell was computed again"
        written = now
        process = start(sweep_here, sweep_values(), str(store.root))
        if kills < 5:
            enough = len(results(store)) + draw.randint(1, 3)
            while process.is_alive() and len(results(store)) < enough:
                process.join(0.01)
            process.join(draw.uniform(0, 0.1))
            kills += process.is_alive()
            process.kill()
        process.join()
    assert kills == 5 and written
    now = finished(look(sweep_params(), store))
    assert {name: now[name] for name in written} == written
    assert_same(tables(sweep_params(), store), undisturbed)


def test_a_failed_cell_stops_no_other_and_is_run_again(sweep_params, store, client, undisturbed, monkeypatch):
    edit, params = runs._edit, sweep_params()

    def fails(setting, seed, spec, size):
        if spec.method == "memit":
            setting.lm.weight(2).add_(1.0)  # and leaves the model changed
            raise FloatingPointError("not finite")
        return edit(setting, seed, spec, size)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "_edit", fails)
        run(plan := look(params, store), Crew(client), found := {}, progress=False)
    failed = {name for name, outcome in found.items() if outcome.problem}
    assert {plan.cells[name].method for name in failed} == {"memit"} and len(failed) == 2 and len(found) == 24
    for name in failed:
        assert "FloatingPointError: not finite" in failure(store, name)["traceback"]
    half = tables(params, store)
    assert (half.cells.state == "failed").sum() == 2 and set(half.baselines.method) == {"pre", "alphaedit"}
    plan = look(params, store)
    assert set(plan.pending) == set(plan.failed) == failed
    run(plan, Crew(client), found := {}, progress=False)
    assert set(found) == failed and not any(outcome.problem for outcome in found.values())
    assert_same(tables(params, store), undisturbed)


def test_finished_cells_are_not_sent(sweep_params, store, client, monkeypatch):
    params = sweep_params(sweep_parts=["batches"])
    run(look(params, store), Crew(client), found := {}, progress=False)
    assert len(found) == 4
    monkeypatch.setattr(Client, "submit", lambda *_, **__: pytest.fail("sent"))
    run(look(params, store), Crew(client), {}, progress=False)


def test_a_worker_on_which_results_would_be_others_is_refused(sweep_params, store, client, tiny, tmp_path):
    model = shutil.copytree(sweep_params().model, tmp_path / "tiny-llama")
    plan = look(sweep_params(model=str(model)), store)
    tiny(seed=1).model.save_pretrained(model)
    with pytest.raises(ValueError, match="worker .* has another model than the sweep was planned with"):
        run(plan, Crew(client), {}, progress=False)
    assert not (store.root / "cell").exists()


def test_a_worker_that_cannot_load_the_sweep_is_told_in_one_line_and_the_others_go_on(
    sweep_params, store, undisturbed, monkeypatch
):
    read, refused, said = sweep_run.load_lm, [], []

    def load(*about, **how):
        if not refused:  # whoever comes first
            refused.append(sweep_run.get_worker().address)
            raise OSError("the disk\nis not there")
        return read(*about, **how)

    monkeypatch.setattr(sweep_run, "load_lm", load)
    with LocalCluster(**(QUIET | {"n_workers": 2})) as cluster, Client(cluster) as client:
        run(look(sweep_params(), store), Crew(client, said.append), found := {}, progress=False)
    assert said == [f"worker {refused[0]} takes no part: OSError: the disk is not there"]
    assert len(found) == 24 and not any(outcome.problem for outcome in found.values())
    assert_same(tables(sweep_params(), store), undisturbed)


def test_where_no_worker_is_there_it_says_so_and_what_to_do(sweep_params, store, monkeypatch):
    monkeypatch.setenv("EDITKIT_CACHE", str(store.root))
    monkeypatch.setattr(sweep_run, "LONELY", 0.5)
    said, threads = [], torch.get_num_threads()
    with LocalCluster(**(QUIET | {"n_workers": 0})) as cluster, Client(cluster) as client:

        def say(line: str) -> None:
            said.append(line)
            cluster.scale(1)

        assert planned(Crew(client, say), sweep_params(), progress=False).cells
        address = client.scheduler.address
    torch.set_num_threads(threads)
    assert said == [
        f"no worker has been there for 0.5 s; start one with 'dask worker {address} --nthreads 1', or see in squeue "
        "what Slurm's jobs wait for"
    ]


def test_all_workers_take_products_as_the_plan_does(sweep_params, store, client, monkeypatch):
    watch = iter([3.0, 1.0])  # bfloat16 gains where it is planned, and nowhere after that

    monkeypatch.setattr(precision, "_seconds", lambda x, weight: next(watch, 1.0))
    hyperparameters = sweep_params().hyperparameters | {"target_mode": "fast"}
    params = sweep_params(sweep_parts=["batches"], hyperparameters=hyperparameters)
    plan = look(params, store)
    assert plan.surroundings["precision in fast mode"] == "bfloat16"
    run(plan, Crew(client), found := {}, progress=False)
    assert len(found) == 4 and not any(outcome.problem for outcome in found.values())
    edited = tables(params, store).baselines.dropna(subset="target_precision")
    assert set(edited.target_precision) == {"bfloat16"}
    with pytest.raises(ValueError, match="it has another precision in fast mode than the sweep was planned with"):
        other = replace(plan, surroundings=plan.surroundings | {"precision in fast mode": "float32"})
        monkeypatch.setattr(type(plan), "sees_store", lambda _: True)
        run(replace(other, seconds={}), Crew(client), {}, progress=False)


def test_a_shared_part_that_fails_is_told_and_its_cells_fail_with_a_traceback(sweep_params, store, client, monkeypatch):
    def fails(*_, **__):
        raise FloatingPointError("diverged")

    monkeypatch.setattr("editkit.studies.sweep_plan.optimise_targets", fails)
    monkeypatch.setattr("editkit.language.domain.optimise_targets", fails)
    params = sweep_params(sweep_parts=["batches"])
    with pytest.warns(UserWarning, match="what cells share could not all be made: FloatingPointError: diverged"):
        run(look(params, store), Crew(client), found := {}, progress=False)
    assert all(outcome.problem == "FloatingPointError: diverged" for outcome in found.values()) and len(found) == 4


def test_progress_says_what_is_left(sweep_params, store, client, capsys):
    params = sweep_params(sweep_parts=["batches"])
    run(look(params, store), Crew(client), {}, progress=True)
    shown = capsys.readouterr().err
    assert "how long is not known: 4 cells of which none that is alike is finished, on 1 worker" in shown
    assert "about 0 s left on 1 worker" in shown
    assert "4 of 4 cells" in shown


def test_the_table_of_cells_tells_what_is_missing(sweep_params, store):
    found = tables(sweep_params(), store)
    assert set(found.cells.state) == {"missing"} and found.baselines.empty and found.trajectory.scores.empty
    assert isinstance(found.left_out, pd.DataFrame) and found.left_out.reason.all()
