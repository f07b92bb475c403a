"""Edits as peft adapters: what they add, that they come off again, and that plain peft reads them."""

import json
import math
import subprocess
import sys

import mistune
import pytest
import torch
import yaml
from bs4 import BeautifulSoup
from safetensors import safe_open
from safetensors.torch import save_file

from editkit import AdapterStack, EditSession, evaluate, load_lm, summarize
from editkit.editing.adapter_files import model_card
from editkit.editing.result import TrustDecision
from editkit.language.moments import second_moments
from tests.conftest import FAMILIES, TEXTS


@pytest.fixture
def start(store, full_spec):
    def build(lm, method="memit", *, adapters=None, **changes):
        spec = full_spec(
            method, **dict(edit_mode="lora", layers=[1, 2], n_contexts=0, mom2_update_weight=0.1) | changes
        )
        return EditSession(lm, spec, texts=TEXTS, store=store, progress=False, adapters=adapters)

    return build


def logits(lm):
    ids = torch.tensor([lm.encode("The capital of France is Rome and Anna Karlsson lies in Spain")[0]])
    with torch.no_grad():
        return lm.model(ids).logits


def bits(lm):
    return {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 5.0])
def test_overlay_equals_merged_and_comes_off_without_a_trace(tiny, facts, start, family, square, alpha):
    lm = tiny(family, square=square)
    before, base, plain, mark = bits(lm), logits(lm), [name for name, _ in lm.model.named_modules()], lm.fingerprint()
    session = start(lm, lora_alpha=alpha)
    session.edit(facts)
    overlay, edited = logits(lm), lm.fingerprint()
    assert (overlay - base).abs().max() > 1e-2 and edited != mark
    modules = {name for name, module in lm.model.named_modules() if hasattr(module, "lora_A")}
    assert modules == {lm.mlp_out_name(1), lm.mlp_out_name(2)}, "exactly the edited modules"
    now = {name.replace(".base_layer.", "."): t for name, t in lm.model.state_dict().items() if ".lora_" not in name}
    assert now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now)
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())

    session.adapters.disable(*session.adapters)
    assert torch.equal(logits(lm), base) and lm.fingerprint() == mark
    session.adapters.enable(*session.adapters)
    assert torch.equal(logits(lm), overlay) and lm.fingerprint() == edited

    session.adapters.merge()
    torch.testing.assert_close(logits(lm), overlay, rtol=1e-5, atol=1e-5)
    for change in (session.undo, lambda: session.edit(facts), lambda: session.adapters.disable(*session.adapters)):
        with pytest.raises(RuntimeError, match="unmerge"):
            change()
    session.adapters.unmerge()
    assert all(torch.equal(lm.mlp_out(n).base_layer.weight, before[f"{lm.mlp_out_name(n)}.weight"]) for n in (1, 2))
    assert torch.equal(logits(lm), overlay)

    session.undo()
    assert [name for name, _ in lm.model.named_modules()] == plain
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())


@pytest.mark.parametrize("method", ["rome", "memit", "emmet", "alphaedit"])
def test_enough_rank_is_the_raw_edit(tiny, facts, start, method):
    one, other = tiny(), tiny()
    layers = [2] if method == "rome" else [1, 2]
    session = start(one, method, layers=layers, lora_fit="exact", lora_rank=4)
    session.edit(facts)
    start(other, method, layers=layers, edit_mode="raw").edit(facts)
    torch.testing.assert_close(logits(one), logits(other), rtol=1e-4, atol=1e-4)
    assert summarize(evaluate(one, facts)) == summarize(evaluate(other, facts))
    for layer in layers:
        torch.testing.assert_close(
            one.weight(layer).double() + session.adapters.delta(layer), other.weight(layer).double(), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("stack", ["grow", "batch", "fixed"])
@pytest.mark.parametrize("replay", ["none", "buffer", "history"])
def test_batches_stack_undo_and_resume(tiny, facts, start, stack, replay):
    lm = tiny()
    mark, plain = lm.fingerprint(), logits(lm)
    session = start(lm, lora_stack=stack, lora_rank=1, replay=replay)
    marks = [plain]
    for i in range(4):
        result = session.edit(facts[i : i + 1])
        marks.append(logits(lm))
        assert (result.diagnostics()["rank"] >= 1).all()
    ranks = {name: session.adapters[name].factors[2][1].shape[0] for name in session.adapters}
    expected = {"grow": {"edits_1": 4}, "batch": {f"batch_{i}": 1 for i in range(1, 5)}, "fixed": {"edits_1": 1}}
    assert ranks == expected[stack]
    session.undo(2)
    assert torch.equal(logits(lm), marks[2])
    state = session.state_dict()
    other = start(tiny(), lora_stack=stack, lora_rank=1, replay=replay)
    other.load_state_dict(state)
    assert torch.equal(logits(other.model), marks[2])
    for one in (session, other):
        one.edit(facts[2:3])
    assert torch.equal(logits(other.model), logits(lm)) and torch.equal(logits(lm), marks[3])
    session.undo()
    assert torch.equal(logits(lm), plain) and lm.fingerprint() == mark and not len(session.adapters)


def test_a_grown_adapter_equals_raw_edits_in_sequence(tiny, facts, start):
    one, other = tiny(), tiny()
    a = start(one, "emmet", replay="history", lora_rank=8)
    b = start(other, "emmet", replay="history", edit_mode="raw")
    for fact in facts:
        left, right = a.edit([fact]), b.edit([fact])
    torch.testing.assert_close(logits(one), logits(other), rtol=1e-3, atol=1e-3)
    assert left.old_residual == pytest.approx(right.old_residual, rel=1e-3, abs=1e-6)
    for name in ("growth", "disturbance", "weight_norm"):
        assert left.diagnostics()[name].tolist() == pytest.approx(right.diagnostics()[name].tolist(), rel=1e-3), name


def test_disturbance_is_the_share_of_ordinary_outputs_that_moves(tiny, facts, start):
    lm = tiny()
    C = second_moments(lm, [2], TEXTS, 300, progress=False)[2].double()
    W = lm.weight(2).double().clone()
    item = start(lm, layers=[2], edit_mode="raw").edit(facts).updates[0]
    delta = item.update.delta
    expected = (torch.trace(delta @ C @ delta.T) / torch.trace(W @ C @ W.T)).sqrt().item()
    assert item.disturbance == pytest.approx(expected, rel=1e-6)


def test_weights_scale_and_removal(tiny, facts, start):
    lm = tiny()
    session = start(lm, lora_stack="batch")
    for fact in facts[:3]:
        session.edit([fact])
    stack = session.adapters
    parts = {name: stack.joined(name)[2] for name in stack}
    whole = stack.delta(2)
    stack.weigh("batch_1", 0.5)
    torch.testing.assert_close(stack.delta(2), whole - 0.5 * (parts["batch_1"][0] @ parts["batch_1"][1]).double())
    assert stack["batch_1"].weight == 0.5
    stack.weigh("batch_1", 1.0)
    stack.remove("batch_2")
    assert list(stack) == ["batch_1", "batch_3"]
    torch.testing.assert_close(
        stack.delta(2), whole - (parts["batch_2"][0] @ parts["batch_2"][1]).double(), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(forward_weight(lm, 2), lm.weight(2).double() + stack.delta(2), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no adapter 'batch_2'; there are: batch_1, batch_3"):
        stack.enable("batch_2")
    with pytest.raises(ValueError, match="must be finite"):
        stack.weigh("batch_1", float("nan"))
    stack.disable("batch_1", "batch_3")
    assert stack.delta(2) == 0.0
    stack.close()
    assert not lm.has_adapters and len(stack) == 0


def forward_weight(lm, layer):
    """The matrix that a layer's forward pass multiplies by, adapters and all."""
    module = lm.mlp_out(layer)
    with torch.no_grad():
        x = torch.eye(lm.weight(layer).shape[1])
        return (module(x) - module(torch.zeros_like(x))).T.double()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_combined_adapters_equal_their_sum_and_are_recompressed_to_a_rank(tiny, facts, start, family):
    lm = tiny(family)
    session = start(lm, lora_stack="batch")
    for fact in facts:
        session.edit([fact])
    stack, before = session.adapters, logits(lm)
    whole = stack.delta(2)
    stack.combine(*stack, into="all")
    assert list(stack) == ["all"] and stack["all"].factors[2][1].shape[0] == 4
    torch.testing.assert_close(logits(lm), before, rtol=1e-4, atol=1e-4)
    metric = torch.diag(torch.linspace(0.1, 10, whole.shape[1])).double()
    stack.combine("all", into="small", rank=2, metrics={1: metric, 2: metric})
    moved = whole @ metric.sqrt()
    U, S, Vh = torch.linalg.svd(moved)
    torch.testing.assert_close(stack.delta(2) @ metric.sqrt(), U[:, :2] * S[:2] @ Vh[:2], rtol=1e-4, atol=1e-5)
    for wrong, message in (({"rank": 0}, "rank = 0"), ({"into": "a.b"}, "dot")):
        with pytest.raises(ValueError, match=message):
            stack.combine("small", **({"into": "none"} | wrong))
    assert list(stack) == ["small"], "nothing is lost"


def test_lora_scale_is_the_share_of_the_edit_that_is_written(tiny, facts, start):
    whole, half = (start(tiny(), layers=[2], lora_scale=scale) for scale in (1.0, 0.5))
    a, b = whole.edit(facts), half.edit(facts)
    torch.testing.assert_close(2 * half.adapters.delta(2), whole.adapters.delta(2), rtol=1e-5, atol=1e-7)
    assert b.diagnostics().residual[0] == pytest.approx(0.5 * (1 + a.diagnostics().residual[0]), abs=0.2)
    assert b.diagnostics().residual[0] > a.diagnostics().residual[0]


def test_norm_clamp_holds_for_what_was_fitted(tiny, facts, start):
    for stack in ("grow", "fixed"):
        session = start(tiny(), layers=[2], lora_rank=1, lora_stack=stack, norm_clamp=1.01)
        for fact in facts:
            session.edit([fact])
        weight = session.model.weight(2).double()
        assert (weight + session.adapters.delta(2)).norm() <= 1.01 * weight.norm() * (1 + 1e-6)


def test_trust_takes_back_a_step_and_keeps_a_share_of_one(tiny, facts, start, monkeypatch):
    lm = tiny()
    for action, expected in (("rollback", 0.0), ("scale", 0.25)):
        session = start(
            lm,
            layers=[2],
            trust_enable=True,
            trust_action=action,
            trust_scale=0.25,
            trust_threshold=0.0,
            lora_stack="batch",
            trust_heldout_samples=2,
        )
        session.edit(facts[:1])
        first = session.adapters.delta(2)
        said = iter([TrustDecision(0.1, {}, action, ["text 0.10"]), TrustDecision(0.9, {}, "accept", [])])
        monkeypatch.setattr(type(session.domain._trust), "judge", lambda *_, said=said: next(said))
        with pytest.warns(UserWarning, match="text 0.10"):
            result = session.edit(facts[1:2])
        change = session.adapters.delta(2) - first
        monkeypatch.undo()
        session.undo(1)
        torch.testing.assert_close(session.adapters.delta(2), first)
        session.edit(facts[1:2])
        whole = session.adapters.delta(2) - first
        torch.testing.assert_close(change, expected * whole, rtol=1e-4, atol=1e-6)
        assert bool(result.updates) == (action == "scale")
        session.undo()


def test_a_failed_edit_leaves_the_adapters_as_they_were(tiny, facts, start, monkeypatch):
    import editkit.editing.weights as module

    session = start(tiny())
    session.edit(facts[:2])
    before = logits(session.model)
    monkeypatch.setattr(module, "clamp", lambda update, *_: update._replace(left=update.left / 0))
    with pytest.raises(FloatingPointError, match="not finite"):
        session.edit(facts[2:])
    assert torch.equal(logits(session.model), before) and len(session.results) == 1


def test_sessions_on_one_model_do_not_mix_forms(tiny, facts, start, tmp_path):
    lm = tiny()
    session = start(lm)
    empty = AdapterStack(lm)
    assert EditSession(lm, session.spec, texts=TEXTS, adapters=empty).adapters is empty
    session.edit(facts[:1])
    with pytest.raises(ValueError, match="carries adapters"):
        start(lm, edit_mode="raw")
    with pytest.raises(ValueError, match="already carries adapters"):
        start(lm)
    second = EditSession(
        lm, session.spec, texts=TEXTS, store=session.domain.store, progress=False, adapters=session.adapters
    )
    before = logits(lm)
    second.edit(facts[1:2])
    assert list(session.adapters) == ["edits_1", "edits_2"]
    folder = second.save_adapter(tmp_path / "second", "edits_2")
    AdapterStack(tiny()).load(folder, "alone")  # it was made for the base, not for the base and the other adapter
    second.undo()
    assert torch.equal(logits(lm), before)
    with pytest.raises(ValueError, match="edit_mode 'lora'"):
        EditSession(
            tiny(), session.spec.model_copy(update={"edit_mode": "raw"}), texts=TEXTS, adapters=session.adapters
        )


def test_parameters_that_cannot_be_are_refused(tiny, start):
    with pytest.raises(ValueError, match="lora_dropout = 0.1: must be 0"):
        start(tiny(), lora_dropout=0.1)
    with pytest.raises(ValueError, match="trust_action = 'scale'"):
        start(tiny(), lora_stack="fixed", trust_action="scale", trust_enable=True)
    start(tiny(), lora_stack="fixed", trust_action="scale")  # nothing is judged, so nothing is scaled
    with pytest.raises(ValueError, match="lora_fit"):
        start(tiny(), lora_fit="magic")


def test_new_edits_do_not_go_where_they_would_not_count(tiny, facts, start):
    session = start(tiny())
    session.edit(facts[:1])
    for change, back in (
        (lambda: session.adapters.disable("edits_1"), lambda: session.adapters.enable("edits_1")),
        (lambda: session.adapters.weigh("edits_1", 0.5), lambda: session.adapters.weigh("edits_1", 1.0)),
    ):
        change()
        with pytest.raises(RuntimeError, match="'edits_1' is switched off or weighted"):
            session.edit(facts[1:2])
        back()
    session.edit(facts[1:2])


def edit_each(session, facts):
    for fact in facts:
        session.edit([fact])
    return session


def test_an_adapter_that_was_removed_by_hand_stays_removed(tiny, facts, start):
    session = edit_each(start(tiny(), lora_stack="batch"), facts[:2])
    plain, alone = logits(tiny()), edit_each(start(tiny(), lora_stack="batch"), facts[:1])
    session.adapters.remove("batch_2")
    session.undo(1)
    assert list(session.adapters) == ["batch_1"] and torch.equal(logits(session.model), logits(alone.model))
    session.undo()
    assert torch.equal(logits(session.model), plain)

    edit_each(session, facts[:3])
    session.adapters.remove("batch_4")
    session.edit(facts[3:])
    assert list(session.adapters) == ["batch_3", "batch_5", "batch_6"], "a name is not given twice"
    session.undo(2)
    assert list(session.adapters) == ["batch_3"] and torch.equal(logits(session.model), logits(alone.model))
    session.undo()
    assert torch.equal(logits(session.model), plain) and not session.model.has_adapters


@pytest.mark.parametrize("stack, kind", [("grow", "edits"), ("batch", "batch")])
def test_two_sessions_on_one_stack_never_take_each_others_adapters_for_their_own(tiny, facts, start, stack, kind):
    first = edit_each(start(tiny(), lora_stack=stack, replay="buffer", replay_rate=1.0), facts[:1])
    first.adapters.remove(f"{kind}_1")
    second = edit_each(start(first.model, lora_stack=stack, adapters=first.adapters), facts[1:2])
    assert list(first.adapters) == [f"{kind}_2"]
    with pytest.raises(RuntimeError, match=f"adapter '{kind}_1' is removed"):
        first.edit(facts[2:3])
    first.undo()
    assert list(first.adapters) == [f"{kind}_2"], "it is the second's"
    state, mark = second.state_dict(), first.model.fingerprint()
    with pytest.raises(ValueError, match=f"there is an adapter '{kind}_2' already"):
        start(first.model, lora_stack=stack, adapters=first.adapters).load_state_dict(state)
    assert list(first.adapters) == [f"{kind}_2"] and first.model.fingerprint() == mark
    second.undo()
    assert not first.model.has_adapters


def test_what_a_buffer_has_forgotten_is_nobody_s_hindrance(tiny, facts, start):
    session = start(tiny(), lora_stack="batch", replay="buffer", replay_rate=1.0, replay_max_items=1)
    edit_each(session, facts[:2]).adapters.remove("batch_1")
    session.edit(facts[2:3])
    session.adapters.remove("batch_3")
    with pytest.raises(RuntimeError, match="adapter 'batch_3' is removed: replay would edit its items in again"):
        session.edit(facts[3:])


@pytest.mark.parametrize("stack", ["grow", "fixed"])
def test_one_adapter_of_many_batches_that_was_removed_stays_removed(tiny, facts, start, stack):
    session = edit_each(start(tiny(), lora_stack=stack), facts[:2])
    plain = logits(tiny())
    session.adapters.remove("edits_1")
    session.undo(1)
    assert torch.equal(logits(session.model), plain) and len(session.results) == 1
    edit_each(session, facts[2:])
    assert list(session.adapters) == ["edits_2"]
    session.undo(1)
    assert list(session.adapters) == ["edits_2"] and len(session.results) == 2
    session.undo()
    assert torch.equal(logits(session.model), plain) and not session.model.has_adapters


def test_combined_adapters_are_undone_together_or_not_at_all(tiny, facts, start):
    session = edit_each(start(tiny(), lora_stack="batch", targets_from="base"), facts[:3])
    alone = edit_each(start(tiny(), lora_stack="batch"), facts[:1])
    session.adapters.combine("batch_2", "batch_3", into="both")
    before = logits(session.model)
    for last in (1, None):
        with pytest.raises(RuntimeError, match=r"'batch_2' \(combined with others\) was changed .* remove the adapter"):
            session.undo(last)
    targets = session.edit(facts[3:]).targets.values
    torch.testing.assert_close(targets, start(tiny(), edit_mode="raw").edit(facts[3:]).targets.values, rtol=0, atol=0)
    after = logits(session.model)
    with pytest.raises(RuntimeError, match="'both' joins edits that are to be undone with others"):
        session.undo(2)
    assert torch.equal(logits(session.model), after) and len(session.results) == 4
    session.undo(1)
    torch.testing.assert_close(logits(session.model), before)
    session.edit(facts[3:])
    session.undo(3)
    assert list(session.adapters) == ["batch_1"] and torch.equal(logits(session.model), logits(alone.model))


def test_an_adapter_that_holds_only_some_of_its_batches_is_not_taken_for_all(tiny, facts, start):
    session = edit_each(start(tiny()), facts[:2])
    session.adapters.combine("edits_1", into="slim", rank=1)
    session.edit(facts[2:3])
    with pytest.raises(RuntimeError, match="'slim' joins"):
        session.undo(2)
    session.undo()
    assert not session.model.has_adapters


def test_replay_does_not_edit_removed_batches_in_again(tiny, facts, start):
    def change(session, name):
        return {
            "removed": lambda: session.adapters.remove(name),
            "disabled": lambda: session.adapters.disable(name),
            "weighted 0.5": lambda: session.adapters.weigh(name, 0.5),
        }

    for replay in ("buffer", "history"):
        for how in ("removed", "disabled", "weighted 0.5"):
            session = edit_each(start(tiny(), lora_stack="batch", replay=replay), facts[:3])
            change(session, "batch_2")[how]()
            before, names = logits(session.model), list(session.adapters)
            with pytest.raises(RuntimeError, match=f"adapter 'batch_2' is {how}: replay would edit its items in again"):
                session.edit(facts[3:])
            assert torch.equal(logits(session.model), before) and list(session.adapters) == names
            assert len(session.memory) == 3 and len(session.results) == 3
        session.adapters.weigh("batch_2", 1.0)
        session.edit(facts[3:])
        session.adapters.remove("batch_2")
        other = EditSession(session.model, session.spec, texts=TEXTS, progress=False, adapters=session.adapters)
        other.edit(facts[1:2])
        session = edit_each(start(tiny(), lora_stack="batch", replay=replay), facts[:2])
        session.adapters.combine("batch_1", "batch_2", into="both")
        session.edit(facts[2:3])
        session.adapters.disable("both")
        with pytest.raises(RuntimeError, match="adapter 'batch_1' is disabled"):
            session.edit(facts[3:])
    session = edit_each(start(tiny(), "alphaedit", lora_stack="batch", replay="hold"), facts[:2])
    session.adapters.remove("batch_1")
    session.edit(facts[2:3])  # held where they are, removed as they are
    # Keys as stored: read again in a batch of another size, they and what is missing would differ by rounding.
    session = start(tiny(), lora_stack="batch", replay="history", replay_refresh=False, v_num_grad_steps=1)
    edit_each(session, facts[:2])  # these ask for nothing, so that nothing is there to be removed
    assert [result.adapter for result in session.results] == ["", ""]


def test_trust_looks_only_at_edits_in_force(tiny, facts, start, monkeypatch):
    session = start(tiny(), lora_stack="batch", trust_enable=True, trust_heldout_samples=2)
    edit_each(session, facts[:2])
    seen = []
    watch = type(session.domain._trust).watch
    monkeypatch.setattr(
        type(session.domain._trust),
        "watch",
        lambda self, lm, earlier: seen.append(earlier) or watch(self, lm, earlier),
    )
    session.edit(facts[2:3])
    session.undo(1)
    session.adapters.disable("batch_1")
    session.edit(facts[2:3])
    session.undo(1)
    session.adapters.remove("batch_1")
    session.edit(facts[2:3])
    assert seen == [facts[:2], facts[1:2], facts[1:2]]


def test_a_state_holds_what_was_done_to_the_stack_by_hand(tiny, facts, start):
    session = edit_each(start(tiny(), lora_stack="batch", targets_from="base"), facts)
    stack = session.adapters
    stack.remove("batch_1")
    stack.weigh("batch_2", 0.5)
    stack.disable("batch_3")
    other = start(tiny(), lora_stack="batch", targets_from="base")
    other.load_state_dict(session.state_dict())
    assert repr(other.adapters) == repr(stack) == "AdapterStack(batch_2: 0.5, batch_3: 0, batch_4: 1)"
    assert torch.equal(logits(other.model), logits(session.model))
    for one in (session, other):
        one.adapters.enable("batch_3")
        one.edit(facts[:1])
        assert list(one.adapters)[-1] == "batch_5"
    assert torch.equal(logits(other.model), logits(session.model))
    stack.combine("batch_2", "batch_3", into="both")
    again = start(tiny(), lora_stack="batch")
    again.load_state_dict(session.state_dict())
    assert torch.equal(logits(again.model), logits(session.model)) and again.adapters["both"].holds == (
        "batch_2",
        "batch_3",
    )
    again.undo()
    assert not again.model.has_adapters


def test_weights_and_switches_are_not_undone_behind_ones_back(tiny, facts, start):
    session = start(tiny(), lora_stack="batch", targets_from="base")
    for fact in facts[:3]:
        session.edit([fact])
        session.adapters.weigh("batch_1", 0.5)
    session.adapters.disable("batch_2")
    session.edit(facts[3:])
    dials = {name: (session.adapters[name].weight, session.adapters[name].enabled) for name in session.adapters}
    assert dials == {"batch_1": (0.5, True), "batch_2": (1.0, False), "batch_3": (1.0, True), "batch_4": (1.0, True)}
    session.undo(1)
    assert session.adapters["batch_1"].weight == 0.5 and not session.adapters["batch_2"].enabled


def test_targets_from_base_are_those_of_the_model_without_adapters(tiny, facts, start):
    session = start(tiny(), targets_from="base")
    for fact in facts[:2]:
        ours = session.edit([fact]).targets.values
        torch.testing.assert_close(ours, start(tiny(), edit_mode="raw").edit([fact]).targets.values, rtol=0, atol=0)


def test_an_edit_that_asks_for_nothing_adds_nothing(tiny, facts, start):
    session = start(tiny(), v_num_grad_steps=1)  # the target is then the hidden state itself
    before = logits(session.model)
    session.edit(facts[:1])
    assert torch.equal(logits(session.model), before) and session.n_parameters == 0
    session.undo()
    assert not session.model.has_adapters


def test_refusals_leave_memory_and_other_adapters_alone(tiny, facts, start):
    session = start(tiny(), replay="history")
    for fact in facts[:2]:
        session.edit([fact])
    session.settle()
    session.edit(facts[2:3])
    session.adapters.merge()
    for last in (1, None):
        with pytest.raises(RuntimeError, match="unmerge"):
            session.undo(last)
    session.adapters.unmerge()
    assert len(session.memory) == 3 and len(session.results) == 1
    session.undo(1)
    assert len(session.memory) == 2

    stack = AdapterStack(tiny())
    for name in ("a", "b"):
        stack.add(name, {1: (torch.ones(16, 1), torch.ones(1, 24))})
    stack.disable("b")
    with pytest.raises(ValueError, match="'b' is switched off"):
        stack.combine("a", "b", into="both")
    with pytest.raises(ValueError, match="there is an adapter 'b' already"):
        stack.combine("a", into="b")
    assert list(stack) == ["a", "b"]


def test_two_owners_of_one_model_are_told_apart(tiny, facts, start):
    lm = tiny()
    raw, one, other = start(lm, edit_mode="raw"), start(lm), start(lm)
    one.edit(facts[:1])
    with pytest.raises(ValueError, match="carries adapters of another stack"):
        other.edit(facts[1:2])
    with pytest.raises(ValueError, match="carries adapters"):
        raw.edit(facts[1:2])
    one.undo()
    raw.edit(facts[1:2])
    other.adapters.add("late", {1: (torch.ones(16, 1), torch.ones(1, 24))})
    assert other.adapters.base != one.adapters.base, "the base is what the adapters lie beside"
    with pytest.raises(ValueError, match="the stack given belongs to 'tiny-llama' with alpha 0; .*lora_alpha = 3"):
        EditSession(lm, one.spec.model_copy(update={"lora_alpha": 3.0}), texts=TEXTS, adapters=other.adapters)
    with pytest.raises(ValueError, match="the stack given belongs to"):
        EditSession(tiny(), one.spec, texts=TEXTS, adapters=other.adapters)


@pytest.mark.filterwarnings("error")
def test_removing_the_only_one_that_is_on_leaves_the_others_off(tiny):
    stack = AdapterStack(tiny())
    before = logits(stack.model)
    for name in ("off", "on"):
        stack.add(name, {1: (torch.ones(16, 1), torch.ones(1, 24))})
    stack.disable("off")
    stack.remove("on")
    assert stack.enabled == [] and torch.equal(logits(stack.model), before)


BAD = {
    "none": ("a", {1: (16, 0, 0, 24)}, "does not fit"),
    "has_dot": ("a.b", {1: (16, 2, 2, 24)}, "must not be empty or hold a dot"),
    "empty": ("a", {}, "has no layers"),
    "layer": ("a", {9: (16, 2, 2, 24)}, "layer 9 is out of range 0 to 3"),
    "shape": ("a", {1: (16, 2, 2, 16)}, r"does not fit a weight \(16, 24\)"),
    "rank": ("a", {1: (16, 2, 3, 24)}, "does not fit"),
}


@pytest.mark.parametrize("name, shapes, message", BAD.values(), ids=BAD)
def test_factors_that_do_not_fit_are_refused(tiny, name, shapes, message):
    stack = AdapterStack(tiny())
    with pytest.raises(ValueError, match=message):
        stack.add(name, {layer: (torch.zeros(a, b), torch.zeros(c, d)) for layer, (a, b, c, d) in shapes.items()})
    assert len(stack) == 0 and not stack.model.has_adapters
    with pytest.raises(FloatingPointError):
        stack.add("a", {1: (torch.full((16, 2), torch.nan), torch.zeros(2, 24))})
    assert not stack.model.has_adapters


PLAIN_PEFT = """
import sys
sys.modules["editkit"] = None
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
ids = torch.tensor([[int(i) for i in sys.argv[3].split()]])
with torch.no_grad():
    torch.save(model(ids).logits, sys.argv[4])
"""


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_saved_adapter_is_read_by_plain_peft_in_a_fresh_process(tiny, facts, start, tmp_path, family):
    lm = tiny(family, square=True)
    lm.model.save_pretrained(tmp_path / "base")
    session = start(lm, lora_stack="batch", lora_alpha=3.0)
    session.edit(facts[:1])
    session.edit(facts[1:])
    session.adapters.weigh("batch_1", 0.5)
    folder = session.save_adapter(tmp_path / "adapter")
    ids = lm.encode("The capital of France is Rome and Anna Karlsson lies in Spain")[0]
    command = [sys.executable, "-c", PLAIN_PEFT, tmp_path / "base", folder, " ".join(map(str, ids)), tmp_path / "out"]
    subprocess.run(list(map(str, command)), check=True)
    torch.testing.assert_close(torch.load(tmp_path / "out", weights_only=True), logits(lm), rtol=1e-5, atol=1e-5)
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "editkit.json",
    }
    notes = json.loads((folder / "editkit.json").read_text(), parse_constant=pytest.fail)  # NaN and Infinity
    assert notes["spec"]["norm_clamp"] is None and notes["scores"]["ES"] == summarize(evaluate(lm, facts))["ES"]
    config = json.loads((folder / "adapter_config.json").read_text(), parse_constant=pytest.fail)
    assert config["target_modules"] == [lm.family.mlp_out] and config["layers_to_transform"] == [1, 2]
    assert config["base_model_name_or_path"] == lm.name and config["r"] == 4 and config["lora_dropout"] == 0
    card = (folder / "README.md").read_text()
    scores = summarize(evaluate(lm, facts))
    assert session.adapters.base in card and f"| ES | {scores['ES']:.3f} |" in card
    assert all(fact.text in card and fact.target_new in card for fact in facts) and "| method | memit |" in card
    session.adapters.remove("batch_1")
    card = (session.save_adapter(folder) / "README.md").read_text()
    assert facts[0].text not in card and all(fact.text in card for fact in facts[1:])
    session.edit(facts[:1])
    with pytest.raises(ValueError, match="no adapter 'batch_9'"):
        session.save_adapter(folder, "batch_9")
    assert not list(tmp_path.glob(".partial*"))


STRANGE = (
    "Question: what?\n\nAnswer:",
    "a\u2028b\u0085c\r\nd",
    "| a | b |",
    "`code` and ``more",
    "<b>bold</b> & <br> &amp; <script>",
    "back\\slash \\| pipe",
    "*emphasis* **strong** _so_ __too__ ~~gone~~ $x$ [a](b) ![c](d)",
    "# no heading",
)


def test_a_card_s_tables_show_texts_as_they_are():
    notes = {"model": "a: #strange\\name", "weights": "w", "scores": {"ES": 0.5, "PS": float("nan")}}
    notes |= {"edited": [{"prompt": text, "now": text, "before": "Paris"} for text in STRANGE]}
    card = model_card(notes | {"spec": {"layers": [1, 2], "norm_clamp": math.inf, "l2": 1e-6, "v_lr": None}})
    (front,) = yaml.safe_load_all(card.split("---")[1])
    assert front == {"base_model": notes["model"], "library_name": "peft", "tags": ["lora", "model-editing", "editkit"]}
    markdown = mistune.create_markdown(escape=False, plugins=["table", "strikethrough", "math"])
    page = BeautifulSoup(markdown(card.split("---", 2)[2]), "html.parser")
    scores, edited, spec = page.find_all("table")
    rows = [row.find_all("td") for row in edited.find_all("tr")[1:]]
    assert [[cell.get_text("\n") for cell in row] for row in rows] == [
        [*["\n".join(line for line in text.splitlines() if line)] * 2, "Paris"] for text in STRANGE
    ]
    assert {tag.name for row in rows for cell in row for tag in cell.find_all()} == {"br"}
    assert [cell.text for cell in scores.find_all("td")] == ["ES", "0.500", "PS", "–"]
    shown = {row.td.text: row.find_all("td")[1].text for row in spec.find_all("tr")[1:]}
    assert shown == {"layers": "[1, 2]", "norm_clamp": "inf", "l2": "1e-06", "v_lr": "None"}


def test_the_card_shows_the_named_adapters_alone(tiny, facts, start, tmp_path, monkeypatch):
    session = edit_each(start(tiny(), lora_stack="batch"), facts[:3])
    stack, alone, seen = session.adapters, start(tiny(), lora_stack="batch"), []
    alone.edit(facts[:1])
    stack.disable("batch_1")
    stack.weigh("batch_3", 0.5)
    before = repr(stack)

    def scores(items):
        seen.append((items, repr(stack), logits(session.model)))
        return {"ES": 0.125}

    monkeypatch.setattr(session.domain, "scores", scores)
    card = (session.save_adapter(tmp_path / "one", "batch_1") / "README.md").read_text()
    assert "| ES | 0.125 |" in card and repr(stack) == before
    assert seen[-1][:2] == (facts[:1], "AdapterStack(batch_1: 1, batch_2: 0, batch_3: 0)")
    assert torch.equal(seen[-1][2], logits(alone.model))
    session.save_adapter(tmp_path / "three", "batch_3", "batch_1")
    assert seen[-1][:2] == ([facts[0], facts[2]], "AdapterStack(batch_1: 1, batch_2: 0, batch_3: 0.5)")
    monkeypatch.setattr(session.domain, "scores", lambda items: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        session.save_adapter(tmp_path / "none", "batch_1")
    assert repr(stack) == before and not (tmp_path / "none").exists()


def test_the_card_of_a_combined_adapter_shows_what_was_combined(tiny, facts, start, tmp_path):
    session = edit_each(start(tiny(), lora_stack="batch"), facts[:3])
    session.adapters.combine("batch_1", "batch_2", into="both")
    session.adapters.combine("both", "batch_3", into="all")
    card = (session.save_adapter(tmp_path / "all", "all") / "README.md").read_text()
    assert all(fact.text in card for fact in facts[:3]) and "| ES |" in card and "| method | memit |" in card


def test_a_name_given_twice_counts_once(tiny, facts, start, tmp_path):
    session = edit_each(start(tiny(), lora_stack="batch"), facts[:1])
    stack = session.adapters
    before = stack.delta(2)
    folder = stack.save(tmp_path / "one", "batch_1", "batch_1")
    other = AdapterStack(tiny())
    other.load(folder, "again")
    torch.testing.assert_close(other.delta(2), before)
    stack.combine("batch_1", "batch_1", into="once")
    torch.testing.assert_close(stack.delta(2), before)


def test_an_adapter_for_the_weights_as_they_were_is_refused(tiny, facts, start, tmp_path):
    session = start(tiny())
    session.edit(facts[:1])
    folder = session.save_adapter(tmp_path / "adapter")
    stack = AdapterStack(tiny())
    start(stack.model, edit_mode="raw").edit(facts[1:2])
    with pytest.raises(ValueError, match="made for another base model"):
        stack.load(folder, "edits")
    assert not stack.model.has_adapters


def test_adapters_come_back_from_their_folders(tiny, facts, start, tmp_path):
    lm = tiny()
    session = start(lm, lora_stack="batch", lora_alpha=3.0)
    for fact in facts[:2]:
        session.edit([fact])
    expected = logits(lm)
    for name in session.adapters:
        session.adapters.save(tmp_path / name, name)
    stack = AdapterStack(tiny())
    for name in ("batch_1", "batch_2"):
        stack.load(tmp_path / name, name)
    torch.testing.assert_close(logits(stack.model), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="there is an adapter 'batch_1' already"):
        stack.load(tmp_path / "batch_1", "batch_1")


def test_a_wrong_base_or_a_damaged_folder_is_refused_before_anything_is_loaded(tiny, facts, start, tmp_path):
    session = start(tiny())
    session.edit(facts[:1])
    folder = session.save_adapter(tmp_path / "adapter")
    session.save_adapter(folder)  # its own folder may be written again
    other = AdapterStack(tiny(seed=1))
    with pytest.raises(ValueError, match=f"made for another base model: 'tiny-llama' with fingerprint .* {other.base}"):
        other.load(folder, "edits")
    assert not other.model.has_adapters
    stack = AdapterStack(tiny())
    with pytest.raises(ValueError, match="editkit.json is missing"):
        stack.load(tmp_path, "edits")
    with pytest.raises(ValueError, match="nothing is no folder; an adapter is one"):
        stack.load(tmp_path / "nothing", "edits")
    config = folder / "adapter_config.json"
    complete = config.read_text()
    config.write_text(json.dumps({"r": 1}))
    with pytest.raises(ValueError, match="it has no 'layers_to_transform'"):
        stack.load(folder, "edits")
    config.write_text(complete)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be read"):
        stack.load(folder, "edits")
    assert len(stack) == 0 and not stack.model.has_adapters
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    for kept in (tmp_path / "mine", folder):
        (kept / "notes.txt").write_text("keep me")
        with pytest.raises(ValueError, match="holds more than an adapter of editkit"):
            session.save_adapter(kept)
        assert (kept / "notes.txt").read_text() == "keep me"
    with pytest.raises(ValueError, match="is a file, not a folder"):
        session.save_adapter(tmp_path / "mine" / "notes.txt")
    assert not list(tmp_path.glob(".partial-*"))
    with pytest.raises(ValueError, match="edit_mode = 'raw' has no adapter"):
        start(tiny(), edit_mode="raw").save_adapter(tmp_path / "raw")
    for empty in (AdapterStack(tiny()).save, start(tiny()).save_adapter):
        with pytest.raises(ValueError, match="nothing to save"):
            empty(tmp_path / "none")


def test_saved_updates_make_the_same_edits_on_another_copy(tiny, facts, start, tmp_path):
    with pytest.raises(ValueError, match="use save_adapter"):
        start(tiny()).save(tmp_path / "edits.safetensors")
    session = start(tiny(), edit_mode="raw")
    for fact in facts[:3]:
        session.edit([fact])
    path = session.save(tmp_path / "edits.safetensors")
    lm = tiny()
    plain = logits(lm)
    again = EditSession.load(lm, path, texts=TEXTS, store=session.domain.store, progress=False)
    assert torch.equal(logits(lm), logits(session.model))
    assert all(torch.equal(lm.weight(layer), session.model.weight(layer)) for layer in (1, 2))
    for one in (again, session):  # what is kept is what the model did before the first edit, in both
        one.edit(facts[3:])
    assert torch.equal(logits(lm), logits(session.model))
    again.undo()
    assert torch.equal(logits(lm), plain)
    other = tiny(seed=1)
    mark = other.fingerprint()
    with pytest.raises(ValueError, match="made for another model"):
        EditSession.load(other, path)
    assert other.fingerprint() == mark
    (tmp_path / "text").write_text("no edits")
    with pytest.raises(ValueError, match="does not hold the edits"):
        EditSession.load(lm, tmp_path / "text")


def test_a_damaged_file_of_updates_leaves_the_model_as_it_was(tiny, facts, start, tmp_path):
    session = start(tiny(), edit_mode="raw")
    session.edit(facts[:2])
    path = session.save(tmp_path / "edits.safetensors")
    with safe_open(path, framework="pt") as file:
        about, good = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    last = good["1.2.left"]
    lm = tiny()
    mark = lm.fingerprint()
    for problem, message, tensors in (
        (FloatingPointError, "layer 2", good | {"1.2.left": torch.full_like(last, torch.inf)}),
        (ValueError, "1.2.right does not belong to a pair", {n: t for n, t in good.items() if n != "1.2.right"}),
        (ValueError, "2.1.left does not belong", good | {"2.1.right": good["1.2.right"]}),
        (ValueError, "3 does not belong .* layers", good | {"0.3.left": last, "0.3.right": good["1.2.right"]}),
        (ValueError, "does not hold the edits", good | {"one.two": last}),
    ):
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, about)
        with pytest.raises(problem, match=message):
            EditSession.load(lm, path)
        assert lm.fingerprint() == mark


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_loads_anywhere(tiny, facts, start, tokenizer, family, tmp_path):
    lm = tiny(family)
    session = start(lm)
    session.edit(facts)
    session.adapters.merge()
    edited, merged = logits(lm), lm.fingerprint()
    lm.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = load_lm(str(tmp_path), device=lm.device.type)
    assert again.fingerprint() == merged and torch.equal(logits(again), edited)


def test_several_adapters_come_back_as_they_were(tiny, facts, start):
    lm = tiny()
    session = start(lm, lora_stack="batch", replay="none")
    for fact in facts[:3]:
        session.edit([fact])
    stack = session.adapters
    stack.weigh("batch_1", 0.5)
    stack.disable("batch_2")
    overlay, mark = logits(lm), lm.fingerprint()
    stack.merge()
    torch.testing.assert_close(logits(lm), overlay, rtol=1e-5, atol=1e-5)
    stack.unmerge()
    assert torch.equal(logits(lm), overlay) and lm.fingerprint() == mark
    assert stack.enabled == ["batch_1", "batch_3"]


def test_changes_to_a_merged_model_are_not_lost(tiny, facts, start):
    lm = tiny()
    session = start(lm)
    session.edit(facts)
    overlay = logits(lm)
    session.adapters.merge()
    kept = lm.weight(1)[0, 0].clone()
    lm.weight(1)[0, 0] += 1
    with pytest.raises(RuntimeError, match="changed since its adapters were merged"):
        session.adapters.unmerge()
    assert session.adapters.merged
    lm.weight(1)[0, 0] = kept  # less 1 would be another number, rounded twice
    session.adapters.unmerge()
    assert torch.equal(logits(lm), overlay)


@pytest.mark.parametrize("name", ["update", "keys", "type", "training", "pop", "forward", "_modules"])
def test_names_that_torch_keeps_for_itself_are_refused(tiny, facts, start, name, tmp_path):
    session = start(tiny())
    session.edit(facts)
    folder = session.save_adapter(tmp_path / "adapter")
    other = tiny()
    stack, before = AdapterStack(other), other.fingerprint()
    with pytest.raises(ValueError, match=f"'{name}'.*choose another"):
        stack.load(folder, name)
    assert not other.has_adapters and other.fingerprint() == before
    stack.load(folder, "mine")
    stack.close()
    assert other.fingerprint() == before
