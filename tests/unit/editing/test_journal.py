"""The journal alone, on weights that are written to by hand."""

import pytest
import torch

from editkit.editing.journal import Journal, part_of, read_edits, read_state
from editkit.editing.replay import Memory
from editkit.editing.result import EditResult, LayerUpdate
from editkit.editing.weights import RawWeights
from editkit.facts import Fact
from editkit.solvers import Update


@pytest.fixture
def write(tiny, facts):
    """``write(journal, i)``: one step that writes fact i as a random update of layer 2."""

    def step(journal, i):
        generator = torch.Generator().manual_seed(i)
        left, right = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((16, 1), (1, 24)))
        before = journal.weights.read()
        journal.weights.add(2, left, right)
        journal.note(before, Memory(), journal.weights.mark())
        update = LayerUpdate(2, Update(left, right, 0, 0, 1, 1, 0), 1, 0, 1.0, 1.0, 1.0, 0.0)
        journal.results.append(EditResult([facts[i]], "", [update], None, float("nan"), None, None, {}, 0.0))

    return step


def test_steps_are_taken_back_one_by_one_bit_for_bit(tiny, write):
    lm = tiny()
    journal, marks = Journal(RawWeights(lm, [2])), [lm.fingerprint()]
    assert journal.is_empty
    for i in range(3):
        write(journal, i)
        marks.append(lm.fingerprint())
    assert len(set(marks)) == 4 and not journal.is_empty
    nothing = Memory()
    assert journal.undo(1, nothing) is not nothing and lm.fingerprint() == marks[2]
    assert journal.undo(0, nothing) is None and lm.fingerprint() == marks[2]
    with journal.untouched():
        assert lm.fingerprint() == marks[0]
    assert lm.fingerprint() == marks[2]
    assert journal.undo(None, nothing) is nothing and lm.fingerprint() == marks[0] and journal.is_empty


def test_what_is_settled_is_undone_all_together(tiny, write, facts):
    lm = tiny()
    journal, before = Journal(RawWeights(lm, [2])), lm.fingerprint()
    write(journal, 0)
    journal.settle()
    settled = lm.fingerprint()
    write(journal, 1)
    assert journal.edited() == facts[:2] and len(journal.results) == 1
    with pytest.raises(ValueError, match="cannot undo 2"):
        journal.undo(2, Memory())
    journal.undo(1, Memory())
    assert lm.fingerprint() == settled and journal.edited() == facts[:1]
    with pytest.raises(ValueError, match="settled edits are gone"):
        journal.save(None, {})
    journal.undo(None, Memory())
    assert lm.fingerprint() == before and journal.edited() == []


def test_a_saved_journal_is_written_again_and_goes_on(tiny, write, facts, tmp_path):
    lm, other, third = tiny(), tiny(), tiny()
    journal = Journal(RawWeights(lm, [2]))
    write(journal, 0)
    write(journal, 1)
    saved = read_edits(journal.save(tmp_path / "edits.safetensors", {"spec": {"layers": [2]}}), lm.device)
    assert saved.about == {"spec": {"layers": [2]}} and [layer for layer, *_ in saved.updates] == [2, 2]
    again = Journal(RawWeights(other, [2]))
    again.repeat(saved, facts[:2])
    assert other.fingerprint() == lm.fingerprint() and again.edited() == facts[:2]
    state = journal.state_dict({"layers": [2]})
    assert set(part_of(state, "edits.", lm.device)) == {"weight.2"}
    going_on = Journal(RawWeights(third, [2]))
    going_on.load_state_dict(state, read_state(state), Fact)
    assert third.fingerprint() == lm.fingerprint() and going_on.edited() == facts[:2]
    going_on.undo(None, Memory())
    assert third.fingerprint() == tiny().fingerprint()


def test_somebody_elses_change_is_not_lost(tiny, write):
    lm = tiny()
    journal = Journal(RawWeights(lm, [2]))
    write(journal, 0)
    lm.weight(2)[0, 0] += 1
    with pytest.raises(RuntimeError, match="layer 2 was changed outside this session; undo that first"):
        journal.undo(None, Memory())
