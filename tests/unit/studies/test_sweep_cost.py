"""What a sweep will take, from what was measured: by hand."""

from dataclasses import replace

import pytest

from editkit.studies.sweep import SweepCell, SweepParams
from editkit.studies.sweep_cost import PROCESS_MB, Left, Pace, Probe, memory_mb, shown

PARAMS = SweepParams(n_facts=8, sequence_facts=8, sequence_batch=2, sequence_every=2)
SINGLES = SweepCell("sequences", "memit", 1, 1, (("replay", "none"),))


def cell(method="memit", size=4, seed=1, **changes) -> SweepCell:
    return SweepCell("batches", method, size, seed, tuple(changes.items()))


def test_a_cell_takes_as_long_as_those_that_are_most_alike():
    pace = Pace(PARAMS)
    pace.learn(cell(seed=1), 10.0)
    pace.learn(cell(seed=2), 14.0)
    pace.learn(cell("rome"), 30.0)
    assert pace.expect(cell(seed=3)) == 12.0, "the same method"
    assert pace.expect(cell("emmet")) == 18.0, "any method at that batch size"
    assert pace.expect(cell(size=8)) is None
    assert pace.left([cell(seed=3), cell("emmet")]) == (30.0, 0, 18.0)
    assert pace.left([cell(seed=3), cell(size=8)]) == (12.0, 1, 12.0)


def test_of_what_was_never_measured_its_scoring_is_counted():
    pace = Pace(PARAMS, Probe(score=0.5, target=2.0))
    assert pace.left([cell(size=8)]) == (4.0, 1, 4.0)
    # Singles of 8 facts, all of them scored after every fourth step, else one: 1 + 1 + 1 + 4 + 1 + 1 + 1 + 8
    assert pace.left([SINGLES]) == (9.0, 1, 9.0)
    # Steps of 2, all scored after every second: 2 + 4 + 2 + 8
    pairs = SweepCell("sequences", "memit", 2, 1, (("replay", "hold"),))
    assert pace.left([pairs]) == (8.0, 1, 8.0)
    evaluated = SweepCell("evaluation", "memit", 1, 1)
    writing = PARAMS.model_copy(update={"fluency_facts": 2, "evaluation_texts": 5, "evaluation_facts": 4})
    told = Pace(writing, Probe(score=0.5, target=2.0, text=3.0))
    assert [told.left([one]).seconds for one in (cell(size=8), SINGLES, evaluated)] == [4 + 6, 9 + 6, 2 + 12]
    pace.learn(SINGLES, 100.0)
    assert pace.left([SINGLES]) == (100.0, 0, 100.0)


def test_targets_that_a_cell_finds_step_by_step_are_part_of_it():
    probe, other = Probe(score=0.5, target=2.0), replace(SINGLES, method="emmet")
    pace = Pace(PARAMS, probe, {SINGLES: 8})
    assert pace.left([SINGLES, other]) == (9.0 + 8 * 2.0 + 9.0, 2, 25.0)
    pace.learn(SINGLES, 100.0)
    assert pace.left([SINGLES]).seconds == 100.0, "what was measured has them"


def test_the_longest_cell_bounds_what_many_workers_take():
    left = Left(100.0, 0, 40.0)
    assert [left.on(workers) for workers in (0, 1, 2, 4, 100)] == [100.0, 100.0, 50.0, 40.0, 40.0]


def test_writing_is_timed_where_tables_have_ge(setting, writers):
    here = setting({1: (writers, [])})
    free = Probe.take(replace(here, fluency_facts=3, said_facts=2))
    assert free.text > 0 and free.said > 0 and (Probe.take(here).text, Probe.take(here).said) == (0, 0)


def test_a_worker_holds_the_weights_even_where_nothing_is_edited(setting):
    here = setting()
    weights = sum(tensor.nbytes for tensor in here.lm.model.state_dict().values()) / 2**20
    assert memory_mb(here, []) == pytest.approx(weights + PROCESS_MB)
    assert memory_mb(here, [1, 2, 2]) - memory_mb(here, []) == 2 * (memory_mb(here, [1]) - memory_mb(here, [])) > 0


@pytest.mark.parametrize(("seconds", "text"), [(4.4, "4 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_told_in_words(seconds, text):
    assert shown(seconds) == text
