"""Budgets: the smallest weight that holds a promise, what it does to a step, and steps that nothing can hold."""

import json
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from editkit import EditSession, Fact
from editkit.editing.budget import HALVINGS, LARGEST, SMALLEST, spend
from editkit.language.drift import TextProbe, held_out
from editkit.language.keys import edit_keys, hidden_states
from editkit.language.moments import second_moments
from editkit.language.promises import PIECES
from editkit.methods import TargetMethodName
from tests.conftest import TEXTS, agree, write_under

STRONG = dict(layers=[2], n_contexts=0, mom2_update_weight=0.01, l2=0.01, nullspace_threshold=0.5, mom2_n_tokens=100)
STRONG |= dict(v_lr=0.5, v_num_grad_steps=15, clamp_norm_factor=2.0)
PROMISED = {"neighbour_budget": 1.0, "text_budget": 0.99}
EVERY_METHOD = pytest.mark.parametrize("method", get_args(TargetMethodName))
MODES = pytest.mark.parametrize("edit_mode", ["raw", "lora"])


@pytest.fixture(scope="module")
def prose():
    """Other prose: the beginning of the Python reference as drawn in 3.11.7; every version has another."""
    return json.loads(Path(__file__).with_name("prose.json").read_text())


@pytest.fixture(autouse=True)
def same_prose(monkeypatch, prose):
    monkeypatch.setattr("editkit.language.domain.other_prose", lambda texts, **_: prose)


@pytest.fixture
def start(store, full_spec):
    rows = [
        ("Italy", "The city of Spain is", "Anna lies in"),
        ("Swedish", "People speak", "The city lies in"),
        ("Paris", "Stockholm is", "The mother of"),
    ]
    tune = [
        Fact.make(
            subject="Spain",
            prompt="{} lies in",
            relation="made up",
            target_new="Rome",
            target_true=true,
            neighbours=neighbours,
        )
        for true, *neighbours in rows
    ]

    def build(lm, method="memit", *, tune=tune, **changes):
        spec = full_spec(method, **(STRONG | changes))
        return EditSession(lm, spec, texts=TEXTS, heldout=tune, store=store, progress=False)

    return build


def rising(half):
    """A share that grows with the weight; it is ``p`` at ``half · p / (1 − p)``."""
    return lambda weight: weight / (weight + half)


def test_no_weight_is_tried_first_and_taken_where_it_holds():
    tried = []
    budget = spend({"kept": 0.9}, lambda weight: tried.append(weight) or {"kept": 0.9})
    assert tried == [0.0] and budget.weight == 0.0 and budget.holds and budget.measured == {"kept": 0.9}


@pytest.mark.parametrize("half", [0.003, 0.2, 1.0, 37.0, 900.0])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
def test_the_smallest_weight_is_found(half, share):
    budget = spend({"kept": share}, lambda weight: {"kept": rising(half)(weight)})
    crossing = half * share / (1 - share)
    assert crossing <= budget.weight <= 1.1 * crossing
    assert budget.measured == {"kept": rising(half)(budget.weight)} == budget.tries[budget.weight]
    assert list(budget.tries)[:2] == [0.0, LARGEST] and len(budget.tries) == 2 + HALVINGS


def test_several_promises_hold_at_once_and_the_dearest_decides():
    measure = {"neighbour": rising(2.0), "text": rising(0.1)}
    budget = spend({"neighbour": 0.6, "text": 0.99}, lambda weight: {n: share(weight) for n, share in measure.items()})
    assert 9.9 <= budget.weight <= 1.1 * 9.9 and 2.0 * 0.6 / 0.4 < 9.9
    assert budget.measured["neighbour"] > 0.6 and 0.99 <= budget.measured["text"] < 0.992


def test_a_promise_that_no_weight_holds_is_told():
    budget = spend({"kept": 0.9, "text": 0.5}, lambda weight: {"kept": 0.8, "text": 1.0})
    assert not budget.holds and math.isnan(budget.weight) and list(budget.tries) == [0.0, LARGEST]
    assert str(budget) == "budget: kept 0.800 of 0.9, text 1.000 of 0.5; nothing is written"


@pytest.mark.parametrize("seed", range(10))
def test_the_weight_found_was_seen_to_hold_whatever_the_measure_does(seed):
    rng = np.random.default_rng(seed)
    budget = spend({"kept": 0.5}, lambda weight: {"kept": rng.random() * (weight > 0) + (weight == LARGEST)})
    assert budget.measured == budget.tries[budget.weight] and budget.measured["kept"] >= 0.5
    assert SMALLEST < budget.weight <= LARGEST
    below = [seen["kept"] for weight, seen in budget.tries.items() if weight < budget.weight]
    assert max(below) < 0.5, "nothing smaller that was tried held"


@EVERY_METHOD
def test_a_weight_counts_in_mean_eigenvalues_of_the_printed_formula(tiny, facts, start, method):
    lm, facts = tiny(), facts[1:2] if method == "rome" else facts[1:]
    C = second_moments(lm, [2], TEXTS, 100, progress=False)[2].double()
    K, h, eye = edit_keys(lm, facts, 2, []).double(), hidden_states(lm, facts, 2), torch.eye(24, dtype=torch.float64)
    result = start(lm, method, update_norm_lambda=0.3, **PROMISED).edit(facts)
    assert (w := result.budget.weight) > 0
    values, vectors = torch.linalg.eigh(C)
    free = vectors[:, values < 0.5]
    M = {
        "rome": lambda: torch.linalg.inv(C),
        "memit": lambda: torch.linalg.inv(0.01 * C),
        "emmet": lambda: torch.linalg.inv(0.01 * C + 0.3 * eye),
        "alphaedit": lambda: free @ free.T / 0.01,
        "memit_rls": lambda: torch.linalg.inv(0.01 * C),
        "encore": lambda: torch.linalg.inv(0.01 * C + 0.3 * eye),
        "betaedit": lambda: free @ torch.linalg.inv(free.T @ (0.01 * C + 0.01 * eye) @ free) @ free.T,
    }[method]()
    gram, own = K.T @ M @ K, float(method not in ("rome", "emmet"))
    slack = (own + w * torch.linalg.eigvalsh(gram).mean()) * torch.eye(len(facts), dtype=torch.float64)
    agree(result.deltas[2], (result.targets.values - h).double() @ torch.linalg.inv(gram + slack) @ K.T @ M, 1e-5)


@EVERY_METHOD
@MODES
@pytest.mark.parametrize("layers", [[2], [1, 2]])
def test_a_step_is_written_as_under_its_weight_and_undone_bit_for_bit(tiny, facts, start, method, edit_mode, layers):
    lm, other, kind = tiny(), tiny(), dict(edit_mode=edit_mode, layers=layers)
    mark, session = lm.fingerprint(), start(lm, method, **kind, **PROMISED)
    result = session.edit(facts[1:])
    assert result.budget.promised == {"neighbour": 1.0, "text": 0.99} and result.budget.weight > 0
    assert all(result.budget.measured[name] >= share for name, share in result.budget.promised.items())
    write_under(start(other, method, **kind), facts[1:], result.budget.weight)
    assert lm.fingerprint() == other.fingerprint() != mark
    weak = tiny()
    start(weak, method, **kind).edit(facts[1:])
    assert weak.fingerprint() != lm.fingerprint(), "a step without a weight is another one"
    session.undo()
    assert lm.fingerprint() == mark


@MODES
def test_a_step_of_gradients_keeps_promises_too_and_is_counted_once(tiny, facts, start, edit_mode):
    kind = dict(edit_mode=edit_mode, gradient_lr=3.0)
    lm, other = tiny(), tiny()
    mark, session = lm.fingerprint(), start(lm, "ultraedit", **kind, **PROMISED)
    result = session.edit(facts[1:])
    assert result.budget.weight > 0 and len(result.budget.tries) > 2
    assert session.memory.statistics.n == len(result.targets.columns.owner)
    write_under(start(other, "ultraedit", **kind), facts[1:], result.budget.weight)
    assert lm.fingerprint() == other.fingerprint() != mark
    session.undo()
    assert lm.fingerprint() == mark


def test_a_promise_that_costs_nothing_leaves_a_step_as_its_method_has_it(tiny, facts, start):
    lm, other = tiny(), tiny()
    result = start(lm, text_budget=0.01).edit(facts)
    assert start(other).edit(facts).budget is None
    assert result.budget.weight == 0 and lm.fingerprint() == other.fingerprint()


@MODES
def test_a_promise_counts_from_before_the_first_edit(tiny, facts, start, prose, edit_mode):
    lm = tiny()
    probe = TextProbe(lm, held_out(lm, prose, 0, PIECES))
    session, stays = start(lm, text_budget=0.97, edit_mode=edit_mode), []
    for fact in facts[1:]:
        result = session.edit([fact])
        stays.append(probe.perplexity / probe.measure(lm)[0])
        assert result.budget.measured["text"] == pytest.approx(stays[-1], rel=1e-6)
    assert min(stays) >= 0.97 and result.budget.weight > 0 and stays[0] < 1 - 1e-4


@MODES
def test_promises_look_at_the_untouched_model_and_are_about_all_edits_that_are_held(tiny, facts, start, edit_mode):
    lm, seen = tiny(), []
    session, mark = start(lm, text_budget=0.5, edit_mode=edit_mode), lm.fingerprint()
    session.domain.promises = lambda items: seen.append((lm.fingerprint(), items)) or (lambda: {"text": 1.0})
    session.edit(facts[:2])
    session.edit(facts[2:3])
    session.undo(1)
    session.edit(facts[3:])
    assert seen == [(mark, facts[:2]), (mark, facts[:3]), (mark, [*facts[:2], facts[3]])]
    assert lm.fingerprint() != mark


@MODES
def test_where_earlier_edits_broke_a_promise_nothing_is_written(tiny, facts, start, edit_mode):
    bold, lm = tiny(), tiny()
    how = dict(replay="buffer", replay_rate=1.0, edit_mode=edit_mode)
    session, strict, untouched = start(bold, **how), start(lm, **how, text_budget=0.99), lm.fingerprint()
    session.edit(facts[1:3])
    strict.load_state_dict(session.state_dict())
    mark, held = lm.fingerprint(), strict.memory.state_dict()
    with pytest.warns(UserWarning, match=r"text 0\.\d+ of 0\.99; nothing is written.*earlier edits have spent it"):
        result = strict.edit(facts[3:])
    assert not result.budget.holds and not result.updates and result.trust is None
    assert lm.fingerprint() == mark != untouched and strict.results == [result]
    assert strict.memory.state_dict().keys() == held.keys() and len(strict.memory) == 2
    assert all(torch.equal(strict.memory.state_dict()[name], held[name]) for name in held)
    strict.undo()
    assert lm.fingerprint() == untouched


def test_undoing_a_step_that_wrote_nothing_forgets_what_came_after_it(tiny, facts, start):
    lm, shares = tiny(), iter([0.0, 0.0, 1.0])
    session, mark = start(lm, replay="buffer", replay_rate=1.0, text_budget=0.5), lm.fingerprint()
    session.domain.promises = lambda items: lambda: {"text": next(shares)}
    with pytest.warns(UserWarning, match="nothing is written"):
        session.edit(facts[:1])
    session.edit(facts[1:2])
    assert len(session.memory) == 1 and lm.fingerprint() != mark
    session.undo(2)
    assert len(session.memory) == 0 and lm.fingerprint() == mark


def test_an_error_while_a_weight_is_searched_for_leaves_weights_and_memory(tiny, facts, start):
    lm, shares = tiny(), iter([0.0, 1.0, 0.0])
    session, mark = start(lm, replay="buffer", replay_rate=1.0, text_budget=0.5), lm.fingerprint()
    session.domain.promises = lambda items: lambda: {"text": next(shares)}
    with pytest.raises(StopIteration):
        session.edit(facts)
    assert lm.fingerprint() == mark and not session.results and len(session.memory) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kept_budget": 0.9}, r"kept_budget = 0\.9, .*these are for images"),
        ({"stop_margin": 2.0}, r"stop_margin = 2: these are for images"),
        ({"neighbour_budget": 0.9, "tune": []}, r"neighbour_budget = 0\.9: give heldout facts, of the tune part"),
    ],
)
def test_promises_that_facts_cannot_hold_are_refused(tiny, start, changes, message):
    with pytest.raises(ValueError, match=message):
        start(tiny(), **changes)
