"""Scores of a classifier, and what a change did to its predictions, by hand."""

import numpy as np
import pytest

from editkit.vision.metrics import calibration_error, compare, confusion, per_class, summary

NAMES = ("dark", "grey", "bright")
LABELS = np.array([0, 0, 1, 1, 2])
BEFORE = np.array([[0.9, 0.1, 0], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.3, 0.3, 0.4]])


def test_summary_and_tables_by_hand():
    scores = summary(LABELS, BEFORE)
    assert scores["n"] == 5 and scores["accuracy"] == pytest.approx(0.6)
    assert scores["nll"] == pytest.approx(-np.log([0.9, 0.2, 0.8, 0.3, 0.4]).mean())
    assert scores["macro_f1"] == pytest.approx((0.5 + 0.5 + 1.0) / 3)
    table = confusion(LABELS, BEFORE, NAMES)
    assert table.to_numpy().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert (table.index.name, table.columns.name) == ("true", "predicted")
    rows = per_class(LABELS, BEFORE, NAMES)
    assert rows.recall.tolist() == [0.5, 0.5, 1.0] and rows.images.tolist() == [2, 2, 1]
    with pytest.raises(ValueError, match="no images"):
        summary(LABELS[:0], BEFORE[:0])


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    sure = np.tile([1.0, 0.0], (10, 1))
    assert calibration_error(np.repeat([0, 1], 5), sure) == pytest.approx(0.5)
    assert calibration_error(np.zeros(10, int), sure) == 0.0
    two = np.array([[0.75, 0.25]] * 4 + [[0.55, 0.45]] * 4)
    truth = np.array([0, 0, 0, 1, 0, 0, 0, 0])
    assert calibration_error(truth, two) == pytest.approx(0.5 * 0 + 0.5 * 0.45)
    calm = np.tile([0.5, 0.5], (8, 1))
    assert calibration_error(np.arange(8) % 2, calm) == pytest.approx(0.0)


def test_a_change_is_told_by_what_it_fixes_and_breaks():
    after = BEFORE.copy()
    after[1], after[3] = [0.9, 0.1, 0], [0.1, 0.8, 0.1]  # both wrong ones are fixed
    assert compare(LABELS, BEFORE, after) == {"fixed": 2, "broken": 0, "locality": 1.0, "mcnemar_p": 0.5}
    back = compare(LABELS, after, BEFORE)
    assert back["broken"] == 2 and back["locality"] == pytest.approx(0.6)
    assert compare(LABELS, BEFORE, BEFORE)["mcnemar_p"] == 1.0
    assert np.isnan(compare(LABELS[1:2], BEFORE[1:2], after[1:2])["locality"])
