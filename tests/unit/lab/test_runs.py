"""A run's tables to look through, held against pandas' own filters."""

import pandas as pd
import pytest

from editkit.lab.runs import ALL, NONE, RunTables
from editkit.studies.results import Results


@pytest.fixture
def run(run_dir) -> RunTables:
    return RunTables(run_dir)


def test_tables_of_scores_are_found_the_summary_first(run):
    assert list(run.tables) == ["final_summary", "baselines"] and run.name == "final_summary"
    assert run.rungs == ["success", "said"] and run.rung == "success"
    assert run.filters == {
        "method": ["emmet", "memit", "pre"],
        "batch_size": ["0", "8", "32"],
        "lora_rank": [NONE, "4"],
    }


def test_rows_are_those_that_pandas_lets_through(run, summary):
    assert len(run.rows) == len(summary)
    run.choose(method="memit")
    pd.testing.assert_frame_equal(run.rows, summary[summary.method == "memit"])
    run.choose(batch_size="32")
    pd.testing.assert_frame_equal(run.rows, summary[(summary.method == "memit") & (summary.batch_size == 32)])
    run.choose(method=ALL, batch_size=ALL, lora_rank=NONE)
    pd.testing.assert_frame_equal(run.rows, summary[summary.lora_rank.isna()])
    run.choose(lora_rank="4")
    assert list(run.names) == ["EMMET, r=4"]
    run.choose(lora_rank=ALL, rung="said")
    pd.testing.assert_frame_equal(run.rows, summary[summary.ESaid.notna()])


def test_another_table_has_its_own_filters_and_rungs(run):
    seen = []
    run.changed = lambda: seen.append(run.name)
    run.choose(method="memit", rung="said")
    run.choose("baselines")
    assert run.kept == {} and run.rung == "success" and seen == ["final_summary", "baselines"]
    assert run.filters == {"method": ["emmet", "memit"], "seed": ["1", "2"]}
    assert list(run.names) == ["EMMET, seed 1", "MEMIT, seed 2"]
    run.choose(seed="2")
    assert list(run.names) == ["MEMIT"] and run.rows.seed.tolist() == [2]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"name": "predictions"}, "table = 'predictions': must be one of final_summary, baselines"),
        ({"rung": "judged"}, "rung = 'judged': must be one of success, said"),
        ({"method": "rome"}, "method = 'rome': must be one of all, emmet, memit, pre"),
        ({"colour": "red"}, "filter = 'colour': must be one of method, batch_size, lora_rank"),
    ],
)
def test_what_is_not_there_is_told(run, choice, reason):
    before = run.name, run.rung, run.kept
    with pytest.raises(ValueError, match="must be one of") as told:
        run.choose(**choice)
    assert str(told.value) == reason and (run.name, run.rung, run.kept) == before


def test_a_folder_without_scores_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no table of scores"):
        RunTables(tmp_path)
    Results(tmp_path).save("other", pd.DataFrame({"method": ["memit"], "seconds": [1.0]}))
    with pytest.raises(ValueError, match="run a chapter into it first"):
        RunTables(tmp_path)
