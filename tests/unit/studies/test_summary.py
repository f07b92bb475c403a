"""The table of all that a run measured, from rows and prompts by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from editkit.studies import summary
from editkit.studies.evaluation import Evaluation
from editkit.studies.intervals import proportion
from editkit.studies.sequences import Trajectory
from tests.unit.studies.conftest import prompts_of, summarised

ORIGIN = {"model": "m", "dataset": "d", "protocol": "p1", "facts": "f1"}
STAGES = {"seconds_targets": 6.0, "seconds_keys": 1.0, "seconds_solve": 1.0}


def asked(right, moment, **columns):
    return prompts_of(right, moment, **ORIGIN, **columns)


@pytest.fixture
def batches():
    """Of eight facts, MEMIT holds 8 one by one, 6 at once, and 4 under a promise; the untouched model none."""
    rows, prompts = [], []
    for method, size, right, promise in (("pre", 0, 0, None), ("memit", 1, 8, None), ("memit", 8, 6, None)):
        moment = "immediate" if size else "pre"
        row = {"method": method, "batch_size": size, "seed": 1, "n_facts": 8, "moment": moment, "GE": 6.0, **ORIGIN}
        own = {
            "delta_norm": 2.0,
            "peak_memory_mb": 9.0,
            "edit_mode": "raw",
            "lora_rank": 32,
            "neighbour_budget": promise,
        }
        rows.append(row | (STAGES | own | {"replay": "none", "replay_rate": 0.1} if size else {}))
        prompts.append(asked(right, moment, method=method, batch_size=size))
    return pd.DataFrame(rows), pd.concat(prompts, ignore_index=True)


@pytest.fixture
def trajectory():
    """Two runs of two steps on eight facts: in the weights 4 hold at last, by an adapter with a buffer 2."""
    tables = [[], [], [], [], []]
    for run, mode, replay, right in (("EMMET, none", "raw", "none", 4), ("EMMET, buffer", "lora", "buffer", 2)):
        about = {
            "run": run,
            "run_id": run[-4:],
            "method": "emmet",
            "replay": replay,
            "batch_size": 4,
            "seed": 1,
            **ORIGIN,
        }
        own = {
            "n_facts": 8,
            "edit_mode": mode,
            "lora_rank": 4,
            "lora_fit": "svd",
            "replay_rate": 0.5,
            "peak_memory_mb": 7.0,
        }
        scores = pd.DataFrame({"moment": ["pre", "immediate", "final"]}).assign(**about, **own)
        steps = pd.DataFrame({"step": [1, 2], "delta_norm": [1.0, 3.0]}).assign(**about, **STAGES)
        prompts = [prompts_of(n, moment, **about) for moment, n in (("pre", 0), ("immediate", 8), ("final", right))]
        for table, part in zip(tables, (scores, steps, steps[:0], steps[:0], pd.concat(prompts)), strict=True):
            table.append(part)
    return Trajectory(*(pd.concat(parts, ignore_index=True) for parts in tables))


def test_batches_are_a_row_a_method_and_size(batches):
    table = summary.of_batches(*batches)
    assert list(table) == summary.COLUMNS
    assert table.configuration.tolist() == ["no edit", "MEMIT, 1 at once", "MEMIT, 8 at once"]
    row = table.iloc[2]
    assert (row.ES, row.S, row.n, row.seeds, row.clusters) == (0.75, 0.75, 8, 1, 4) and row.ES_low < 0.75 < row.ES_high
    assert (row.seconds_an_edit, row.delta_norm, row.peak_memory_mb, row.GE) == (1.0, 2.0, 9.0, 6.0)
    assert (table.ES_low[1], table.ES_high[0]) == (proportion(8, 8)[0], proportion(0, 8)[1])
    assert table[["replay", "replay_rate", "lora_rank"]].isna().all(axis=None), "what does not act is not told"
    assert table.moment.tolist() == ["pre", "immediate", "immediate"] and set(table.protocol) == {"p1"}
    assert math.isnan(table.seconds_an_edit[0]) and table.facts.nunique() == 1


def test_a_promise_is_part_of_the_configuration(batches):
    rows, prompts = batches
    table = summary.of_batches(rows.assign(neighbour_budget=[None, 0.9, 0.9]), prompts)
    assert table.configuration.tolist()[1:] == ["MEMIT, 1 at once, NS kept 0.9", "MEMIT, 8 at once, NS kept 0.9"]


def test_facts_of_several_seeds_are_named_by_all_of_them(batches):
    rows, prompts = batches
    both = [pd.concat([part, part.assign(seed=2, facts="f2")], ignore_index=True) for part in (rows, prompts)]
    one, two = summary.of_batches(rows, prompts), summary.of_batches(*both)
    assert set(two.seeds) == {2} and set(two.n) == {16} and two.facts[0] != one.facts[0]


def test_sequences_are_told_as_they_end_and_once(trajectory):
    table = summary.of_sequences(trajectory, trajectory)
    assert table.configuration.tolist() == ["no edit", "EMMET, none", "EMMET, buffer"]
    assert table.arrival.tolist() == ["sequence", "sequence", "adapters"] and table.ES.tolist() == [0, 0.5, 0.25]
    assert table.moment.tolist() == ["pre", "final", "final"] and table.delta_norm.tolist()[1:] == [2.0, 2.0]
    assert table.seconds_an_edit.tolist()[1:] == [2.0, 2.0] and math.isnan(table.seconds_an_edit[0])
    assert table.replay_rate.tolist()[2] == 0.5 and math.isnan(table.replay_rate[1])
    assert table.lora_rank.tolist()[2] == 4 and math.isnan(table.lora_rank[1])


def test_evaluated_methods_have_what_they_say():
    cells = [("pre", "pre", 0, 0), ("locft", "immediate", 8, 4)]
    scores = pd.DataFrame(
        {"method": [c[0] for c in cells], "moment": [c[1] for c in cells], "n_facts": 8, "seconds": 16.0}
    )
    prompts = [asked(right, moment, method=name) for name, moment, right, _ in cells]
    prompts = [part.assign(said=part.fact < f"f{cell[3]}") for part, cell in zip(prompts, cells, strict=True)]
    nothing = pd.DataFrame()
    found = Evaluation(scores.assign(seed=1, **ORIGIN), pd.concat(prompts, ignore_index=True), nothing, nothing)
    table = summary.of_evaluation(found)
    assert table.ES.tolist() == [0, 1] and table.PSaid.tolist() == [0, 0.5] and table.batch_size.tolist() == [0, 8]
    assert table.seconds_an_edit.tolist()[1] == 2 and table.configuration.tolist() == ["no edit", "LocFT-BF"]


def test_fine_tuning_is_a_row_a_rank():
    prompts = pd.concat([asked(right, "final", rank=rank) for rank, right in ((2, 4), (4, 8))], ignore_index=True)
    tuned = pd.DataFrame({"rank": [2, 4], "seconds": [8.0, 16.0]}).assign(
        method="finetuning", model="m", dataset="d", seed=1, n_facts=8, peak_memory_mb=1.0
    )
    table = summary.of_finetuning(tuned, prompts)
    assert table.configuration.tolist() == ["LoRA fine-tuning, r=2", "LoRA fine-tuning, r=4"]
    assert table.ES.tolist() == [0.5, 1.0] and table.seconds_an_edit.tolist() == [1.0, 2.0]
    assert summary.of_finetuning(tuned[:0], prompts[:0]).empty


def test_all_chapters_are_one_table_that_says_by_which_protocol(batches, trajectory):
    parts = {"01": summary.of_batches(*batches), "02": summary.of_sequences(trajectory), "03": pd.DataFrame()}
    final = summary.final_summary(parts)
    assert final.chapter.tolist() == ["01"] * 3 + ["02"] * 3 and list(final)[1:] == summary.COLUMNS
    bare = parts | {"03": parts["02"].assign(protocol=np.nan)}
    with pytest.raises(ValueError, match="03, no edit: protocol is not stated"):
        summary.final_summary(bare)
    with pytest.raises(ValueError, match="protocols p1 and p2 are mixed"):
        summary.keep_and_learn(summary.final_summary(parts | {"03": parts["02"].assign(protocol="p2")}))


def test_methods_are_compared_with_all_else_equal():
    panels = {name: part for name, part in summary.by_method(summarised()).groupby("panel", sort=False)}
    batches, steps = panels.values()
    assert list(panels) == [
        "8 at once, into the untouched model: 16 facts, immediate",
        "one after another, 4 a step: 8 facts, final",
    ]
    assert batches.method.tolist() == ["pre", "memit", "emmet"] and set(batches.batch_size) == {0, 8}
    assert steps.configuration.tolist() == ["no edit", "EMMET, none", "MEMIT, none"]


def test_the_same_facts_arrive_in_several_ways():
    table = summary.by_arrival(summarised())
    pairs = list(zip(table.method, table.batch_size, table.replay, strict=True))
    assert ("emmet", 1, "none") in pairs and ("emmet", 8, "history") in pairs and len(pairs) == 5


def test_the_front_is_what_nothing_beats():
    rng = np.random.default_rng(3)
    points = pd.DataFrame(rng.integers(0, 6, (40, 2)) / 5, columns=["PS", "NS"])
    rows = summarised().iloc[[1]].drop(columns=["PS", "NS"])
    frame = summary.keep_and_learn(rows.merge(points, how="cross"))
    for one in frame.itertuples():
        beaten = any(
            other.PS >= one.PS and other.NS >= one.NS and (other.PS, other.NS) != (one.PS, one.NS)
            for other in frame.itertuples()
        )
        assert one.front is not beaten
    assert frame.front.any() and not frame.front.all()


def test_panels_hold_one_sample_and_the_untouched_model_is_on_no_front():
    frame = summary.keep_and_learn(summarised())
    assert (frame.groupby("panel").facts.nunique() == 1).all() and frame.panel.nunique() == 4
    assert not frame.front[frame.method == "pre"].any() and frame.groupby("panel").front.any().all()
    controls = summary.controls(summarised())
    assert controls.method.tolist() == ["pre", "memit", "locft"]
    assert set(controls.panel) == {"editors and controls, 4 at once: 4 facts, immediate"}
    assert set(frame.panel) > set(controls.panel)
    assert summary.keep_and_learn(summarised().assign(PS=np.nan)).empty


def test_tables_are_written_with_intervals():
    final = summarised()
    shown = summary.summary_shown(final.assign(GE=np.nan))
    assert len(shown) == len(final) and "GE" not in shown and shown.S.iloc[1] == "0.80 [0.70, 0.90]"
    front = summary.front_shown(summary.keep_and_learn(final))
    assert list(front) == ["PS", "NS", "n"] and front.index.get_level_values(0)[0].startswith("at once, into")
