"""What tables say in words: every number is the table's, and nothing is claimed that an interval does not bear."""

import pandas as pd

from editkit.studies import findings
from editkit.studies.findings import (
    baseline_findings,
    lora_findings,
    recommendation,
    sequence_findings,
    setup_findings,
    speed_findings,
    vision_findings,
)


def test_bullets_are_a_markdown_list():
    assert findings.bullets(["One.", "Two."]) == "- One.\n- Two."


def test_findings_on_the_setup_compare_position_0_and_count_free_directions():
    relations = pd.DataFrame({"facts": [1200, 34]}, index=["city_country", "capital_of"])
    norms = pd.DataFrame(
        [
            (start, layer, position, norm)
            for start, layer, first in ((True, 0, 3.0), (True, 1, 80.0), (False, 0, 2.0), (False, 1, 60.0))
            for position, norm in ((0, first), (1, 2.0), (2, 2.0), (3, 9.0))
        ],
        columns=["start_token", "layer", "position", "norm"],
    )
    spaces = pd.DataFrame(
        [(5, 1536, 768, 0.0123, 9.0)],
        columns=["layer", "directions (d_k)", "in null space", "variance there", "largest eigenvalue"],
    )
    facts, position, space = setup_findings(relations, norms, spaces)
    assert "1,234 facts in 2 relations; the largest, city_country, has 1,200" in facts
    assert position.startswith("After layer 1") and "is 40 times as large" in position and "30 times where" in position
    assert "Layer 5" in space and "768 of 1,536 key directions (50%)" in space and "1.2%" in space


def table_of(values: dict[str, list[float]]) -> pd.DataFrame:
    """A baselines table: S of each method at 1 and 32 edits, for two seeds a little apart."""
    rows = []
    for seed, off in ((1, -0.01), (2, 0.01)):
        common = {"dataset": "d", "seed": seed, "n_facts": 32}
        rows.append(common | {"method": "pre", "batch_size": 0, "moment": "pre", "ES": 0.1, "NS": 0.9})
        for method, pair in values.items():
            for size, S in zip((1, 32), pair, strict=True):
                scores = {"ES": 1.0, "PS": 0.9, "NS": 0.8 if size == 1 else 0.7, "S": S + off, "EA": 0.5, "PA": 0.25}
                seconds = {"seconds_targets": 64.0, "seconds_keys": 4.0, "seconds_solve": 12.0}
                rows.append(common | {"method": method, "batch_size": size, "moment": "immediate", **scores, **seconds})
    return pd.DataFrame(rows)


def test_findings_name_a_winner_only_beyond_the_spread():
    clear = "\n".join(baseline_findings(table_of({"emmet": [0.9, 0.5], "memit": [0.9, 0.8]})))
    assert "highest S is MEMIT's, 0.800 (± 0.010 over seeds); EMMET 0.500" in clear
    assert "further away than the seeds' spread" in clear
    assert "EMMET 0.900 → 0.500 (NS 0.80 → 0.70)" in clear and "MEMIT loses 0.20 of NS" in clear
    assert "80% of the time of an edit (2.0 s)" in clear
    close = "\n".join(baseline_findings(table_of({"emmet": [0.9, 0.79], "memit": [0.9, 0.8]})))
    assert "over EMMET is within the seeds' spread: no winner can be named" in close
    alone = baseline_findings(table_of({"memit": [0.9, 0.8]}))
    assert alone[1].endswith("the highest S is MEMIT's, 0.800 (± 0.010 over seeds).")


def test_findings_on_speed_name_the_least_and_the_most():
    ratios = pd.DataFrame({"what": ["targets", "solve"], "ratio": [7.44, 286.3], "lowest": [0.9, 271.0]})
    edits = pd.DataFrame(
        [(8, 1.0, 1.0, 1.0, 5.0), (32, 18.0, 1.0, 1.0, 5.0)], columns=["edits", "targets", "keys", "solve", "scoring"]
    )
    faster, share = speed_findings(ratios, edits)
    assert faster.startswith("1 of 2") and "by 7.4 (targets) to 286 times (solve)" in faster
    assert "With 32 edits in one batch, the targets take 90%" in share


def test_findings_sort_runs_by_what_their_intervals_say_and_recommend_by_name():
    scores = pd.DataFrame(
        [
            ("emmet", "none", "pre", 0.0, 0.1),
            ("emmet", "none", "immediate", 1.0, 0.9),
            ("emmet", "none", "final", 0.5, 0.6),
        ],
        columns=["method", "replay", "moment", "ES", "S"],
    )
    differences = pd.DataFrame(
        [("up", 0.2, 0.1, 0.3), ("down", -0.2, -0.3, -0.1), ("same", 0.0, -0.1, 0.1)],
        columns=["run", "value", "low", "high"],
    ).assign(method="emmet")
    first, up, down, same = sequence_findings(scores, differences)
    assert "100% of the rewrites" in first and "50% after the last" in first and "0.900 to 0.600" in first
    assert "final S is higher with up +0.200 [+0.100, +0.300]" in up and "down" not in up
    assert "lower with down -0.200" in down and "not surely different" in same and "same +0.000" in same
    assert "Recommended: up." in recommendation(differences) and "3 configurations" in recommendation(differences)
    assert "No configuration can be recommended" in recommendation(differences[1:])


def test_findings_on_low_rank_say_what_the_tables_say():
    rows = [
        (8, "none", "full", "raw", 0.90, 1.0, 1000),
        (8, "none", "8", "exact", 0.90, 1.0, 100),
        (8, "none", "4", "svd", 0.40, 1.0, 50),
        (8, "none", "4", "keys", 0.60, 1.0, 50),
        (2, "hold", "full", "raw", 0.80, 0.8, 1000),
        (2, "hold", "full", "raw", 0.90, 1.0, 1000),
        (2, "hold", "1", "svd", 0.30, float("nan"), 10),
        (2, "hold", "1", "keys", 0.50, float("nan"), 10),
        (2, "hold", "1", "keys", 0.60, 0.7, 10),
    ]
    columns = ["batch_size", "replay", "lora_rank", "lora_fit", "S", "retention", "parameters"]
    gaps = pd.DataFrame({"rank": [4], "score": ["ES"], "value": [0.2], "low": [0.1], "high": [0.3]})
    share = pd.DataFrame({"rank": [4, 8], "share": [0.55, 1.0]})
    tuned = pd.DataFrame({"rank": [4, 4, 8], "lr": [0.01] * 3, "S": [0.6, 0.8, 0.8], "seconds": [8.0, 10.0, 9.0]})
    text = "\n".join(lora_findings(pd.DataFrame(rows, columns=columns), gaps, share, tuned))
    assert "Steps of 8 edits need rank 8" in text and "10.0% of the numbers" in text
    assert "Rank 4 for such a step: S svd 0.400, keys 0.600. The first 4 singular values hold 55%" in text
    assert "At rank 4, fitting where the keys live (keys) keeps more edits than truncated SVD: ES +0.200" in text
    assert "rank 4 (best learning rate 0.01, 9 s): S 0.700; the best closed form at that rank 0.600" in text
    assert "S 0.800; the best closed form at that rank 0.900" in text
    kept = "In steps of 2, replay hold: final S (share of immediate ES kept) raw full 0.850 (90%), "
    assert kept + "svd 1 0.300, keys 1 0.550 (70%)." in text
    unsure = lora_findings(pd.DataFrame(rows, columns=columns), gaps.assign(low=-0.1), share, tuned[:0])
    assert any("no surely different share" in sentence for sentence in unsure)
    assert not any("fine-tuning" in sentence for sentence in unsure)


def test_findings_on_repairs_say_what_the_tables_say():
    columns = ["method", "seed", "n_edits", "fixed", "kept", "generality", "test_accuracy", "heldout_change"]
    rows = [("pre", 0, 20, 0.0, 1.0, 0.25, 0.9, 0.0), ("pre", 1, 30, 0.0, 1.0, 0.35, 0.92, 0.0)]
    rows += [("memit", 0, 20, 1.0, 0.98, 0.6, 0.91, 1.0), ("memit", 1, 30, 0.9, 1.0, 0.8, 0.9, -2.0)]
    traced = pd.DataFrame(
        [("mlp", 0, 0.1), ("mlp", 1, 0.3), ("residual", 0, 0.2), ("residual", 1, 0.9)],
        columns=["kind", "layer", "value"],
    )
    places = pd.DataFrame(
        [("memit", "[1]", "traced", 1.0, 0.9, -1.0)],
        columns=["method", "layers", "chosen", "fixed", "kept", "heldout_change"],
    )
    nan = float("nan")
    leaks = pd.DataFrame(
        [("memit", nan, 0.01, 0.9, 2.0), ("alphaedit", 0.1, 0.02, 1.0, 1.0), ("alphaedit", 0.01, 0.004, 0.5, 1.0)],
        columns=["method", "threshold", "leakage", "success", "norm"],
    )
    first, memit, tracing, where, leak = vision_findings(pd.DataFrame(rows, columns=columns), traced, places, leaks)
    assert "accuracy is 91.0%; 20 to 30 misclassified" in first and "(2 seeds)" in first and "30% are right" in first
    assert "MEMIT fixes 95% of them (worst seed 90%) and gets 70%" in memit
    assert "keeps 99.0%" in memit and "(98.0%)" in memit and "by -0.5 points (-2.0)" in memit
    assert tracing.endswith("restoring: mlp at layer 1 (+0.30); residual at layer 0 (+0.20).")
    assert where.endswith("MEMIT: layers [1] (traced) 100% fixed, 90.0% kept, -1.0 points.")
    assert (
        "MEMIT's, 0.01 at success 90%" in leak and "0.02, at threshold 0.1: not lower" in leak and "0.50 times" in leak
    )
    (leak,) = vision_findings(pd.DataFrame(rows, columns=columns), traced, places[:0], leaks[[True, False, True]])[3:]
    assert leak.endswith("AlphaEdit reaches that success at no threshold tried.")
