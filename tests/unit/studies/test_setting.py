"""The setting of a chapter: whose facts, which prefixes, and what every spec and session gets from it."""

import json
import warnings
from dataclasses import replace

import pytest

from editkit import load_facts
from editkit.facts import data_hash
from editkit.language.keys import sample_contexts
from editkit.studies.setting import Setting, SettingParams
from tests.conftest import TEXTS


@pytest.fixture
def prepare(tiny, full_spec, store, tmp_path, monkeypatch):
    """Prepare a setting on a tiny model, and six facts of the test part and two of the tune part from a file."""
    monkeypatch.setattr("editkit.studies.setting.load_lm", lambda name, **_: tiny(name.removeprefix("tiny-")))
    place = {"src": "Where does {} lie?", "rephrase": "Where is it?", "alt": "Spain", "answers": ["Italy"]}
    records = [
        place | {"subject": name, "src": f"Where does {name} lie?", "loc": "who", "loc_ans": "Ada"}
        for name in ("Rome", "Milan", "Turin", "Bari", "Pisa", "Siena", "Genoa", "Naples")
    ]
    (path := tmp_path / "zsre.json").write_text(json.dumps(records))
    (text := tmp_path / "text.txt").write_text("\n\n".join(TEXTS))
    hyperparameters = full_spec().model_dump(exclude={"method"}, exclude_unset=True)
    given = {"model": "tiny-llama", "device": "cpu", "facts_source": "zsre", "facts_path": str(path)}
    given |= {"text_path": str(text), "hyperparameters": hyperparameters}

    def go(n_facts=2, seeds=(0, 3), heldout=0, **changes) -> Setting:
        params = SettingParams(**given | changes)
        common = {"targets_from": "base"}
        return Setting.prepare(params, n_facts=n_facts, seeds=seeds, heldout=heldout, store=store, **common)

    return go


def test_each_seed_draws_facts_in_its_order_and_prefixes_of_its_own(prepare, tiny, tmp_path):
    setting = prepare(heldout=1)
    path = tmp_path / "zsre.json"
    assert list(setting.draws) == [0, 3] and setting.dataset == "zsre"
    for seed, (facts, heldout, tried) in setting.draws.items():
        assert facts + heldout == load_facts("zsre", path=path, seed=seed, n=3, part="test") and tried == 3
        assert setting.contexts[seed] == sample_contexts(tiny(), 2, 4, seed)
    assert setting.hashes == {seed: data_hash(draw.facts) for seed, draw in setting.draws.items()}
    assert prepare(n_facts=3).draws[3].facts == setting.draws[3].facts + setting.draws[3].heldout
    first = prepare(n_facts=3, heldout=1).first(2)
    assert first.hashes == setting.hashes and first.draws[3].heldout == prepare(n_facts=3, heldout=1).draws[3].heldout
    summary = setting.summary()
    assert summary["facts"].tolist() == [2, 2] and summary["held out"].tolist() == [1, 1]
    assert summary["hash of the facts"].tolist() == [text[:12] for text in setting.hashes.values()]


def test_a_setting_of_the_tune_part_has_none_of_the_other(prepare):
    tune, test = prepare(facts_part="tune", seeds=[1]), prepare(n_facts=6, seeds=[1])
    assert {fact.subject for fact in tune.draws[1].facts} == {"Rome", "Pisa"}
    assert not {"Rome", "Pisa"} & {fact.subject for fact in test.draws[1].facts}


def test_facts_for_tuning_are_of_their_part_and_of_no_subject_that_is_drawn(prepare, monkeypatch):
    assert {fact.subject for fact in prepare(seeds=[1], n_facts=6).tune} == {"Rome", "Pisa"}
    inside = prepare(facts_part="tune", seeds=[1], n_facts=1)
    (drawn,), (left,) = inside.draws[1].facts, inside.tune
    assert {drawn.subject, left.subject} == {"Rome", "Pisa"}
    assert not prepare(facts_part="all", n_facts=6, heldout=2, seeds=[1]).tune
    monkeypatch.setattr("editkit.studies.setting.TUNE", 1)
    assert len(prepare(seeds=[1]).tune) == 1


def test_only_a_promise_about_neighbours_draws_facts_for_tuning(prepare, monkeypatch):
    drawn, setting = [], prepare(seeds=[1])
    monkeypatch.setattr("editkit.studies.setting._draw_tune", lambda *_: pytest.fail("drawn when it was prepared"))
    counted = replace(setting, draw_tune=lambda: drawn.append(1) or setting.draw_tune())
    counted.session(counted.spec("memit"), 1)
    assert not drawn
    for _ in range(2):
        session = counted.session(counted.spec("memit", neighbour_budget=0.9), 1)
    assert session.domain.heldout == setting.tune and len(drawn) == 1
    with pytest.raises(ValueError, match=r"neighbour_budget = 0.9: give heldout"):
        none = replace(setting, draw_tune=list)
        none.session(none.spec("memit", neighbour_budget=0.9), 1)


def test_facts_that_seeds_share_are_counted_and_said(prepare):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apart = prepare(n_facts=1, seeds=(1, 2, 3))
    assert apart.summary()["shared"].tolist() == [0, 0, 0]
    with pytest.warns(UserWarning, match="seeds 1, 2 are not independent: [4-8] of their 8 facts .* too few facts"):
        together = prepare(n_facts=2, heldout=2, seeds=(1, 2))
    one, other = ({*draw.facts, *draw.heldout} for draw in together.draws.values())
    assert together.summary()["shared"].tolist() == [len(one & other)] * 2


def test_specs_and_sessions_start_from_what_is_common(prepare):
    setting = prepare(heldout=1)
    spec = setting.spec("emmet", v_lr=0.3)
    assert (spec.targets_from, spec.n_contexts, spec.v_lr, setting.spec("emmet").v_lr) == ("base", 2, 0.3, 0.1)
    session = setting.session(spec, 3)
    assert session.model is setting.lm and session.spec.method == "emmet"
    mark = setting.lm.fingerprint()
    session.edit(setting.draws[3].facts)
    assert setting.lm.fingerprint() != mark
    session.undo()
    assert setting.lm.fingerprint() == mark and setting.device == setting.lm.device


def test_more_facts_than_there_are_is_an_error(prepare, facts, monkeypatch):
    with pytest.raises(ValueError, match=r"5 facts and 2 held out are asked for: zsre has 6 \(facts_part: test\)$"):
        prepare(n_facts=5, heldout=2)
    # A random model knows none of these; a file's facts are taken whether it knows them or not.
    monkeypatch.setattr("editkit.studies.setting.load_facts", lambda *_, **__: facts)
    with pytest.raises(ValueError, match="worldfacts has 0 that the model knows"):
        prepare(facts_source="worldfacts", facts_path="")
    assert prepare(facts_source="worldfacts", facts_path="", known_only=False).draws[0].facts == facts[:2]
    assert prepare().draws[0].facts == facts[:2]


@pytest.mark.needs_model
def test_all_chapters_get_the_same_known_facts(lm, monkeypatch):
    monkeypatch.setattr("editkit.studies.setting.load_lm", lambda *_, **__: lm)
    monkeypatch.setattr("editkit.language.known.CHUNK", 8)  # facts that are looked at, of which few are needed
    params = SettingParams()
    alone = Setting.prepare(params, n_facts=2, seeds=[1])
    with_others = Setting.prepare(params, n_facts=1, heldout=2, seeds=[1])
    assert alone.draws[1].facts == load_facts("worldfacts", n=2, seed=1, known_only=lm)
    assert with_others.draws[1].facts + with_others.draws[1].heldout[:1] == alone.draws[1].facts
    assert alone.contexts == with_others.contexts
    assert 2 <= alone.draws[1].tried <= with_others.draws[1].tried
