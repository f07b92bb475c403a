"""Sequences of which the end is measured: whose keys they read, and what is left of them."""

from dataclasses import replace

import pytest
import torch

from editkit.language.drift import TextProbe
from editkit.language.keys import edit_keys
from editkit.studies import endings
from editkit.studies.endings import Way, edited, in_order, measured, norm, norm_written, seeded
from tests.conftest import TEXTS
from tests.unit.conftest import refuse


def domain_of(setting, layers, reading, facts):
    spec = seeded(setting, 1, setting.spec("memit", layers=layers))
    how = {"texts": TEXTS, "contexts": ["a b c. "], "heldout": [], "store": setting.store, "progress": False}
    made = endings.StatedKeys(setting.lm, spec, reading, facts, **how)
    made.costs()
    return made


def test_keys_are_read_where_it_is_stated(setting, facts):
    one = setting(mom2_n_tokens=100)
    lm = one.lm
    kinds = {name: domain_of(one, [1, 2], name, facts) for name in ("clean", "bare", "averaged")}
    before = {layer: edit_keys(lm, facts, layer, ()) for layer in (1, 2)}
    lm.weight(1)[:] += 0.1 * torch.randn_like(lm.weight(1))
    assert torch.equal(kinds["clean"].keys(facts[1:3], 2), before[2][:, 1:3])
    assert torch.equal(kinds["bare"].keys(facts, 2), edit_keys(lm, facts, 2, ()))
    assert torch.equal(kinds["averaged"].keys(facts, 2), edit_keys(lm, facts, 2, ["a b c. "]))
    assert torch.equal(kinds["bare"].keys(facts, 1), before[1]), "nothing that a layer writes comes before it"
    assert (kinds["bare"].keys(facts, 2) - before[2]).norm() > 1e-3 * before[2].norm()


def test_a_sequence_is_made_in_its_order_and_taken_back(setting, facts):
    one = setting(layers=[2], mom2_n_tokens=100)
    mark, spec = one.lm.fingerprint(), one.spec("memit", replay="none", targets_from="base")
    with edited(one, 1, Way(spec, 2)) as plain:
        assert one.lm.fingerprint() != mark
    with edited(one, 1, Way(spec, 2, order=1)) as shuffled:
        pass
    assert one.lm.fingerprint() == mark and list(plain) == [2]
    assert 0 < (plain[2] - shuffled[2]).norm() < plain[2].norm()
    assert norm({1: torch.full((2, 2), 1.0), 2: torch.full((2, 2), 2.0)}) == pytest.approx(20**0.5)
    assert in_order(facts, 0) == facts and sorted(in_order(facts, 1), key=facts.index) == facts != in_order(facts, 1)
    with pytest.raises(ValueError, match="3 does not divide"), edited(one, 1, Way(spec, 3)):
        pass


def test_what_is_left_is_measured_once(setting, facts, monkeypatch):
    one = setting(layers=[2], mom2_n_tokens=100)
    way = Way(one.spec("memit", replay="hold", targets_from="base"), 2, order=1)
    probes = {"prose": TextProbe(one.lm, [one.lm.encode(TEXTS[0])[0][:40]])}
    row, frame = measured(one, 1, way, probes)
    assert norm_written(one, 1, way) == row["delta_norm"] > 0 and row["kl_prose"] > 0 and row["n_facts"] == len(facts)
    steps = frame.drop_duplicates("fact").set_index("fact").edited_at
    assert [steps[fact.id] for fact in in_order(facts, 1)] == [1, 1, 2, 2]
    monkeypatch.setattr(endings, "evaluate", refuse)
    monkeypatch.setattr(endings, "edited", refuse)
    assert measured(one, 1, way, probes)[0]["S"] == row["S"] and norm_written(one, 1, way) == row["delta_norm"]
    with pytest.raises(pytest.fail.Exception):
        measured(one, 1, replace(way, order=2), probes)
