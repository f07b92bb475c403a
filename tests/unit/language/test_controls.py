"""What editors are compared with: each comes into force in a block, and all are measured alike."""

import math

import pytest

from editkit import evaluate
from editkit.language.controls import Untouched, measure
from editkit.language.finetune import LocFTSpec, finetune_matrix
from editkit.language.incontext import InContext, Oracle
from editkit.methods import CONTROLS


def test_every_control_is_measured_like_the_model_itself(tiny, facts):
    lm = tiny()
    mark, plain = lm.fingerprint(), evaluate(lm, facts)
    tuned = finetune_matrix(lm, facts, LocFTSpec(layer=2, lr=0.05, num_steps=5), progress=False)
    controls = [Untouched(lm), tuned, InContext(lm, facts), Oracle(lm, facts)]
    frames = {control.name: measure(control, facts) for control in controls}
    assert frames.keys() <= CONTROLS.keys() and lm.fingerprint() == mark
    assert frames.pop("pre").equals(plain)
    for frame in frames.values():
        assert frame[["fact", "kind", "prompt"]].equals(plain[["fact", "kind", "prompt"]])
        assert not frame.logprob_new.equals(plain.logprob_new)
    assert [control.parameters for control in controls] == [0, 16 * 24, 0, 0]
    assert [math.isnan(control.delta_norm) for control in controls] == [False, False, True, True]
    for control in controls:
        with pytest.raises(ValueError, match="no facts"):
            measure(control, [])


def test_anything_can_be_measured(tiny, facts):
    lm = tiny()
    asked = []

    def how(model, facts):
        asked.append([fact.id for fact in facts])
        return evaluate(model, facts).head(1)

    assert len(measure(Untouched(lm), facts, how)) == 1 and len(measure(Oracle(lm, facts), facts, how)) == len(facts)
    assert asked == [[fact.id for fact in facts], *([fact.id] for fact in facts)]
