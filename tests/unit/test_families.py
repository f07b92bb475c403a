"""Every supported family of language models against plain full passes of transformers' own."""

from typing import get_args

import pytest
import torch

from editkit import EditSession
from editkit.language.forward.scoring import score
from editkit.language.gradients import read_gradients
from editkit.language.keys import hidden_states, sample_contexts
from editkit.language.targets import optimise_targets
from editkit.methods import TargetMethodName
from editkit.models.language import FAMILIES
from editkit.reference import language as reference
from tests.conftest import CAUSAL, TEXTS, agree

LONG = "People in Spain speak Spanish , while the mother tongue of Anna Karlsson from Stockholm is Swedish . "
PROMPTS = [
    "Rome lies in",
    "The capital of France is",
    LONG * 2 + "The city of Rome lies in",
]  # shorter than a window, and longer
ANSWERS = ["Paris", "Rome and Stockholm in Sweden", "a"]


def test_every_row_has_its_model():
    assert CAUSAL.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", CAUSAL)
def test_scores_are_those_of_plain_passes(tiny, family):
    lm = tiny(family)
    items = [(prompt, ANSWERS) for prompt in PROMPTS]
    with torch.no_grad():
        plain = [one for item in items for one in reference.scores(lm, [item])]
    ours = [found.logprob for found in sum(score(lm, items), [])]
    assert ours == pytest.approx(plain, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("family", CAUSAL)
def test_targets_are_those_of_plain_passes(tiny, facts, full_spec, family):
    lm = tiny(family)
    # Contexts of several lengths, so that prompts are padded and longer than a window.
    contexts = [*sample_contexts(lm, 1, 3, seed=0), LONG]
    spec = full_spec(layers=[2], n_contexts=2).resolve(lm)
    ours = optimise_targets(lm, facts, spec, contexts, progress=False).values
    for column, fact in zip(ours.T, facts, strict=True):
        agree(column, reference.target(lm, fact, spec, contexts)[0], 1e-4)


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_edits_arrive_and_come_off(tiny, facts, full_spec, store, family, dtype):
    """Where little is kept, the model puts out the target in its own pass, up to the rounding of its type."""
    lm = tiny(family)
    lm.model.to(dtype)
    before, told = lm.fingerprint(), score(lm, [(facts[0].text, [facts[0].target_new])])
    unedited = hidden_states(lm, facts, 2).double()
    for method in get_args(TargetMethodName):
        edited = facts[:1] if method == "rome" else facts
        little = dict.fromkeys(("mom2_update_weight", "update_norm_lambda", "l2"), 1e-4)
        spec = full_spec(method, layers=[2], n_contexts=0, nullspace_threshold=1e6, v_num_grad_steps=3, **little)
        session = EditSession(lm, spec, texts=TEXTS, store=store, progress=False)
        targets = session.edit(edited).targets.values.double()
        missed = targets - hidden_states(lm, edited, 2).double()
        share = missed.norm() / (targets - unedited[:, : len(edited)]).norm()
        assert share <= {torch.float32: 2e-3, torch.bfloat16: 0.2, torch.float16: 0.03}[dtype], method
        assert score(lm, [(facts[0].text, [facts[0].target_new])]) != told
        session.undo()
        assert lm.fingerprint() == before


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_small_step_down_the_gradients_helps_and_comes_off(tiny, facts, full_spec, store, family, dtype):
    lm = tiny(family)
    lm.model.to(dtype)
    before, spec = lm.fingerprint(), full_spec("ultraedit", layers=[1, 2], gradient_lr=1e-2)
    session = EditSession(lm, spec, texts=TEXTS, contexts=[], store=store, progress=False)
    told = session.edit(facts).targets.losses.mean()
    assert read_gradients(lm, facts, session.spec, progress=False).losses.mean() < told
    session.undo()
    assert lm.fingerprint() == before


@pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if row.norm])
def test_layers_before_a_norm_cannot_share_a_target(tiny, full_spec, family):
    with pytest.raises(ValueError, match=r"layers = \[1, 2\]: tiny-.* normalises what an edited matrix puts out"):
        EditSession(tiny(family), full_spec(layers=[1, 2]), texts=TEXTS)


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        ("falcon", {"alibi": True}, "alibi = True"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before = False"),
    ],
)
def test_members_of_a_family_that_differ_are_refused(tiny, family, changes, told):
    with pytest.raises(ValueError, match=f"tiny-{family}: a {family} with {told} is not supported"):
        tiny(family, **changes)
