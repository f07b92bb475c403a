"""Replay rates with ranks: which cells there are, what they are compared with, and what is said of them."""

import numpy as np
import pandas as pd
import pytest

from editkit.studies import replay_rank
from editkit.studies.intervals import holm, score_differences
from editkit.studies.replay_rank import (
    Ranked,
    ReplayRankParams,
    differences,
    findings,
    grid,
    over_neither,
    points,
    told,
)
from tests.unit.studies.conftest import prompts_of

RIGHT = {(0.0, 0): 3, (0.0, 4): 2, (0.5, 0): 8, (0.5, 4): 2}  # facts that are right in the end, by rate and rank


@pytest.fixture
def made_up() -> Ranked:
    prompts = [
        prompts_of(right, method="memit", rate=rate, rank=rank, edited_at=1) for (rate, rank), right in RIGHT.items()
    ]
    scores = [
        {"method": "memit", "rate": rate, "rank": rank, "seed": 1, "kl_prose": 0.1, "seconds": 2.0, "parameters": 5}
        for rate, rank in RIGHT
    ]
    return Ranked(pd.DataFrame(scores), pd.concat(prompts, ignore_index=True))


def test_the_grid_has_each_rate_at_each_rank_that_is_lower_than_a_steps_own():
    cells = grid([0.0, 0.5], [4, 8], 8)
    assert list(cells) == [(0.0, 0), (0.0, 4), (0.5, 0), (0.5, 4)]
    assert cells[0.0, 0] == {"replay": "none"}
    low = {"replay": "buffer", "replay_rate": 0.5, "edit_mode": "lora", "lora_rank": 4, "lora_fit": "svd"}
    assert cells[0.5, 4] == low
    assert list(grid([0.5], [1], 1)) == [(0.0, 0), (0.5, 0)], "the control without replay is always there"


def test_cells_are_compared_with_those_without_their_replay_their_rank_or_both(made_up):
    gaps = differences(made_up)
    pairs = {(r.against, r.rate, r.rank) for r in gaps.itertuples()}
    assert pairs == {
        ("no replay", 0.5, 0),
        ("no replay", 0.5, 4),
        ("full rank", 0.0, 4),
        ("full rank", 0.5, 4),
        ("neither", 0.5, 4),
    }
    plain = over_neither(gaps[gaps.score == "S"])
    assert {(r.rate, r.rank) for r in plain.itertuples()} == {(0.5, 0), (0.0, 4), (0.5, 4)}
    S = gaps[gaps.score == "S"]
    assert np.allclose(S.p_holm, holm(S.p)), "one family, so that no sentence resolves what another does not"
    prompts = {where: part for where, part in made_up.prompts.groupby(["rate", "rank"])}
    wanted = score_differences(prompts[0.5, 4], prompts[0.5, 0])
    found = gaps[(gaps.against == "full rank") & (gaps.rate == 0.5)]
    assert found.value.tolist() == pytest.approx(wanted.value.tolist()) and (found.value < 0).all()
    ES = gaps.query("against == 'no replay' and score == 'ES'").set_index("rank").value
    assert ES[0] == pytest.approx(5 / 8) and ES[4] == 0
    assert differences(
        Ranked(made_up.scores[:1], made_up.prompts[made_up.prompts["rank"] + made_up.prompts.rate == 0])
    ).empty


def test_every_cell_has_its_row_and_the_sentences_say_what_raises_and_what_lowers(made_up):
    made, gaps = points(made_up), differences(made_up)
    assert len(made) == 5 * len(RIGHT) and (made.kl_prose == 0.1).all()
    value = made.set_index(["rate", "rank", "score"]).value
    assert value[0.5, 0, "EA"] == 1 and value[0.0, 4, "ES"] == pytest.approx(2 / 8)
    table = told(made, gaps)
    assert list(table.index) == [("MEMIT", f"{rate:g}", str(rank or "full")) for rate, rank in RIGHT]
    assert table["difference of S"].iloc[0] == "" and table["difference of S"].iloc[2].startswith("+0.6")
    sure = gaps.assign(p_holm=0.01)
    sentences = findings(sure)
    assert "MEMIT, S: replay raises it in 1 of 2 comparisons, resolved" in sentences[0]
    assert "a low rank lowers it in 2 of 2 comparisons" in sentences[1] and "r = 0, rank 4" in sentences[1]
    assert "Recommended: MEMIT, r = 0.5, full rank." in sentences[-1] and "no replay at full rank" in sentences[-1]
    none = findings(gaps.assign(p_holm=1.0))
    assert "is not resolved to change it" in none[0] and "No configuration can be recommended" in none[-1]


def test_a_run_scores_every_cell_after_the_last_step(setting, facts):
    one = setting(draws={1: (facts[:2], facts[2:])}, layers=[2], v_num_grad_steps=2, mom2_n_tokens=100)
    asked = ReplayRankParams(rank_facts=2, rank_batch=1, rank_methods=["memit", "emmet"])
    mark = one.lm.fingerprint()
    found = replay_rank.run(one, asked, [0.5, 1.0], [1])
    assert one.lm.fingerprint() == mark
    cells = [(method, rate, 0) for method in ("memit", "emmet") for rate in (0.0, 0.5, 1.0)]
    assert list(found.scores[["method", "rate", "rank"]].itertuples(index=False, name=None)) == cells
    assert found.scores.kl_prose.notna().all() and set(found.prompts.moment) == {"final"}
    S = points(found).query("score == 'S'").set_index(["method", "rate"]).value
    assert S.to_dict() == pytest.approx(found.scores.set_index(["method", "rate"]).S.to_dict())
    with pytest.raises(ValueError, match="3 does not divide"):
        replay_rank.run(one, ReplayRankParams(rank_facts=2, rank_batch=3), [0.5], [1])
