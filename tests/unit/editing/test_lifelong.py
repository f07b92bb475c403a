"""What a session sums up over all its edits, and a null space that is taken anew with the keys of edits in it."""

import pytest
import torch

from editkit import EditSession, Fact
from editkit.editing.lifelong import Lifelong
from editkit.editing.replay import EditRecord
from editkit.language.keys import edit_keys, hidden_states
from editkit.language.moments import second_moments
from editkit.reference.solvers import betaedit_public
from editkit.solvers import null_space
from tests.conftest import TEXTS, agree

BETA = dict(layers=[2], n_contexts=0, mom2_update_weight=2.0, l2=0.5, nullspace_threshold=0.5)


@pytest.fixture
def start(store, full_spec):
    def build(lm, **changes):
        spec = full_spec("betaedit", **(BETA | changes))
        return EditSession(lm, spec, texts=TEXTS, store=store, progress=False)

    return build


def record(number: int) -> EditRecord:
    generator = torch.Generator().manual_seed(number)
    key, value = torch.randn(3, generator=generator).double(), torch.randn(2, generator=generator).double()
    return EditRecord(Fact(f"test:{number}", "r", "a", "{} is", "new", "true"), value, {1: key}, {1: value})


def test_keys_are_noted_once_there_are_enough_and_stay_until_there_are_as_many_again():
    memory, keys, noted = Lifelong(every=3), [], []
    for number in range(8):
        memory.add([record(number)])
        keys.append(record(number).keys[1])
        noted.append(memory.noted)
        if memory.noted:
            K = torch.stack(keys[: memory.noted], 1)
            agree(memory.seen(1) @ memory.seen(1).T, K @ K.T / memory.noted)
        else:
            assert memory.seen(1) is None
    assert noted == [0, 0, 3, 3, 3, 6, 6, 6]
    again = Lifelong.from_state_dict(memory.state_dict(), Fact)
    assert (again.every, again.noted, again.keeps, len(again)) == (3, 6, True, 8)
    assert torch.equal(again.seen(1), memory.seen(1))
    earlier = memory.copy()
    memory.add([record(8)])
    assert (memory.noted, earlier.noted, len(earlier)) == (9, 6, 8), "a copy changes on its own"


def test_what_does_not_take_part_is_not_kept():
    memory = Lifelong(keeps=False, every=1)
    memory.add([record(0)])
    assert len(memory) == 0 and memory.seen(1) is None and not memory.holds(record(0).item)
    assert not Lifelong.from_state_dict(memory.state_dict(), Fact).keeps


@pytest.mark.parametrize("every", [0, 1, 2])
def test_betaedit_is_its_public_code_step_after_step(tiny, facts, start, every):
    lm = tiny()
    session = start(lm, nullspace_every=every)
    C = second_moments(lm, [2], TEXTS, 300, progress=False)[2].double()
    eye, past, kept, last, moved = torch.eye(24).double(), torch.zeros(24, 24).double(), C, 0, []
    for done, fact in enumerate(facts):
        if every and done - last >= every:
            kept, last = (past / done + 2.0 * C) / 3.0, done
        P = null_space(kept, 0.5).project(eye)
        h, K = hidden_states(lm, [fact], 2), edit_keys(lm, [fact], 2, []).double()
        result = session.edit([fact])
        R = (result.targets.values - h).double()
        agree(result.deltas[2], betaedit_public(K, R, P, past, C, (2.0, 0.5)), 1e-6)
        past, moved = past + K @ K.T, [*moved, P]
    assert ((moved[-1] - moved[0]).norm() > 1e-3) == bool(every), "the null space moves where it is taken anew"


def test_the_null_space_of_then_comes_back_with_undo_and_with_a_state(tiny, facts, start):
    lm = tiny()
    session, marks = start(lm, nullspace_every=2), [lm.fingerprint()]
    for fact in facts:
        session.edit([fact])
        marks.append(lm.fingerprint())
    session.undo(3)
    assert lm.fingerprint() == marks[1] and session.memory.noted == 0
    for fact, mark in zip(facts[1:3], marks[2:4], strict=True):
        session.edit([fact])
        assert lm.fingerprint() == mark
    resumed = start(other := tiny(), nullspace_every=2)
    resumed.load_state_dict(session.state_dict())
    resumed.edit([facts[3]])
    assert other.fingerprint() == marks[4]
