"""Edits as adapters: the runs of the chapter on low rank, on a tiny random model."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from editkit import evaluate, summarize
from editkit.studies import lora, lora_tables
from editkit.studies.lora import LoraParams
from editkit.studies.tables import SCORES

PARAMS = LoraParams(lora_facts=3, finetune_rates=[0.01, 0.05], finetune_steps=3)


@pytest.fixture
def three(setting, tiny, facts):
    """A setting of three facts, so that every batch is one."""
    return setting({1: (facts[:3], [])}, lm=tiny(), layers=[1, 2], mom2_n_tokens=100)


def test_the_grid_runs_each_rank_once_and_a_fit_only_below_full_rank():
    params = LoraParams(lora_facts=4, lora_batches=[2, 4], lora_ranks=[1, 2], lora_replays=["none", "hold", "history"])
    cells = [(size, c["replay"], c.get("lora_rank"), c.get("lora_fit", "raw")) for size, c in lora.rank_grid(params)]
    assert len(set(cells)) == len(cells)
    assert [cell for cell in cells if cell[0] == 2] == [
        *((2, "none", *form) for form in ((None, "raw"), (2, "exact"), (1, "svd"), (1, "keys"))),
        *((2, "hold", *form) for form in ((None, "raw"), (2, "exact"), (1, "svd"), (1, "keys"))),
        *((2, "history", *form) for form in ((None, "raw"), (4, "exact"))),
        *((2, "history", rank, fit) for rank in (1, 2) for fit in ("svd", "keys")),
    ]
    assert {cell[1] for cell in cells if cell[0] == 4} == {"none"}, "one batch has no earlier edits"


def test_runs_of_every_rank_and_fit_make_the_tables(three):
    mark = three.lm.fingerprint()
    runs = lora.run_adapters(three, PARAMS, lora.rank_grid(PARAMS))
    assert three.lm.fingerprint() == mark and not three.lm.has_adapters
    ablation = lora_tables.lora_ablation(runs.scores, runs.steps).set_index(["batch_size", "replay", "lora_fit"])
    raw, exact = ablation.loc[(3, "none", "raw")], ablation.loc[(3, "none", "exact")]
    assert raw[SCORES].tolist() == pytest.approx(exact[SCORES].tolist())
    assert raw.lora_rank == "full" and exact.lora_rank == "3" and exact.parameters == 3 * 2 * (16 + 24)
    assert exact.fit_residual < 1e-6 < ablation.fit_residual[3, "none", "svd"]
    assert ablation.run_id.nunique() == len(ablation) == 4 + 2 * 2
    assert runs.steps.perplexity_prose.isna().all()
    prompts = lora_tables.largest_steps(runs.scores, runs.prompts)
    assert (
        set(prompts.fit) == {"raw", "exact", "svd", "keys"}
        and lora_tables.lora_gaps(prompts, prompts[:0])["rank"].tolist() == [1] * 4
    )


def test_tables_tell_ge_where_texts_are_written(setting, writers):
    few = LoraParams(lora_facts=3, lora_batches=[3], finetune_rates=[0.01], finetune_steps=1)
    here = setting({1: (writers[:3], [])}, layers=[2], mom2_n_tokens=100)
    for texts, told in ((2, True), (0, False)):
        here = replace(here, fluency_facts=texts)
        runs = lora.run_adapters(here, few, list(lora.rank_grid(few))[:2])
        ablation = lora_tables.lora_ablation(runs.scores, runs.steps)
        tuned, _ = lora.run_finetuned(here, few)
        stacks = lora_tables.lora_stacks(runs.scores)
        shown = lora_tables.lora_configurations(ablation), lora_tables.finetuning_by_rank(tuned)
        assert [("GE" in table and table.GE.notna().all()) for table in (ablation, tuned, stacks, *shown)] == [told] * 5


def test_one_configuration_twice_and_steps_that_do_not_fit_are_refused(three):
    with pytest.raises(ValueError, match="'EMMET, none, LoRA svd r=1' is asked for twice"):
        lora.run_adapters(three, PARAMS, lora.rank_grid(LoraParams(lora_ranks=[1, 1])))
    with pytest.raises(ValueError, match="2 does not divide"):
        lora.run_adapters(three, LoraParams(lora_batches=[2]), [])


def test_an_editor_without_targets_is_refused_by_name():
    with pytest.raises(ValueError, match="lora_method = 'ultraedit': .*'memit', 'emmet', "):
        LoraParams(lora_method="ultraedit")


def test_stacks_grow_or_stay(three):
    stacks = lora_tables.lora_stacks(lora.run_adapters(three, PARAMS, lora.stack_grid(PARAMS)).scores)
    assert (
        stacks["stack"].tolist() == ["grow", "grow", "fixed", "fixed"]
        and stacks.replay.tolist() == ["none", "hold"] * 2
    )
    assert stacks.parameters.tolist() == [3 * 80, 3 * 80, 80, 80]


def test_finetuning_keeps_the_best_rate_and_a_diverged_one_has_lost(three, monkeypatch):
    tuned, prompts = lora.run_finetuned(three, PARAMS)
    assert list(tuned)[:6] == ["method", "model", "dataset", "n_facts", "seed", "rank"] and len(tuned) == 1
    assert (tuned.method[0], tuned["rank"][0]) == ("finetuning", 1) and tuned.lr[0] in PARAMS.finetune_rates
    assert set(prompts["rank"]) == {1} and summarize(prompts)["S"] == tuned.S[0]
    runs = lora.run_adapters(three, PARAMS, lora.rank_grid(PARAMS))
    gaps = lora_tables.lora_gaps(lora_tables.largest_steps(runs.scores, runs.prompts), prompts)
    assert "finetuning" in set(gaps.fit) and gaps.value.notna().all()
    each = [lora.run_finetuned(three, PARAMS.model_copy(update={"finetune_rates": [r]}))[0].S[0] for r in (0.01, 0.05)]
    assert tuned.S[0] == max(each)
    run = lora.run_finetuning

    def diverges(setting, spec):
        if spec.lr > 0.1:
            raise FloatingPointError("fine-tuning diverged")
        return run(setting, spec)

    monkeypatch.setattr(lora, "run_finetuning", diverges)
    mixed, _ = lora.run_finetuned(three, PARAMS.model_copy(update={"finetune_rates": [1.0, 0.05, 2.0]}))
    assert mixed.lr.tolist() == [0.05]
    none, no_prompts = lora.run_finetuned(three, PARAMS.model_copy(update={"finetune_rates": [1.0]}))
    assert none.empty and no_prompts.empty and list(none) == list(tuned) and "rank" in no_prompts
    assert lora_tables.finetuning_by_rank(none).empty and not three.lm.has_adapters


def test_spectra_are_singular_values_of_the_raw_update(three, facts):
    spectra = lora.update_spectra(three, PARAMS)
    session = three.session(three.spec("emmet"), 1)
    deltas = session.edit(facts[:3]).deltas
    session.undo()
    for layer, values in spectra.items():
        assert values == pytest.approx(torch.linalg.svdvals(deltas[layer])[:3].tolist())


def test_a_batch_is_switched_off_and_never_made(three, facts):
    mark = three.lm.fingerprint()
    prompts = lora.run_removal(three, PARAMS)
    assert three.lm.fingerprint() == mark and not three.lm.has_adapters
    states = prompts[["state", "switched"]].drop_duplicates().values.tolist()
    assert sorted(states) == [["never made", n] for n in (1, 2, 3)] + [["off", n] for n in (1, 2, 3)] + [["on", 0]]
    assert prompts.groupby("batch").fact.unique().map(list).tolist() == [[fact.id] for fact in facts[:3]]
    table = lora_tables.removal(prompts)
    assert len(table) == 9 and table.value.notna().sum() == 3
    session = lora.edit_batches(three, PARAMS, 1, [1, 3])
    columns = ["fact", "kind", "logprob_new"]
    never = prompts[(prompts.state == "never made") & (prompts.switched == 2)]
    pd.testing.assert_frame_equal(evaluate(three.lm, facts[:3])[columns], never[columns].reset_index(drop=True))
    session.undo()


def test_plain_peft_and_the_merged_model_agree_with_the_session(three, tiny, tmp_path):
    session = lora.edit_batches(three, PARAMS, 1)
    folder = session.save_adapter(tmp_path / "edits")
    assert list(session.adapters) == ["batch_1", "batch_2", "batch_3"]
    claims = lora.read_back(session, tiny(), folder)
    assert len(claims) == 3 and all(claims.values())
    session.undo()
    other = lora.edit_batches(three, PARAMS, 1, [2])
    claims = lora.read_back(other, tiny(), folder)
    assert list(claims.values()) == [False, True, True], "the folder holds other edits"
    other.undo()
