"""Grids of cells: what a row holds, and that nothing is computed twice."""

import pandas as pd
import pytest

from editkit import evaluate, summarize
from editkit.language.finetune import FinetuneSpec
from editkit.language.targets import optimise_targets
from editkit.studies import runs
from editkit.studies import setting as setting_module
from editkit.studies.runs import check_batches, run_baselines, run_finetuning, target_losses, untouched


@pytest.fixture
def run(setting, facts):
    """Two methods at two batch sizes, on the facts of seed 7 and then on half of them as seed 8."""
    draws = {7: (facts, []), 8: (facts[2:], [])}
    lm = setting().lm

    def go(**changes):
        here = setting(draws, lm=lm, **changes)
        return run_baselines(here, [here.spec("memit"), here.spec("rome", layers=[2])], [1, 2])

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
        run_baselines(uneven, [uneven.spec("memit")], [2])


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
