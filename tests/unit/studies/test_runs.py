"""Grids of cells: what a row holds, and that nothing is computed twice."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from editkit import Fact, evaluate, summarize
from editkit.editing import spec as spec_module
from editkit.editing.budget import Budget
from editkit.language.finetune import FinetuneSpec
from editkit.language.fluency import fluency
from editkit.language.targets import optimise_targets
from editkit.methods import look
from editkit.studies import runs
from editkit.studies import setting as setting_module
from editkit.studies.runs import (
    BaselineParams,
    baseline_specs,
    budget_specs,
    check_batches,
    run_baselines,
    run_finetuning,
    target_losses,
    untouched,
)
from editkit.studies.setting import Setting


@pytest.fixture
def run(setting, facts):
    """Two methods at two batch sizes, on the facts of seed 7 and then on half of them as seed 8."""
    draws = {7: (facts, []), 8: (facts[2:], [])}
    lm = setting().lm

    def go(**changes):
        here = setting(draws, lm=lm, **changes)
        return run_baselines(here, {"memit": here.spec("memit"), "rome": here.spec("rome", layers=[2])}, [1, 2])

    return lm, go


def test_rows_are_cells_on_the_untouched_model(run, facts):
    lm, go = run
    before = lm.fingerprint()
    table, prompts = go()
    assert lm.fingerprint() == before
    cells = [("pre", 0, "pre")] + [(m, size, "immediate") for m in ("memit", "rome") for size in (1, 2)]
    assert list(zip(table.method, table.batch_size, table.moment, strict=True)) == cells * 2
    assert table.seed.tolist() == [7] * 5 + [8] * 5 and set(table.dataset) == {"made up"}
    for row, own in ((0, facts), (5, facts[2:])):
        pre = summarize(evaluate(lm, own))
        assert table.loc[row, list(pre)].astype(float).to_dict() == pytest.approx(pre)
    for (method, size, seed), part in prompts.groupby(["method", "batch_size", "seed"]):
        row = table[(table.method == method) & (table.batch_size == size) & (table.seed == seed)].iloc[0]
        assert row.ES == pytest.approx(part[part.kind == "rewrite"].success.mean())
        assert set(part.moment) == {row.moment}
        batches = part.groupby("batch").fact.unique().map(list).tolist()
        own = [fact.id for fact in (facts if seed == 7 else facts[2:])]
        assert batches == [own[i : i + size] for i in range(0, len(own), size)] if size else not batches


def test_rows_tell_ge_of_what_the_first_facts_of_a_seed_are_written_on(setting, writers):
    here = replace(setting({7: (writers, [])}), fluency_facts=3)
    spec, lm = here.spec("memit"), here.lm
    table, _ = run_baselines(here, {"memit": spec}, [2])
    ge, session = [], here.session(spec.model_copy(update={"seed": 7}), 7)
    for batch, written in ((writers[:2], writers[:1]), (writers[2:], writers[2:3])):
        session.edit(batch)
        ge += fluency(lm, written).GE.tolist()
        session.undo()
    assert table.GE.tolist() == pytest.approx([fluency(lm, writers[:3]).GE.mean(), sum(ge) / 2]) and len(ge) == 2
    tuned, _ = run_finetuning(here, FinetuneSpec(layers=(2,), rank=1, lr=0.01, steps=1))
    assert tuned.GE.notna().all()
    without, _ = run_baselines(replace(here, fluency_facts=0), {"memit": spec}, [2])
    assert "GE" not in without and "ESaid" not in table


def test_rows_tell_what_is_said_about_the_first_facts_of_a_seed(setting, facts):
    here = replace(setting({7: (facts[:4], [])}), said_facts=3)
    spec, lm = here.spec("memit"), here.lm
    table, prompts = run_baselines(here, {"memit": spec}, [2])
    frames, session = [], here.session(spec.model_copy(update={"seed": 7}), 7)
    for batch, asked in ((facts[:2], facts[:2]), (facts[2:4], facts[2:3])):
        session.edit(batch)
        frames.append(evaluate(lm, asked, rungs=["said"]))
        session.undo()
    wanted = [summarize(evaluate(lm, facts[:3], rungs=["said"])), summarize(pd.concat(frames))]
    for name in ("ESaid", "PSaid", "NSaid", "EExact"):
        assert table[name].tolist() == pytest.approx([scores[name] for scores in wanted])
    assert "GE" not in table
    told = prompts[prompts.method == "memit"]
    answers = pd.concat(frames)
    assert told.said.isna().eq(told.fact == facts[3].id).all(), "what was not asked is missing"
    assert told.said.dropna().tolist() == answers.said.tolist() and prompts.said.notna().sum() == 2 * len(answers)


def test_emmet_has_memit_at_its_layers_and_weight_beside_it(setting, monkeypatch):
    here = setting(v_lr=0.2)
    assert list(baseline_specs(here, ["rome", "emmet"])) == ["rome", "emmet"], "memit has them already"
    left_out = {"layers", "mom2_update_weight"}
    here = replace(here, hyperparameters={n: v for n, v in here.hyperparameters.items() if n not in left_out})
    defaults = {
        "shared": {"layers": [1, 2], "mom2_update_weight": 1.0},
        "emmet": {"layers": [2], "mom2_update_weight": 7.0},
    }
    monkeypatch.setattr(spec_module, "load_defaults", lambda name: defaults)
    specs = baseline_specs(here, ["emmet", "memit"])
    assert (
        list(specs) == ["emmet", "memit", "memit_control"]
        and look("memit_control").label == "MEMIT at EMMET's layer and weight"
    )
    control, emmet, memit = (specs[name].resolve(here.lm) for name in ("memit_control", "emmet", "memit"))
    assert control.model_dump() == memit.model_dump() | {"layers": [2], "mom2_update_weight": 7.0}
    assert (control.layers, control.mom2_update_weight, control.v_lr) == (emmet.layers, emmet.mom2_update_weight, 0.2)
    assert "memit_control" not in baseline_specs(here, ["memit", "alphaedit"])


def test_rows_bear_the_names_of_their_specs(setting):
    here = setting()
    table, prompts = run_baselines(here, {"memit_control": here.spec("memit")}, [4])
    assert table.method.tolist() == ["pre", "memit_control"] and set(prompts.method) == {"pre", "memit_control"}


@pytest.fixture
def tune():
    """Facts for tuning, at whose neighbours strong edits of the tiny model do harm."""
    asked = {"subject": "Spain", "prompt": "{} lies in", "relation": "made up", "target_new": "Rome"}
    rows = {"Italy": "Anna lies in", "Swedish": "People speak", "Paris": "Stockholm is"}
    return [Fact.make(target_true=true, neighbours=[prompt], **asked) for true, prompt in rows.items()]


def test_batched_methods_promise_a_share_and_controls_do_not(setting):
    here = setting()
    specs = {name: here.spec(name.removesuffix("_control")) for name in ("rome", "memit_control", "memit")}
    promising = budget_specs(specs, 0.9)
    assert {name: spec.neighbour_budget for name, spec in promising.items()} == {"memit": 0.9}
    assert promising["memit"].model_copy(update={"neighbour_budget": None}) == specs["memit"]
    assert budget_specs(specs, 0.0) == {}
    with pytest.raises(ValueError, match=r"neighbour_budget = 1.5: "):
        BaselineParams(neighbour_budget=1.5)


def test_a_row_says_what_a_promise_took_and_hangs_on_the_facts_for_tuning(setting, facts, tune, monkeypatch):
    strong = {"layers": [2], "mom2_update_weight": 0.01, "mom2_n_tokens": 100, "n_contexts": 0}
    strong |= {"v_lr": 0.5, "v_num_grad_steps": 15, "clamp_norm_factor": 2.0}
    batch = facts[1:]
    here = setting({1: (batch, [])}, contexts=(), tune=tune, **strong)
    specs = budget_specs({"memit": here.spec("memit")}, 1.0)
    _, row = run_baselines(here, specs, [3])[0].to_dict("records")
    session = here.session(specs["memit"].model_copy(update={"seed": 1}), 1)
    budget = session.edit(batch).budget
    session.undo()
    assert row["neighbour_budget"] == 1.0 and row["unwritten"] == 0 and row["weight"] == budget.weight > 0
    assert row["neighbour_kept"] == budget.measured["neighbour"] >= 1
    assert row["neighbour_kept_unweighted"] == budget.tries[0.0]["neighbour"] < 1
    assert row["seconds"] > row["seconds_keys"] + row["seconds_solve"]
    monkeypatch.setattr(Setting, "session", lambda *_: pytest.fail("computed"))
    run_baselines(here, specs, [3])
    more = setting({1: (batch, [])}, contexts=(), lm=here.lm, tune=[*tune, facts[0]], **strong)
    with pytest.raises(pytest.fail.Exception, match="computed"):
        run_baselines(more, specs, [3])


def test_batches_that_no_weight_holds_are_counted():
    held = Budget({"neighbour": 0.9}, 2.0, {"neighbour": 0.9}, {0.0: {"neighbour": 0.5}, 2.0: {"neighbour": 0.9}})
    broken = replace(held, weight=math.nan, measured={"neighbour": 0.7})
    found = {"weight": 2.0, "neighbour_kept": pytest.approx(0.8), "neighbour_kept_unweighted": 0.5, "unwritten": 1}
    assert runs._spent([held, broken]) == found and runs._spent([]) == {}
    assert math.isnan(runs._spent([broken])["weight"])


def test_a_second_run_reads_every_cell_and_a_change_computes_again(run, monkeypatch):
    _, go = run
    table, prompts = go()

    class Refuses:
        def __init__(self, *args, **options):
            raise AssertionError("a cell is computed again")

    monkeypatch.setattr(setting_module, "EditSession", Refuses)
    again, same_prompts = go()
    pd.testing.assert_frame_equal(again, table)
    pd.testing.assert_frame_equal(same_prompts, prompts)
    with pytest.raises(AssertionError, match="computed again"):
        go(contexts=["c d. "])


def test_an_interrupted_run_goes_on_where_it_was(run, monkeypatch):
    _, go = run
    session, made = setting_module.EditSession, []

    def stops_at_the_third(*args, **options):
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt
        return session(*args, **options)

    monkeypatch.setattr(setting_module, "EditSession", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        go()
    table, _ = go()
    assert len(made) == 3 + 6 and len(table) == 10


def test_batches_must_divide_the_facts_of_every_seed(setting, facts):
    with pytest.raises(ValueError, match=r"batch_sizes = \[1, 3\]: 3 does not divide n_facts = 4"):
        check_batches(4, [1, 3])
    uneven = setting({1: (facts, []), 2: (facts[:1], [])})
    with pytest.raises(ValueError, match="2 does not divide n_facts = 1"):
        run_baselines(uneven, {"memit": uneven.spec("memit")}, [2])


def test_the_control_is_measured_on_the_facts_of_its_seed(setting, facts):
    here = setting({1: (facts[:1], []), 2: (facts[1:], [])})
    row, frame = untouched(here, 2)
    assert row["n_facts"] == 3 and row["moment"] == "pre" and set(frame.fact) == {fact.id for fact in facts[1:]}
    assert untouched(here, 1)[0]["n_facts"] == 1


def test_target_losses_are_those_of_the_optimisation(setting, facts):
    here = setting(early_stop_loss=1.0)
    losses = target_losses(here, 1, here.spec("memit"))
    spec = here.spec("memit").resolve(here.lm)
    found = optimise_targets(here.lm, facts, spec, here.contexts[1], progress=False).losses
    assert len(losses) == int(found.isfinite().sum()) and list(losses.columns) == ["edit", "step", "loss"]
    first = losses[losses.edit == 0].loss.tolist()
    assert first == found[0][found[0].isfinite()].tolist()
    once = target_losses(here, 1, here.spec("ultraedit"))
    assert once.edit.tolist() == list(range(len(facts))) and set(once.step) == {0}
    bare = optimise_targets(here.lm, facts, here.spec("memit", v_weight_decay=0.0).resolve(here.lm), [], progress=False)
    assert once.loss.tolist() == pytest.approx(bare.losses[:, 0].tolist(), rel=1e-4), "of the bare prompts"


def test_finetuning_learns_the_facts_of_each_seed_and_comes_off_again(setting, facts, monkeypatch):
    here = setting({0: (facts, []), 5: (facts[:1], [])})
    lm, spec = here.lm, FinetuneSpec([1, 2], rank=3, lr=0.05, steps=60)
    mark, before = lm.fingerprint(), evaluate(lm, facts)
    table, prompts = run_finetuning(here, spec)
    assert lm.fingerprint() == mark and not lm.has_adapters and evaluate(lm, facts).equals(before)
    row, frame = table.iloc[0], prompts[prompts.seed == 0]
    assert row.parameters == 2 * 3 * (16 + 24) and row.ES == summarize(frame)["ES"] == 1.0
    rewrites = before.kind == "rewrite"
    gain = frame[frame.kind == "rewrite"].logprob_new.to_numpy() - before[rewrites].logprob_new.to_numpy()
    assert (gain > 1).all()
    assert table.seed.tolist() == [0, 5] and set(prompts[prompts.seed == 5].fact) == {facts[0].id}
    monkeypatch.setattr(runs, "finetune", lambda *_, **__: pytest.fail("it is in the store"))
    pd.testing.assert_frame_equal(run_finetuning(here, spec)[0], table)
