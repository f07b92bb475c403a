"""What steps do to earlier edits, held against the model's own outputs."""

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from editkit import EditSession
from editkit.language.keys import edit_keys, put_out
from editkit.studies.interference import Interference
from tests.conftest import TEXTS


@pytest.fixture
def begun(tiny, full_spec, store):
    """A session of some layers on a tiny model, and what watches it."""

    def build(*layers, **changes) -> tuple[EditSession, Interference]:
        lm = tiny()
        spec = full_spec(method="memit", layers=list(layers), mom2_n_tokens=100, **changes)
        session = EditSession(lm, spec, texts=TEXTS, contexts=["a b c. "], store=store, progress=False)
        return session, Interference(lm, spec.layers)

    return build


def test_in_one_layer_it_is_how_far_the_model_moves_what_the_layer_puts_out(begun, facts):
    session, watch = begun(2)
    lm, outputs = session.model, [put_out(session.model, facts[:1], 2)[:, 0]]
    for fact in facts[:3]:
        watch.step([fact], session.edit([fact]).updates)
        outputs.append(put_out(lm, facts[:1], 2)[:, 0])
    wrote, moved = outputs[1] - outputs[0], outputs[3] - outputs[1]  # by its own step, and by the two after it
    found = watch.look(0)
    assert moved.norm() > 1e-3 * wrote.norm()
    assert found["interference"][0] == pytest.approx((moved.norm() / wrote.norm()).item(), rel=1e-3)
    along = (moved @ wrote / wrote.square().sum()).item()
    assert found["taken_back"][0] == pytest.approx(-along, rel=1e-3)
    assert found["interference"][2] == found["taken_back"][2] == 0, "nothing came after its own step"


def test_cosine_is_that_of_the_nearest_new_key_since_the_last_look(begun, facts):
    session, watch = begun(1, 2)
    keys = edit_keys(session.model, facts, 1, ())
    cosine = [[cosine_similarity(keys[:, i], keys[:, j], dim=0).item() for j in range(4)] for i in range(4)]
    for fact in facts[:3]:
        watch.step([fact], session.edit([fact]).updates)
    assert watch.look(0)["cosine"] == pytest.approx([max(cosine[0][1:3]), cosine[1][2], -1], abs=1e-5)
    watch.step(facts[3:], session.edit(facts[3:]).updates)
    assert watch.look(1)["cosine"] == pytest.approx([cosine[1][3], cosine[2][3], -1], abs=1e-5)


def test_layers_add_up_and_a_look_begins_anew(begun, facts):
    session, watch = begun(1, 2)
    lm, first = session.model, facts[:2]
    before = {a: lm.weight(a).clone() for a in (1, 2)}
    watch.step(first, session.edit(first).updates)
    keys = {a: edit_keys(lm, first, a, ()) for a in (1, 2)}
    after = {a: lm.weight(a).clone() for a in (1, 2)}
    wrote = sum((after[a] - before[a]) @ keys[a] for a in (1, 2))
    for fact in facts[2:]:
        was = {a: lm.weight(a).clone() for a in (1, 2)}
        watch.step([fact], session.edit([fact]).updates)
        moved = sum((lm.weight(a) - was[a]) @ keys[a] for a in (1, 2))
        share = (moved.norm(dim=0) / wrote.norm(dim=0)).tolist()
        assert watch.look(0)["interference"][:2] == pytest.approx(share, rel=1e-3)


def test_an_edit_that_wrote_nothing_has_none(begun, facts):
    session, watch = begun(2)
    watch.step(facts[:1], [])  # as after a step that was rolled back
    watch.step(facts[1:2], session.edit(facts[1:2]).updates)
    found = watch.look(0)
    assert math.isnan(found["interference"][0]) and math.isnan(found["taken_back"][0])
    assert found["interference"][1] == 0


def test_it_goes_on_where_another_stood(begun, facts):
    session, watch = begun(2)
    for fact in facts[:2]:
        watch.step([fact], session.edit([fact]).updates)
    other = Interference(session.model, [2])
    other.load_state_dict(
        {name: tensor.clone() for name, tensor in watch.state_dict().items()} | {"edits": torch.ones(1)}
    )
    updates = session.edit(facts[2:]).updates
    watch.step(facts[2:], updates)
    other.step(facts[2:], updates)
    assert other.look(0) == watch.look(0)
