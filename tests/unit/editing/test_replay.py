"""The buffer by hand-worked cases and properties; replay, hold and history in sessions against plain algebra."""

import itertools
import math
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from editkit import METHODS, EditSession, Fact, solvers
from editkit.editing.replay import EditRecord, Moments, ReplayBuffer
from editkit.language.keys import edit_keys, hidden_states
from editkit.language.moments import second_moments
from editkit.methods import SolverSpec
from editkit.reference.solvers import alphaedit_printed, kkt_equality, memit_printed
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


def test_two_questions_about_one_subject_are_both_kept_where_no_relation_is_named():
    buffer, asked = ReplayBuffer(), record("a", relation="")
    for prompt in ("{} lives in", "{} works in", "{} lives in"):
        buffer.add([replace(asked, item=replace(asked.item, prompt=prompt))])
    assert [kept.item.prompt for kept in buffer] == ["{} works in", "{} lives in"]


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


def test_priority_is_importance_times_the_share_lost():
    buffer = ReplayBuffer(strategy="priority")
    buffer.add([record("a", asked=2.0, importance=2.0), record("b", asked=4.0, importance=4.0), record("c", asked=0.0)])
    half = torch.full((2, 3), 0.5 / 3)  # puts out half of every value: ‖v − W k‖ = √½ for all three
    buffer.prioritise(1, half)
    lost = math.sqrt(0.5)
    assert [item.priority for item in buffer] == pytest.approx([lost, lost, 0.0]), "importance is what was asked"
    buffer.weigh({"test:b": 12.0, "test:a": 0.0})
    buffer.prioritise(1, half)
    assert [item.priority for item in buffer] == pytest.approx([0.0, 12 * lost / 4, 0.0])
    assert all(names(buffer.sample(1)) == ["b"] for buffer.clock in range(20))
    with pytest.raises(ValueError, match="importance of 'test:z': the buffer holds no such edit"):
        buffer.weigh({"test:z": 1.0})
    with pytest.raises(ValueError, match=r"importance of 'test:a' = -1.*0 or more"):
        buffer.weigh({"test:a": -1.0})


def test_random_draws_all_alike_and_differ_with_the_clock():
    buffer = ReplayBuffer(seed=3)
    buffer.add([record(name) for name in "abcd"])
    draws = [names(buffer.sample(2)) for buffer.clock in range(300)]
    counts = [sum(name in draw for draw in draws) for name in "abcd"]
    assert all(110 <= count <= 190 for count in counts)  # 150 expected, 4 standard deviations
    assert all(draw == sorted(draw) and len(set(draw)) == 2 for draw in draws)


@pytest.mark.parametrize(
    ("rate", "stored", "batch", "expected"),
    [
        (0.5, 8, 4, 2),
        (0.3, 9, 4, 2),
        (0.1, 9, 10, 1),
        (0.55, 99, 100, 55),
        (1.0, 7, 3, 3),
        (1.0, 2, 8, 2),
        (0.0, 7, 3, 0),
    ],
)
def test_the_amount_is_a_share_of_the_new_batch(rate, stored, batch, expected):
    assert filled(stored).amount(rate, batch) == expected


@pytest.mark.parametrize(
    ("rate", "stored", "batch", "expected"),
    [(0.5, 8, 4, 4), (0.5, 9, 4, 5), (0.5, 2, 8, 2), (0.25, 2, 8, 2), (0.25, 2, 4, 1), (1.0, 7, 3, 7), (0.0, 7, 3, 0)],
)
def test_or_of_the_buffer_once_that_is_larger(rate, stored, batch, expected):
    assert filled(stored, base="buffer").amount(rate, batch) == expected


def filled(count: int, **settings) -> ReplayBuffer:
    buffer = ReplayBuffer(**settings)
    buffer.add([record(str(i)) for i in range(count)])
    return buffer


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
    with pytest.raises(ValueError, match="is not a replay buffer.*settings"):
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


def test_moments_know_each_edit_until_they_are_compressed():
    moments = Moments()
    for count, name in enumerate("abc", 1):  # keys have three dimensions
        moments.add([record(name)])
        again = Moments.from_state_dict(moments.state_dict(), Fact)
        for one in (moments, moments.copy(), again):
            assert names(one.recall(0.0, 1, 1, torch.zeros(2, 3))) == list("abc"[:count])
        assert torch.equal(torch.cat(again.factors(1)), torch.cat(moments.factors(1)))
    earlier = moments.copy()
    moments.add([record("d")])
    assert moments.recall(0.0, 1, 1, torch.zeros(2, 3)) == [] and moments.taking_part([]) == len(moments) == 4
    assert len(earlier.recall(0.0, 1, 1, torch.zeros(2, 3))) == 3, "a copy changes on its own"


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
    buffer = in_turn(start(tiny(), "memit", replay="buffer", replay_rate=1.0, replay_base="buffer"), facts)
    history = in_turn(start(tiny(), "memit", replay="history"), facts)
    agree(buffer[2], history[2], 1e-6)
    plain = in_turn(start(tiny(), "memit"), facts)
    assert (history[2] - plain[2]).norm() > 1e-3 * plain[2].norm()


@pytest.mark.parametrize("method", ["emmet", "memit", "alphaedit"])
def test_a_full_buffer_without_old_residuals_equals_hold(tiny, facts, start, method, monkeypatch):
    changes = {"nullspace_threshold": 0.5, "emmet_lambda": 0.1}
    hold = in_turn(start(tiny(), method, replay="hold", **changes), facts)
    import editkit.editing.replay as module

    columns = module.columns
    session = start(lm := tiny(), method, replay="buffer", replay_rate=1.0, replay_base="buffer", **changes)
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


@pytest.mark.parametrize("replay", ["buffer", "history"])
def test_with_several_layers_what_is_replayed_is_read_again(tiny, facts, start, replay):
    def missing(**changes):
        lm = tiny()
        session = start(lm, "memit", layers=[1, 2], **changes)
        session.edit(facts[:2])
        second = session.edit(facts[2:]).diagnostics()
        return (session.results[0].targets.values - hidden_states(lm, facts[:2], 2)).norm(), second

    gap, table = missing(replay=replay, replay_rate=1.0)
    assert gap < missing()[0]
    assert table.replayed.tolist() == [2, 2] and table.stale.tolist() == [0, 0]
    stale, table = missing(replay=replay, replay_rate=1.0, replay_refresh=False)
    assert gap < stale and table.stale.tolist() == [0, 2], "nothing moves the keys of the first edited layer"


def test_a_buffer_and_history_read_again_agree_over_several_layers(tiny, facts, start):
    changes = {"layers": [1, 2], "replay_rate": 1.0, "replay_base": "buffer"}
    buffer = in_turn(start(tiny(), "memit", replay="buffer", **changes), facts)
    history = in_turn(start(tiny(), "memit", replay="history", **changes), facts)
    assert all(torch.equal(buffer[layer], history[layer]) for layer in (1, 2))


@pytest.mark.parametrize("refresh", [True, False])
def test_held_keys_of_several_layers_are_those_of_now_or_of_their_own_step(tiny, facts, start, refresh):
    lm = tiny()
    session = start(lm, "memit", layers=[1, 2], replay="hold", replay_refresh=refresh)
    session.edit(facts[:2])
    then = session.memory.factors(2)[0]
    read, solved = [], []
    domain_keys, write = session.domain.keys, session._weights.write
    session.domain.keys = lambda items, layer: read.append(len(items)) or domain_keys(items, layer)
    session._weights.write = lambda layer, update, problem, largest: (
        solved.append(problem) or write(layer, update, problem, largest)
    )
    session.edit(facts[2:])
    assert read == ([4, 4] if refresh else [2, 2])
    now = edit_keys(lm, facts[:2], 2, session.domain.contexts).double()
    agree(solved[1].K[:, 2:], now if refresh else then, 1e-6)
    assert (now - then).norm() > 1e-4 * then.norm() and not solved[1].R[:, 2:].any()


def test_published_alphaedit_keeps_its_keys_and_says_how_many_are_stale(tiny, facts, start):
    changes = {"layers": [1, 2], "nullspace_threshold": 0.5}
    session = start(tiny(), "alphaedit", **changes)
    assert (session.spec.replay, session.spec.replay_refresh) == ("hold", False)
    assert start(tiny(), "memit", replay="hold").spec.replay_refresh
    session.edit(facts[:3])
    assert session.results[0].diagnostics().stale.tolist() == [0, 0]
    assert session.edit(facts[3:]).diagnostics().stale.tolist() == [0, 3]


def printed(method: str, K, R, C, spec: SolverSpec) -> torch.Tensor:
    """ΔW of one batch by the method's printed formula; of emmet by the KKT system of its problem."""
    identity = torch.eye(len(C)).double()
    if method == "alphaedit":
        P = solvers.null_space(C, spec.nullspace_threshold).project(identity)
        return alphaedit_printed(K, R, P, K[:, :0], spec.l2)
    if method == "memit":
        return memit_printed(K, R, C, spec.mom2_update_weight)
    return kkt_equality(K, R, spec.mom2_update_weight * C + spec.update_norm_lambda * identity)


def steps_and_one_batch(method: str, order, weight: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """ΔW of steps of 1, 4, 2 random edits in some order that hold what came before, and of one batch as printed."""
    generator = torch.Generator().manual_seed(5)
    K, V, W, samples = (torch.randn(*s, generator=generator).double() for s in ((20, 7), (9, 7), (9, 20), (20, 60)))
    samples[:12] *= 30.0  # the rest is AlphaEdit's null space, approximately
    C = samples @ samples.T / 60
    values = dict(mom2_update_weight=3.0, update_norm_lambda=0.1, emmet_lambda=0.0, nullspace_threshold=5.0, l2=2.0)
    row, spec = METHODS[method], SolverSpec(**values)
    precision = row.precision(C, spec)
    slack = row.slack(K, precision, spec)
    whole, total, done = printed(method, K, V - W @ K, C, spec), torch.zeros_like(W), []
    for step in (order[:1], order[1:5], order[5:]):
        new, past = list(step), list(done)
        R = torch.cat([V[:, new] - (W + total) @ K[:, new], torch.zeros(9, len(past)).double()], dim=1)
        slacks = torch.tensor([slack] * len(new) + [slack / weight] * len(past)).double()
        total += solvers.solve(K[:, new + past], R, precision, slacks).delta
        done += new
    return total, whole


@pytest.mark.parametrize("method", ["memit", "alphaedit", "emmet"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5, 6), (6, 5, 4, 3, 2, 1, 0), (3, 0, 6, 2, 5, 1, 4)])
def test_hold_is_one_batch_in_any_order(method, order):
    agree(*steps_and_one_batch(method, order), 1e-8)


def test_with_slack_hold_is_one_batch_for_equal_weights_alone():
    gaps = []
    for weight in (0.5, 1.0, 2.0):
        total, whole = steps_and_one_batch("memit", range(7), weight=weight)
        gaps.append(((total - whole).norm() / whole.norm()).item())
    assert gaps[1] < 1e-10 < 1e-4 < min(gaps[0], gaps[2])


def test_emmet_comes_to_one_batch_as_the_weight_of_what_is_held_grows():
    generator = torch.Generator().manual_seed(2)
    K, R = torch.randn(12, 4, generator=generator).double(), torch.randn(5, 4, generator=generator).double()
    precision = METHODS["emmet"].precision(
        torch.eye(12), SolverSpec(mom2_update_weight=1.0, update_norm_lambda=0.0, emmet_lambda=0.0)
    )
    whole, first = solvers.solve(K, R, precision, 0.0).delta, solvers.solve(K[:, :2], R[:, :2], precision, 0.0).delta
    wanted = torch.cat([R[:, 2:] - first @ K[:, 2:], torch.zeros(5, 2).double()], dim=1)
    gaps = []
    for slack in (1.0, 1e-2, 1e-4, 0.0):  # D⁻¹ of what is held: one over its weight in A; equality is the limit
        slacks = torch.tensor([0.0, 0.0, slack, slack]).double()
        second = solvers.solve(torch.cat([K[:, 2:], K[:, :2]], 1), wanted, precision, slacks).delta
        gaps.append(((first + second - whole).norm() / whole.norm()).item())
    assert all(later < 0.1 * earlier for earlier, later in itertools.pairwise(gaps)) and gaps[-1] < 1e-10


@pytest.mark.parametrize("method", ["memit", "alphaedit", "emmet"])
def test_a_session_that_holds_ends_where_one_batch_does(tiny, facts, start, method):
    spec = {"targets_from": "base", "nullspace_threshold": 0.5, "n_contexts": 0}
    base = start(tiny(), method, **spec)
    base.edit(facts)
    targets = base.results[0].targets

    def ends(*steps, **changes):
        lm = tiny()
        lm.model.double()  # but for v*, which float32 finds
        before = lm.weight(2).clone()
        session = start(lm, method, **spec, **changes)
        session.domain.targets = lambda items: targets._replace(values=targets.values[:, [*map(facts.index, items)]])
        for step in steps:
            session.edit(step)
        return lm.weight(2) - before

    batch = ends(facts)
    for order in (facts, facts[::-1]):
        agree(ends(order[:1], order[1:3], order[3:], replay="hold"), batch)
    plain = ends(facts[:1], facts[1:3], facts[3:], replay="none")
    assert (plain - batch).norm() > 1e-3 * batch.norm()


def test_memit_with_everything_held_is_memit_of_one_batch(tiny, facts, start):
    bare = {"n_contexts": 0}
    targets = start(tiny(), "memit", **bare).edit(facts).targets

    def ends(method, *steps):
        lm = tiny()
        lm.model.double()  # but for v*, which float32 finds
        before = lm.weight(2).clone()
        session = start(lm, method, **bare)
        assert (session.spec.replay, session.spec.targets_from) == {
            "memit": ("none", "current"),
            "memit_rls": ("hold", "base"),
        }[method]
        session.domain.targets = lambda items: targets._replace(values=targets.values[:, [*map(facts.index, items)]])
        for step in steps:
            session.edit(step)
        return lm.weight(2) - before

    batch = ends("memit", facts)
    for order in (facts, facts[::-1]):
        agree(ends("memit_rls", order[:1], order[1:3], order[3:]), batch)
        agree(ends("memit_rls", *([fact] for fact in order)), batch)
    assert (ends("memit", facts[:1], facts[1:]) - batch).norm() > 1e-3 * batch.norm()


def test_recursive_least_squares_is_the_printed_recursion():
    generator = torch.Generator().manual_seed(5)
    K, V, W, samples = (torch.randn(*s, generator=generator).double() for s in ((20, 7), (9, 7), (9, 20), (20, 60)))
    C, spec = samples @ samples.T / 60, SolverSpec(mom2_update_weight=3.0)
    inverse, ours, theirs, done = torch.linalg.inv(3.0 * C), W.clone(), W.T.clone(), 0
    precision = METHODS["memit_rls"].precision(C, spec)
    for size in (1, 4, 2):
        new = slice(done, done + size)
        R = torch.cat([V[:, new] - ours @ K[:, new], torch.zeros(9, done).double()], dim=1)
        ours = ours + solvers.solve(torch.cat([K[:, new], K[:, :done]], 1), R, precision, 1.0).delta
        # arXiv 2601.15686: F = C K, C ← C − F (I + KᵀF)⁻¹ Fᵀ, W ← W + C K (V − KᵀW)
        F = inverse @ K[:, new]
        inverse = inverse - F @ torch.linalg.inv(torch.eye(size).double() + K[:, new].T @ F) @ F.T
        theirs = theirs + inverse @ K[:, new] @ (V[:, new].T - K[:, new].T @ theirs)
        done += size
        agree(ours, theirs.T, 1e-10)


@pytest.mark.parametrize("replay", ["buffer", "hold", "history"])
def test_equality_refuses_a_weight_that_cannot_act(tiny, full_spec, replay):
    lm = tiny()
    with pytest.raises(ValueError, match="replay_weight = 2: must be 1 for emmet"):
        full_spec("emmet", replay=replay, replay_weight=2.0).resolve(lm)
    assert full_spec("memit", replay=replay, replay_weight=2.0).resolve(lm).replay_weight == 2.0
    assert full_spec("emmet", replay_weight=2.0).resolve(lm).replay == "none"


@pytest.mark.parametrize("method", ["emmet", "memit"])
def test_new_and_replayed_edits_get_one_slack_single_ones_too(tiny, facts, start, method):
    session = start(tiny(), method, replay="history", emmet_lambda=1e-3)
    session.edit(facts[:2])
    solved, write = [], session._weights.write
    session._weights.write = lambda layer, update, problem, largest: (
        solved.append(problem) or write(layer, update, problem, largest)
    )
    session.edit(facts[2:3])
    (problem,) = solved
    expected = METHODS[method].slack(problem.K, problem.precision, session.spec)
    assert problem.slack.tolist() == [expected] * 3 and expected > 0


def test_keys_that_are_nearly_dependent_are_warned_of_once(tiny, facts, start, monkeypatch):
    session = start(tiny(), "emmet", layers=[1, 2], emmet_lambda=0.0, mom2_update_weight=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.edit(facts)
    session.undo()
    keys = session.domain.keys

    def alike(items, layer):
        K = keys(items, layer)
        K[:, 1] = K[:, 0] + 1e-5 * K[:, 1]
        return K

    monkeypatch.setattr(session.domain, "keys", alike)
    monkeypatch.setattr("editkit.editing.editor.LARGEST_CONDITION", 1e8)
    with pytest.warns(UserWarning, match="condition number") as caught:
        table = session.edit(facts).diagnostics()
    assert (table.condition > 1e8).all()
    told = [str(one.message) for one in caught if "condition number" in str(one.message)]
    worst = table.loc[table.condition.idxmax()]
    expected = f"layer {worst.layer:g}: the solved system's condition number is {worst.condition:.2g}, above 1e+08"
    assert len(told) == 1 and told[0].startswith(expected)


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
