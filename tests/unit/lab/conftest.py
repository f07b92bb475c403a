"""A laboratory on a tiny random model."""

import pytest

from editkit.lab.laboratory import Laboratory


@pytest.fixture
def make_lab(tiny, full_spec, facts, store):
    """``make_lab()``: a laboratory, with the first of the facts in its form."""

    def build(lm=None, **hyperparameters) -> Laboratory:
        values = full_spec(**{"v_num_grad_steps": 3, **hyperparameters}).model_dump(exclude_unset=True)
        del values["method"]
        lab = Laboratory(lm or tiny(), facts=facts, hyperparameters=values, store=store, heldout=facts[2:])
        lab.pick(facts[0])
        return lab

    return build


@pytest.fixture
def lab(make_lab) -> Laboratory:
    return make_lab()
