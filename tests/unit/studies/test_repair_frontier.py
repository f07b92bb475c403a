"""What a repair costs: promises, numbers of edits, the direction of shifts, and what moved."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from editkit.studies import repair_frontier as module
from editkit.studies.repair_frontier import POINTS, by_count, directions, frontier, moved
from editkit.studies.repair_tables import judged
from editkit.studies.repairs import repair, repair_all, session, subset
from editkit.vision.data import ImageSet
from editkit.vision.keys import repairs

JUDGED = ["weight", "fixed", "generality", "kept", "test_kept", "test_accuracy", "heldout_change"]


def scores(row):
    return pytest.approx([row[name] for name in JUDGED], nan_ok=True)


def test_the_frontier_has_a_row_a_method_and_promise_that_it_keeps(study):
    one = study(edit_layers=[2], kept_budget=0.95)
    table = frontier(one, ["emmet", "head_closed", "finetuning", "retraining"], [0.8, 1.0])
    points = [("emmet", 0), ("emmet", 0.8), ("emmet", 0.95), ("emmet", 1), ("head_closed", 0), ("head_closed", 0.95)]
    points += [("finetuning", 0), ("finetuning", 0.95), ("retraining", 0)]
    assert list(zip(table.method, table.point, strict=True)) == points and list(table) == POINTS
    assert (table.kept >= table.point).all() and table.kept[0] < 0.8, "which is what a promise is for"
    assert table.at_budget.tolist() == [point == 0.95 for point in table.point] and set(table.n_edits) == {4}
    assert table.loc[0, JUDGED].tolist() == scores(judged(one, repair(one, "emmet", kept_budget=None)))
    assert table.loc[2, JUDGED].tolist() == scores(judged(one, repair(one, "emmet")))
    weights = table.weight[:4].tolist()
    assert np.isnan(weights[0]) and 0 < weights[1] <= weights[2] <= weights[3]


def test_a_study_without_a_budget_has_no_promise_of_its_own_on_the_frontier(study):
    table = frontier(study(edit_layers=[2]), ["emmet", "head_closed"], [0.9])
    assert list(zip(table.method, table.point, strict=True)) == [("emmet", 0), ("emmet", 0.9), ("head_closed", 0)]
    assert table.at_budget.tolist() == [True, False, True]


def test_what_diverges_is_left_out_of_the_frontier(study):
    one = study(edit_layers=[2], finetune_lr=1e30)
    with pytest.warns(UserWarning, match="finetuning is left out: .*diverged"):
        assert frontier(one, ["finetuning", "emmet"], []).method.tolist() == ["emmet"]


def test_more_and_more_of_the_same_images_are_repaired(study):
    one = study(edit_layers=[2], kept_budget=0.9, max_edits=0)
    total = len(one.candidates)
    drawn = [{*subset(one, n).candidates.indices} for n in (1, 3, total)]
    assert drawn[0] < drawn[1] < drawn[2] == {*one.candidates.indices}
    table = by_count(one, ["emmet", "head_closed"], [3, 1, total, 1000])
    assert table.n_edits.tolist() == [1, 1, 3, 3, total, total] and (table.kept >= 0.9).all()
    assert table.method.tolist() == ["emmet", "head_closed"] * 3
    alone = subset(one, 3)
    assert table.loc[2, JUDGED].tolist() == scores(judged(alone, repair(alone, "emmet")))
    assert table.loc[4, JUDGED].tolist() == scores(judged(one, repair(one, "emmet")))
    assert list(by_count(replace(one, candidates=one.candidates.select([])), ["emmet"], [1])) == POINTS


@pytest.mark.parametrize(
    "shifts, cosines, share",
    [
        ([[2.0, 0.0], [1.0, 3**0.5]], [3**0.5 / 2] * 2, 0.75),  # of equal length, 60° apart: halfway between them
        ([[2.0, 0.0], [0.0, 1.0]], [1.0, 0.0], 0.8),
        ([[-2.0, 0.0], [1.0, 0.0]], [1.0, -1.0], 1.0),
    ],
)
def test_the_common_direction_of_known_shifts(monkeypatch, shifts, cosines, share):
    part = ImageSet(np.zeros((2, 1, 1), np.uint8), np.array([1, 0]), np.array([7, 9]))
    hidden, values = torch.ones(2, 2), torch.tensor(shifts).T + 1  # (d, n)

    @contextmanager
    def opened(prepared, method):
        yield SimpleNamespace(domain=SimpleNamespace(hidden=lambda items, layer: hidden, targets=targets))

    def targets(items):
        return SimpleNamespace(values=values)

    monkeypatch.setattr(module, "session", opened)
    spec, data = SimpleNamespace(edit_method=["emmet"]), SimpleNamespace(labels=("a", "b"))
    table = directions(SimpleNamespace(candidates=part, spec=spec, layers=[2], data=data))
    assert table["index"].tolist() == [7, 9] and table.true.tolist() == ["b", "a"]
    assert table.cosine.tolist() == pytest.approx(cosines, abs=1e-6) and table.share.tolist() == pytest.approx(
        [share] * 2
    )
    assert table.norm.tolist() == pytest.approx(np.linalg.norm(shifts, axis=1).tolist())


def test_directions_are_those_of_the_first_editors_targets(study):
    one = study(edit_layers=[1, 2])
    items = repairs(one.candidates)
    with session(one, one.spec.edit_method[0]) as opened:
        shifts = (opened.domain.targets(items).values - opened.domain.hidden(items, 2)).double()
    values, vectors = torch.linalg.eigh(shifts @ shifts.T)
    table = directions(one)
    assert table.share.iloc[0] == pytest.approx((values[-1] / values.sum()).item())
    cosines = torch.cosine_similarity(shifts, vectors[:, -1:].expand_as(shifts), dim=0)
    assert table.cosine.abs().tolist() == pytest.approx(
        cosines.abs().tolist()
    ) and table.norm.tolist() == pytest.approx(shifts.norm(dim=0).tolist())
    assert directions(replace(one, candidates=one.candidates.select([]))).columns.tolist() == table.columns.tolist()


def test_moved_margins_by_hand():
    labels = np.array([0, 0, 1, 1, 2])
    before = np.array([[0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.2, 0.7, 0.1], [0.9, 0.05, 0.05], [0.4, 0.35, 0.25]])
    after = np.array([[0.2, 0.7, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    val = SimpleNamespace(labels=labels)
    prepared = SimpleNamespace(data=SimpleNamespace(val=val, labels=("a", "b", "c")), before={"val": before})
    table = moved(prepared, [SimpleNamespace(method="memit", after={"val": after})])
    assert table["class"].tolist() == ["a", "b"] and table.n.tolist() == [2, 1], "c was not right before"
    first = [np.log(0.2 / 0.7) - np.log(0.6 / 0.3), np.log(0.8 / 0.1) - np.log(0.5 / 0.4)]
    second = np.log(0.8 / 0.1) - np.log(0.7 / 0.2)
    assert table["shift"].tolist() == pytest.approx([np.mean(first), second])
    assert table.spread.tolist() == pytest.approx([abs(first[0] - first[1]) / 2, 0])
    assert table.broken.tolist() == [0.5, 0.0] and set(table.method) == {"memit"}


def test_what_moved_is_what_the_repairs_report_tells(study):
    one = study(edit_layers=[2])
    done = repair_all(one, ["emmet", "finetuning"])
    table = moved(one, done)
    kept = [1 - np.average(rows.broken, weights=rows.n) for _, rows in table.groupby("method", sort=False)]
    assert kept == pytest.approx([judged(one, repaired)["kept"] for repaired in done])
    assert not moved(one, []).size and list(moved(one, [])) == list(table)
