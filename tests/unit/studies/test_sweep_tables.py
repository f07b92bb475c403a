"""What a sweep has found, as the chapters' own functions return it."""

import json

import pandas as pd
import pytest

from editkit.methods import UNTOUCHED
from editkit.models import LanguageModel
from editkit.studies import baseline_tables
from editkit.studies import tables as of_sequences
from editkit.studies.evaluation import run_evaluation
from editkit.studies.protocol import check_one
from editkit.studies.results import Results
from editkit.studies.runs import run_baselines
from editkit.studies.sequences import Trajectory, run_grid
from editkit.studies.sweep import grid
from editkit.studies.sweep_cells import Bench
from editkit.studies.sweep_tables import gather, of_form, save
from tests.unit.studies.sweeping import same


@pytest.fixture
def swept(sweep_params, store):
    """A sweep of which every cell was run."""

    def go(**changes) -> Bench:
        here = Bench.prepare(sweep_params(**changes), store=store, progress=False)
        for cell in grid(here.params)[0]:
            assert not here.work(cell).run().problem
        return here

    return go


@pytest.fixture
def writers(tmp_path):
    """A source of which every fact has a prompt to write on."""

    def record(number: int) -> dict:
        town, ask = f"Town {number}", ("paraphrase_prompts", "neighborhood_prompts", "generation_prompts")
        rewrite = {"prompt": "{} lies in", "subject": town}
        rewrite |= {f"target_{which}": {"str": place} for which, place in (("new", "Italy"), ("true", "Spain"))}
        prompts = zip(ask, (f"Everyone knows that {town} lies in", "Rome lies in", f"{town} is"), strict=True)
        return {"case_id": number, "requested_rewrite": rewrite} | {name: [text] for name, text in prompts}

    (path := tmp_path / "counterfact.json").write_text(json.dumps([record(number) for number in range(60)]))
    return {"facts_source": "counterfact", "facts_path": str(path)}


def test_batches_and_sequences_are_those_of_the_chapters(swept):
    here = swept(seeds=[1, 2], sequence_seeds=[1])
    found = gather(here, progress=False)
    batches, sequences = here.settings["batches"], here.settings["sequences"]
    table, prompts = run_baselines(batches, {name: batches.spec(name) for name in ("memit", "alphaedit")}, [4])
    same(of_form(found.baselines), table)
    same(of_form(found.prompts), prompts)
    whole = run_grid(sequences, here.params, "memit", [{"replay": "none"}, {"replay": "hold"}], 2)
    for ours, theirs in zip(found.trajectory, whole, strict=True):
        own = ours[ours.run_id.isin(whole.scores.run_id) & (ours.method == "memit")].drop(columns="order")
        same(own.reset_index(drop=True), theirs)


def test_the_chapters_tables_take_them(swept):
    found = gather(swept(sequence_seeds=[1]), progress=False)
    baselines, prompts = of_form(found.baselines), of_form(found.prompts)
    scores = baseline_tables.baseline_scores(prompts)
    assert set(scores.method) == {UNTOUCHED, "memit", "alphaedit"}
    assert len(baseline_tables.baseline_shown(scores, baselines)) == 3
    final = of_sequences.final_scores(found.trajectory.scores, found.trajectory.prompts)
    assert len(final) == 10 and len(of_sequences.sizes(found.trajectory.scores)) == 10


def test_nothing_that_is_missing_is_computed(sweep_params, store, monkeypatch):
    here = Bench.prepare(sweep_params(), store=store, progress=False)
    monkeypatch.setattr("editkit.studies.runs._edit", lambda *_: pytest.fail("computed"))
    monkeypatch.setattr("editkit.studies.sequences._step", lambda *_: pytest.fail("computed"))
    monkeypatch.setattr("editkit.studies.runs.evaluate", lambda *_: pytest.fail("computed"))
    found = gather(here, progress=False)
    assert found.cells.state.tolist() == ["missing"] * 24 and found.cells.seconds.isna().all()


def test_another_order_is_a_run_of_its_own_on_the_same_facts(swept):
    given = {"sweep_parts": ["sequences"], "methods": ["memit"], "sweep_replays": ["none"], "sequence_seeds": [1]}
    found = gather(swept(**given, sweep_orders=[0, 3], sequence_batch=4), progress=False)
    scores = found.trajectory.scores
    singles = scores[scores.batch_size == 1].drop_duplicates("run_id")
    assert singles.run.tolist() == ["MEMIT, none", "MEMIT, none, order 3"] and singles.order.tolist() == [0, 3]
    check_one(scores)
    facts = [set(part.fact) for _, part in found.trajectory.prompts.groupby("run_id")]
    assert all(one == facts[0] for one in facts)
    assert found.left_out.reason.tolist() == ["one batch has no order"]


def test_ge_stands_in_every_row_that_tells_it_and_is_of_the_same_facts_in_any_order(swept, writers):
    given = writers | {"methods": ["memit"], "sweep_replays": ["none"], "seeds": [1], "sequence_seeds": [1]}
    here = swept(**given, fluency_facts=2, sweep_orders=[0, 3])
    found, batches, sequences = gather(here, progress=False), here.settings["batches"], here.settings["sequences"]
    shuffled = next(here.setting(cell) for cell in grid(here.params)[0] if cell.order)
    assert shuffled.drawn[1] == sequences.draws[1].facts
    assert set(shuffled.draws[1].facts[:2]) != set(shuffled.drawn[1][:2])
    table, _ = run_baselines(batches, {"memit": batches.spec("memit")}, [4])
    same(of_form(found.baselines), table)
    assert found.baselines.GE.notna().all()
    ge = found.trajectory.scores.set_index(["run_id", "moment"]).GE.unstack()
    assert ge[["pre", "final"]].notna().all(axis=None) and ge.immediate.isna().all() and ge.pre.nunique() == 1
    without = gather(swept(**given), progress=False)
    assert "GE" not in without.baselines and "GE" not in without.trajectory.scores


def test_reading_hashes_the_weights_no_more_often_for_more_cells(swept, monkeypatch):
    here, hashed, fingerprint = swept(methods=["memit"], sweep_replays=["none"]), [], LanguageModel.fingerprint
    monkeypatch.setattr(LanguageModel, "fingerprint", lambda lm: hashed.append(lm) or fingerprint(lm))
    assert len(gather(here, progress=False).cells) > 2 >= len(hashed)


def test_forms_of_edits_are_kept_apart(swept):
    given = {"sweep_parts": ["batches"], "methods": ["memit"], "seeds": [1], "sweep_edit_modes": ["raw", "lora"]}
    found = gather(swept(**given, lora_ranks=[1, 4], lora_fits=["svd"]), progress=False)
    assert found.baselines.form.tolist() == ["", "raw", "LoRA exact r=4", "LoRA svd r=1"]
    for form in ("raw", "LoRA svd r=1"):
        one = of_form(found.baselines, form)
        assert one.method.tolist() == [UNTOUCHED, "memit"] and "form" not in one
    assert set(of_form(found.baselines, "LoRA svd r=1").lora_rank.dropna()) == {1}


def test_the_evaluation_is_that_of_the_chapter(swept):
    given = {"sweep_parts": ["evaluation"], "methods": ["memit"], "controls": ["locft"], "locft_epochs": 1}
    here = swept(**given, seeds=[1], evaluation_facts=2, evaluation_texts=0, downstream_tasks=[])
    found = gather(here, progress=False)
    batches = here.settings["batches"]
    wanted = run_evaluation(batches, here.params, {"memit": batches.spec("memit")}, here.params)
    for ours, theirs in zip(found.evaluation, wanted, strict=True):
        pd.testing.assert_frame_equal(ours, theirs)
    assert found.baselines.empty and found.trajectory.scores.empty


def test_tables_are_written_under_the_names_of_chapters(swept, tmp_path):
    here, results = swept(sweep_parts=["sequences"]), Results(tmp_path)
    found = gather(here, progress=False)
    names = save(found, results, here.params)
    told = ["at_once", "at_once_gaps", "sweep_cells", "sweep_left_out"]
    assert names == [*(f"sequence_{name}" for name in Trajectory._fields), *told]
    assert not (tmp_path / "results" / "baselines.csv").exists(), "nothing of it was measured"
    pd.testing.assert_series_equal(results.load("sequence_scores").S, found.trajectory.scores.S)
    assert results.load("sweep_cells").state.eq("finished").all()
    assert json.loads((tmp_path / "results" / "sequence_scores.json").read_text())["parameters"]["sequence_facts"]
