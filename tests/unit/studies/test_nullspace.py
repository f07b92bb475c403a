"""AlphaEdit against a MEMIT that writes as much."""

import numpy as np
import pandas as pd
import pytest

from editkit.language.moments import second_moments
from editkit.studies import nullspace
from editkit.studies.nullspace import COST, SPACE, NullSpaceParams, drifts, free_directions, weight_of_norm
from tests.conftest import TEXTS


@pytest.mark.parametrize("wanted", [0.1, 1.0, 9.0])
def test_a_weight_is_found_under_which_a_norm_is_as_wanted(wanted):
    def norm(weight: float) -> float:
        return 10 / (1 + weight / 30) ** 0.7

    asked = []
    found = weight_of_norm(lambda weight: asked.append(weight) or norm(weight), wanted, 100.0)
    assert norm(found) == pytest.approx(wanted, rel=nullspace.NEAR) and found in asked
    assert len(asked) <= nullspace.TRIES


def test_of_a_norm_that_no_weight_reaches_the_nearest_is_returned():
    asked = []
    found = weight_of_norm(lambda weight: asked.append(weight) or 1 / (1 + weight), 5.0, 100.0)
    assert found == min(asked) and len(asked) == nullspace.TRIES


def test_free_directions_are_those_of_numpy(setting):
    one = setting(layers=[1, 2], mom2_n_tokens=100, nullspace_threshold=0.5)
    costs = second_moments(one.lm, [1, 2], TEXTS, 100, store=one.store, progress=False)
    values = np.concatenate([np.linalg.eigvalsh(C.double().numpy()) for C in costs.values()])
    middle = float(np.median(values)) * 1.001
    assert free_directions(one, middle) == pytest.approx((values < middle).mean())


def test_drift_is_compared_within_an_order():
    rows = [(SPACE, 0, 0.5), (COST, 0, 0.2), (SPACE, 1, 0.6), (COST, 1, 0.2)]
    frame = pd.DataFrame(rows, columns=["method", "order", "kl_prose"]).assign(threshold=0.02, seed=1)
    frame = frame.assign(kl_text=np.nan, kl_subjects=frame.kl_prose)
    found = drifts(frame).set_index("kind")
    assert list(found.index) == ["prose", "subjects"] and (found.n == 2).all()
    assert found.value["prose"] == pytest.approx(0.35) and found.low["prose"] < 0.3 < 0.4 < found.high["prose"]
    assert drifts(frame[frame.order == 0]).low.isna().all()


def test_both_write_as_much_in_every_order_and_are_told_apart(setting, facts):
    draws = {1: (facts[:2], facts[2:])}
    one = setting(draws=draws, layers=[1, 2], v_num_grad_steps=2, mom2_n_tokens=100, trust_heldout_samples=2)
    asked = NullSpaceParams(nullspace_facts=2, nullspace_thresholds=[0.5], nullspace_orders=2)
    mark = one.lm.fingerprint()
    found = nullspace.run(one, asked)
    assert one.lm.fingerprint() == mark and len(found.scores) == 4
    norms = found.scores.pivot(index="order", columns="method", values="delta_norm")
    assert norms[COST][0] == pytest.approx(norms[SPACE][0], rel=1.1 * nullspace.NEAR)
    weights, own = found.scores.groupby("method").weight.first(), {SPACE: 1.0, COST: 1.0}
    assert sum(weights[name] == own[name] for name in own) == 1, "one alone is held back"
    assert max(weights) > 1
    points, gaps, moved = nullspace.points(found), nullspace.differences(found.prompts), drifts(found.scores)
    assert set(points.score) == {"S", "NS", "kl_text", "kl_prose", "kl_subjects"} and (points.orders == 2).all()
    table = nullspace.told(gaps, points, moved)
    assert (
        len(table) == 1
        and "KL prose" in table
        and table["‖ΔW‖"].iloc[0] == pytest.approx(norms[SPACE].mean(), abs=1e-3)
    )
    sentences = nullspace.findings(gaps, moved)
    assert len(sentences) == 3 and "NS of AlphaEdit less that of MEMIT" in sentences[0]
    assert nullspace.run(one, asked).scores.S.tolist() == found.scores.S.tolist()
