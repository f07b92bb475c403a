"""The model on the bench; what the laboratory does with it is tested there."""

import pytest

from editkit import EditSession
from editkit.lab.bench import LOOKS, Bench
from tests.unit.lab.test_laboratory import bits


@pytest.fixture
def bench(tiny, store, facts):
    return Bench(tiny(), store=store, heldout=facts[2:])


def test_what_is_missing_is_counted_with_the_edits_taken_out(bench, full_spec, facts):
    spec = full_spec(v_num_grad_steps=2, targets_from="base").resolve(bench.lm)
    assert bench.missing(spec, []) == 0 and bench.missing(spec, facts[:2]) == 2
    bench.make(spec, facts[:1], lambda step: None)
    assert bench.missing(spec, facts[:2]) == 1, "targets belong to the model without its edits"
    assert bench.facts == facts[:1] and bench.spec == spec


def test_what_was_factored_serves_again_after_an_undo(bench, full_spec, facts, monkeypatch):
    spec = full_spec(v_num_grad_steps=2, targets_from="base").resolve(bench.lm)
    came = bits(bench.lm)
    bench.make(spec, facts[:1], lambda step: None)
    edited = bits(bench.lm)
    bench.make(spec, [], lambda step: None)
    assert bits(bench.lm) == came and bench.result is None
    with pytest.raises(ValueError, match="no edit to save"):
        bench.save("nowhere")
    monkeypatch.setattr("editkit.language.domain.second_moments", lambda *_, **__: pytest.fail("read again"))
    bench.make(spec, facts[:1], lambda step: None)
    assert bits(bench.lm) == edited != came and bench.result.items == facts[:1]


def test_untouched_is_the_model_as_it_came_and_the_edits_come_back(bench, full_spec, facts):
    came = bits(bench.lm)
    with bench.untouched():
        assert bits(bench.lm) == came
    bench.make(full_spec(v_num_grad_steps=2, targets_from="base").resolve(bench.lm), facts[:1], lambda step: None)
    edited = bits(bench.lm)
    with pytest.raises(KeyError), bench.untouched():
        assert bits(bench.lm) == came
        raise KeyError
    assert bits(bench.lm) == edited != came
    bench.close()
    assert bits(bench.lm) == came and bench.spec is None and bench.result is None


def test_the_last_edit_is_judged_as_a_session_would(bench, tiny, full_spec, facts):
    """Against the trust that a session finds which judges each step by the same texts and facts."""
    values = {"v_num_grad_steps": 2, "targets_from": "base"}
    spec = full_spec(**values).resolve(bench.lm)
    bench.judge()
    assert bench.trust is None, "there is nothing to judge"
    bench.make(spec, facts[:1], lambda step: None)
    bench.judge()
    alone = bench.trust
    bench.make(spec, facts[:2], lambda step: None)
    assert bench.trust is None
    bench.judge()
    session = EditSession(
        tiny(), full_spec(**values, trust_enable=True, trust_heldout_samples=LOOKS), heldout=facts[2:], progress=False
    )
    wanted = [session.edit([fact]).trust for fact in facts[:2]]
    assert wanted[0].parts != wanted[1].parts
    for found, same in zip((alone, bench.trust), wanted, strict=True):
        assert found.parts == pytest.approx(same.parts, abs=1e-3)
    bench.make(spec, facts[:1], lambda step: None)
    bench.judge()
    assert bench.trust is None, "it is not known of an edit that was not made last"
