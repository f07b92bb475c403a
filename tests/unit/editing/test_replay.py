"""The buffer by hand-worked cases and properties; replay, hold and history in sessions against plain algebra."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from editkit import EditSession, Fact
from editkit.editing.replay import EditRecord, Moments, ReplayBuffer
from editkit.language.keys import edit_keys, hidden_states
from editkit.language.moments import second_moments
from tests.conftest import TEXTS, agree


def record(name: str, value: float = 1.0, relation: str = "r", width: int = 3, **counts) -> EditRecord:
    fact = Fact(f"test:{name}", relation, name, "{} is", "new", "true")
    key, wanted = torch.full((width,), value).double(), torch.full((2,), value).double()
    return EditRecord(fact, torch.full((4,), value), {1: key}, {1: wanted}, **counts)


def names(records) -> list[str]:
    return [record.item.subject for record in records]


def test_fifo_drops_the_oldest_and_lru_the_longest_unused():
    for eviction, left in (("fifo", ["b", "c"]), ("lru", ["a", "c"])):
        buffer = ReplayBuffer(capacity=2, eviction=eviction)
        buffer.add([record("a")])
        buffer.add([record("b")])
        buffer.use([record for record in buffer if record.item.subject == "a"])
        buffer.add([record("c")])
        assert names(buffer) == left


def test_a_newer_edit_of_the_same_subject_and_relation_replaces_the_older():
    buffer = ReplayBuffer()
    buffer.add([record("a", 1.0), record("a", 2.0, relation="other")])
    buffer.add([record("a", 3.0)])
    assert sorted(item.target[0].item() for item in buffer) == [2.0, 3.0]


def test_recent_takes_the_newest_and_priority_prefers_what_has_lost_most():
    buffer = ReplayBuffer(strategy="recent")
    for name in "abcd":
        buffer.add([record(name)])
    assert names(buffer.sample(2)) == ["c", "d"]
    buffer.strategy = "priority"
    weight = torch.zeros(2, 3)  # puts out 0: what is missing of each edit is its whole value
    buffer.add([record("e", 1e6)])
    buffer.prioritise(1, weight)
    assert [item.priority for item in buffer] == pytest.approx([math.sqrt(2)] * 4 + [1e6 * math.sqrt(2)])
    assert all("e" in names(buffer.sample(1)) for buffer.clock in range(20))


def test_random_draws_all_alike_and_differ_with_the_clock():
    buffer = ReplayBuffer(seed=3)
    buffer.add([record(name) for name in "abcd"])
    draws = [names(buffer.sample(2)) for buffer.clock in range(300)]
    counts = [sum(name in draw for draw in draws) for name in "abcd"]
    assert all(110 <= count <= 190 for count in counts)  # 150 expected, 4 standard deviations
    assert all(draw == sorted(draw) and len(set(draw)) == 2 for draw in draws)


@pytest.mark.parametrize(
    ("rate", "stored", "batch", "expected"),
    [(0.5, 8, 4, 4), (0.5, 9, 4, 5), (0.5, 2, 8, 2), (0.25, 2, 8, 2), (0.25, 2, 4, 1), (1.0, 7, 3, 7), (0.0, 7, 3, 0)],
)
def test_the_amount_adapts_to_buffer_and_batch(rate, stored, batch, expected):
    buffer = ReplayBuffer()
    buffer.add([record(str(i)) for i in range(stored)])
    assert buffer.amount(rate, batch) == expected


operations = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 4)), min_size=1, max_size=30)


@settings(max_examples=50, deadline=None)
@given(
    operations,
    st.integers(0, 5),
    st.sampled_from(["random", "priority", "recent"]),
    st.sampled_from(["fifo", "lru"]),
    st.integers(0, 99),
)
def test_properties_of_any_course_of_events(tmp_path_factory, events, capacity, strategy, eviction, seed):
    def play() -> tuple[ReplayBuffer, list]:
        buffer, drawn = ReplayBuffer(capacity, strategy, eviction, seed), []
        for name, count in events:
            buffer.add([record(name)])
            chosen = buffer.sample(min(count, len(buffer)))
            assert buffer.sample(len(chosen)) == chosen, "drawing changes nothing"
            buffer.use(chosen)
            drawn.append(names(chosen))
            assert not capacity or len(buffer) <= capacity
            assert len({record.item.topic for record in buffer}) == len(buffer)
            assert name in names(buffer), "the newest is kept"
        return buffer, drawn

    buffer, drawn = play()
    assert play()[1] == drawn
    again = ReplayBuffer.load(buffer.save(tmp_path_factory.mktemp("buffer") / "buffer.safetensors"), Fact)
    assert names(again) == names(buffer)
    assert [vars(a)["access_count"] for a in again] == [vars(b)["access_count"] for b in buffer]
    again.add([record("z")])
    buffer.add([record("z")])
    assert names(again) == names(buffer)
    assert names(again.sample(len(again) // 2)) == names(buffer.sample(len(buffer) // 2))


def test_a_file_that_is_no_buffer_is_named(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"other\.safetensors is not a replay buffer"):
        ReplayBuffer.load(path, Fact)
    save_file({"weights": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="is not a replay buffer.*meta"):
        ReplayBuffer.load(path, Fact)


def test_a_record_of_other_dimensions_is_refused_and_the_buffer_stays():
    buffer = ReplayBuffer()
    buffer.add([record("a")])
    with pytest.raises(ValueError, match=r"test:b.*\(5,\)"):
        buffer.add([record("b", width=5)])
    assert names(buffer) == ["a"]
    with pytest.raises(ValueError, match="cannot draw 2 records from a buffer of 1"):
        buffer.sample(2)


def test_moments_stay_at_the_dimension_of_a_key_and_keep_what_counts():
    generator = torch.Generator().manual_seed(0)
    records = [
        EditRecord(
            record(str(i)).item,
            torch.zeros(4),
            {1: torch.randn(3, generator=generator).double()},
            {1: torch.randn(2, generator=generator).double()},
        )
        for i in range(11)
    ]
    moments = Moments()
    for item in records:
        moments.add([item])
    F, X = moments.factors(1)
    K = torch.stack([item.keys[1] for item in records], 1)
    V = torch.stack([item.values[1] for item in records], 1)
    assert F.shape == (3, 3) and len(moments) == 11
    agree(F @ F.T, K @ K.T)
    agree(X @ F.T, V @ K.T)
    agree(torch.cat(Moments.from_state_dict(moments.state_dict(), Fact).factors(1)), torch.cat([F, X]))


@pytest.fixture
def start(store, full_spec):
    def build(lm, method="memit", **changes):
        spec = full_spec(method, **({"layers": [2]} | changes))
        return EditSession(lm, spec, texts=TEXTS, store=store, progress=False)

    return build


def in_turn(session: EditSession, facts: list[Fact]) -> dict[int, torch.Tensor]:
    """The last update of a sequence of single edits."""
    for fact in facts:
        result = session.edit([fact])
    return result.deltas


@pytest.mark.parametrize(("kind", "pulled"), [("hold", False), ("history", True)])
def test_hold_and_history_are_the_moments_in_the_cost(tiny, facts, start, kind, pulled):
    lm = tiny()
    session = start(lm, "memit", replay=kind, replay_weight=2.0)
    C = second_moments(lm, [2], TEXTS, 300, progress=False)[2]
    past_K, past_V = [], []
    for fact in facts:
        W = lm.weight(2).double().clone()
        before = hidden_states(lm, [fact], 2)
        result = session.edit([fact])
        K = edit_keys(
            lm, [fact], 2, session.domain.contexts
        ).double()  # lies below the weight: the edit has not moved it
        R = (result.targets.values - before).double()
        cost, right = C.clone(), R @ K.T
        if past_K:
            P, V = torch.cat(past_K, 1), torch.cat(past_V, 1)
            cost += 2.0 * P @ P.T
            if pulled:
                right += 2.0 * (V - W @ P) @ P.T
        agree(result.deltas[2], torch.linalg.solve(cost + K @ K.T, right.T).T, 1e-6)
        past_K.append(K)
        past_V.append(W @ K + R)


def test_a_full_buffer_equals_history(tiny, facts, start):
    buffer = in_turn(start(tiny(), "memit", replay="buffer", replay_rate=1.0), facts)
    history = in_turn(start(tiny(), "memit", replay="history"), facts)
    agree(buffer[2], history[2], 1e-6)
    plain = in_turn(start(tiny(), "memit"), facts)
    assert (history[2] - plain[2]).norm() > 1e-3 * plain[2].norm()


@pytest.mark.parametrize("method", ["emmet", "memit", "alphaedit"])
def test_a_full_buffer_without_old_residuals_equals_hold(tiny, facts, start, method, monkeypatch):
    changes = {"nullspace_threshold": 0.5, "emmet_lambda": 0.5}
    hold = in_turn(start(tiny(), method, replay="hold", **changes), facts)
    import editkit.editing.replay as module

    columns = module.columns
    session = start(lm := tiny(), method, replay="buffer", replay_rate=1.0, **changes)
    # What the buffer wants of an old key is what the weight puts out for it anyway.
    monkeypatch.setattr(
        module,
        "columns",
        lambda rows, layer: (columns(rows, layer)[0], lm.weight(2).double() @ columns(rows, layer)[0]),
    )
    agree(in_turn(session, facts)[2], hold[2], 1e-6)


def test_published_alphaedit_is_hold(tiny, facts, start):
    default = in_turn(start(tiny(), "alphaedit", nullspace_threshold=0.5), facts)
    hold = in_turn(start(tiny(), "alphaedit", nullspace_threshold=0.5, replay="hold"), facts)
    none = in_turn(start(tiny(), "alphaedit", nullspace_threshold=0.5, replay="none"), facts)
    assert torch.equal(default[2], hold[2]) and not torch.equal(default[2], none[2])


@pytest.mark.parametrize("method", ["emmet", "memit", "alphaedit"])
@pytest.mark.parametrize("layers", [[2], [1, 2]])
def test_rate_zero_is_the_plain_method_bit_for_bit(tiny, facts, start, method, layers):
    changes = {"layers": layers, "nullspace_threshold": 0.5}
    plain = in_turn(start(tiny(), method, replay="none", **changes), facts)
    rate = in_turn(start(tiny(), method, replay="buffer", replay_rate=0.0, **changes), facts)
    assert all(torch.equal(rate[layer], plain[layer]) for layer in layers)


def test_with_several_layers_replayed_keys_are_read_again(tiny, facts, start):
    lm = tiny()
    session = start(lm, "memit", layers=[1, 2], replay="buffer", replay_rate=1.0)
    session.edit(facts[:2])
    session.edit(facts[2:])
    gap = (session.results[0].targets.values - hidden_states(lm, facts[:2], 2)).norm()
    plain = tiny()
    other = start(plain, "memit", layers=[1, 2])
    other.edit(facts[:2])
    other.edit(facts[2:])
    assert gap < (session.results[0].targets.values - hidden_states(plain, facts[:2], 2)).norm()
    assert session.results[1].diagnostics().replayed.tolist() == [2, 2]


def test_what_a_step_did_with_old_edits_is_in_its_result(tiny, facts, start):
    session = start(tiny(), "memit", replay="history")
    first, second = session.edit(facts[:2]), session.edit(facts[2:])
    assert math.isnan(first.old_residual) and 0 < second.old_residual < 1
    row = second.diagnostics().iloc[0]
    assert row.edits == 2 and row.replayed == 2 and row.condition <= row.condition_before
    assert row.growth == pytest.approx(session.model.weight(2).norm().item() / first.updates[0].weight_norm)


def test_undo_and_rollback_of_errors_put_the_memory_back(tiny, facts, start, monkeypatch):
    session = start(tiny(), "memit", replay="buffer", replay_eviction="lru", replay_max_items=2)
    session.edit(facts[:2])
    session.undo(1)
    assert len(session.memory) == 0
    session.edit(facts[:2])
    marks = [(record.item.id, record.access_count, record.last_used) for record in session.memory]
    session.edit(facts[2:3])
    session.undo(1)
    assert [(record.item.id, record.access_count, record.last_used) for record in session.memory] == marks
    import editkit.editing.weights as module

    monkeypatch.setattr(module, "clamp", lambda update, *_: update._replace(left=update.left / 0))
    weight = session.model.weight(2).clone()
    with pytest.raises(FloatingPointError):
        session.edit(facts[2:3])
    assert torch.equal(session.model.weight(2), weight)
    assert [(record.item.id, record.access_count, record.last_used) for record in session.memory] == marks
    session.undo()
    assert len(session.memory) == 0


def test_targets_from_base_are_those_of_the_untouched_model(tiny, facts, start):
    lm = tiny()
    one = start(lm, "emmet", targets_from="base")
    one.edit(facts[:2])
    edited = lm.weight(2).clone()
    sequence = one.edit(facts[2:])
    assert not torch.equal(lm.weight(2), edited)
    fresh = start(tiny(), "emmet").edit(facts[2:])
    assert torch.equal(sequence.targets.values, fresh.targets.values)
    again = start(tiny(), "emmet")
    again.edit(facts[:2])
    assert not torch.equal(again.edit(facts[2:]).targets.values, fresh.targets.values)


def test_a_norm_clamp_bounds_the_growth_of_the_weight(tiny, facts, start):
    lm = tiny()
    before = lm.weight(2).norm()
    free = start(lm, "emmet")
    free.edit(facts)
    assert lm.weight(2).norm() > 1.01 * before
    free.undo()
    session = start(lm, "emmet", norm_clamp=1.01)
    session.edit(facts[:2])
    result = session.edit(facts[2:])
    assert lm.weight(2).norm() == pytest.approx(1.01 * before.item(), rel=1e-5)
    assert result.diagnostics().growth.max() == pytest.approx(1.01, rel=1e-5)
    session.undo()
    assert torch.equal(lm.weight(2).norm(), before)


def test_rome_has_no_replay(tiny, full_spec):
    with pytest.raises(ValueError, match="replay = 'hold': rome"):
        full_spec("rome", replay="hold").resolve(tiny())
