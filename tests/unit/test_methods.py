"""The rows of methods: what every reader of them may rely on, and that a new row is a new method."""

from typing import get_args

import pytest
import torch

from editkit import EditSession, methods
from editkit.editing.session import Session
from editkit.editing.spec import known_defaults, load_defaults
from editkit.methods import CONTROLS, METHODS, Method, SolverSpec, label, look, table
from editkit.reference.solvers import weighted_normal_equations
from editkit.solvers import inverse_precision
from tests.conftest import TEXTS, agree


def test_names_of_methods_and_controls_never_meet():
    assert list(METHODS) == ["rome", "memit", "emmet", "alphaedit"]
    assert not METHODS.keys() & CONTROLS.keys() and methods.UNTOUCHED in CONTROLS
    assert get_args(methods.MethodName) == tuple(METHODS)
    assert get_args(methods.BatchMethodName) == ("memit", "emmet", "alphaedit")


def test_labels_and_colours_tell_all_apart():
    looks = [look(name) for name in METHODS | CONTROLS]
    assert len({one.label for one in looks}) == len({one.colour for one in looks}) == len(looks)
    assert len({method.marker for method in METHODS.values()}) == len(METHODS)
    assert [label(name) for name in ("emmet", "pre", "a run of mine")] == ["EMMET", "no edit", "a run of mine"]
    with pytest.raises(ValueError, match="unknown method 'rime': must be one of rome, memit"):
        look("rime")


def test_the_table_of_the_documentation_holds_each_row():
    head, rule, *rows = table().splitlines()
    assert len(rows) == len(METHODS) and {line.count("|") for line in (head, rule, *rows)} == {5}
    for row, method in zip(rows, METHODS.values(), strict=True):
        assert all(part in row for part in (method.label, method.cost, method.slack_formula, method.source))
        assert "arXiv" in method.source


@pytest.mark.parametrize("model", known_defaults())
def test_defaults_are_given_for_methods_that_exist(model):
    assert load_defaults(model).keys() <= {"shared", *METHODS}


def test_a_precision_inverts_its_cost():
    samples = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)).double()
    C, X = samples @ samples.T / 40, samples[:, :3]
    spec = SolverSpec(mom2_update_weight=3.0, update_norm_lambda=0.1, emmet_lambda=0.2, nullspace_threshold=1.0, l2=2.0)
    for method in METHODS.values():
        precision = method.precision(C, spec)
        moved = precision.apply(X)
        agree(precision.apply(precision.cost(moved)), moved)
    slacks = [method.slack(X, method.precision(C, spec), spec) for method in METHODS.values()]
    eigenvalues = torch.linalg.eigvalsh(X.T @ METHODS["emmet"].precision(C, spec).apply(X))
    assert slacks == pytest.approx([0.0, 1.0, 0.2 * eigenvalues.mean().item(), 1.0])


def test_a_new_row_is_a_new_method(tiny, facts, full_spec, store, monkeypatch):
    nearest = Method(
        "Nearest",
        "#F0E442",
        "star",
        cost="$I$",
        slack_formula="$2I$",
        source="nowhere",
        precision=lambda C, spec: inverse_precision(torch.eye(len(C), dtype=torch.float64, device=C.device)),
        slack=lambda K, precision, spec: 2.0,
    )
    monkeypatch.setitem(METHODS, "nearest", nearest)
    lm = tiny()
    usual = EditSession(lm, full_spec(layers=[2]), texts=TEXTS, store=store, progress=False)
    spec = usual.spec.model_copy(update={"method": "nearest"})  # names are checked against the rows of the import
    session = Session(lm, spec, usual.domain)
    usual.domain.costs()  # samples contexts
    before, K = lm.weight(2).double(), usual.domain.keys(facts, 2).double()
    start = usual.domain.hidden(facts, 2)
    result = session.edit(facts)
    R = (result.targets.values - start.to(result.targets.values)).double()
    delta = weighted_normal_equations(K, R, torch.eye(len(K)).to(K), torch.full((len(facts),), 0.5).to(K))
    agree(result.deltas[2], delta)
    agree(lm.weight(2).double() - before, delta, 1e-5)
    assert label("nearest") == "Nearest" and "| Nearest | $I$ | $2I$ | nowhere |" in table()
