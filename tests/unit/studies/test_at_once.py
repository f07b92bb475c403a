"""Ways of arriving: what is told of each, against numbers worked out by hand."""

import math

import pandas as pd
import pytest

from editkit.studies import at_once
from editkit.studies.intervals import paired_difference
from editkit.studies.sequences import Trajectory, stack
from tests.unit.studies.conftest import named, prompts_of

STEPS = pd.DataFrame({"step": [1, 2], "measured": [False, True], "growth": [1.1, 1.5]}).assign(
    perplexity_before_prose=40.0, perplexity_prose=[math.nan, 60.0], kl_prose=[math.nan, 0.5]
)


def way(run_id: str, method: str, size: int, right: int, **spoken) -> Trajectory:
    """A run of eight facts of one seed, of which ``right`` hold at the end and seven right after their own step."""
    run = (run_id, f"{method}, none", method, "none")
    parts = [prompts_of(n, moment) for n, moment in ((2, "pre"), (7, "immediate"), (right, "final"))]
    prompts = pd.concat(parts, ignore_index=True).assign(batch_size=size)
    scores = pd.DataFrame({"moment": ["pre", "immediate", "final"], "EA": [0.25, 0.875, right / 8], "seed": 1})
    scores = scores.assign(batch_size=size, seconds=12.0, peak_memory_mb=500.0, n_facts=8, **spoken)
    steps = STEPS if size < 8 else STEPS[1:].assign(step=1)
    tables = [named(frame, run) for frame in (scores, steps.assign(seed=1), pd.DataFrame(), pd.DataFrame(), prompts)]
    return Trajectory(*tables)


@pytest.fixture
def found() -> Trajectory:
    said = {"ESaid": [0.0, math.nan, 0.5], "GE": [6.0, math.nan, 5.5]}
    return stack([way("a", "memit", 4, 4, **said), way("b", "memit", 8, 7, **said), way("c", "rome", 4, 5, **said)])


def test_every_way_is_scored_after_its_last_step_beside_the_untouched_model(found):
    made = at_once.points(found)
    ends = made.drop_duplicates(["run", "batch_size"]).set_index(["run", "batch_size"])
    assert ends.index.tolist() == [("no edit", 0), ("memit, none", 4), ("memit, none", 8), ("rome, none", 4)]
    assert ends.steps.tolist() == [0, 2, 1, 2]
    assert made[made.score == "S"].value.tolist() == pytest.approx([2 / 8, 4 / 8, 7 / 8, 5 / 8])
    assert made[made.score == "EA"].value.tolist() == pytest.approx([2 / 8, 4 / 8, 7 / 8, 5 / 8])
    assert ends.perplexity.tolist() == [40, 60, 60, 60] and ends.kl.tolist() == [0, 0.5, 0.5, 0.5]
    assert ends.growth.tolist() == [1, 1.5, 1.5, 1.5] and ends.ESaid.tolist() == [0, 0.5, 0.5, 0.5]
    assert ends.immediate_EA[1:].tolist() == [0.875] * 3 and ends.seconds[1:].tolist() == [12.0] * 3
    assert (made.low <= made.value).all() and (made.value <= made.high).all() and set(made.n) == {8}


def test_steps_are_compared_with_one_batch_of_their_own_method(found):
    gaps = at_once.differences(found)
    assert set(gaps.method) == {"memit"} and gaps.score.tolist() == ["ES", "PS", "NS", "S", "EA"]
    parts = (found.prompts[found.prompts.run_id == name] for name in ("a", "b"))
    want = paired_difference(*parts).loc["S"]
    row = gaps[gaps.score == "S"].iloc[0]
    assert (row.value, row.low, row.high, row.p_holm) == (want.value, want.low, want.high, want.p)
    assert want.value == pytest.approx(4 / 8 - 7 / 8) and (row.batch_size, row.steps) == (4, 2)
    alone = at_once.differences(way("c", "rome", 4, 5))
    assert alone.empty and "p_holm" in alone


def test_what_is_told_is_what_the_tables_say(found):
    made, gaps = at_once.points(found), at_once.differences(found)
    table = at_once.told(made, gaps)
    assert [(run, edits.replace("\N{NO-BREAK SPACE}", " ")) for run, edits in table.index] == [
        ("no edit", "–"),
        ("memit, none", "2 × 4"),
        ("memit, none", "1 × 8"),
        ("rome, none", "2 × 4"),
    ]
    assert not {"ESaid", "GE"} & set(table)
    assert table["difference of S"].str.startswith("-0.38").tolist() == [False, True, False, False]
    cost = at_once.costs(made)
    assert cost.index.tolist() == table.index.tolist() and cost.perplexity.tolist() == [40, 60, 60, 60]
    assert cost.ESaid.tolist() == [0, 0.5, 0.5, 0.5] and cost.GE.tolist() == [6, 5.5, 5.5, 5.5]
    assert cost["‖W‖ ÷ before"].tolist() == [1, 1.5, 1.5, 1.5] and cost.MB[1:].tolist() == [500] * 3
    first, s, ea, prose = at_once.findings(made, gaps)
    assert (
        "0.88 of an editor's edits" in first
        and "first choice for 0.50 to 0.62, and free speech names it for 0.50" in first
    )
    verdict = "lower in 1 of 1, resolved" if gaps.p_holm[3] < 0.05 else "no difference is resolved"
    assert f"S: {verdict}" in s and "memit, none, 2 × 4 -0.38" in s and "EA:" in ea
    assert "40 before any edit: memit, none, 2 × 4 60; memit, none, 1 × 8 60" in prose


def test_controls_are_told_beside_editors_by_what_is_left(found):
    with_control = stack([found, way("d", "grace", 4, 8)])
    made, gaps = at_once.points(with_control), at_once.differences(with_control)
    told = next(one for one in at_once.findings(made, gaps) if "controls beside editors" in one)
    assert [part.split(" [")[0] for part in told.split(": ")[1].split("; ")] == [
        "grace, none 1.00",
        "rome, none 0.62",
        "memit, none 0.50",
    ]
    assert not any("controls" in one for one in at_once.findings(at_once.points(found), gaps))


def test_seeds_that_one_of_two_lacks_are_left_out_of_their_difference(found):
    again = way("a", "memit", 4, 6)
    more = stack([found, Trajectory(*(frame.assign(seed=2) for frame in again))])
    pd.testing.assert_frame_equal(at_once.differences(more), at_once.differences(found))
    made = at_once.points(more)
    assert made[(made.run == "memit, none") & (made.batch_size == 4)].seeds.unique().tolist() == [2]
    apart = stack([way("b", "memit", 8, 7), Trajectory(*(frame.assign(seed=2) for frame in again))])
    assert at_once.differences(apart).empty


def test_without_free_speech_nothing_is_said_of_it():
    one = stack([way("a", "memit", 4, 4), way("b", "memit", 8, 7)])
    made, gaps = at_once.points(one), at_once.differences(one)
    assert made.ESaid.isna().all() and not {"ESaid", "GE"} & {*at_once.told(made, gaps), *at_once.costs(made)}
    assert not any("speech" in sentence or "nan" in sentence for sentence in at_once.findings(made, gaps))
