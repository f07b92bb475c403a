"""Edits on tiny models: what they change, what they leave, and that they can be undone."""

import json
import math
from typing import get_args

import pytest
import torch
from safetensors import safe_open

from editkit import METHODS, EditSession, Fact, evaluate
from editkit.editing.item import warn_of_contradictions
from editkit.language.keys import edit_keys, hidden_states
from editkit.language.moments import second_moments
from editkit.methods import TargetMethodName
from editkit.solvers import null_space
from editkit.vision.keys import Repair
from tests.conftest import FAMILIES, TEXTS


@pytest.fixture
def start(store, full_spec):
    def build(lm, method="memit", **changes):
        return EditSession(lm, full_spec(method, **changes), texts=TEXTS, store=store, progress=False)

    return build


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("method", get_args(TargetMethodName))
def test_an_edit_does_what_its_solver_says_and_undo_restores_every_bit(tiny, facts, start, family, square, method):
    lm = tiny(family, square=square)
    facts = facts[:1] if method == "rome" else facts
    before, scores = lm.fingerprint(), evaluate(lm, facts)
    originals = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    session = start(lm, method, layers=[2], n_contexts=0, mom2_update_weight=0.1, l2=0.1, nullspace_threshold=0.5)
    unedited = hidden_states(lm, facts, 2)
    result = session.edit(facts)
    assert lm.fingerprint() != before
    distance = (result.targets.values - unedited).norm().item()
    missed = (result.targets.values - hidden_states(lm, facts, 2)).norm().item()
    assert missed == pytest.approx(result.diagnostics().residual[0] * distance, rel=1e-3, abs=1e-3)
    assert missed < distance
    changed = {name for name, tensor in lm.model.state_dict().items() if not torch.equal(tensor, originals[name])}
    assert changed == {f"{lm.family.layers}.2.{lm.family.mlp_out}.weight"}
    session.undo()
    assert all(torch.equal(tensor, originals[name]) for name, tensor in lm.model.state_dict().items())
    assert evaluate(lm, facts).equals(scores)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_low_precision_takes_up_is_what_is_reported(tiny, facts, start, family, dtype):
    lm = tiny(family)
    lm.model.to(dtype)
    before = lm.weight(2).clone()
    keys, hidden = edit_keys(lm, facts, 2, []).double(), hidden_states(lm, facts, 2).double()
    session = start(lm, "emmet", layers=[2], n_contexts=0)
    result = session.edit(facts)
    asked = result.targets.values.double() - hidden
    change = lm.weight(2).double() - before.double()
    missed = ((change @ keys - asked).norm() / asked.norm()).item()
    assert result.diagnostics().residual[0] == pytest.approx(missed, rel=1e-3, abs=1e-7)
    assert missed < {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}[dtype]
    # One rounding alone lies between the weights and what was solved for.
    assert torch.equal(lm.weight(2), (before.double() + result.deltas[2]).to(dtype))
    session.undo()
    assert torch.equal(lm.weight(2), before)


def test_undo_takes_back_the_last_edits_bit_for_bit(tiny, facts, start):
    lm = tiny()
    session = start(lm, "alphaedit")
    marks = [lm.fingerprint()]
    for fact in facts:
        session.edit([fact])
        marks.append(lm.fingerprint())
    assert len(set(marks)) == 5
    session.undo(2)
    assert lm.fingerprint() == marks[2]
    session.edit([facts[2]])
    assert lm.fingerprint() == marks[3], "past keys are rolled back too"
    session.undo()
    assert lm.fingerprint() == marks[0]
    with pytest.raises(ValueError, match="cannot undo 1"):
        session.undo(1)


def test_untouched_is_the_model_before_the_first_edit_and_the_edits_come_back(tiny, facts, start):
    lm = tiny()
    came = lm.fingerprint()
    session = start(lm)
    with session.untouched():
        assert lm.fingerprint() == came
    session.edit(facts[:2])
    edited = lm.fingerprint()
    with pytest.raises(KeyError), session.untouched():
        assert lm.fingerprint() == came
        raise KeyError
    assert lm.fingerprint() == edited != came


def test_one_layer_with_equality_puts_out_the_target_exactly(tiny, facts, start):
    lm = tiny()
    session = start(lm, "emmet", layers=[2], n_contexts=0)
    result = session.edit(facts)
    torch.testing.assert_close(hidden_states(lm, facts, 2), result.targets.values, rtol=1e-3, atol=1e-3)
    assert result.diagnostics().residual.max() < 1e-6


def test_rome_applies_edits_in_turn_and_equals_emmet_for_one(tiny, facts, start):
    one, other = tiny(), tiny()
    a = start(one, "rome", layers=[2]).edit(facts[:1])
    b = start(other, "emmet", layers=[2], update_norm_lambda=0.0, emmet_lambda=0.0).edit(facts[:1])
    torch.testing.assert_close(a.deltas[2], b.deltas[2], rtol=1e-8, atol=1e-10)
    several = start(tiny(), "rome", layers=[2]).edit(facts)
    assert [item.update.left.shape[1] for item in several.updates] == [1, 1, 1, 1]


def test_sessions_on_two_models_do_not_meet(tiny, facts, start):
    alone, with_company, company = tiny(seed=1), tiny(seed=1), tiny(seed=2)
    expected = start(alone).edit(facts).deltas
    first, second = start(with_company), start(company)
    second.edit(facts[:2])
    got = first.edit(facts).deltas
    assert all(torch.equal(got[layer], expected[layer]) for layer in (1, 2))
    mark = company.fingerprint()
    first.undo()
    assert company.fingerprint() == mark


def test_undo_refuses_to_lose_a_change_made_elsewhere(tiny, facts, start):
    lm = tiny()
    first, second = start(lm), start(lm)
    before = lm.fingerprint()
    first.edit(facts[:2])
    second.edit(facts[2:])
    with pytest.raises(RuntimeError, match="outside this session"):
        first.undo()
    second.undo()
    first.undo()
    assert lm.fingerprint() == before
    second.edit(facts)
    after = lm.fingerprint()
    first.undo()
    assert lm.fingerprint() == after, "a session that holds nothing undoes nothing"


@pytest.mark.parametrize("replay", ["buffer", "history"])
def test_undoing_a_step_that_was_rolled_back_forgets_what_came_after_it(tiny, facts, start, monkeypatch, replay):
    lm = tiny()
    session, mark = start(lm, replay=replay, replay_rate=1.0), lm.fingerprint()
    with monkeypatch.context() as patched:
        patched.setattr(session, "_judged", lambda *_: (None, []))
        session.edit(facts[:1])
    assert lm.fingerprint() == mark and len(session.memory) == 0
    session.edit(facts[1:2])
    assert lm.fingerprint() != mark and len(session.memory) == 1
    session.undo(2)
    assert lm.fingerprint() == mark and len(session.memory) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_alphaedit_stays_in_the_null_space(tiny, facts, start, family):
    lm = tiny(family)
    session = start(lm, "alphaedit", layers=[2], nullspace_threshold=0.5)
    C = second_moments(lm, [2], TEXTS, 300, progress=False)[2]
    identity = torch.eye(len(C), dtype=torch.float64)
    outside = identity - null_space(C, 0.5).project(identity)
    delta = session.edit(facts).deltas[2]
    assert (delta @ outside).norm() <= 1e-6 * delta.norm()


def test_a_non_finite_update_leaves_the_weights_untouched(tiny, facts, start, monkeypatch):
    lm = tiny()
    session = start(lm)
    before = lm.fingerprint()
    import editkit.editing.editor as module

    solve, calls = module.solvers.solve, []

    def breaks_at_the_second_layer(*args):
        calls.append(args)
        update = solve(*args)
        return update._replace(left=update.left / 0) if len(calls) == 2 else update

    monkeypatch.setattr(module.solvers, "solve", breaks_at_the_second_layer)
    with pytest.raises(FloatingPointError, match="layer 2"):
        session.edit(facts)
    assert len(calls) == 2 and lm.fingerprint() == before and not session.results
    monkeypatch.undo()
    session.edit(facts)
    session.undo()
    assert lm.fingerprint() == before


def test_bad_batches_leave_the_weights_untouched(tiny, facts, start):
    lm = tiny()
    session, before = start(lm), lm.fingerprint()
    with pytest.raises(ValueError, match="empty batch"):
        session.edit([])
    with pytest.raises(ValueError, match="subject"):
        session.edit([facts[0], Fact.make(subject="Oslo", prompt="This names nobody", target_new="a", target_true="b")])
    with pytest.raises(TypeError, match=r"a list of facts, got one fact: write edit\(\[fact\]\)"):
        session.edit(facts[0])
    with pytest.raises(TypeError, match="a list of facts, got 'R' among them"):
        session.edit("Rome")
    with pytest.raises(ValueError, match="target"):
        session.edit([Fact.make(subject="Rome", prompt="{} is", target_new=" ", target_true="b")])
    assert lm.fingerprint() == before


@pytest.mark.parametrize("mode", ["raw", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_edits_of_a_batch_that_contradict_each_other_are_named(tiny, facts, start, method, mode):
    said = {"subject": "France", "prompt": "The capital of {} is", "target_true": "Paris"}
    rome = Fact.make(**said, target_new="Rome", relation="capital")
    others = {
        "'The capital of France is': 'Rome'": Fact.make(**said, target_new="Oslo"),  # names no relation
        "France, capital: 'Rome'": Fact.make(
            **said | {"prompt": "{} is ruled from"}, target_new="Oslo", relation="capital"
        ),
    }
    session = start(tiny(), method, edit_mode=mode)
    for words, other in others.items():
        with pytest.warns(UserWarning, match=f"contradict.*{words} .{rome.id}. and 'Oslo' .{other.id}.$"):
            session.edit([facts[0], rome, other])
        session.undo()


def test_edits_that_only_share_a_subject_or_say_the_same_are_no_contradiction(recwarn):
    said = {"subject": "France", "target_true": "b", "target_new": "Oslo"}
    same = Fact.make(**said, prompt="The capital of {} is", relation="capital")
    warn_of_contradictions(
        [same, same, Fact.make(**said | {"target_new": "Rome"}, prompt="{} is in", relation="place")]
    )
    warn_of_contradictions([Fact.make(**said | {"target_new": new}, prompt=f"{{}} {new}:") for new in ("a", "c")])
    warn_of_contradictions([Repair(3, 1), Repair(3, 1), Repair(4, 2)])
    assert not recwarn.list
    with pytest.warns(UserWarning, match="image 3: '1' .image 3. and '2' .image 3."):
        warn_of_contradictions([Repair(3, 1), Repair(3, 2)])


def test_a_singular_second_moment_is_regularised_with_a_warning(tiny, facts, store, full_spec):
    lm = tiny()
    spec = full_spec("rome", layers=[1], mom2_n_tokens=10)  # 10 keys of dimension 24
    with pytest.warns(UserWarning, match="layer 1.*ridge"):
        result = EditSession(lm, spec, texts=TEXTS, store=store, progress=False).edit(facts[:1])
    assert result.diagnostics().cost_ridge.max() > 0


def test_saved_updates_are_those_applied(tiny, facts, start, tmp_path):
    lm = tiny()
    before, fingerprint = lm.weight(1).clone(), lm.fingerprint()
    session = start(lm)
    with pytest.raises(ValueError, match="no edit"):
        session.save(tmp_path / "edit.safetensors")
    session.edit(facts)
    path = session.save(tmp_path / "edit.safetensors")
    with safe_open(path, framework="pt") as file:
        provenance = json.loads(file.metadata()["editkit"], parse_constant=pytest.fail)  # NaN and Infinity
        delta = file.get_tensor("0.1.left") @ file.get_tensor("0.1.right")
    assert torch.equal((before.double() + delta).float(), lm.weight(1))
    assert provenance["weights"] == fingerprint and provenance["spec"]["norm_clamp"] is None
    again = EditSession.load(tiny(), path, texts=TEXTS)
    assert again.spec == session.spec and again.spec.norm_clamp == math.inf
    assert provenance["spec"]["method"] == "memit" and [fact["id"] for fact in provenance["items"]] == [
        f.id for f in facts
    ]


def test_keys_are_averaged_within_each_type_of_context_and_unaffected_by_batching(tiny, facts):
    lm = tiny()
    contexts = ["a b c. ", "People speak. "]
    K = edit_keys(lm, facts, 1, contexts)
    single = torch.stack([edit_keys(lm, [fact], 1, [])[:, 0] for fact in facts], dim=1)
    for i, fact in enumerate(facts):
        each = []
        for context in ["", *contexts]:
            seen = {}
            hook = lm.mlp_out(1).register_forward_hook(lambda m, args, out, seen=seen: seen.update(x=args[0]))
            head = context + fact.prompt.split("{}")[0] + fact.subject
            lm.model(torch.tensor([lm.encode(head)[0]]))
            hook.remove()
            each.append(seen["x"][0, -1])
        wanted = each[0] / 2 + each[1] / 4 + each[2] / 4  # the bare prompt weighs ½, each context 1/(2n)
        torch.testing.assert_close(K[:, i], wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(single[:, i], each[0], rtol=1e-4, atol=1e-5)
