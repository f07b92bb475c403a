"""The laboratory's widgets, pressed as a front end would."""

import ipywidgets
import pytest
from bs4 import BeautifulSoup

from editkit.lab.widgets import FactRoom, playground
from tests.unit.lab.test_laboratory import LONG, bits


@pytest.fixture
def shown(lab):
    return FactRoom(lab)


def press(shown, name):
    shown.buttons[name].click()
    shown.lab.wait(LONG)
    assert "✘" not in shown.notice.value, shown.notice.value


def test_edit_see_undo(shown, facts):
    lm, untouched = shown.lab.lm, bits(shown.lab.lm)
    assert "clean model" in shown.head.value and shown.fields["subject"].value == facts[0].subject
    assert not shown.buttons["edit"].disabled and shown.buttons["undo"].disabled and shown.buttons["stop"].disabled
    press(shown, "edit")
    assert bits(lm) != untouched and "1 edit in the model" in shown.head.value
    assert "step 3 of 3" in shown.loss.value and "Before" in shown.result.value and "trust" in shown.result.value
    assert len(shown.entries.children) == 1 and "session.edit" in shown.python.value
    assert shown.buttons["edit"].disabled and "this edit is in the model" in shown.reasons.value
    press(shown, "undo")
    assert bits(lm) == untouched and "clean model" in shown.head.value and not shown.entries.children


def test_the_head_says_what_the_model_holds_while_the_rest_is_still_read(shown):
    heads, changed = {}, shown.lab.changed

    def watched():
        changed()
        heads.setdefault(shown.lab.worker.doing, shown.head.value)

    shown.lab.changed = watched
    press(shown, "edit")
    assert "clean model" in heads["editing"] and "1 edit in the model" in heads["writing sentences"]


def test_typing_is_followed_and_a_wrong_subject_told(shown):
    shown.fields["subject"].value = "Berlin"
    shown.fields["prompt"].value = "Rome lies in"
    assert shown.buttons["edit"].disabled and "is not in the prompt" in shown.reasons.value
    shown.fields["subject"].value = "Rome"
    assert not shown.buttons["edit"].disabled and "says now" in shown.says.value
    assert BeautifulSoup(shown.tokens.value, "html.parser").get_text().endswith("Rome␣lies␣in")
    shown.fields["subject"].value = "<b>Rome</b>"
    assert "<b>Rome" not in shown.reasons.value


def test_a_fact_is_picked_with_all_that_belongs_to_it(shown, facts):
    shown.fields["fact"].value = facts[1]
    assert shown.fields["true"].value == "Italy" and shown.fields["paraphrases"].value == facts[1].paraphrases[0]
    assert shown.lab.form.fact() == facts[1]
    shown.fields["fact"].value = None
    assert shown.fields["subject"].value == "" and "type the subject" in shown.reasons.value


def test_settings_reach_the_spec_and_a_weight_solves_again(shown):
    press(shown, "edit")
    before = bits(shown.lab.lm)
    s = shown.settings
    [threshold, ridge] = s["knobs"].children
    assert (threshold.description, ridge.value) == ("nullspace_threshold", shown.lab.spec().l2)
    ridge.value = max(value for _, value in ridge.options)
    shown.lab.wait(LONG)
    assert bits(shown.lab.lm) != before and shown.lab.bench.spec.l2 == ridge.value
    s["method"].value = "memit"
    shown.lab.wait(LONG)
    assert [knob.description for knob in s["knobs"].children] == ["mom2_update_weight"]
    s["edit_mode"].value = "lora"
    shown.lab.wait(LONG)
    assert (shown.lab.bench.spec.edit_mode, shown.lab.bench.spec.lora_stack) == ("lora", "fixed")
    s["layers"].value, s["v_num_grad_steps"].value = (2, 3), 2
    assert shown.lab.spec().layers == [2, 3] and not shown.lab.settled
    assert "made under other settings" in shown.head.value and not shown.buttons["again"].disabled
    s["target_mode"].value = "fast"
    assert shown.lab.spec().target_mode == "fast"
    press(shown, "again")
    assert shown.lab.settled and shown.buttons["again"].disabled and "step 2 of 2" in shown.loss.value


def test_compare_save_and_load(shown, lab, tmp_path):
    shown.compared.value = ("rome", "emmet")
    press(shown, "compare")
    assert "ROME" in shown.comparison.value and "EMMET" in shown.comparison.value
    shown.settings["edit_mode"].value = "lora"
    press(shown, "edit")
    shown.folder.value = str(tmp_path / "mine")
    press(shown, "save")
    press(shown, "base")
    press(shown, "load")
    assert f"with {tmp_path / 'mine'}" in shown.head.value
    shown.folder.value = str(tmp_path / "nothing")
    shown.buttons["load"].click()
    lab.wait(LONG)
    assert "nothing is no folder; an adapter is one" in shown.notice.value


def test_buttons_of_an_entry(shown, lab):
    press(shown, "edit")

    def button(words):
        [found] = [b for b in shown.entries.children[0].children[1:] if b.description == words]
        found.click()
        lab.wait(LONG)

    button("off")
    assert "clean model" in shown.head.value and ": off" in shown.entries.children[0].children[0].value
    button("on")
    button("show")
    assert "1 edit in the model" in shown.head.value
    button("remove")
    assert not shown.entries.children


def test_edits_move_earlier_and_later(shown, lab, facts):
    press(shown, "edit")
    shown.fields["fact"].value = facts[1]
    press(shown, "edit")
    words = [[b.description for b in row.children[1:]] for row in shown.entries.children]
    assert words == [["show", "off", "remove", "later"], ["show", "off", "remove", "earlier"]]
    shown.entries.children[0].children[-1].click()
    lab.wait(LONG)
    assert [entry.fact for entry in lab.entries] == [facts[1], facts[0]] == lab.bench.facts


def test_what_is_read_shows_while_more_is_read(shown, lab):
    """A front end sees before and after as soon as there is something, with what is being done beside it."""
    seen = []
    own = lab.changed

    def changed():
        own()
        seen.append((lab.worker.doing, "After" in shown.result.value, "trust" in shown.result.value))

    lab.changed = changed
    press(shown, "edit")
    assert ("editing", False, False) in seen and ("writing sentences", True, False) in seen
    assert seen[-1] == ("", True, True)


def test_one_call_opens_it(tiny, facts, full_spec, store):
    values = full_spec().model_dump(exclude_unset=True)
    del values["method"]
    opened = playground(tiny(), facts=facts, hyperparameters=values, store=store)
    assert isinstance(opened, ipywidgets.Widget) and opened.lab.form.fact() == facts[0]
    assert opened.lab.bench.heldout and opened.facts.lab is opened.lab
    assert opened.titles == ("Facts", "Images") and opened.images.lab.prepared is None
