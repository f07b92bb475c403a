"""The laboratory without a front end: edit, see, undo; stop; settings, order, adapters, comparison."""

import itertools

import pytest
import torch

import editkit as ek
from editkit import EditSession
from editkit.lab import laboratory

LONG = 120  # seconds that no task on a tiny model takes


def bits(lm):
    return {layer: lm.weight(layer).numpy(force=True).tobytes() for layer in range(lm.n_layers)}


def done(lab):
    lab.wait(LONG)
    assert not lab.worker.error, lab.worker.error
    return lab


def test_edit_see_undo(lab):
    lm, untouched = lab.lm, bits(lab.lm)
    look, reasons = lab.look()
    assert reasons == [] and len(look.says) == 5 and look.new_tokens
    [edited] = [token for token, here in look.tokens if here]
    assert lab.form.subject.endswith(edited.strip())
    lab.edit()
    done(lab)
    assert bits(lm) != untouched
    assert [entry.fact for entry in lab.entries] == [lab.form.fact()]
    assert lab.seen.before.says == look.says != lab.seen.after.says
    assert [step.number for step in lab.worker.steps] == [1, 2, 3]
    assert lab.bench.trust is not None and lab.result.delta_norm > 0
    assert lab.look()[1] == ["this edit is in the model"]
    lab.undo()
    done(lab)
    assert bits(lm) == untouched and lab.entries == [] and lab.seen is None


def test_the_model_is_as_a_session_of_its_own_would_leave_it(lab, tiny, facts):
    for fact in facts[:2]:
        lab.pick(fact)
        lab.edit()
        done(lab)
    other = tiny()
    session = EditSession(other, lab._stated("alphaedit"), progress=False)
    for fact in facts[:2]:
        session.edit([fact])
    assert bits(other) == bits(lab.lm)


def stop_at(lab, number):
    """Let the worker be told to stop while a search is at one of its steps."""

    def changed():
        if lab.worker.busy and lab.worker.steps and lab.worker.steps[-1].number == number:
            lab.stop()

    lab.changed = changed


def test_stop_between_steps_leaves_the_weights_bit_for_bit(lab, facts):
    lab.edit()
    held = bits(done(lab).lm)
    lab.pick(facts[1])
    stop_at(lab, 2)
    lab.edit()
    done(lab)
    assert [step.number for step in lab.worker.steps] == [1, 2], "it went on to another step"
    assert bits(lab.lm) == held and [entry.fact for entry in lab.entries] == facts[:1]
    assert lab.worker.notes[0] == "stopped: the weights are as they were"
    lab.changed = lambda: None
    lab.edit()
    done(lab)
    assert len(lab.entries) == 2 and bits(lab.lm) != held


def test_an_edit_is_shown_before_all_is_read_and_stays_when_that_is_stopped(lab):
    shown = []

    def changed():
        if lab.worker.doing == "writing sentences":
            shown.append(lab.seen)
            lab.stop()

    lab.changed = changed
    lab.edit()
    held = bits(done(lab).lm)
    assert [entry.fact for entry in lab.entries] == [lab.form.fact()] == lab.bench.facts
    assert "stopped: the edits stay, the rest was not read" in lab.worker.notes
    assert shown[0].after.says and shown[0].after.text == "" and lab.bench.trust is None
    lab.changed = lambda: None
    lab.show(0)
    assert done(lab).seen.after.says == shown[0].after.says and lab.seen.after.written and lab.bench.trust
    assert bits(lab.lm) == held


def test_the_model_as_it_came_is_read_once_a_fact(lab, facts, monkeypatch):
    lab.edit()
    before = done(lab).seen.before
    lab.undo()
    untouched = bits(done(lab).lm)
    monkeypatch.setattr(laboratory, "known_probes", lambda *_, **__: pytest.fail("asked again"))
    real = laboratory.write

    def written(lm, *rest):
        assert bits(lm) != untouched, "written again"
        return real(lm, *rest)

    monkeypatch.setattr(laboratory, "write", written)
    lab.edit()
    assert done(lab).seen.before is before


def test_a_failing_write_leaves_the_weights_bit_for_bit(lab, facts, monkeypatch):
    lab.edit()
    held = bits(done(lab).lm)
    real, calls = EditSession.edit, itertools.count()

    def fails(session, items):
        if next(calls) == 1:  # the second edit of those that are made anew
            raise FloatingPointError("layer 1: the update is not finite; the weights stay as they were")
        return real(session, items)

    lab.pick(facts[1])
    monkeypatch.setattr(EditSession, "edit", fails)
    lab.choose("memit")  # solves the first again
    done(lab)
    assert bits(lab.lm) != held
    held = bits(lab.lm)
    lab.edit()
    lab.wait(LONG)
    assert lab.worker.error == "layer 1: the update is not finite; the weights stay as they were"
    assert bits(lab.lm) == held and [entry.fact for entry in lab.entries] == facts[:1]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"subject": ""}, "type the subject"),
        ({"subject": "", "new": " "}, "type the subject and the new object"),
        ({"subject": "Berlin", "prompt": "The city of Rome lies in"}, "subject 'Berlin' is not in the prompt"),
        ({"new": "Swedish "}, "the new object is the true one, 'Swedish': there is nothing to edit"),
        ({"prompt": "{} and {} speak"}, "holds {} 2 times; one is needed"),
        ({"prompt": "{} " + "a " * 600}, "512 positions"),
    ],
)
def test_what_cannot_be_edited_in_is_told_in_words(lab, fields, reason):
    lab.type(**fields)
    [told] = lab.look()[1]
    assert reason in told and "\n" not in told
    with pytest.raises(ValueError, match="."):
        lab.edit()
    assert not lab.worker.busy


def test_settings_that_do_not_fit_are_told_in_words(lab):
    lab.choose("rome", replay="buffer")
    assert "edits one fact at a time" in lab.look()[1][0]
    lab.choose(replay=None)
    assert lab.look()[1] == []


def test_weights_and_methods_solve_again_without_a_search(lab, facts, tiny, monkeypatch):
    for fact in facts[:2]:
        lab.pick(fact)
        lab.edit()
        done(lab)
    seen = [bits(lab.lm)]

    def never(*_):
        pytest.fail("a target was searched again")

    monkeypatch.setattr("editkit.language.targets._optimise", never)
    for change in ({"l2": 5.0}, {"nullspace_threshold": 0.5}, {"method": "memit"}, {"mom2_update_weight": 50.0}):
        lab.choose(**change)
        done(lab)
        assert lab.settled and bits(lab.lm) not in seen
        seen.append(bits(lab.lm))
    lab.choose("emmet")
    lab.choose("alphaedit", l2=None, nullspace_threshold=None)
    done(lab)
    lab.again()
    assert bits(done(lab).lm) == seen[0]
    monkeypatch.undo()
    lab.choose(v_num_grad_steps=4)
    assert not lab.settled and not lab.worker.busy, "other steps need other targets: nobody asked for that yet"
    lab.again()
    assert len(done(lab).worker.steps) == 4 and lab.settled


def test_order_and_switches_are_as_if_made_so(lab, make_lab, facts):
    def made(*wanted):
        other = make_lab()
        for fact in wanted:
            other.pick(fact)
            other.edit()
            done(other)
        return bits(other.lm)

    for fact in facts[:3]:
        lab.pick(fact)
        lab.edit()
        done(lab)
    a, b, c = facts[:3]
    lab.move(2, 0)
    assert bits(done(lab).lm) == made(c, a, b) and [entry.fact for entry in lab.entries] == [c, a, b]
    lab.switch(1)
    assert bits(done(lab).lm) == made(c, b) and [entry.on for entry in lab.entries] == [True, False, True]
    lab.switch(1)
    assert bits(done(lab).lm) == made(c, a, b)
    lab.remove(0)
    assert bits(done(lab).lm) == made(a, b)
    lab.base()
    assert bits(done(lab).lm) == made() and lab.entries == []


def test_a_new_object_replaces_the_edit_of_its_topic(lab, facts):
    lab.edit()
    done(lab)
    lab.type(new="Rome")
    lab.edit()
    done(lab)
    assert [(entry.fact.subject, entry.fact.target_new) for entry in lab.entries] == [("Anna Karlsson", "Rome")]


@torch.no_grad()
def logits(lm, text):
    return lm.logits(lm.forward(torch.tensor([lm.encode(text)[0]], device=lm.device)))


def test_save_and_load_an_adapter(lab, make_lab, facts, tmp_path):
    untouched, text = bits(lab.lm), facts[0].text
    lab.save(tmp_path / "raw")
    lab.wait(LONG)
    assert lab.worker.error == "there is no edit to save"
    lab.choose(edit_mode="lora", lora_stack="fixed", lora_rank=4)
    for fact in facts[:2]:
        lab.pick(fact)
        lab.edit()
        done(lab)
    assert bits(lab.lm) == untouched, "adapters lie beside the weights"
    lab.save(tmp_path / "mine")
    assert done(lab).saved == tmp_path / "mine"
    wanted = logits(lab.lm, text)
    lab.choose(edit_mode="raw", lora_stack=None)
    assert bits(done(lab).lm) != untouched
    lab.save(tmp_path / "raw")
    lab.wait(LONG)
    assert "choose 'adapter'" in lab.worker.error and not (tmp_path / "raw").exists()

    other = make_lab()
    other.load(tmp_path / "mine")
    done(other)
    torch.testing.assert_close(logits(other.lm, text), wanted)
    other.pick(facts[2])
    says = other.look()[0].says
    other.edit()
    assert done(other).seen.before.says == says, "before is with the loaded adapter"
    other.load(tmp_path / "mine")
    other.wait(LONG)
    assert "the model holds edits" in other.worker.error
    other.choose(edit_mode="raw")
    assert "an adapter lies beside the weights" in other.look()[1][0]
    other.base()
    assert bits(done(other).lm) == untouched and not other.lm.has_adapters


def test_an_adapter_of_another_model_is_refused_in_place(lab, make_lab, tiny, tmp_path):
    lab.choose(edit_mode="lora")
    lab.edit()
    done(lab)
    lab.save(tmp_path / "mine")
    done(lab)
    other = make_lab(tiny(seed=1))
    other.load(tmp_path / "mine")
    other.wait(LONG)
    assert "was made for another base model" in other.worker.error and not other.lm.has_adapters
    other.edit()
    done(other)


def test_methods_are_compared_on_one_fact_and_the_model_stays(lab, make_lab, facts):
    lab.edit()
    held = bits(done(lab).lm)
    lab.pick(facts[1])
    lab.compare(["rome", "memit"])
    assert list(done(lab).compared) == ["rome", "memit"] and bits(lab.lm) == held
    for method, reading in lab.compared.items():
        other = make_lab()
        other.choose(method)
        for fact in facts[:2]:
            other.pick(fact)
            other.edit()
            done(other)
        assert other.seen.after.says == reading.says
        assert other.seen.after.prompts.equals(reading.prompts)


@pytest.mark.parametrize("edit_mode", ["raw", "lora"])
def test_the_program_makes_the_same_model(lab, tiny, facts, monkeypatch, capsys, edit_mode):
    lab.choose("memit", mom2_update_weight=3.0, edit_mode=edit_mode)
    for fact in facts[:2]:
        lab.pick(fact)
        lab.edit()
        done(lab)
    monkeypatch.setattr(ek, "load_lm", lambda name: tiny())
    exec(lab.as_python(), made := {})
    assert lab.lm.fingerprint() == made["lm"].fingerprint()
    assert "'ES'" in capsys.readouterr().out


def test_only_one_thing_is_done_at_a_time(lab):
    lab.edit()
    with pytest.raises(RuntimeError, match="editing first"):
        lab.undo()
    assert lab.look()[1] == ["editing"] or not lab.worker.busy
    done(lab)
