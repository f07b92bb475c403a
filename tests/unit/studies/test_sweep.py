"""The grid of a sweep: every combination once, and a reason for each that is left out."""

from collections import Counter

import pytest

from editkit.methods import METHODS
from editkit.studies.sweep import SweepParams, grid

HERE = {"methods": ["memit"], "sequence_methods": ["memit"], "n_facts": 8, "batch_sizes": [8], "seeds": [1]}
HERE |= {"sequence_facts": 8, "sequence_batch": 4, "sequence_seeds": [1], "replay_rates": [0.5]}


def params(**changes) -> SweepParams:
    return SweepParams(**(HERE | changes))


def told(cells) -> list[tuple]:
    return [(cell.part, cell.method, cell.batch_size, cell.seed, dict(cell.changes).get("replay")) for cell in cells]


def reasons(left) -> Counter:
    return Counter(one.reason for one in left)


def test_singles_batches_and_one_batch_with_every_memory():
    cells, left = grid(params())
    sequences = [
        ("sequences", "memit", size, 1, kind) for size in (1, 4) for kind in ("none", "buffer", "hold", "history")
    ]
    assert told(cells) == [("batches", "memit", 8, 1, None), *sequences, ("sequences", "memit", 8, 1, "none")]
    assert reasons(left) == {
        "every batch is made in the untouched model: there is nothing to replay": 3,
        "one batch has nothing to replay": 3,
    }


def test_every_combination_is_a_cell_or_is_left_out_once():
    axes = {"methods": list(METHODS), "seeds": [1, 2], "sequence_seeds": [1, 2], "batch_sizes": [1, 3, 8]}
    axes |= {
        "replay_rates": [0.0, 0.25],
        "sweep_edit_modes": ["raw", "lora"],
        "lora_ranks": [1, 4],
        "sweep_orders": [0, 5],
    }
    cells, left = grid(params(**axes))
    every = [*cells, *(one.cell for one in left)]
    assert len(set(every)) == len(every)
    per_method = 5 * (1 + 1 + 2 * 2)  # none, two rates, hold, history; raw, exact, two ranks of two fits
    assert Counter(cell.part for cell in every) == {
        "batches": 2 * 2 * 3 * (len(METHODS) * per_method + 1),  # memit's control has one form
        "sequences": 2 * 2 * 3 * len(METHODS) * per_method,
    }
    assert all(one.reason for one in left)


@pytest.mark.parametrize(
    ("changes", "reason", "number"),
    [
        ({"batch_sizes": [3, 8]}, "3 does not divide 8 facts", 4),
        ({"sequence_batch": 3}, "3 does not divide 8 facts", 4),
        ({"replay_rates": [0.0, 0.5]}, "a replay rate of 0 is no replay", 2),
        ({"sweep_orders": [0, 7]}, "one batch has no order", 1),
        ({"sweep_orders": [0, 7]}, "every batch is made in the untouched model: there is no order", 1),
        ({"methods": ["rome"]}, "rome knows no batches: steps of 4 are its single edits", 1),
        ({"methods": ["rome"]}, "rome knows no batches: steps of 8 are its single edits", 1),
        ({"sweep_parts": ["evaluation"], "evaluation_facts": 9}, "evaluation_facts = 9 are more than n_facts = 8", 5),
    ],
)
def test_what_is_impossible_or_redundant_is_left_out_with_the_reason(changes, reason, number):
    assert reasons(grid(params(**changes))[1])[reason] == number


def test_rome_is_run_as_single_edits_without_replay():
    cells, left = grid(params(methods=["rome"], sequence_methods=["memit"]))
    assert [one for one in told(cells) if one[1] == "rome"] == [
        ("batches", "rome", 8, 1, None),
        ("sequences", "rome", 1, 1, "none"),
    ]
    assert reasons(left)["rome replays nothing: emmet is its batched form"] == 12


def test_a_rank_that_holds_all_edits_of_a_step_is_exact_once():
    changes = {
        "sweep_parts": ["sequences"],
        "sweep_edit_modes": ["lora"],
        "lora_ranks": [2, 4, 6],
        "lora_fits": ["svd"],
    }
    cells, left = grid(params(**changes, sweep_replays=["none", "buffer", "history"]))
    found = {(cell.batch_size, dict(cell.changes)["replay"]): [] for cell in cells}
    for cell in cells:
        changed = dict(cell.changes)
        found[cell.batch_size, changed["replay"]].append((changed["lora_fit"], changed["lora_rank"]))
    assert found == {
        (1, "none"): [("exact", 1)],
        (1, "buffer"): [("exact", 2)],
        (1, "history"): [("exact", 8), ("svd", 2), ("svd", 4), ("svd", 6)],
        (4, "none"): [("exact", 4), ("svd", 2)],
        (4, "buffer"): [("exact", 6), ("svd", 2), ("svd", 4)],  # half as many earlier edits as new ones
        (4, "history"): [("exact", 8), ("svd", 2), ("svd", 4), ("svd", 6)],
        (8, "none"): [("exact", 8), ("svd", 2), ("svd", 4), ("svd", 6)],
    }
    assert reasons(left)["rank 4 holds all 4 edits of an update: exact is that"] == 1
    assert reasons(left)["rank 6 holds all 6 edits of an update: exact is that"] == 1


def test_rome_has_one_rank_whatever_its_batch():
    changes = {"methods": ["rome"], "sweep_edit_modes": ["lora"], "lora_ranks": [1, 4, 16], "batch_sizes": [1, 8]}
    cells, left = grid(params(**changes, sweep_parts=["batches"], lora_fits=["svd"]))
    assert [(cell.batch_size, dict(cell.changes)["lora_rank"]) for cell in cells] == [(1, 1), (8, 1)]
    told = [f"rank {rank} holds all 1 edits of an update: exact is that" for rank in (1, 4, 16)]
    assert [reasons(left)[reason] for reason in told] == [2, 2, 2]


def buffers(found, size: int) -> list[tuple]:
    told = [dict(cell.changes) for cell in found if cell.batch_size == size]
    return [(one["replay_rate"], one["replay_max_items"]) for one in told if one["replay"] == "buffer"]


def test_rates_that_replay_the_same_number_are_run_once():
    rates = {"sweep_parts": ["sequences"], "replay_rates": [0.1, 0.25, 0.3, 0.5, 0.6]}
    cells, left = grid(params(**rates))
    assert buffers(cells, 1) == [(0.1, 0)], "any rate replays one edit with one new one"
    assert buffers(cells, 4) == [(0.1, 0), (0.3, 0), (0.6, 0)], "ceil of 0.4, 1, 1.2, 2, 2.4"
    told = reasons(left)
    assert told["a rate of 0.6 replays 1 with 1 new, as 0.1 does"] == 1
    assert told["a rate of 0.25 replays 1 with 4 new, as 0.1 does"] == 1
    assert told["a rate of 0.5 replays 2 with 4 new, as 0.3 does"] == 1
    of_all, _ = grid(params(**rates, hyperparameters={"replay_base": "buffer"}))
    assert len(buffers(of_all, 1)) == 5, "shares of a buffer that grows are all different"


def test_buffers_that_keep_all_edits_are_run_once():
    cells, left = grid(params(sweep_parts=["sequences"], replay_sizes=[4, 0, 8, 9]))
    assert buffers(cells, 1) == [(0.5, 4), (0.5, 0)]
    assert reasons(left)["a buffer of 8 keeps all 8 edits, as replay_max_items = 0 does"] == 2
    alone, _ = grid(params(sweep_parts=["sequences"], replay_sizes=[9]))
    assert buffers(alone, 4) == [(0.5, 9)], "nothing else is that"


def test_rls_is_run_with_everything_held_alone():
    cells, left = grid(params(sweep_parts=["sequences"], methods=["memit_rls"], sequence_methods=["memit_rls"]))
    assert [(cell.batch_size, dict(cell.changes)["replay"]) for cell in cells] == [(1, "hold"), (4, "hold")]
    assert reasons(left)["memit_rls is memit that holds all edits: without hold it is memit"] == 2 * 3 + 1


def test_weights_and_other_knobs_of_the_ablation_are_axes_too():
    cells, _ = grid(params(sweep_parts=["sequences"], replay_weights=[1.0, 2.0], norm_clamps=[1.1]))
    singles = [dict(cell.changes) for cell in cells if cell.batch_size == 1]
    assert {"replay": "none", "norm_clamp": 1.1} in singles
    assert {"replay": "hold", "replay_weight": 2.0} in singles and len(singles) == 1 + 2 + 4 + 1


def test_evaluation_has_editors_controls_and_the_untouched_model():
    cells, left = grid(params(sweep_parts=["evaluation"], controls=["locft", "grace"], evaluation_facts=8))
    assert told(cells) == [("evaluation", name, 8, 1, None) for name in ("pre", "memit", "locft", "grace")] and not left


def test_values_stated_twice_are_run_once():
    once, twice = grid(params()), grid(params(seeds=[1, 1], batch_sizes=[8, 8], methods=["memit", "memit"]))
    assert told(once[0]) == told(twice[0])


def test_a_part_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="sweep_parts.0 = 'singles': .*'batches', 'sequences' or 'evaluation'"):
        params(sweep_parts=["singles"])


def test_steps_may_be_named_and_every_method_may_remember_as_published():
    here = {"sweep_parts": ["sequences"], "methods": ["rome", "memit", "alphaedit"], "sweep_replays": ["published"]}
    cells, left = grid(params(**here, sweep_steps=[4, 8], sequence_methods=["memit"]))
    assert [(cell.method, cell.batch_size, cell.changes) for cell in cells + [one.cell for one in left]] == [
        ("memit", 4, ()),
        ("memit", 8, ()),
        ("rome", 1, ()),
        ("alphaedit", 4, ()),
        ("alphaedit", 8, ()),
    ]
    assert not left
    held, _ = grid(params(**here | {"methods": ["memit_rls"]}, sweep_steps=[4]))
    assert [cell.method for cell in held] == ["memit", "memit_rls"], "which holds as published"
    both, _ = grid(params(**here | {"sweep_replays": ["published", "hold"]}, sweep_steps=[4]))
    assert ("alphaedit", 4, (("replay", "hold"), ("replay_weight", 1.0))) in [
        (cell.method, cell.batch_size, cell.changes) for cell in both
    ]
