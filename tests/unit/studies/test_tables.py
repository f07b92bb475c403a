"""Tables of the chapters, from small frames by hand."""

import math

import pandas as pd
import pytest

from editkit.studies import tables
from editkit.studies.intervals import interval, paired_difference

RETENTION = pd.DataFrame(
    [(1, 1, 1.0), (1, 2, 0.8), (1, 3, 0.4), (2, 2, 0.9), (2, 3, 0.6), (3, 3, 1.0)],
    columns=["edited_at", "measured_at", "ES"],
)
RUNS = [("a", "EMMET, none", "emmet", "none"), ("b", "EMMET, hold", "emmet", "hold"), ("c", "X, none", "x", "none")]
KINDS = ("rewrite", "paraphrase", "neighbourhood")


def named(frame: pd.DataFrame, run: tuple[str, ...]) -> pd.DataFrame:
    return frame.assign(**dict(zip(("run_id", "run", "method", "replay"), run, strict=True)))


def prompts_of(right: int, moment: str = "final") -> pd.DataFrame:
    """Eight facts of which the first ``right`` are right in every way."""
    rows = [
        {"seed": 1, "fact": f"f{i}", "kind": kind, "moment": moment, "success": i < right, "accuracy": i < right}
        for i in range(8)
        for kind in KINDS
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def whole():
    """Scores, steps, retention and prompts of three runs that hold 4, 6 and 8 of 8 facts after two steps."""
    frames = {"scores": [], "steps": [], "retention": [], "prompts": []}
    for run, right in zip(RUNS, (4, 6, 8), strict=True):
        share = right / 8
        rows = [
            {"moment": moment, "seed": seed, "batch_size": 4} | dict.fromkeys(tables.SCORES, value)
            for seed in (1, 2)
            for moment, value in (("pre", 0.0), ("immediate", 1.0), ("final", share + (seed - 1.5) / 100))
        ]
        frames["scores"].append(named(pd.DataFrame(rows), run))
        steps = pd.DataFrame({"seed": [1, 1], "step": [1, 2], "measured": [False, True], "replayed": [0, 4]})
        steps = steps.assign(perplexity=[math.nan, 300.0 - 20 * right], perplexity_before=20.0, kl=[math.nan, 0.5])
        steps = steps.assign(growth=[1.1, 1.2], old_residual=[math.nan, 0.25], memory_mb=[1.0, 2.0])
        steps = steps.assign(condition_before=1e6, condition=1e3, seconds_keys=1.0, seconds_solve=0.5)
        frames["steps"].append(named(steps, run))
        kept = pd.DataFrame({"edited_at": [1, 1, 2], "measured_at": [1, 2, 2], "ES": [1.0, share, 1.0]})
        frames["retention"].append(named(kept, run))
        prompts = pd.concat([prompts_of(0, "pre"), prompts_of(8, "immediate"), prompts_of(right)])
        frames["prompts"].append(named(prompts, run))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}


def test_retention_matrix_curve_and_half_life_by_hand():
    matrix = tables.retention_matrix(RETENTION)
    assert matrix.loc[1, 3] == 0.4 and math.isnan(matrix.loc[3, 1])
    sparse = RETENTION[(RETENTION.edited_at != 1) | (RETENTION.measured_at != 2)]
    sparse = tables.retention_matrix(sparse)
    assert list(sparse.columns) == [1, 3] and list(sparse.index) == [1, 2, 3]
    curve = tables.forgetting_curve(RETENTION)
    assert curve.tolist() == pytest.approx([2.9 / 3, 0.7, 0.4])
    assert tables.half_life(curve, 0.0) == 2 and math.isnan(tables.half_life(curve, -2.0))


def test_the_step_of_collapse_is_the_first_measured_one_beyond_ten_times():
    steps = pd.DataFrame(
        {"step": [1, 2, 3, 4], "measured": [True, False, True, True], "perplexity": [20.0, math.nan, 150.0, math.nan]}
    )
    assert tables.collapse_step(steps.assign(perplexity_before=20.0)) == 4  # not a number: gone
    assert tables.collapse_step(steps.assign(perplexity_before=10.0)) == 3
    assert math.isnan(tables.collapse_step(steps[:1].assign(perplexity_before=20.0)))


def test_final_scores_are_a_row_a_run_and_shown_by_label(whole):
    final = tables.final_scores(whole["scores"], whole["prompts"])
    assert final.run_id.tolist() == ["a", "b", "c"] and final.method.tolist() == ["emmet", "emmet", "x"]
    assert final["immediate S"].tolist() == [1.0] * 3
    found = interval(prompts_of(6)).loc["PS"]
    assert final.PS[1] == f"0.750 [{found.low:.2f}, {found.high:.2f}]" and final.S[2] == "1.000 [1.00, 1.00]"
    shown = tables.shown(final, "method", "replay")
    assert list(shown.index) == [("EMMET", "none"), ("EMMET", "hold"), ("x", "none")]
    assert list(shown.columns) == ["immediate S", "ES", "PS", "NS", "S"]


def test_runs_are_compared_with_the_first_of_their_method(whole):
    gaps = tables.differences(whole["prompts"])
    assert set(gaps.run_id) == {"b"} and gaps.score.tolist() == ["ES", "PS", "NS", "S"]
    expected = paired_difference(prompts_of(6), prompts_of(4))
    assert gaps.set_index("score")[["value", "low", "high"]].equals(expected.rename_axis("score"))
    table = tables.ablation(whole["scores"], gaps)
    assert table.run_id.tolist() == ["a", "a", "b", "b", "c", "c"] and set(table.moment) == {"final"}
    assert table["S value"][2:4].tolist() == [expected.value["S"]] * 2 and table["S value"].isna().sum() == 4
    assert {"ES low", "PS high", "NS value"} <= set(table)


def test_two_runs_of_one_label_stay_apart(whole):
    for name, frame in whole.items():
        whole[name] = frame.assign(run="EMMET, none", method="emmet", replay="none")
    gaps = tables.differences(whole["prompts"])
    assert gaps.run_id.unique().tolist() == ["b", "c"]
    assert tables.ablation(whole["scores"], gaps)["S value"].notna().tolist() == [False] * 2 + [True] * 4
    assert len(tables.cost(whole["scores"], whole["steps"])) == 3


def test_wear_cost_and_sizes_by_hand(whole):
    wear = tables.wear(whole["scores"], whole["steps"], whole["retention"]).set_index("run_id")
    assert wear["final ES"].tolist() == pytest.approx([0.5, 0.75, 1.0])
    assert wear["half-life"]["a"] == 1 and wear["half-life"][1:].isna().all()
    assert wear.after.tolist() == [220.0, 180.0, 140.0] and wear.growth.tolist() == [1.2] * 3
    assert wear["perplexity before"].tolist() == [20.0] * 3 and wear.KL.tolist() == [0.5] * 3
    assert wear.collapse["a"] == 2 and wear.collapse[1:].isna().all()
    cost = tables.cost(whole["scores"], whole["steps"]).set_index("run")
    assert cost["final S"]["EMMET, hold"] == pytest.approx(0.75) and cost.seconds.tolist() == [3.0] * 3
    assert cost.loc["EMMET, none", ["edits used", "left undone", "MB"]].tolist() == [4.0, 0.25, 2.0]
    assert cost["condition before, after"].tolist() == ["1.0e+06, 1.0e+03"] * 3
    sizes = tables.sizes(whole["scores"])
    assert sizes["edits a step"].tolist() == [4] * 3 and sizes.replay.tolist() == ["none", "hold", "none"]
    assert sizes["final PS"].tolist() == pytest.approx([0.5, 0.75, 1.0]) and set(sizes["immediate S"]) == {1.0}


def test_forgetting_curves_are_a_column_a_run(whole):
    curves = tables.forgetting_curves(whole["retention"])
    assert list(curves) == ["EMMET, none", "EMMET, hold", "X, none"] and curves["EMMET, none"].tolist() == [1.0, 0.5]


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
    table = tables.lora_ablation(scores, steps)
    assert list(zip(table.run_id, table.seed, strict=True))[:4] == [("raw", 3), ("raw", 5), ("exact", 3), ("exact", 5)]
    assert table.lora_rank.tolist()[::2] == ["full", "4", "2", "2", "1", "1", "1"]
    assert table.lora_fit.tolist()[:6:2] == ["raw", "exact", "svd"]
    row = table.iloc[0]
    assert (row.ES, row.immediate_ES, row.immediate_S, row.retention) == (0.6, 0.8, 0.5, pytest.approx(0.75))
    assert math.isnan(table.retention[1]), "nothing held at first"
    assert (row.residual, row.fit_residual, row.seconds, row.size_mb) == (0.2, 0.4, 6.0, 1.0)
    assert (table.seconds[1], table.peak_memory_mb[1]) == (3.0, 50.0)
    shown = tables.lora_configurations(table)
    assert len(shown) == 7 and shown.ES.iloc[0] == pytest.approx(0.4) and set(shown.peak_memory_mb) == {50.0}
    lost = tables.lora_lost(table)
    assert lost[["fit", "rank"]].drop_duplicates().values.tolist() == [
        ["exact", 4],
        ["svd", 2],
        ["keys", 2],
        ["keys", 1],
    ]


def test_curves_hold_every_fit_and_no_edit_and_gaps_pair_keys_with_svd(low):
    scores, _, prompts = low
    largest = tables.largest_steps(scores, prompts)
    assert set(largest.run_id) == {"raw", "exact", "svd2", "keys2", "keys1"} and len(largest) == 6 * 24
    curves = tables.lora_curves(largest, prompts_of(5).assign(rank=2)).set_index(["fit", "rank", "score"])
    order = [("raw", "nan"), ("exact", "4.0"), ("svd", "2.0"), ("keys", "2.0"), ("keys", "1.0")]
    order += [("finetuning", "2.0"), ("pre", "nan")]
    assert list(dict.fromkeys((fit, str(rank)) for fit, rank, _ in curves.index)) == order
    assert curves.value.xs("ES", level="score").tolist() == [1.0, 1.0, 0.25, 0.75, 0.125, 0.625, 0.125]
    assert len(tables.lora_curves(largest, pd.DataFrame(columns=["rank"]))) == 6 * 4
    gaps = tables.lora_gaps(largest)
    assert gaps.score.tolist() == ["ES", "PS", "NS", "S"] and gaps["rank"].tolist() == [2] * 4
    assert gaps.value.tolist() == pytest.approx([0.5] * 4)
    none = tables.lora_gaps(largest[largest.fit != "svd"])
    assert none.empty and list(none) == list(gaps)


def test_shares_of_a_spectrum_add_up():
    share = tables.spectrum_share([2.0, 1.0])
    assert share["rank"].tolist() == [1, 2] and share.share.tolist() == pytest.approx([0.8, 1.0])
    assert share.singular_value.tolist() == [2.0, 1.0]


def test_finetuning_is_averaged_by_rank_and_may_be_missing():
    row = dict.fromkeys(["lr", *tables.SCORES, "steps", "parameters", "seconds"], 1.0)
    tuned = pd.DataFrame([row | {"rank": 2, "S": s, "peak_memory_mb": m} for s, m in ((0.5, 7.0), (1.0, 9.0))])
    shown = tables.finetuning_by_rank(tuned)
    assert shown.S[2] == 0.75 and shown.peak_memory_mb[2] == 9.0
    assert tables.finetuning_by_rank(tuned[:0]).empty


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
    table = tables.removal(prompts)
    assert (
        table.batch.tolist() == [1] * 3 + [2] * 3 + [3] * 3
        and table["it is"].tolist() == ["on", "off", "never made"] * 3
    )
    assert table["its own ES"].tolist() == [1.0, 0.25, 0.125] * 3
    assert table["S of the others"].tolist() == pytest.approx([1.0, 1.0, 0.75] * 3)
    assert table.value[1] == pytest.approx(0.25) and table.value.isna().tolist() == [True, False, True] * 3
    shown = tables.removal_shown(table)
    assert shown.iloc[0, -1] == "" and shown.iloc[1, -1].startswith("+0.250 [")
    assert shown.index[1] == (1, "off")


def test_stacks_are_the_final_rows_of_each_run_and_seed(low):
    scores, *_ = low
    stacks = tables.lora_stacks(scores.assign(lora_stack="fixed"))
    assert len(stacks) == 14 and set(stacks["stack"]) == {"fixed"} and stacks.ES.tolist()[:2] == [0.6, 0.2]
    assert stacks.index.tolist() == list(range(14)) and stacks.lora_rank.tolist()[:3] == [32, 32, 4]
