"""Grids of cells: what a row holds, and that nothing is computed twice."""

import pandas as pd
import pytest

from editkit import evaluate, experiments, summarize
from editkit.experiments import run_baselines
from editkit.findings import baseline_findings
from editkit.language.generation import pick_examples
from tests.conftest import TEXTS


@pytest.fixture
def run(tiny, facts, full_spec, store):
    lm = tiny()

    def go(**changes):
        specs = [full_spec("memit"), full_spec("rome", layers=[2])]
        given = dict(dataset="made up", seed=7, contexts=["a b. "], texts=TEXTS, store=store, progress=False) | changes
        return run_baselines(lm, facts, specs, [1, 4], **given)

    return lm, go


def test_rows_are_cells_on_the_untouched_model(run, facts):
    lm, go = run
    before = lm.fingerprint()
    table, prompts = go()
    assert lm.fingerprint() == before
    assert list(zip(table.method, table.batch_size, table.moment, strict=True)) == [
        ("none", 0, "pre"),
        ("memit", 1, "immediate"),
        ("memit", 4, "immediate"),
        ("rome", 1, "immediate"),
        ("rome", 4, "immediate"),
    ]
    pre = summarize(evaluate(lm, facts))
    assert table.loc[0, list(pre)].astype(float).to_dict() == pytest.approx(pre)
    assert set(table.seed) == {7} and set(table.dataset) == {"made up"}
    for (method, size), part in prompts.groupby(["method", "batch_size"]):
        row = table[(table.method == method) & (table.batch_size == size)].iloc[0]
        assert row.ES == pytest.approx(part[part.kind == "rewrite"].success.mean())


def test_a_second_run_reads_every_cell_and_a_change_computes_again(run, monkeypatch):
    _, go = run
    table, prompts = go()

    class Refuses:
        def __init__(self, *args, **options):
            raise AssertionError("a cell is computed again")

    monkeypatch.setattr(experiments, "EditSession", Refuses)
    again, same_prompts = go()
    pd.testing.assert_frame_equal(again, table)
    pd.testing.assert_frame_equal(same_prompts, prompts)
    with pytest.raises(AssertionError, match="computed again"):
        go(contexts=["c d. "])


def test_an_interrupted_run_goes_on_where_it_was(run, monkeypatch):
    _, go = run
    session, made = experiments.EditSession, []

    def stops_at_the_third(*args, **options):
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt
        return session(*args, **options)

    monkeypatch.setattr(experiments, "EditSession", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        go()
    table, _ = go()
    assert len(made) == 3 + 2 and len(table) == 5


def test_batches_must_divide_the_facts(run):
    with pytest.raises(ValueError, match=r"batch_sizes = \[1, 3\]: 3 does not divide n_facts = 4"):
        experiments.check_batches(4, [1, 3])


def table_of(values: dict[str, list[float]]) -> pd.DataFrame:
    """A baselines table: S of each method at 1 and 32 edits, for two seeds a little apart."""
    rows = []
    for seed, off in ((1, -0.01), (2, 0.01)):
        common = {"dataset": "d", "seed": seed, "n_facts": 32}
        rows.append(common | {"method": "none", "batch_size": 0, "moment": "pre", "ES": 0.1, "NS": 0.9})
        for method, pair in values.items():
            for size, S in zip((1, 32), pair, strict=True):
                scores = {"ES": 1.0, "PS": 0.9, "NS": 0.8 if size == 1 else 0.7, "S": S + off, "EA": 0.5, "PA": 0.25}
                seconds = {"seconds_targets": 64.0, "seconds_keys": 4.0, "seconds_solve": 12.0}
                rows.append(common | {"method": method, "batch_size": size, "moment": "immediate", **scores, **seconds})
    return pd.DataFrame(rows)


def test_findings_name_a_winner_only_beyond_the_spread():
    clear = "\n".join(baseline_findings(table_of({"emmet": [0.9, 0.5], "memit": [0.9, 0.8]})))
    assert "highest S is MEMIT's, 0.800 (± 0.010 over seeds); EMMET 0.500" in clear
    assert "further away than the seeds' spread" in clear
    assert "EMMET 0.900 → 0.500 (NS 0.80 → 0.70)" in clear and "MEMIT loses 0.20 of NS" in clear
    assert "80% of the time of an edit (2.0 s)" in clear
    close = "\n".join(baseline_findings(table_of({"emmet": [0.9, 0.79], "memit": [0.9, 0.8]})))
    assert "over EMMET is within the seeds' spread: no winner can be named" in close


def test_examples_are_taken_in_turn_from_successes_and_failures():
    frame = pd.DataFrame(
        {
            "kind": ["rewrite"] * 6 + ["neighbourhood"] * 2,
            "accuracy": [True] * 5 + [False, True, False],
            "prompt": range(8),
        }
    )
    chosen = pick_examples(frame, 4)
    assert sorted(zip(chosen.kind, chosen.accuracy, strict=True)) == [
        ("neighbourhood", False), ("neighbourhood", True), ("rewrite", False), ("rewrite", True),
    ]  # fmt: skip
