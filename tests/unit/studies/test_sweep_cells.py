"""A cell of a sweep: its key, which is that of the chapters, and what is kept where it fails."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from editkit.cache import Store
from editkit.facts import data_hash
from editkit.studies import runs
from editkit.studies.runs import run_baselines
from editkit.studies.sequences import run_grid
from editkit.studies.sweep import SweepCell, SweepParams, grid
from editkit.studies.sweep_cells import HELD_OUT, Bench, failure

BATCH = SweepCell("batches", "memit", 4, 1)
STEPS = SweepCell("sequences", "memit", 2, 1, (("replay", "hold"),))


@pytest.fixture
def bench(sweep_params, store):
    def build(**changes) -> Bench:
        return Bench.prepare(sweep_params(**changes), store=store, progress=False)

    return build


def test_parts_are_drawn_as_the_chapters_draw_them(bench):
    settings = bench().settings
    assert {part: [len(d.facts) for d in one.draws.values()] for part, one in settings.items()} == {
        "batches": [4, 4],
        "sequences": [4, 4],
    }
    assert {len(draw.heldout) for draw in settings["sequences"].draws.values()} == {HELD_OUT}
    assert settings["sequences"].hyperparameters["targets_from"] == "base"


def test_what_chapters_have_run_is_finished_and_is_not_run_again(bench, monkeypatch):
    here = bench()
    assert here.work(BATCH).seconds() is None and here.work(STEPS).seconds() is None
    batches, sequences = here.settings["batches"], here.settings["sequences"]
    table, _ = run_baselines(batches, {"memit": batches.spec("memit")}, [4])
    steps = run_grid(sequences, here.params, "memit", [{"replay": "hold"}]).steps
    row = table[(table.method == "memit") & (table.seed == 1)].iloc[0]
    assert here.work(BATCH).seconds() == pytest.approx(row.seconds + row.seconds_scoring)
    own = steps[steps.seed == 1]
    assert here.work(STEPS).seconds() == pytest.approx(own.seconds.sum() + own.seconds_scoring.sum())
    monkeypatch.setattr(type(batches), "session", lambda *_: pytest.fail("computed"))
    assert not here.work(BATCH).run().problem and not here.work(STEPS).run().problem


def test_a_sequence_of_which_steps_are_missing_is_not_finished(bench, monkeypatch):
    here, steps = bench(), []
    undisturbed = here.settings["sequences"].lm.fingerprint()
    step = runs.evaluate

    def stops(lm, facts, **how):
        steps.append(facts)
        if len(steps) == 3:  # the untouched model, the first step, and now the second
            raise KeyboardInterrupt
        return step(lm, facts, **how)

    monkeypatch.setattr("editkit.studies.sequences.evaluate", stops)
    monkeypatch.setattr("editkit.studies.runs.evaluate", stops)
    with pytest.raises(KeyboardInterrupt):
        here.work(STEPS).run()
    assert here.settings["sequences"].lm.fingerprint() == undisturbed
    work = here.work(STEPS)
    assert work.store.get("sequence-part", work.key) and not work.store.get("sequence", work.key)
    assert work.seconds() is None


def test_a_whole_sequence_is_kept_whatever_a_worker_that_was_given_up_still_writes(bench, monkeypatch):
    here, parts = bench(), []
    put = Store.put

    def noted(store, kind, key, tensors):
        if kind == "sequence-part":
            parts.append((kind, key, tensors))
        put(store, kind, key, tensors)

    monkeypatch.setattr(Store, "put", noted)
    work = here.work(STEPS)
    scores = work.make().scores
    took = work.seconds()
    assert parts and took and not work.store.path("sequence-part", work.key).exists()
    put(work.store, *parts[0])  # of one step, by one that was believed to be lost
    assert work.seconds() == took
    assert here.work(STEPS).make().scores.equals(scores)


@pytest.mark.parametrize("cell", [BATCH, STEPS], ids=lambda cell: cell.part)
def test_a_name_changes_with_what_determines_the_result_and_with_nothing_else(
    bench, sweep_values, tiny, tmp_path, cell
):
    given = sweep_values()
    model, text = shutil.copytree(given["model"], tmp_path / "model"), Path(shutil.copy(given["text_path"], tmp_path))
    bench = partial(bench, model=str(model), text_path=str(text))
    here = bench()
    name = here.work(cell).name
    for other in (replace(cell, seed=2), replace(cell, batch_size=1), replace(cell, method="alphaedit")):
        assert here.work(other).name != name
    assert here.work(replace(cell, changes=(*cell.changes, ("norm_clamp", 1.1)))).name != name
    assert here.work(replace(cell, order=5)).name != name
    assert bench(hyperparameters=given["hyperparameters"] | {"v_lr": 0.2}).work(cell).name != name
    assert bench(sequence_every=1, n_facts=4).work(STEPS).name != here.work(STEPS).name
    irrelevant = {"methods": ["memit", "rome"], "seeds": [1], "sequence_seeds": [1], "batch_sizes": [1, 2, 4]}
    irrelevant |= {"sweep_replays": ["hold"], "replay_rates": [0.25], "lora_ranks": [7], "sweep_orders": [0, 3]}
    irrelevant |= {"evaluation_facts": 3, "n_examples": 5}
    assert bench(**irrelevant).work(cell).name == name
    text.write_text(text.read_text() + "\n\nAnd more.")
    assert bench().work(cell).name != name
    tiny(seed=1).model.save_pretrained(model)
    assert bench().work(cell).name != name


def test_another_order_has_the_facts_of_its_seed(bench):
    here = bench()
    drawn, shuffled = (here.setting(replace(STEPS, order=order)).draws[1] for order in (0, 3))
    assert data_hash(drawn.facts) != data_hash(shuffled.facts)
    assert sorted(fact.id for fact in drawn.facts) == sorted(fact.id for fact in shuffled.facts)
    assert here.setting(replace(STEPS, order=3)).draws[1].facts == shuffled.facts and drawn.heldout == shuffled.heldout


def test_a_failure_is_kept_with_its_traceback_and_the_cell_can_be_run_again(bench, monkeypatch):
    here = bench()
    work = here.work(BATCH)
    assert failure(work.store, work.name) is None

    def diverges(*_, **__):
        raise FloatingPointError("the update is\nnot finite")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "evaluate", diverges)
        outcome = work.run()
    assert outcome.problem == "FloatingPointError: the update is not finite" and outcome.name == work.name
    kept = failure(work.store, work.name)
    assert kept["problem"] == outcome.problem and "in diverges" in kept["traceback"]
    assert work.seconds() is None
    again = bench().work(BATCH)  # on a model that no failure has touched
    assert again.name == work.name and not again.run().problem
    assert failure(work.store, work.name) is None and again.seconds()


def test_a_bench_goes_elsewhere_without_its_model(bench, tmp_path):
    here = bench()
    bare = here.without_model()
    assert all(one.lm is None and one.store is None for one in bare.settings.values())
    lm = here.settings["batches"].lm
    there = bare.with_model(lm, Store(tmp_path / "other"))
    assert there.work(STEPS).name == here.work(STEPS).name and there.work(STEPS).store.root == tmp_path / "other"


def test_controls_and_the_untouched_model_are_cells_of_the_evaluation(bench, monkeypatch):
    given = {"sweep_parts": ["evaluation"], "controls": ["locft"], "evaluation_facts": 2, "evaluation_texts": 0}
    here = bench(**given, methods=["memit"], downstream_tasks=[], locft_epochs=1, seeds=[1])
    cells, _ = grid(here.params)
    assert [cell.method for cell in cells] == ["pre", "memit", "locft"]
    for cell in cells:
        assert here.work(cell).seconds() is None
        assert not here.work(cell).run().problem
        assert here.work(cell).seconds() > 0
    monkeypatch.setattr("editkit.studies.evaluation._measure", lambda *_: pytest.fail("computed"))
    assert not any(here.work(cell).run().problem for cell in cells)


def test_controls_learn_the_facts_of_sequences_in_the_same_steps(bench, monkeypatch):
    own = {"sequence_seeds": [1], "locft_epochs": 1, "controls": []}
    given = {"sweep_parts": ["sequences"], "methods": ["memit"], "sweep_replays": ["published"], "sweep_steps": [2, 4]}
    here = bench(**given, **own, sweep_controls=["locft", "grace"])
    cells, left = grid(here.params)
    assert [(cell.method, cell.batch_size) for cell in cells] == [
        (name, size) for name in ("memit", "locft", "grace") for size in (2, 4)
    ]
    assert not left
    for cell in cells:
        assert not here.work(cell).run().problem and here.work(cell).seconds() > 0
    longer = bench(**given, **own | {"locft_epochs": 2}, sweep_controls=["locft", "grace"])
    again = [(cell.method, cell.batch_size) for cell in cells if longer.work(cell).seconds() is None]
    assert again == [("locft", 2), ("locft", 4)]
    monkeypatch.setattr("editkit.studies.sequences._step", lambda *_: pytest.fail("computed"))
    assert {here.work(cell).make().scores.method.iloc[0] for cell in cells} == {"memit", "locft", "grace"}


def test_what_the_evaluation_cannot_read_is_an_error_and_no_cell_that_is_left_out(bench):
    here = bench(sweep_parts=["batches", "evaluation"], snippets_path="attribute_snippets.json")
    with pytest.raises(ValueError, match="reference texts are of CounterFact's facts, and facts_source is zsre"):
        here.works(progress=False)


def test_memits_control_is_a_cell_where_it_differs_from_memit(bench):
    here = bench(methods=["emmet"])
    assert isinstance(here.params, SweepParams)
    with pytest.raises(ValueError, match="memit has emmet's layers and weight already"):
        here.spec(SweepCell("batches", "memit_control", 4, 1))
