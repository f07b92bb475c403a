"""Editors as points and fine-tuning as curves, on a tiny random model."""

from dataclasses import replace

import pandas as pd
import pytest

from editkit import evaluate, summarize
from editkit.facts import part_of
from editkit.language.finetune import LocFTSpec, finetune_matrix
from editkit.studies import equal_cost
from editkit.studies.controls import TRAINERS
from editkit.studies.equal_cost import EqualCostParams, run, trainings, tuned_rates

PARAMS = EqualCostParams(
    equal_facts=4,
    equal_methods=["memit", "emmet"],
    equal_controls=["locft", "lora"],
    equal_locft_rates=[0.01, 1e37],
    equal_locft_epochs=[3, 1],
    equal_lora_rates=[0.05],
    equal_lora_steps=[2, 4],
    locft_batch_size=3,
    lora_control_rank=2,
)


@pytest.fixture
def one(setting, facts):
    named = (replace(facts[1], id=f"t{i}", subject=f"Rome {i}", target_new="France") for i in range(100))
    tune = [fact for fact in named if part_of(fact) == "tune"][:3]
    return setting(tune=tune, layers=[1, 2], mom2_n_tokens=100, trust_heldout_samples=2, v_num_grad_steps=3)


def test_every_point_is_measured_once_and_leaves_no_trace(one, facts, monkeypatch):
    mark = one.lm.fingerprint()
    found = run(one, PARAMS)
    assert one.lm.fingerprint() == mark and not one.lm.has_adapters
    variants = found.scores.groupby("method", sort=False).variant.unique().map(list).to_dict()
    assert variants == {
        "pre": ["pre"],
        "memit": ["fast"],
        "emmet": ["fast"],
        "locft": ["1 epoch", "3 epochs"],
        "lora": ["2 steps", "4 steps"],
    }
    rows = found.scores.set_index(["method", "variant"])
    assert rows.S["pre", "pre"] == summarize(evaluate(one.lm, facts))["S"] and abs(rows.kl["pre", "pre"]) < 1e-5
    assert (rows.kl[1:] > 0).all() and (rows.perplexity > 1).all()
    tuned = rows.index.get_level_values("method").isin(["locft", "lora"])
    assert rows.tuned_S[tuned].notna().all() and rows.tuned_S[~tuned].isna().all()
    assert rows.seconds["locft", "1 epoch"] < rows.seconds["locft", "3 epochs"]
    assert found.prompts.groupby(["method", "variant"]).size().nunique() == 1

    monkeypatch.setattr(equal_cost, "evaluate", None)  # nothing is measured twice
    again = run(one, PARAMS)
    pd.testing.assert_frame_equal(again.scores, found.scores)
    pd.testing.assert_frame_equal(again.prompts, found.prompts)


def test_a_budget_is_a_training_of_its_own(one, facts):
    """What is looked at on the way of a longer training is what a shorter one ends with."""
    found = run(one, PARAMS)
    tuned = finetune_matrix(
        one.lm, facts, LocFTSpec(layer=2, lr=0.01, batch_size=3, num_steps=1, seed=1), progress=False
    )
    with tuned.apply() as model:
        alone = evaluate(model, facts)
    kept = found.prompts[(found.prompts.method == "locft") & (found.prompts.variant == "1 epoch")]
    assert kept.logprob_new.tolist() == alone.logprob_new.tolist()
    short = PARAMS.model_copy(update={"lora_control_steps": 2, "lora_control_lr": 0.05})
    with TRAINERS["lora"].train(one, 1, facts, short, lambda done, now: None).apply() as model:
        alone = evaluate(model, facts)
    kept = found.prompts[(found.prompts.method == "lora") & (found.prompts.variant == "2 steps")]
    assert kept.logprob_new.tolist() == alone.logprob_new.tolist()


def test_passes_are_those_of_the_tokens_that_ran(one, facts):
    """A training of one batch runs every token of its rows through every layer, and back to the trained one."""
    params = PARAMS.model_copy(update={"locft_batch_size": 4, "equal_locft_epochs": [1], "equal_locft_rates": [0.01]})
    rows = run(one, params).scores.set_index(["method", "variant"])
    lm = one.lm
    end = [lm.tokenizer.eos_token_id]
    longest = max(len(lm.encode(f.text)[0] + lm.encode_continuation(f.text, f.target_new) + end) - 1 for f in facts)
    assert rows.forward["locft", "1 epoch"] == 4 * longest
    assert rows.backward["locft", "1 epoch"] == 4 * longest * (lm.n_layers - 2) / lm.n_layers  # layers 2 and 3 of 4
    assert rows.forward["memit", "fast"] > rows.backward["memit", "fast"] > 0
    assert (rows.loc["pre", ["forward", "backward"]] == 0).all(axis=None)


def test_rates_are_chosen_for_every_budget_on_facts_for_tuning(one, facts, setting):
    rates = tuned_rates(one, PARAMS)
    reached = rates[rates.method == "locft"].groupby("rate").budget.apply(list).to_dict()
    assert reached == {0.01: [1, 3], 1e37: [1]}, "a rate has the budgets that it reaches before it diverges"
    table = pd.DataFrame(
        [("locft", 0.1, 1, 0.5), ("locft", 0.1, 4, 0.2), ("locft", 0.2, 1, 0.4), ("locft", 0.2, 4, 0.6)],
        columns=["method", "rate", "budget", "S"],
    )
    assert trainings(table) == [("locft", 0.1, [1]), ("locft", 0.2, [4])]
    with pytest.raises(ValueError, match=r"equal_locft_rates = \[1e\+37\]: locft diverges at each"):
        tuned_rates(one, PARAMS.model_copy(update={"equal_locft_rates": [1e37], "equal_locft_epochs": [3]}))
    with pytest.raises(ValueError, match="no facts of the part for tuning"):
        tuned_rates(setting(), PARAMS)
