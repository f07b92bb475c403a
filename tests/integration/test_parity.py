"""Targets, keys and updates against what the published MEMIT code computed for eight CounterFact records."""

import json

import pytest
import torch
from safetensors.torch import load_file

import editkit as ek
from editkit.facts import counterfact
from editkit.language.keys import edit_keys
from editkit.language.targets import optimise_targets
from editkit.reference import language as reference
from tests.conftest import SHARED


@pytest.fixture(scope="module")
def published(counterfact_path):
    """What that code computed, and the facts and the spec that it was given."""
    path = SHARED / "parity" / "memit_smollm2.json"
    if not path.exists():
        pytest.skip(f"needs what the published code computed, {path.name} in ../shared/data/parity, absent here")
    found = json.loads(path.read_text())
    found["tensors"] = load_file(path.with_suffix(".safetensors"))
    found["facts"] = counterfact.read(counterfact_path)[: len(found["losses"])]
    return found


@pytest.fixture(scope="module")
def spec(lm, published):
    return ek.EditSpec(method="memit", **published["hyperparameters"]).resolve(lm)


@pytest.fixture(scope="module")
def targets(lm, published, spec):
    return optimise_targets(lm, published["facts"], spec, published["contexts"], progress=False)


@pytest.fixture(scope="module")
def costs(lm, spec):
    """The file's C: 0.05 times the identity."""
    return {layer: 0.05 * torch.eye(lm.d_k, dtype=torch.float64) for layer in spec.layers}


def error(ours: torch.Tensor, oracle: torch.Tensor) -> float:
    return ((ours.double() - oracle.double()).norm() / oracle.double().norm()).item()


def curve_error(ours: list[float], oracle: list[float]) -> float:
    assert len(ours) == len(oracle), "the optimisation ends after as many steps"
    return max(abs(a - b) for a, b in zip(ours, oracle, strict=True))


def test_targets_and_loss_curves(published, targets):
    for i, losses in enumerate(published["losses"]):
        assert error(targets.values[:, i], published["tensors"][f"target.{i}"]) <= 1e-4
        assert curve_error([x for x in targets.losses[i].tolist() if x == x], losses) <= 2e-3


@pytest.mark.parametrize("i", [0, 3, 7])  # the plain algorithm takes ten seconds each
def test_target_and_loss_curve_of_the_plain_algorithm(lm, published, spec, i):
    value, ours = reference.target(lm, published["facts"][i], spec, published["contexts"])
    assert error(value, published["tensors"][f"target.{i}"]) <= 1e-4
    assert curve_error(ours, published["losses"][i]) <= 2e-3


def test_keys(lm, published, spec):
    facts, contexts = published["facts"], published["contexts"]
    for layer in spec.layers:
        oracle = published["tensors"][f"keys.{layer}"]
        ours = edit_keys(lm, facts, layer, contexts).T
        plain = torch.stack([reference.key(lm, fact, layer, contexts) for fact in facts])
        for i in range(len(facts)):
            assert error(ours[i], oracle[i]) <= 1e-5
            assert error(plain[i], oracle[i]) <= 1e-5


def test_updates_of_three_layers(lm, published, spec, costs, monkeypatch):
    session = ek.EditSession(lm, spec, contexts=published["contexts"], progress=False)
    monkeypatch.setattr(session.domain, "costs", lambda: costs)
    result = session.edit(published["facts"])
    session.undo()
    for update in result.updates:
        assert error(update.update.delta, _update(published, update.layer)) <= 1e-3


def test_updates_of_the_plain_algorithm(lm, published, spec, costs):
    facts, contexts = published["facts"], published["contexts"]
    V = torch.stack([published["tensors"][f"target.{i}"] for i in range(len(facts))], dim=1)
    before = lm.fingerprint()
    updates = reference.memit_updates(lm, facts, spec, contexts, V, costs)
    assert lm.fingerprint() == before
    for layer, update in updates.items():
        assert error(update, _update(published, layer)) <= 1e-3


def _update(published: dict, layer: int) -> torch.Tensor:
    tensors = published["tensors"]
    return tensors[f"update.{layer}.left"].double() @ tensors[f"update.{layer}.right"].double()
