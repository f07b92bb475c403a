"""Grids of cells: what a row holds, and that nothing is computed twice."""

import pandas as pd
import pytest
import torch

from editkit import evaluate, experiments, summarize
from editkit.editing.adapters import AdapterStack
from editkit.experiments import run_baselines, run_finetuning
from editkit.findings import baseline_findings, lora_findings
from editkit.language.finetune import finetune
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


def test_finetuning_learns_the_facts_and_comes_off_again(tiny, facts, store, monkeypatch):
    lm = tiny()
    mark, before = lm.fingerprint(), evaluate(lm, facts)
    how = {"layers": [1, 2], "rank": 3, "lr": 0.05, "steps": 60, "seed": 0, "store": store, "progress": False}
    row, frame = run_finetuning(lm, facts, **how)
    assert lm.fingerprint() == mark and not lm.has_adapters and evaluate(lm, facts).equals(before)
    assert row["parameters"] == 2 * 3 * (16 + 24) and row["ES"] == summarize(frame)["ES"] == 1.0
    rewrites = frame.kind == "rewrite"
    assert (frame[rewrites].logprob_new > before[rewrites].logprob_new + 1).all()
    monkeypatch.setattr(experiments, "finetune", lambda *_, **__: pytest.fail("it is in the store"))
    assert run_finetuning(lm, facts, **how)[0] == row


def test_finetuning_stops_when_it_has_learnt_and_refuses_to_diverge(tiny, facts, monkeypatch):
    monkeypatch.setattr("editkit.language.finetune.STOP_LOSS", 3.0)  # a random model of width 16 learns no further
    stack = AdapterStack(tiny())
    how = {"layers": [2], "rank": 2, "steps": 200, "progress": False}
    history = finetune(stack, "tuned", facts[:1], lr=0.05, **how)
    assert len(history) < 200 and history.loss.iloc[-1] < 3.0 < history.loss.iloc[-2]
    again = finetune(AdapterStack(tiny()), "tuned", facts[:1], lr=0.05, **how)
    assert again.loss.tolist() == history.loss.tolist(), "the start is drawn from the seed"
    stack.lm.weight(3).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="fine-tuning diverged at step 0"):
        finetune(stack, "other", facts[:1], lr=0.05, **how)
    assert list(stack) == ["tuned"]


def test_finetuning_whose_last_step_leaves_the_finite_numbers_comes_off_again(tiny, facts):
    stack = AdapterStack(tiny(), alpha=1e3)
    mark = stack.lm.fingerprint()
    with pytest.raises(FloatingPointError, match="not finite"):
        finetune(stack, "tuned", facts[:1], layers=[2], rank=2, lr=1e37, steps=1, progress=False)
    assert not stack.lm.has_adapters and stack.lm.fingerprint() == mark


def test_finetuning_refuses_what_it_cannot_train_before_it_touches_the_model(tiny, facts):
    stack = AdapterStack(tiny())
    stack.add("mine", {2: (torch.ones(16, 1), torch.ones(1, 24))})
    mark = stack.lm.fingerprint()
    good = {"name": "new", "facts": facts, "layers": [2], "rank": 2, "lr": 0.05, "steps": 2}
    for changes, message in (
        ({"name": "mine"}, "there is an adapter 'mine' already"),
        ({"facts": []}, "got 0 facts"),
        ({"layers": []}, r"layers \[\]"),
        ({"rank": 0}, "rank = 0"),
        ({"steps": 0}, "steps = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune(stack, progress=False, **(good | changes))
        assert list(stack) == ["mine"] and stack.lm.fingerprint() == mark


def test_findings_on_low_rank_say_what_the_tables_say():
    rows = [
        (8, "none", "full", "raw", 0.90, 1.0, 1000),
        (8, "none", "8", "exact", 0.90, 1.0, 100),
        (8, "none", "4", "svd", 0.40, 1.0, 50),
        (8, "none", "4", "keys", 0.60, 1.0, 50),
        (2, "hold", "full", "raw", 0.80, 0.8, 1000),
        (2, "hold", "full", "raw", 0.90, 1.0, 1000),
        (2, "hold", "1", "svd", 0.30, float("nan"), 10),
        (2, "hold", "1", "keys", 0.50, float("nan"), 10),
        (2, "hold", "1", "keys", 0.60, 0.7, 10),
    ]
    columns = ["batch_size", "replay", "lora_rank", "lora_fit", "S", "retention", "parameters"]
    gaps = pd.DataFrame({"rank": [4], "score": ["ES"], "value": [0.2], "low": [0.1], "high": [0.3]})
    share = pd.DataFrame({"rank": [4, 8], "share": [0.55, 1.0]})
    tuned = pd.DataFrame({"rank": [4, 4, 8], "lr": [0.01] * 3, "S": [0.6, 0.8, 0.8], "seconds": [8.0, 10.0, 9.0]})
    text = "\n".join(lora_findings(pd.DataFrame(rows, columns=columns), gaps, share, tuned))
    assert "Steps of 8 edits need rank 8" in text and "10.0% of the numbers" in text
    assert "Rank 4 for such a step: S svd 0.400, keys 0.600. The first 4 singular values hold 55%" in text
    assert "At rank 4, fitting where the keys live (keys) keeps more edits than truncated SVD: ES +0.200" in text
    assert "rank 4 (best learning rate 0.01, 9 s): S 0.700; the best closed form at that rank 0.600" in text
    assert "S 0.800; the best closed form at that rank 0.900" in text
    kept = "In steps of 2, replay hold: final S (share of immediate ES kept) raw full 0.850 (90%), "
    assert kept + "svd 1 0.300, keys 1 0.550 (70%)." in text
    unsure = lora_findings(pd.DataFrame(rows, columns=columns), gaps.assign(low=-0.1), share, tuned[:0])
    assert any("no surely different share" in sentence for sentence in unsure)
    assert not any("fine-tuning" in sentence for sentence in unsure)
