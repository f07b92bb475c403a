"""Where sequential damage comes from: the ground on which everything is compared, and what each switch changes."""

import numpy as np
import pandas as pd
import pytest
import torch

from editkit.editing.targets import Targets
from editkit.language.domain import EditSession
from editkit.language.keys import edit_keys, hidden_states
from editkit.language.moments import second_moments
from editkit.studies import damage, endings
from editkit.studies.damage import HELD, ONE_BATCH, SWITCHES, differences, findings, told, ways
from editkit.studies.endings import edited, seeded
from tests.conftest import agree
from tests.unit.studies.conftest import prompts_of


@pytest.fixture
def exactly(setting, tiny, facts, monkeypatch):
    """A setting in float64, in which the search has no part: targets are random."""
    lm = tiny()
    lm.model.double()
    generator = torch.Generator().manual_seed(0)
    wanted = {fact: torch.randn(16, generator=generator, dtype=torch.float64) for fact in facts}

    def targets(domain, items) -> Targets:
        V = torch.stack([wanted[fact] for fact in items], dim=1)
        return Targets(V, torch.zeros(len(items), 1), torch.ones(len(items)), "float64", 0, 0.0)

    monkeypatch.setattr(endings.StatedKeys, "targets", targets)
    monkeypatch.setattr(endings, "warm_targets", lambda *_: None)
    return setting(lm=lm, mom2_n_tokens=100), torch.stack([wanted[fact] for fact in facts], dim=1)


def test_a_sequence_that_holds_everything_is_the_printed_formula_of_one_batch(exactly, facts):
    one, V = exactly
    lm, found = one.lm, ways(one, "memit", 1)
    K, h = edit_keys(lm, facts, 2, ()), hidden_states(lm, facts, 2)
    C = second_moments(lm, [2], one.texts, 100, store=one.store, progress=False)[2].double()
    weight = found[HELD].spec.mom2_update_weight
    wanted = (V - h) / lm.gain(2) @ K.T @ torch.linalg.inv(weight * C + K @ K.T)  # arXiv 2210.07229, eq. 14
    for name in (HELD, ONE_BATCH):
        with edited(one, 1, found[name]) as deltas:
            agree(deltas[2], wanted)
    for name in ("history", "no memory", "contexts"):
        with edited(one, 1, found[name]) as deltas:
            assert (deltas[2] - wanted).norm() > 1e-3 * wanted.norm(), name


def test_each_switch_changes_what_it_says_and_nothing_else(setting):
    one = setting(mom2_n_tokens=100)
    found = ways(one, "memit", 2)
    assert list(found) == list(SWITCHES)
    base = found[HELD]
    expected = {
        ONE_BATCH: {"batch_size"},
        "targets": {"targets_from"},
        "contexts": {"keys"},
        "history": {"replay"},
        "no memory": {"replay"},
        "layers": {"layers"},
        "layers, one batch": {"layers", "batch_size"},
        "moved keys": {"layers", "keys", "replay_refresh"},
        "moved keys, read again": {"layers", "keys", "replay_refresh"},
        "all together": {"layers", "keys", "targets_from", "replay"},
        "all, one batch": {"layers", "keys", "batch_size"},
    }
    for name, changed in expected.items():
        way, differs = found[name], set()
        differs |= {field for field in ("batch_size", "keys") if getattr(way, field) != getattr(base, field)}
        differs |= {field for field, value in way.spec if value != getattr(base.spec, field)}
        assert differs == changed, name
    assert base.spec.layers == [2] and found["layers"].spec.layers == [1, 2]
    assert list(ways(setting(layers=[2]), "memit", 2)) == [name for name in SWITCHES if not SWITCHES[name].several]


def test_all_together_is_what_a_session_does_by_default(setting, facts):
    one = setting(mom2_n_tokens=100)
    session = one.session(seeded(one, 1, one.spec("memit")), 1)
    assert isinstance(session, EditSession) and session.spec.targets_from == "current"
    before = {layer: one.lm.weight(layer).clone() for layer in (1, 2)}
    for begin in (0, 2):
        session.edit(facts[begin : begin + 2])
    wanted = {layer: one.lm.weight(layer) - weight for layer, weight in before.items()}
    session.undo()
    with edited(one, 1, ways(one, "memit", 2)["all together"]) as deltas:
        for layer in wanted:
            agree(deltas[layer], wanted[layer], 1e-5)


def made_up() -> pd.DataFrame:
    """A held sequence that is one batch, a memory whose lack costs, and the rest that does nothing."""
    right = {name: 6 for name in SWITCHES} | {"no memory": 2, "all together": 3}
    return pd.concat([prompts_of(n).assign(method="memit", switch=name) for name, n in right.items()])


def test_differences_are_paired_by_fact_and_told_in_words():
    gaps = differences(made_up())
    rows = gaps[gaps.against == HELD].set_index(["switch", "score"]).value
    assert rows["no memory", "ES"] == rows["no memory", "EA"] == pytest.approx(2 / 8 - 6 / 8)
    assert rows["history", "S"] == 0 and set(gaps.score) == set(damage.SCORES)
    assert (gaps.p_holm >= gaps.p).all()
    assert len(gaps) == 5 * sum(len(switch.against) for switch in SWITCHES.values())
    told_all = findings(gaps)
    assert "is one batch" in told_all[0] and "+0.00" not in told_all[0]
    assert f"no memory {rows['no memory', 'S']:+.2f}" in told_all[1]
    assert told_all[1].startswith("**Nothing") and told_all[-1].count("all together") >= 2
    sure = gaps.assign(p_holm=np.where((gaps.switch == "no memory") & (gaps.score == "EA"), 0.01, 1.0))
    assert "Of 7 things 1 lower EA, resolved" in " ".join(findings(sure))
    parted = gaps.assign(value=np.where(gaps.switch == HELD, -0.5, gaps.value))
    assert "parts from one batch" in findings(parted)[0]


def test_a_run_scores_every_way_and_its_table_has_a_row_a_comparison(setting, facts):
    one = setting(draws={1: (facts[:2], facts[2:])}, layers=[2], v_num_grad_steps=2, mom2_n_tokens=100)
    found = damage.run(one, ["memit"], 1)
    assert list(found.scores.switch) == ["pre", *ways(one, "memit", 1)] and (found.scores.steps[1:3] == [1, 2]).all()
    table = told(found.scores, found.gaps)
    assert len(table) == len(found.gaps) / 5 and table.index.names == ["method", "what is done", "against"]
    with pytest.raises(ValueError, match="3 does not divide"):
        damage.run(one, ["memit"], 3)
