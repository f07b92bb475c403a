"""One batch of edits, and what is left of it after use, on a tiny random model."""

from dataclasses import replace

import pytest
import torch

from editkit import evaluate
from editkit.editing.weights import RawWeights
from editkit.language.texts import load_texts
from editkit.studies import survival
from editkit.studies.survival import ADDED, AS_IS, AVERAGED, WISE, SurvivalParams, Text, edited, merges, run_survival

PARAMS = SurvivalParams(
    survival_facts=4, survival_methods=["memit", "rome"], survival_rates=[0.01], survival_steps=2, survival_bits=[8, 3]
)
USES = [AS_IS, "trained, rate 0.01", "int8", "int3"]


@pytest.fixture
def one(setting):
    return setting(mom2_n_tokens=100, trust_heldout_samples=2, v_num_grad_steps=3)


def test_every_use_of_every_model_is_scored_and_leaves_no_trace(one, facts, monkeypatch):
    mark = one.lm.fingerprint()
    prompts = run_survival(one, PARAMS)
    assert one.lm.fingerprint() == mark
    found = prompts.groupby("method", sort=False).use.unique().map(list).to_dict()
    with_merges = [*USES, ADDED, AVERAGED, WISE]
    assert found == {"pre": USES, "memit": with_merges, "rome": with_merges}
    assert prompts.groupby(["method", "use"]).size().nunique() == 1

    def of(method, use):
        rows = prompts[(prompts.method == method) & (prompts.use == use)]
        return rows[["fact", "prompt", "logprob_new", "logprob_true"]].reset_index(drop=True)

    plain = evaluate(one.lm, facts)
    assert of("pre", AS_IS).equals(plain[of("pre", AS_IS).columns])
    session = one.session(one.spec("memit", seed=1), 1)
    session.edit(facts)
    assert of("memit", AS_IS).equals(evaluate(one.lm, facts)[of("memit", AS_IS).columns])
    session.undo()
    first = of("memit", AS_IS).logprob_new
    assert all((of("memit", use).logprob_new - first).abs().max() > 0 for use in with_merges[1:])
    assert prompts[prompts.use == AS_IS].groupby("method").perplexity.nunique().eq(1).all()

    monkeypatch.setattr(survival, "evaluate", None)  # nothing is measured twice
    assert run_survival(one, PARAMS).equals(prompts)


def test_halves_add_up_to_the_sum_of_their_updates(one, facts):
    spec = one.spec("emmet", seed=1)
    found, base = merges(one, 1, spec), RawWeights(one.lm, [1, 2]).read()
    session = one.session(spec, 1)
    updates = []
    for half in (facts[::2], facts[1::2]):  # of the untouched model each
        updates.append(session.edit(half).deltas)
        session.undo()
    for layer in (1, 2):
        total = sum(update[layer] for update in updates)
        gain = found[ADDED][f"weight.{layer}"].double() - base[f"weight.{layer}"].double()
        half = found[AVERAGED][f"weight.{layer}"].double() - base[f"weight.{layer}"].double()
        assert (gain - total).norm() < 1e-5 * total.norm() and (2 * half - total).norm() < 1e-5 * total.norm()
    whole = edited(one, 1, spec, facts)
    assert all(torch.equal(found[AS_IS][name], whole[name]) for name in whole)


def test_one_fact_has_no_halves_and_none_leaves_it_out(one, setting, facts):
    alone = setting({1: (facts[:1], [])}, mom2_n_tokens=100)
    assert set(merges(alone, 1, alone.spec("memit", seed=1))) == {AS_IS, WISE}
    assert run_survival(one, SurvivalParams(survival_facts=0)).empty


def test_the_text_is_neither_cs_nor_that_of_drift(one, tmp_path):
    text = Text.of(one, PARAMS)
    assert [ids.shape for ids in text.batches] == [(1, 65)] * 2 and len(text.heldout) == 8
    trained = {tuple(row) for ids in text.batches for row in ids.tolist()}
    assert not trained & {tuple(row) for row in text.heldout}
    (path := tmp_path / "same.txt").write_text("\n\n".join(one.texts))
    read = replace(one, texts=load_texts(str(path)))
    with pytest.raises(ValueError, match=r"same\.txt' is the text behind the second moment"):
        Text.of(read, SurvivalParams(survival_text=str(path)))
