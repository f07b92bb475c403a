"""Drift by kind of text, the trust score's parts, the three actions, and that a rollback leaves nothing behind."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from editkit import EditSession, Fact
from editkit.editing.spec import EditSpec
from editkit.language import trust
from editkit.language.drift import KINDS, SENTENCES, TextProbe, held_out, measure_all, sentences
from editkit.language.forward.scoring import score
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


def test_sentences_name_no_edited_subject_but_in_the_beginnings_of_other_statements(tiny, facts):
    lm = tiny()
    edited = Fact.make(
        subject="Rome",
        prompt="{} lies in",
        target_new="France",
        target_true="Italy",
        neighbours=["Oslo lies in", "The city of Rome lies in"],
        neighbour_target="Norway",
        generation=["Rome is known for"],
    )
    rows = sentences(lm, [edited], [facts[0], facts[2]], 8)
    texts = {lm.tokenizer.decode(row[1:]) for row in rows}
    kept = {"Oslo lies in Norway", "Rome is known for", "The mother tongue of Anna Karlsson is Swedish"}
    kept |= {"The city of Spain is Swedish", "The city of Spain is Paris", "The capital of France is Paris"}
    assert texts == kept and all(row[0] == lm.start_id for row in rows)
    assert len(sentences(lm, [edited], facts, 1)) == SENTENCES
    assert sentences(lm, [], [], 8) == []


def test_all_kinds_are_measured_and_those_that_are_not_there_are_nan(tiny):
    lm = tiny()
    probes = {"prose": TextProbe(lm, held_out(lm, TEXTS, 0, 2))}
    damage(lm)
    row, later = measure_all(lm, probes, True), measure_all(lm, probes, False)
    assert list(row) == [f"{name}_{kind}" for kind in KINDS for name in ("perplexity_before", "perplexity", "kl")]
    assert row["kl_prose"] > 0 and math.isnan(row["kl_text"]) and math.isnan(row["perplexity_before_subjects"])
    assert later["perplexity_before_prose"] == row["perplexity_before_prose"] and math.isnan(later["kl_prose"])


class Staged:
    """A monitor whose readings are made up: what it saw right before a step, and sees after it."""

    def __init__(self, lm, heldout, spec, monkeypatch):
        self.lm, self.patch = lm, monkeypatch
        self.monitor = TrustMonitor(lm, TEXTS, heldout, spec.resolve(lm))
        self.before = self.monitor._base._replace(held=[True] * 4)
        self.monitor._before = self.before

    def judge(self, edits=(True,), norm=0.01, growth=1.0, condition=1e6, **seen):
        self.patch.setattr(self.monitor, "_read", lambda _: self.before._replace(**seen))
        self.patch.setattr(trust, "_success", lambda *_: list(edits))
        update = SimpleNamespace(norm=norm, weight_norm=1.0, growth=growth, update=SimpleNamespace(condition=condition))
        return self.monitor.judge(self.lm, [], [update])


@pytest.fixture
def watched_facts(facts) -> list[Fact]:
    """Five held-out facts with two neighbours each, of two relations."""
    return [
        Fact.make(
            subject=f"place {i}",
            prompt="{} lies in",
            relation="ab"[i % 2],
            target_new="Rome",
            target_true="Italy",
            neighbours=[f"town {i} lies in", f"city {i} lies in"],
        )
        for i in range(5)
    ]


@pytest.fixture
def staged(tiny, watched_facts, full_spec, monkeypatch):
    return Staged(tiny(), watched_facts, full_spec(), monkeypatch)


def at_divergence(before: torch.Tensor, wanted: float) -> torch.Tensor:
    """Sharpen distributions until KL(before ‖ after) is as wanted."""
    low, high = 1.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        after = (before * middle).log_softmax(-1)
        kl = (before.exp() * (before - after)).sum(-1).mean().item()
        low, high = (middle, high) if kl < wanted else (low, middle)
    return after


def one_group_ruined(stage):
    values = list(stage.before.neighbours)
    values[2:4] = [value - 6 for value in values[2:4]]
    return {"neighbours": values}


HARMS = {
    "neighbours": one_group_ruined,
    "retention": lambda stage: {"held": [False] * 4},
    "text": lambda stage: {"text": stage.before.text | {"prose": at_divergence(stage.before.text["prose"], 2.0)}},
    "norm": lambda stage: {"norm": 3.0},
    "norm_total": lambda stage: {"growth": 3.0},
    "edits": lambda stage: {"edits": [False, False]},
}


def test_a_harmless_step_is_accepted(staged):
    decision = staged.judge()
    assert decision.action == "accept" and decision.score > 0.9 and not decision.reasons
    names = {"text", "neighbours", "retention", "norm"}
    assert set(decision.parts) == names | {f"{name}_total" for name in names} | {"condition", "edits"}


@pytest.mark.parametrize("part", HARMS)
def test_each_harm_alone_is_refused_at_the_default_threshold(staged, part):
    """Nothing else is wrong with the step, so nothing may make up for the one ruined part."""
    decision = staged.judge(**HARMS[part](staged))
    assert decision.action == "warn" and decision.score < staged.monitor.spec.trust_threshold
    assert any(reason.startswith(f"{part} ") for reason in decision.reasons)


def test_a_part_is_a_power_of_its_harm_and_what_is_not_finite_is_no_trust(staged):
    half = staged.judge(norm=trust.ALLOWED["norm"])
    assert half.parts["norm"] == pytest.approx(0.5) and half.action == "accept"
    assert staged.judge(growth=math.nan).score == 0.0
    assert staged.judge(condition=math.inf).score == 0.0
    assert staged.judge(condition=1e12).parts["condition"] == pytest.approx(0.5)


def test_earlier_edits_that_were_lost_before_do_not_count_against_a_step(staged):
    staged.before = staged.monitor._before = staged.before._replace(held=[True, False, False, False])
    decision = staged.judge()
    assert decision.parts["retention"] == 1.0 and decision.parts["retention_total"] == pytest.approx(0.5)


def test_only_weighted_parts_count(tiny, watched_facts, full_spec, monkeypatch):
    spec = full_spec(trust_weights={"condition": 1.0, "norm": 0.5})
    stage = Staged(tiny(), watched_facts, spec, monkeypatch)
    assert stage.judge(edits=[False]).action == "accept"
    assert stage.judge(norm=2 * trust.ALLOWED["norm"]).score == pytest.approx(0.5)


def test_held_out_facts_are_watched_in_turn_from_every_relation(watched_facts):
    groups = trust._groups(watched_facts[::2] + watched_facts[1::2], 3)  # three of relation a, then two of b
    assert [[prompt for prompt, _ in group] for group in groups] == [
        [f"town {i} lies in", f"city {i} lies in"] for i in (0, 1, 2)
    ]
    assert len(trust._groups(watched_facts, 10)) == 5


def test_readings_are_those_of_the_model(tiny, facts, watched_facts, full_spec):
    """What the monitor sees of a damaged model agrees with plain passes; undone damage is no harm."""
    lm = tiny()
    monitor = TrustMonitor(lm, TEXTS, watched_facts, full_spec(trust_heldout_samples=2).resolve(lm))
    before = [scores[0].logprob for scores in score(lm, [("town 0 lies in", ["Italy"])])]
    monitor.watch(lm, facts)
    assert monitor._read(lm).neighbours[0] == pytest.approx(before[0], abs=1e-5)
    weight = lm.weight(1).clone()
    damage(lm)
    worse = monitor.judge(lm, facts[:1], updates := [update_of(0.1)])
    assert worse.parts["text"] < 0.5 and worse.parts["text"] < worse.parts["text_total"] < 1
    lm.weight(1).copy_(weight)
    assert monitor._read(lm).text is monitor._base.text, "the untouched model is not read again"
    same = monitor.judge(lm, facts[:1], updates)
    assert same.parts["text"] == pytest.approx(1.0, abs=1e-4) and same.parts["retention_total"] >= 0


def update_of(norm: float, growth: float = 1.0) -> SimpleNamespace:
    return SimpleNamespace(norm=norm, weight_norm=1.0, growth=growth, update=SimpleNamespace(condition=1e4))


def test_fifty_harmless_steps_are_accepted_and_creeping_harm_is_not(tiny, watched_facts, full_spec):
    """Each step does the same little harm: what has come together passes a step's own allowance, then its own."""
    lm = tiny()
    monitor = TrustMonitor(lm, TEXTS, watched_facts, full_spec().resolve(lm))
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(lm.weight(1).shape, generator=generator).to(lm.device)
    direction *= 0.02 * lm.weight(1).norm() / direction.norm()
    held = [Fact.make(subject="x", prompt="{} lies in", target_new="Rome", target_true="Italy")]
    (new, true), *_ = score(lm, [("x lies in", ["Rome", "Italy"])])
    if new.logprob < true.logprob:  # success of what was never edited, so that only the weights tell
        held = [replace(held[0], target_new="Italy", target_true="Rome")]
    decisions = []
    for _ in range(400):
        monitor.watch(lm, [])
        lm.weight(1).add_(direction)
        decisions.append(monitor.judge(lm, held, [update_of(0.02)]))
        if decisions[-1].action != "accept":
            break
    assert len(decisions) > 50, "a long harmless sequence is accepted"
    harm = -math.log2(decisions[49].parts["text_total"]) * trust.ALLOWED["text_total"]
    assert harm > trust.ALLOWED["text"], "in one step that would have been refused"
    assert decisions[-1].action == "warn" and all("_total" in reason for reason in decisions[-1].reasons)


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
    (made,) = start(tiny(), trust_enable=False).edit(facts).updates
    whole, harm = made.update.delta, made.norm / made.weight_norm / trust.ALLOWED["norm"]
    lm = tiny()
    before = lm.weight(2).clone()
    limits = {"trust_threshold": 2 ** (-harm / 2), "trust_weights": {"norm": 1.0}}  # a half would do
    session = start(lm, trust_action="scale", trust_scale=0.25, **limits)
    with pytest.warns(UserWarning, match="scale"):
        result = session.edit(facts)
    assert result.trust.action == "scale" and len(result.trust.reasons) == 1
    assert result.trust.score == pytest.approx(2 ** (-harm / 4), rel=1e-3), "what is kept is judged"
    torch.testing.assert_close(result.deltas[2], 0.25 * whole)
    torch.testing.assert_close(lm.weight(2), before + 0.25 * whole.float())
    session.undo()
    assert torch.equal(lm.weight(2), before)


def test_a_share_that_is_not_trusted_either_is_undone(tiny, facts, start):
    lm = tiny()
    before = lm.weight(2).clone()
    session = start(lm, trust_threshold=1.0, trust_action="scale", trust_scale=0.25)
    state = session.state_dict()
    with pytest.warns(UserWarning, match="rollback.*scaled: "):
        result = session.edit(facts)
    assert result.updates == [] and result.trust.action == "rollback" and torch.equal(lm.weight(2), before)
    assert len(session.memory) == 0 and set(state) == set(start(tiny()).state_dict())


def test_edits_that_are_not_taken_are_refused(tiny, facts, start):
    lm = tiny()
    fact = next(f for f in facts if not trust._success(lm, [f])[0])
    session = start(lm, v_num_grad_steps=1, v_lr=1e-6, trust_action="rollback")
    with pytest.warns(UserWarning, match="edits 0.00"):
        assert session.edit([fact]).trust.parts["edits"] == 0.0


def test_a_session_that_goes_on_judges_as_the_one_that_was_stopped(tiny, facts, watched, start):
    whole = start(tiny(), watched, trust_threshold=0.0)
    whole.edit(facts[:2])
    state = whole.state_dict()
    again = start(tiny(), watched, trust_threshold=0.0)
    again.load_state_dict(state)
    ours, theirs = (session.edit(facts[2:]).trust.parts for session in (again, whole))
    assert ours == pytest.approx(theirs, abs=1e-6) and theirs["text_total"] < 1 and "retention_total" in theirs


def test_warn_keeps_the_step(tiny, facts, start):
    lm = tiny()
    with pytest.warns(UserWarning, match="warn"):
        result = start(lm, trust_threshold=1.0).edit(facts)
    assert result.updates and result.trust.action == "warn"


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="trust_weights"):
        EditSpec(method="memit", trust_weights={"luck": 1.0})
