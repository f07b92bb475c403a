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
    assert list(METHODS) == [*methods.COMPARED, "memit_rls", "ultraedit", "encore", "betaedit"]
    assert methods.COMPARED == ("rome", "memit", "emmet", "alphaedit")
    assert not METHODS.keys() & CONTROLS.keys() and methods.UNTOUCHED in CONTROLS
    assert get_args(methods.MethodName) == tuple(METHODS)
    assert get_args(methods.SequenceMethodName) == tuple(name for name in METHODS if name not in ("rome", "ultraedit"))
    assert get_args(methods.TargetMethodName) == tuple(name for name in METHODS if name != "ultraedit")


def test_labels_and_colours_tell_all_apart():
    looks = [look(name) for name in METHODS | CONTROLS]
    assert len({one.label for one in looks}) == len({one.colour for one in looks}) == len(looks)
    assert len({method.marker for method in METHODS.values()}) == len(METHODS)
    assert [label(name) for name in ("emmet", "pre", "a run of mine")] == ["EMMET", "no edit", "a run of mine"]
    with pytest.raises(ValueError, match="unknown method 'rime': must be one of rome, memit"):
        look("rime")


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour, as the WCAG defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_of_methods_stand_out_from_white():
    contrast = {name: 1.05 / (luminance(method.colour) + 0.05) for name, method in METHODS.items()}
    assert min(contrast.values()) > 3, contrast


def test_the_table_of_the_documentation_holds_each_row():
    head, rule, *rows = table().splitlines()
    assert table(methods.COMPARED).splitlines() == [head, rule, *rows[:4]]
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
    slacks = {name: method.slack(X, method.precision(C, spec), spec) for name, method in METHODS.items()}
    eigenvalues = torch.linalg.eigvalsh(X.T @ METHODS["emmet"].precision(C, spec).apply(X))
    exact = {"rome": 0.0, "emmet": 0.2 * eigenvalues.mean().item()}
    assert slacks == pytest.approx({name: 1.0 for name in METHODS} | exact)


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
