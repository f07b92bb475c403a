"""Tables of the chapter on low rank, from small frames by hand."""

import math

import pandas as pd
import pytest

from editkit.studies import lora_tables
from editkit.studies.tables import SCORES
from tests.unit.studies.conftest import named, prompts_of

LORA = [  # run_id, edit_mode, lora_fit, lora_rank, batch_size, replay
    ("raw", "raw", "keys", 32, 4, "none"),
    ("exact", "lora", "exact", 4, 4, "none"),
    ("svd2", "lora", "svd", 2, 4, "none"),
    ("keys2", "lora", "keys", 2, 4, "none"),
    ("keys1", "lora", "keys", 1, 4, "none"),
    ("small", "lora", "keys", 1, 2, "none"),
    ("held", "lora", "keys", 1, 2, "hold"),
]


@pytest.fixture
def low():
    """Scores, steps and prompts of runs at several ranks, on two seeds."""
    columns = ["run_id", "edit_mode", "lora_fit", "lora_rank", "batch_size", "replay"]
    runs = pd.DataFrame(LORA, columns=columns).assign(method="emmet", model="m", dataset="d", n_facts=4)
    values = {3: {"pre": 0.1, "immediate": 0.8, "final": 0.6}, 5: {"pre": 0.1, "immediate": 0.0, "final": 0.2}}
    rows = [(moment, value, seed) for seed, by_moment in values.items() for moment, value in by_moment.items()]
    moments = pd.DataFrame(rows, columns=["moment", "ES", "seed"])
    moments = moments.assign(PS=0.5, NS=0.5, S=0.5, parameters=2**18, peak_memory_mb=10.0 * moments.seed)
    steps = pd.DataFrame({"seed": [3, 3, 5], "residual": [0.1, 0.2, 0.3], "fit_residual": [0.4, 0.0, 0.0]})
    steps = steps.assign(disturbance=0.01, seconds_keys=1.0, seconds_solve=2.0)
    prompts = pd.concat(
        [named(prompts_of(n), (run[0], "", "", "")) for run, n in zip(LORA, (8, 8, 2, 6, 1, 1, 1), strict=True)]
    )
    before = named(prompts_of(1, "pre"), ("raw", "", "", ""))
    return runs.merge(moments, how="cross"), runs[["run_id"]].merge(steps, how="cross"), pd.concat([prompts, before])


def test_the_ablation_of_ranks_is_a_row_a_run_and_seed(low):
    scores, steps, _ = low
    table = lora_tables.lora_ablation(scores, steps)
    assert list(zip(table.run_id, table.seed, strict=True))[:4] == [("raw", 3), ("raw", 5), ("exact", 3), ("exact", 5)]
    assert table.lora_rank.tolist()[::2] == ["full", "4", "2", "2", "1", "1", "1"]
    assert table.lora_fit.tolist()[:6:2] == ["raw", "exact", "svd"]
    row = table.iloc[0]
    assert (row.ES, row.immediate_ES, row.immediate_S, row.retention) == (0.6, 0.8, 0.5, pytest.approx(0.75))
    assert math.isnan(table.retention[1]), "nothing held at first"
    assert (row.residual, row.fit_residual, row.seconds, row.size_mb) == (0.2, 0.4, 6.0, 1.0)
    assert (table.seconds[1], table.peak_memory_mb[1]) == (3.0, 50.0)
    shown = lora_tables.lora_configurations(table)
    assert len(shown) == 7 and shown.ES.iloc[0] == pytest.approx(0.4) and set(shown.peak_memory_mb) == {50.0}
    lost = lora_tables.lora_lost(table)
    assert lost[["fit", "rank"]].drop_duplicates().values.tolist() == [
        ["exact", 4],
        ["svd", 2],
        ["keys", 2],
        ["keys", 1],
    ]


def test_curves_hold_every_fit_and_no_edit_and_gaps_pair_keys_with_svd(low):
    scores, _, prompts = low
    largest = lora_tables.largest_steps(scores, prompts)
    assert set(largest.run_id) == {"raw", "exact", "svd2", "keys2", "keys1"} and len(largest) == 6 * 24
    curves = lora_tables.lora_curves(largest, prompts_of(5).assign(rank=2)).set_index(["fit", "rank", "score"])
    order = [("raw", "nan"), ("exact", "4.0"), ("svd", "2.0"), ("keys", "2.0"), ("keys", "1.0")]
    order += [("finetuning", "2.0"), ("pre", "nan")]
    assert list(dict.fromkeys((fit, str(rank)) for fit, rank, _ in curves.index)) == order
    assert curves.value.xs("ES", level="score").tolist() == [1.0, 1.0, 0.25, 0.75, 0.125, 0.625, 0.125]
    assert len(lora_tables.lora_curves(largest, pd.DataFrame(columns=["rank"]))) == 6 * 4


def test_what_shares_a_rank_is_compared_in_pairs(low):
    scores, _, prompts = low
    largest = lora_tables.largest_steps(scores, prompts)
    gaps = lora_tables.lora_gaps(largest, pd.concat([prompts_of(5).assign(rank=2), prompts_of(4).assign(rank=4)]))
    rows = gaps[gaps.score == "ES"]
    pairs = list(zip(rows["rank"], rows.fit, rows.reference, rows.value, strict=True))
    assert pairs == [(2, "keys", "svd", 0.5), (2, "finetuning", "keys", -0.125), (4, "finetuning", "exact", -0.5)]
    assert gaps.score.tolist() == [*SCORES] * 3 and (rows.p_holm >= rows.p).all() and rows.p_holm.max() <= 1
    none = lora_tables.lora_gaps(largest[largest.fit != "svd"], pd.DataFrame(columns=["rank"]))
    assert none.empty and set(none) == set(gaps)


def test_shares_of_a_spectrum_add_up():
    share = lora_tables.spectrum_share([2.0, 1.0])
    assert share["rank"].tolist() == [1, 2] and share.share.tolist() == pytest.approx([0.8, 1.0])
    assert share.singular_value.tolist() == [2.0, 1.0]


def test_finetuning_is_averaged_by_rank_and_may_be_missing():
    row = dict.fromkeys(["lr", *SCORES, "steps", "parameters", "seconds"], 1.0)
    row |= {"rank": 2, "n_facts": 8}
    seeds = [{"seed": 1, "ES": 0.5, "peak_memory_mb": 7.0}, {"seed": 2, "ES": 1.0, "peak_memory_mb": 9.0}]
    tuned = pd.DataFrame([row | seed for seed in seeds])
    shown = lora_tables.finetuning_by_rank(tuned)
    assert shown.ES[2] == 0.75 and shown.S[2] == 0.9 and shown.peak_memory_mb[2] == 9.0  # 3 / (4/3 + 1 + 1)
    assert (shown.n[2], shown.seeds[2]) == (16, 2)
    assert lora_tables.finetuning_by_rank(tuned[:0]).empty


def test_removal_compares_the_others_with_a_model_that_never_held_the_batch():
    def state(name: str, switched: int, right: dict[int, int]) -> pd.DataFrame:
        parts = [prompts_of(n).assign(batch=b, fact=lambda frame, b=b: f"{b} " + frame.fact) for b, n in right.items()]
        return pd.concat(parts).assign(state=name, switched=switched)

    full = {1: 8, 2: 8, 3: 8}
    prompts = pd.concat(
        [state("on", 0, full)]
        + [state("off", n, full | {n: 2}) for n in (1, 2, 3)]
        + [state("never made", n, full | {n: 1, n % 3 + 1: 4}) for n in (1, 2, 3)]
    )
    table = lora_tables.removal(prompts)
    assert (
        table.batch.tolist() == [1] * 3 + [2] * 3 + [3] * 3
        and table["it is"].tolist() == ["on", "off", "never made"] * 3
    )
    assert table["its own ES"].tolist() == [1.0, 0.25, 0.125] * 3
    assert table["S of the others"].tolist() == pytest.approx([1.0, 1.0, 0.75] * 3)
    assert table.value[1] == pytest.approx(0.25) and table.value.isna().tolist() == [True, False, True] * 3
    shown = lora_tables.removal_shown(table)
    gap = shown["S of the others, off − never made"]
    assert gap.iloc[0] == "" and gap.iloc[1].startswith("+0.25 [") and shown.index[1] == (1, "off")
    assert shown.n.tolist() == ["", 16, ""] * 3 and table.p_holm[1] == pytest.approx(min(1, 3 * table.p[1]))


def test_stacks_are_the_final_rows_of_each_run_and_seed(low):
    scores, *_ = low
    stacks = lora_tables.lora_stacks(scores.assign(lora_stack="fixed"))
    assert len(stacks) == 14 and set(stacks["stack"]) == {"fixed"} and stacks.ES.tolist()[:2] == [0.6, 0.2]
    assert stacks.index.tolist() == list(range(14)) and stacks.lora_rank.tolist()[:3] == [32, 32, 4]
