"""The trust score's parts, the three actions, and that a rollback leaves nothing behind."""

import pytest
import torch

from editkit import EditSession, Fact
from editkit.editing.spec import EditSpec
from editkit.language.drift import TextProbe, held_out
from editkit.language.moments import token_chunks
from editkit.language.trust import TrustMonitor
from tests.conftest import TEXTS


@pytest.fixture
def start(store, full_spec):
    def build(lm, heldout=(), **changes):
        values = {"layers": [2], "trust_enable": True, "trust_heldout_samples": 2, "mom2_n_tokens": 100}
        spec = full_spec("memit", **(values | changes))
        return EditSession(lm, spec, texts=TEXTS, heldout=heldout, store=store, progress=False)

    return build


@pytest.fixture
def watched() -> list[Fact]:
    return [
        Fact.make(
            subject="Spain", prompt="{} lies in", target_new="Rome", target_true="Italy", neighbours=["Paris lies in"]
        )
    ]


def damage(lm, factor: float = -3.0) -> None:
    lm.weight(1).mul_(factor)


def test_held_out_text_lies_behind_that_of_the_second_moment(tiny):
    lm = tiny()
    rows = held_out(lm, TEXTS, 100, 2)
    tokens = [token for chunk in token_chunks(lm, TEXTS, 228) for token in chunk[1:]]
    assert [token for row in rows for token in row[1:]] == tokens[100:] and all(row[0] == lm.start_id for row in rows)
    with pytest.raises(ValueError, match="fewer than"):
        held_out(lm, TEXTS, 100, 10_000)


def test_perplexity_and_divergence_are_those_of_plain_passes(tiny):
    lm = tiny()
    rows = held_out(lm, TEXTS, 100, 3)
    rows[1] = rows[1][:20]

    def log_probabilities() -> torch.Tensor:
        each = [lm.model(torch.tensor([row])).logits[0, :-1].log_softmax(-1) for row in rows]
        return torch.cat(each).detach()

    probe, before = TextProbe(lm, rows), log_probabilities()
    wanted = torch.tensor([token for row in rows for token in row[1:]])
    perplexity, kl = probe.measure(lm)
    assert (
        probe.perplexity
        == perplexity
        == pytest.approx((-before.gather(1, wanted[:, None]).mean()).exp().item(), rel=1e-4)
    )
    assert kl == pytest.approx(0.0, abs=1e-6)
    damage(lm)
    now = log_probabilities()
    assert probe.measure(lm)[1] == pytest.approx((before.exp() * (before - now)).sum(1).mean().item(), rel=1e-4)


def test_an_untouched_model_is_trusted_and_a_damaged_one_is_not(tiny, facts, watched, full_spec):
    lm = tiny()
    spec = full_spec(trust_heldout_samples=2, mom2_n_tokens=100, trust_threshold=0.95).resolve(lm)
    monitor = TrustMonitor(lm, TEXTS, watched, spec, 100)
    same = monitor.judge(lm, [], 0.0, 1.0)
    assert same.score == pytest.approx(1.0, abs=1e-5) and same.action == "accept" and not same.reasons
    assert set(same.parts) == {"text", "neighbours", "norm", "condition"}, "nothing was edited that could be retained"
    damage(lm)
    worse = monitor.judge(lm, facts, 0.5, 1e8)
    assert set(worse.parts) == {"text", "neighbours", "norm", "condition", "retention"}
    assert worse.score < 0.95 and worse.action == "warn" and worse.parts["condition"] == pytest.approx(0.5)
    assert worse.reasons == sorted(worse.reasons, key=lambda reason: float(reason.split()[-1]))
    assert worse.score == pytest.approx(sum(worse.parts.values()) / 5)


def test_only_weighted_parts_count(tiny, full_spec):
    lm = tiny()
    spec = full_spec(mom2_n_tokens=100, trust_heldout_samples=2, trust_weights={"condition": 1.0, "norm": 3.0})
    decision = TrustMonitor(lm, TEXTS, [], spec.resolve(lm), 100).judge(lm, [], 0.0, 1e8)
    assert decision.score == pytest.approx((0.5 + 3 * 1.0) / 4)


@pytest.mark.parametrize("replay", ["buffer", "history", "none"])
def test_rollback_restores_weights_and_memory_and_is_recorded(tiny, facts, watched, start, replay):
    lm = tiny()
    session = start(lm, watched, replay=replay, replay_rate=1.0, replay_eviction="lru", trust_action="rollback")
    session.spec = session.spec.model_copy(update={"trust_threshold": 0.0})
    session.edit(facts[:2])
    weight, state = lm.weight(2).clone(), session.state_dict()
    session.domain._trust.spec = session.spec.model_copy(update={"trust_threshold": 1.0})
    with pytest.warns(UserWarning, match="trust 0.*rollback"):
        result = session.edit(facts[2:])
    assert torch.equal(lm.weight(2), weight)
    assert all(torch.equal(tensor, state[name]) for name, tensor in session.state_dict().items())
    assert result.updates == [] and result.trust.action == "rollback" and result.trust.reasons
    session.domain._trust.spec = session.spec
    assert session.edit(facts[2:]).trust.action == "accept", "a refused batch can be tried again"
    session.undo(2)
    assert torch.equal(lm.weight(2), weight)


def test_scale_keeps_a_share_of_the_update(tiny, facts, start):
    whole = start(tiny(), trust_enable=False).edit(facts).deltas[2]
    lm = tiny()
    before = lm.weight(2).clone()
    session = start(lm, trust_threshold=1.0, trust_action="scale", trust_scale=0.25)
    with pytest.warns(UserWarning, match="scale"):
        result = session.edit(facts)
    torch.testing.assert_close(result.deltas[2], 0.25 * whole)
    torch.testing.assert_close(lm.weight(2), before + 0.25 * whole.float())
    session.undo()
    assert torch.equal(lm.weight(2), before)


def test_warn_keeps_the_step(tiny, facts, start):
    lm = tiny()
    with pytest.warns(UserWarning, match="warn"):
        result = start(lm, trust_threshold=1.0).edit(facts)
    assert result.updates and result.trust.action == "warn"


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="trust_weights"):
        EditSpec(method="memit", trust_weights={"luck": 1.0})
