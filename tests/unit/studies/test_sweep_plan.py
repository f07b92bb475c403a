"""What a sweep will do, before anything of it is run."""

import pickle
from dataclasses import replace

import pytest

from editkit.cache import Store
from editkit.studies.sweep_cells import Bench
from editkit.studies.sweep_cost import Probe
from editkit.studies.sweep_plan import PACKED, estimate, survey, tell


@pytest.fixture
def look(sweep_params, store):
    def go(probe=False, **changes):
        return survey(sweep_params(**changes), store=store, probe=probe, progress=False)

    return go


def test_a_plan_knows_what_is_finished_and_runs_nothing(look, sweep_params, store):
    plan = look()
    assert len(plan.cells) == 24 and not plan.seconds and not plan.failed and plan.pending == plan.cells
    assert not (store.root / "cell").exists() and not (store.root / "sequence").exists()
    assert not (store.root / "target").exists()
    here = Bench.prepare(sweep_params(), store=store, progress=False)
    name, cell = next((name, cell) for name, cell in plan.cells.items() if cell.part == "sequences")
    here.work(cell).run()
    again = look()
    assert list(again.seconds) == [name] and len(again.pending) == 23 and again.cells == plan.cells
    assert again.pace.expect(cell) == again.seconds[name]


def test_it_goes_to_other_processes(look):
    plan = look()
    there = pickle.loads(pickle.dumps(plan))
    assert there.cells == plan.cells and there.root == plan.root and there.surroundings == plan.surroundings
    assert all(setting.lm is None for setting in there.bench.settings.values())


def test_cells_share_moments_targets_and_the_untouched_model(look, sweep_params, store):
    plan = look()
    jobs = [(job.what, job.seed) for job in plan.jobs]
    both = [(what, seed) for what in ("targets", "untouched") for seed in (1, 2)]
    assert sorted(jobs) == sorted([("moments", 0), *both]), "methods and parts share layer, v* and facts"
    assert plan.targets_missing == 8
    here = Bench.prepare(sweep_params(), store=store, progress=False)
    for job in plan.jobs:
        job.run(here)
    again = look()
    assert again.targets_missing == 0 and again.pending == plan.pending
    written = {path for kind in ("target", "second-moment") for path in (store.root / kind).iterdir()}
    here.work(next(iter(plan.cells.values()))).run()
    assert {path for kind in ("target", "second-moment") for path in (store.root / kind).iterdir()} == written


def test_targets_of_a_step_on_the_edited_model_are_not_made_before(look):
    jobs = look(targets_from="current", sweep_parts=["sequences"], sweep_replays=["none"], sequence_seeds=[1]).jobs
    assert [job.what for job in jobs] == ["moments", "targets", "untouched"], "one batch finds them on the untouched"
    singles = look(targets_from="current", sweep_parts=["sequences"], sequence_seeds=[1], sequence_facts=4)
    assert singles.targets_missing == 4
    found = {(cell.batch_size, number) for cell, number in singles.own_targets.items()}
    assert found == {(1, 4), (2, 4)} and len(singles.own_targets) == 8, "two methods, two sizes, two memories"
    assert "32 in steps" in estimate(singles, 1)
    base = look(sweep_parts=["sequences"], sequence_seeds=[1], sequence_facts=4)
    assert not base.own_targets and "in steps" not in estimate(base, 1)


def test_methods_without_targets_have_none_to_be_made(look):
    plan = look(methods=["ultraedit"], sweep_parts=["batches"], probe=True)
    assert plan.cells and plan.targets_missing == 0 and {job.what for job in plan.jobs} == {"moments", "untouched"}


def test_many_facts_are_packed_by_hundreds_whoever_makes_them(look, monkeypatch):
    monkeypatch.setattr("editkit.studies.sweep_plan.PACKED", 3)
    jobs = [job for job in look(sweep_parts=["batches"], seeds=[1]).jobs if job.what == "targets"]
    assert [job.begin for job in jobs] == [0, 3] and PACKED >= 100


def test_what_hyperparameters_refuse_is_left_out_with_what_they_say(look):
    plan = look(methods=["emmet", "memit"], sweep_parts=["batches"])
    assert {one.reason for one in plan.left_out if one.cell.method == "memit_control"} == {
        "memit has emmet's layers and weight already"
    }
    fixed = {
        "sweep_edit_modes": ["raw"],
        "replay_weights": [1.0, 2.0],
        "sequence_methods": ["emmet"],
        "methods": ["emmet"],
    }
    assert len({str(one) for one in look(**fixed).cells.values()}) == len(look(**fixed).cells)


def test_two_cells_that_come_to_the_same_are_run_once(look):
    given = {"sweep_parts": ["sequences"], "sequence_seeds": [1], "sweep_replays": ["none"], "methods": ["memit"]}
    plan = look(**given, stop_probabilities=[0.5, 0.5], sequence_batch=4)
    assert len(plan.cells) == 4  # singles and one batch, each with and without the bound


def test_a_sweep_of_nothing_is_refused(look):
    with pytest.raises(ValueError, match="nothing is left to run: batches, .*: 3 does not divide 4 facts"):
        look(sweep_parts=["batches"], batch_sizes=[3])


def test_it_tells_cells_reasons_hours_and_memory(look):
    plan = look(probe=True, sweep_orders=[0, 1])
    told = list(tell(plan, 2))
    assert told[0].startswith(f"{len(plan.cells)} cells in {plan.root}: 0 finished, {len(plan.cells)} to run")
    assert "  run 2 × batches, memit, 4 at once" in told
    one_batch = next(line for line in told if "one batch has no order" in line)
    assert one_batch.strip().startswith("4 × ") and "order 1" in one_batch
    assert f"{len(plan.left_out)} cells are left out" in told
    assert sum(int(line.split(" × ")[0]) for line in told if " × " in line and "(such as" in line) == len(plan.left_out)
    assert "estimated: at least " in told[-1] and "on 2 workers" in told[-1] and "8 v* to find" in told[-1]
    assert "MB a worker" in told[-1] and plan.memory_mb > 0 and plan.probe.score > 0 < plan.probe.target


def test_an_estimate_says_what_it_rests_on(look, sweep_params, store):
    here = Bench.prepare(sweep_params(), store=store, progress=False)
    cells = look().cells
    for cell in cells.values():
        if cell.seed == 1:
            here.work(cell).run()
    plan = look()
    told, timed = estimate(plan, 1), estimate(replace(plan, probe=Probe(score=1.0, target=2.0)), 3)
    assert told.startswith("estimated: at least ") and "4 v* to find before, not timed" in told
    assert "at least" not in timed.split(";")[0] and "from 12 finished cells" in timed
    assert "4 v* to find before, those before 8 s of one worker; the longest cell" in timed
    expected = sum(plan.seconds[name] for name, cell in cells.items() if cell.seed == 1)
    assert plan.pace.left(plan.pending.values()).seconds == pytest.approx(expected)


def test_without_any_measurement_it_says_that_nothing_is_known(look):
    told = estimate(look(), 2)
    assert told.startswith("how long it takes is not known: none that is alike has been measured of 24 cells")
    assert " 0 s" not in told and "8 v* to find before" in told and "MB a worker" in told


def test_stores_are_apart(look, sweep_params, tmp_path):
    assert look().root != survey(sweep_params(), store=Store(tmp_path / "other"), progress=False).root
