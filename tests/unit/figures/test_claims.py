"""What figures come to: sentences with the numbers of the frames that they are made from."""

import numpy as np
import pandas as pd
import pytest

from editkit.figures import claims

METHODS = ["rome", "memit"]
KINDS = {"mlp": "MLP", "attention": "attention"}
PLACES = {"last subject": "last subject token", "last": "last token"}
EFFECTS = pd.DataFrame(
    [("mlp", "last subject", 3, 0.25, -0.1, 0.6), ("mlp", "last", 9, 0.1, 0, 0.2), ("attention", "last", 8, 0.5, 0, 1)],
    columns=["kind", "position", "layer", "value", "low", "high"],
)


def test_ends_are_named_and_equal_ones_are_one():
    assert claims.between([0.5, np.nan, -0.25]) == "−0.25 to 0.50"
    assert claims.between([0.501, 0.499]) == "0.50" and claims.between([np.nan]) == "–"
    assert claims.spread(pd.Series([0.2, 0.9], METHODS), ".0%") == "20% (ROME) to 90% (MEMIT)"
    assert claims.spread(pd.Series([0.9, 0.9], METHODS), ".0%") == "90%"
    tied = pd.Series([0.2, 0.9, 0.9, 0.904], [*METHODS, "emmet", "alphaedit"])
    assert claims.spread(tied, ".0%") == "20% (ROME) to 90% (3 methods)"


def test_a_spectrum_says_what_its_threshold_frees():
    assert claims.spectrum({4: [8.0, 1.0, 1.0]}, 2.0) == "Below 2 lie 67% of the directions, with 20% of the variance"
    assert claims.spectrum({4: [8.0, 1.0, 1.0]}, None) == "2 of 3 directions carry 90% of the variance"
    assert claims.singular_values({6: [3.0, 1.0]}) == "90% of ‖ΔW‖² needs 1 of 2 singular values"


def test_position_0_is_compared_with_the_median_of_the_others():
    norms = pd.DataFrame({"start_token": True, "layer": 7, "position": [0, 1, 2, 3], "norm": [100.0, 40.0, 10.0, 5.0]})
    assert claims.position_norms(norms) == "Position 0 is 10 times as large as the others after layer 7"


def test_tracing_says_where_most_returns_and_what_mlps_return_where_facts_are_edited():
    most = "Most comes back from MLP at the last subject token (layer 3: 0.25) and attention at the last token"
    assert claims.most_restored(EFFECTS, KINDS, PLACES) == f"{most} (layer 8: 0.50)"
    told = claims.last_subject_token(EFFECTS)
    assert told == "At the last subject token MLPs bring back at most 0.25 [−0.10, 0.60], around layer 3"
    assert claims.traced_and_swept({"traced_layer": 2, "swept_layer": 2}).endswith("the same layer, 2")
    assert "layer 1, editing is best in layer 2" in claims.traced_and_swept({"traced_layer": 1, "swept_layer": 2})


def test_scores_are_told_at_both_ends():
    rows = [(m, n, "S", v) for m, n, v in [("rome", 1, 0.9), ("memit", 1, 0.8), ("rome", 32, 0.5), ("memit", 32, 0.7)]]
    batches = pd.DataFrame(rows, columns=["method", "batch_size", "score", "value"])
    assert claims.scores_by_batch(batches) == "S is 0.80 to 0.90 with 1 edit in the model, 0.50 to 0.70 with 32"
    ranks = pd.DataFrame(
        {"fit": ["svd", "exact", "raw"], "rank": [4, 8, np.nan], "score": "S", "value": [0.5, 0.8, 0.9]}
    )
    assert claims.by_rank(ranks) == "S is 0.50 at rank 4, 0.80 at rank 8, 0.90 at full rank"
    cells = pd.DataFrame({"rate": [0, 0, 0.5], "score": "S", "value": [0.5, 0.7, 0.8]})
    assert claims.replay_and_rank(cells) == "S is 0.50 to 0.70 without replay, 0.80 with it"
    tokens = pd.DataFrame({"tokens_per_dimension": [1, 20], "S": [0.7, 0.9]})
    assert claims.by_tokens(tokens) == "S is 0.70 with 1 × d_k tokens, 0.90 with 20"
    ladder = pd.DataFrame({"method": METHODS * 2, "kind": "paraphrase", "rung": ["success"] * 2 + ["exact"] * 2})
    ladder["value"] = [0.9, 0.8, 0.3, 0.3]
    spoken = pd.DataFrame({"method": METHODS * 2, "kind": "rewrite", "rung": ["success"] * 2 + ["surviving"] * 2})
    spoken = spoken.assign(batch_size=8, value=[0.9, 0.8, 0.25, 0.5])
    said = "8 edits: 80% to 90% of rewrites succeed, 25% to 50% of these are said"
    assert claims.speech(spoken, {"rewrite": "rewrites"}) == said
    assert claims.speech(spoken[:2], {"rewrite": "rewrites"}) == "8 edits: 80% to 90% of rewrites succeed"
    told = claims.rungs(ladder, {"paraphrase": "paraphrases"}, ["success", "exact"])
    assert told == "Of paraphrases 80% to 90% are right by success, 30% are right by exact"


def test_sequences_say_what_is_left_and_what_is_lost():
    matrix = pd.DataFrame([[1.0, 0.5], [np.nan, 0.9]])
    assert (
        claims.retention(matrix, "EMMET, none", "ES")
        == "EMMET, none: ES of the first edits is 1.00 at first, 0.50 at the end"
    )
    assert claims.retention(matrix * 0 + 1, "EMMET, none", "ES") == "EMMET, none: ES of all edits is 1.00 at every step"
    assert claims.forgetting({"ES": pd.DataFrame({"a": [1.0, 0.6]})}) == "ES 1.00 when new, 0.60 1 step later"
    steps = pd.DataFrame({"run": ["a", "a"], "edits": [5, 10], "kl_subjects": [np.nan, 0.2], "growth": [1.0, 1.5]})
    assert (
        claims.wear(steps) == "After 10 edits KL near the facts is 0.20 nats, the weights' norm 1.50 times what it was"
    )
    gaps = pd.DataFrame({"run": ["a", "b"], "low": [0.1, -0.1], "high": [0.2, 0.1]})
    assert claims.differences(gaps, "Final S") == "Final S: 1 of 2 intervals excludes 0 (a)"
    assert claims.differences(gaps[1:], "Final S") == "Final S: none of 1 intervals excludes 0"
    tasks = pd.DataFrame(
        {"task": ["x", "x", "y", "y"], "metric": "acc", "step": [0, 9] * 2, "value": [0.5, 0.4, 0.7, 0.9]}
    )
    assert claims.abilities(tasks) == "y moves most, from 0.70 to 0.90"
    assert claims.abilities(tasks.assign(value=0.5)) == "No task moves"


def test_repairs_say_what_they_fix_and_cost():
    mean = pd.DataFrame({"fixed": [1.0, 0.5], "heldout_change": [-0.5, 1.0]}, index=METHODS)
    told = "Fixed are 50% (MEMIT) to 100% (ROME); held-out accuracy changes by −0.5 (ROME) to +1.0 (MEMIT) points"
    assert claims.repaired(mean) == told
    assert claims.mistakes(np.array([[3, 1], [2, 4]]), np.eye(2)) == "3 mistakes before the repair, 0 after it"
    rows = pd.DataFrame({"method": METHODS, "fixed": [0.2, 0.9]})
    assert claims.at_budget(rows, "Of 30 images at once") == "Of 30 images at once, 20% (ROME) to 90% (MEMIT) are fixed"
    leaks = pd.DataFrame({"method": METHODS, "success": [1.0, 1.0], "leakage": [0.02, 0.01]})
    assert claims.leakage(leaks) == "Where 100% are fixed, MEMIT leaks least: 0.01"
    sweep = pd.DataFrame({"layers": ["[8]", "[8, 9]"], "best": [False, True], "fixed": 0.75, "generality": 0.5})
    assert claims.place(sweep) == "Chosen is layers 8, 9: 75% fixed, 50% of copies right"
    cosines = pd.DataFrame({"true": ["5", "5", "6"], "cosine": [0.5, 0.7, 0.1]})
    assert claims.directions(cosines) == "Targets of class 5 lie closest to the mean shift: cosine 0.60"
    maps = np.array([[[0.1, 0.0]], [[-0.6, 0.2]]])
    assert claims.patches(maps, [0, 9]) == "One patch brings back up to −0.60, after layer 9"


def test_costs_say_what_takes_most_and_what_grows():
    mean = pd.DataFrame({"seconds_targets": [9.0, 8.0], "seconds_solve": [1.0, 2.0]}, index=METHODS)
    assert claims.seconds(mean) == "80% to 90% of the time goes into targets"
    times = pd.DataFrame({"edits": [1, 100], "targets": [0.5, 50.0], "solve": [0.1, 0.2]})
    told = claims.growth(times, "edits", {"targets": "targets v*", "solve": "solve"}, "Seconds by edits")
    assert told == "Seconds by edits: targets v* × 100 from 1 to 100"
    ratios = pd.DataFrame({"name": ["targets", "solve"], "ratio": [7.5, 286.0]})
    assert claims.speedups(ratios) == "7.5 times as fast (targets) to 286 times (solve)"


def test_the_fastest_search_that_loses_nothing_is_named():
    rows = [("exact", 20.0, 0.01), ("fast", 4.0, 0.02), ("fast", 4.0, -0.01), ("two steps", 1.0, -0.3)]
    frame = pd.DataFrame(rows, columns=["search", "targets", "S_high"])
    told = "“fast” is 5 times as fast as the exact one and loses no S that is resolved"
    assert claims.searches(frame) == told
    assert claims.searches(frame.iloc[[0, 3]]) == "No search that is shorter than the exact one keeps its S"


def test_a_variance_that_is_almost_nothing_is_not_none():
    told = claims.spectrum({0: [1000.0, 0.1, 0.1, 5.0]}, 1.0)
    assert told == "Below 1 lie 50% of the directions, with less than 1% of the variance"


@pytest.mark.parametrize(("last", "verb"), [(0.1, "falls"), (6.0, "goes")])
def test_a_loss_that_rises_does_not_fall(last, verb):
    assert claims.loss(pd.Series([5.4, last])) == f"The median loss {verb} from 5.4 to {last:.2g} nats"
