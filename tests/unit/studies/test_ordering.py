"""The order of edits by what they will do to one another: the printed update, counted by hand, and both controls."""

import itertools

import pandas as pd
import pytest
import torch

from editkit.language.keys import edit_keys, hidden_states
from editkit.language.moments import second_moments
from editkit.language.targets import optimise_targets
from editkit.studies import ordering
from editkit.studies.endings import in_order, seeded
from editkit.studies.ordering import (
    FIRST,
    LAST,
    RANDOM,
    Ordered,
    OrderingParams,
    differences,
    findings,
    foretold_harm,
    harms,
    plan,
    points,
    told,
)
from tests.unit.studies.conftest import prompts_of


def test_what_an_edit_does_to_others_is_the_printed_update_of_it_alone(setting, facts):
    one = setting(layers=[2], mom2_n_tokens=100, contexts=())
    one.contexts[1] = ()
    spec, lm, mark = one.spec("memit", replay="none", targets_from="base"), one.lm, one.lm.fingerprint()
    H = harms(one, 1, spec)
    assert lm.fingerprint() == mark and H.shape == (4, 4) and torch.allclose(H.diagonal(), torch.ones(4))
    C = second_moments(lm, [2], one.texts, 100, store=one.store, progress=False)[2].double()
    K = edit_keys(lm, facts, 2, ()).double()
    V = optimise_targets(lm, facts, seeded(one, 1, spec), (), progress=False).values.double()
    R = (V - hidden_states(lm, facts, 2).double()) / lm.gain(2)
    weight = seeded(one, 1, spec).mom2_update_weight
    change = torch.empty(4, 4, dtype=torch.float64)
    for i in range(4):  # arXiv 2210.07229, eq. 14, of one edit
        delta = R[:, i : i + 1] @ K[:, i : i + 1].T @ torch.linalg.inv(weight * C + K[:, i : i + 1] @ K[:, i : i + 1].T)
        change[i] = (lm.gain(2) * (delta @ K).T).T.norm(dim=0)
    assert torch.allclose(H.double(), change / change.diagonal(), rtol=1e-3)


def test_those_that_harm_more_than_they_are_harmed_come_first():
    H = torch.tensor([[1.0, 0.0, 0.1], [0.5, 1.0, 0.9], [0.2, 0.3, 1.0]])
    orders = plan(H, 2)
    assert list(orders) == [(FIRST, 0), (LAST, 0), (RANDOM, 0), (RANDOM, 1)] and orders[RANDOM, 1] == 1
    surplus = {0: 0.1 - 0.7, 1: 1.4 - 0.3, 2: 0.5 - 1.0}
    assert orders[FIRST, 0] == tuple(sorted(surplus, key=surplus.get, reverse=True)) == orders[LAST, 0][::-1]
    by_hand = (H[2, 1] + H[0, 1] + H[0, 2]).item() / 3  # in the order 1, 2, 0: later edits harm earlier ones
    assert foretold_harm(H, (1, 2, 0), 1) == pytest.approx(by_hand)
    assert foretold_harm(H, (1, 2, 0), 3) == 0, "edits of one step do not come after one another"
    costs = {order: foretold_harm(H, order, 1) for order in itertools.permutations(range(3))}
    assert costs[orders[FIRST, 0]] == min(costs.values()) and costs[orders[LAST, 0]] == max(costs.values())
    assert foretold_harm(H, 1, 1) == pytest.approx(foretold_harm(H, tuple(in_order(range(3), 1)), 1))


def test_both_orders_are_compared_with_the_random_ones_together():
    right = {(FIRST, 0): 8, (LAST, 0): 2, (RANDOM, 0): 4, (RANDOM, 1): 6}
    prompts = [prompts_of(n, method="emmet", order=name, number=number) for (name, number), n in right.items()]
    scores = [
        {"method": "emmet", "order": name, "number": number, "seed": 1, "foretold": n / 10, "seconds": 1.0}
        for (name, number), n in right.items()
    ]
    found = Ordered(pd.DataFrame(scores), pd.concat(prompts, ignore_index=True))
    made, gaps = points(found), differences(found)
    value = made.set_index(["order", "score"]).value
    assert value[RANDOM, "ES"] == pytest.approx(5 / 8) and value[FIRST, "EA"] == 1
    assert made.set_index("order").foretold[RANDOM].iloc[0] == pytest.approx(0.5)
    apart = gaps.set_index(["order", "score"]).value
    assert apart[FIRST, "ES"] == pytest.approx(3 / 8) and apart[LAST, "ES"] == pytest.approx(-3 / 8)
    table = told(made, gaps)
    assert [order for _, order in table.index] == [FIRST, LAST, RANDOM] and table["difference of S"].iloc[2] == ""
    sure = findings(made, gaps.assign(p_holm=0.01))
    assert "harmful edits come first: it raises S and it raises EA." in sure[0] and "0.50 (random)" in sure[0]
    assert "no difference from a random order is resolved" in findings(made, gaps.assign(p_holm=1.0))[0]


def test_a_run_edits_in_every_order_and_leaves_the_model_alone(setting, facts, monkeypatch):
    one = setting(draws={1: (facts[:3], facts[3:])}, layers=[1, 2], v_num_grad_steps=2, mom2_n_tokens=100)
    mark = one.lm.fingerprint()
    asked = OrderingParams(ordering_facts=3, ordering_methods=["memit"], ordering_shuffles=2)
    found = ordering.run(one, asked)
    assert one.lm.fingerprint() == mark and list(found.scores.order) == [FIRST, LAST, RANDOM, RANDOM]
    harm = found.scores.groupby("order").foretold.mean()
    assert harm[FIRST] <= harm[RANDOM] <= harm[LAST] and harm[LAST] > 0
    assert found.prompts.groupby(["order", "number"]).size().nunique() == 1
    monkeypatch.setattr(ordering, "outputs", pytest.fail)
    assert ordering.run(one, asked).scores.equals(found.scores), "another run edits nothing"
    with pytest.raises(ValueError, match="2 does not divide"):
        ordering.run(one, OrderingParams(ordering_facts=3, ordering_batch=2))
