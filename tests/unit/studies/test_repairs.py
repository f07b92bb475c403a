"""A study of repairs on tiny random models."""

import json
from contextlib import nullcontext
from dataclasses import FrozenInstanceError
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from safetensors import safe_open
from scipy.stats import binomtest

from editkit import RunParams, VisionModel
from editkit.methods import TargetMethodName
from editkit.studies import repair_tables as tables
from editkit.studies import repairs as module
from editkit.studies.intervals import mean_interval
from editkit.studies.repair_spec import CONTROLS, HEADS, OWN, ImageParams, RepairSpec
from editkit.studies.repairs import costs, load_data, load_each, repair, repair_all, session, subset
from editkit.studies.tables import layer_statistics, rank_layers
from editkit.vision.controls import load_changes, restored
from editkit.vision.data import ImageSet
from editkit.vision.forward import predict
from editkit.vision.keys import repairs
from tests.unit.conftest import bits, measured, refuse

ALL = (*get_args(TargetMethodName), *CONTROLS)


def test_a_reports_names_are_those_of_the_study():
    own = {f"vit_{name}": field for name, field in RepairSpec.model_fields.items() if name not in OWN}
    assert ImageParams.model_fields.keys() == {*own, "vit_data", "vit_data_options", "vit_seeds", "vit_thresholds"}
    for name, field in own.items():
        found = ImageParams.model_fields[name]
        assert (found.description, found.annotation) == (field.description, field.annotation) and found.description
    spec = RepairSpec.of(RunParams(device="cpu", vit_lr=0.5, vit_window=1, vit_seeds=[4]), 3)
    assert (spec.seed, spec.device, spec.lr, spec.window, spec.copies) == (3, "cpu", 0.5, 1, RepairSpec().copies)
    assert (spec.n_train, RepairSpec().n_train) == (120, 0), "the report's default is smaller"
    assert (spec.kept_budget, spec.layer_selection) == (0.98, "swept")
    with pytest.raises(ValueError, match="unknown key 'vit_epoch'; did you mean vit_epochs"):
        RunParams(vit_epoch=1)
    with pytest.raises(ValueError, match="vit_copies = 0"):
        RunParams(vit_copies=0)


def test_each_data_set_of_a_report_has_the_options_that_are_said_of_it():
    options = {"b": {"n_train": 7, "edit_layers": [3]}}
    params = RunParams(vit_data=["a", "b"], vit_data_options=options, vit_copies=2)
    first, second = RepairSpec.of(params, 5), RepairSpec.of(params, 5, "b")
    assert (first.data, first.n_train, first.edit_layers) == ("a", params.vit_n_train, params.vit_edit_layers)
    assert (second.data, second.n_train, second.edit_layers, second.seed, second.copies) == ("b", 7, [3], 5, 2)
    assert RepairSpec.of(params, 5, "a") == first
    for options, message in (
        ({"c": {"n_train": 7}}, "vit_data_options of 'c': vit_data has a, b"),
        ({"b": {"data": "c"}}, "vit_data_options of b: data is said by vit_data and vit_seeds"),
        ({"b": {"seed": 1}}, "vit_data_options of b: seed is said by vit_data and vit_seeds"),
        ({"b": {"n_trains": 7}}, "unknown key 'n_trains'; did you mean n_train"),
        ({"b": {"n_train": -1}}, "n_train = -1"),
    ):
        with pytest.raises(ValueError, match=message):
            RepairSpec.of(RunParams(vit_data=["a", "b"], vit_data_options=options), 5, "b")
    with pytest.raises(ValueError, match="vit_data = "):
        RunParams(vit_data=[])


def test_the_seed_of_a_study_reaches_its_data(study, made):
    one, same, other = study(edit_layers=[2], n_train=30), study(edit_layers=[2], n_train=30), study(seed=1, n_train=30)
    assert one.data.hash() == same.data.hash() != other.data.hash()
    assert one.candidates.indices.tolist() == same.candidates.indices.tolist()
    assert one.data.test.hash() == other.data.test.hash(), "official splits stay, and there is no noise"
    specs = [RepairSpec(data=made, image_noise=0.1, seed=seed) for seed in (1, 2)]
    noisy = load_each(specs)
    assert noisy[0].test.hash() != noisy[1].test.hash() and [one.about["seed"] for one in noisy] == [1, 2]
    clean = load_each([RepairSpec(data=made, seed=seed) for seed in (1, 2)])
    assert clean[0] is clean[1], "where nothing is drawn the images are loaded once"
    digits = [load_data(RepairSpec(seed=seed, held_out_ratio=0.5)).test.indices for seed in (1, 2)]
    assert len(digits[0]) == 899 and digits[0].tolist() != digits[1].tolist()


def test_edited_images_are_drawn_of_all_that_are_wrong(study):
    every = study(max_edits=0, edit_layers=[2]).candidates.indices
    drawn = [study(seed=seed, max_edits=4, edit_layers=[2]).candidates.indices for seed in (0, 0)]
    assert drawn[0].tolist() == drawn[1].tolist() == sorted(drawn[0]) and set(drawn[0]) < set(every)
    assert drawn[0].tolist() != every[:4].tolist()


def test_what_was_measured_before_any_edit_cannot_be_changed(study):
    one = study(edit_layers=[2])
    before = {name: p.copy() for name, p in one.before.items()}
    done = repair_all(one, ["emmet", "finetuning"])
    assert all(np.array_equal(one.before[name], p) for name, p in before.items())
    assert all(not np.array_equal(repaired.after["edited"], before["edited"]) for repaired in done)
    for value, name in ((one, "before"), (one, "layers"), (done[0], "after")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)


def test_a_log_tells_the_norm_of_each_step_alone(study):
    one = study(edit_layers=[2])
    log = repair(one, "emmet", sequential=True, replay="none").log
    with session(one, "emmet", replay="none") as opened:
        norms = [opened.edit([item]).deltas[2].norm().item() for item in repairs(one.candidates)]
    assert len(norms) > 1 and log.delta_norm.tolist() == pytest.approx(norms)


def test_mistakes_are_looked_for_where_fine_tuning_did_not(study):
    one = study(edit_layers=[2], max_edits=0, n_train=30)
    pool = one.data.pool
    assert one.candidates.indices.tolist() == pool.indices[predict(one.vit, pool).argmax(1) != pool.labels].tolist()
    assert {*one.kept.indices} & {*one.data.train.indices} and {*one.kept.indices} & {*pool.indices}
    every = study(edit_layers=[2], max_edits=0)
    assert not len(every.data.pool) and len(every.candidates) and {*every.candidates.indices} <= {*range(60)}


def test_some_of_the_images_are_repaired_as_if_there_were_no_others(study):
    one = study(edit_layers=[2], max_edits=0)
    some = subset(one, 3)
    indices = some.candidates.indices.tolist()
    assert indices == sorted(indices) and len(indices) == 3 and {*indices} < {*one.candidates.indices}
    assert indices == subset(one, 3).candidates.indices.tolist()
    for name in ("edited", "copies"):
        assert np.allclose(predict(one.vit, some.panels[name].part), some.before[name], rtol=0, atol=1e-6)
    assert some.panels["copies"].part.indices.tolist() == [index for index in indices for _ in range(one.spec.copies)]
    done = repair(some, "emmet")
    assert done.log["index"].tolist() == indices and done.after["copies"].shape == (3 * one.spec.copies, 3)
    with session(some, "emmet") as opened:
        opened.edit(repairs(some.candidates))
        for name in ("edited", "copies"):
            expected = predict(one.vit, some.panels[name].part)
            assert np.allclose(done.after[name], expected, rtol=0, atol=1e-6), name
    all_of_them = subset(one, len(one.candidates))
    assert np.array_equal(repair(all_of_them, "emmet").after["test"], repair(one, "emmet").after["test"])


def test_a_report_names_the_layers_that_a_method_changes(study):
    one = study(edit_layers=[3, 1])
    report = tables.report(one, repair_all(one, ["emmet", "finetuning", "head_ewc"]))
    assert report.layers.tolist() == ["[]", "[1, 3]", "[1, 2, 3]", "[]"]


def test_options_that_one_editor_does_not_take_are_refused_with_its_name_before_training(study, monkeypatch):
    monkeypatch.setattr(module, "train", refuse)
    with pytest.raises(ValueError, match="edit_method rome with edit_options .*'hold'}: .*one fact at a time"):
        study(edit_options={"replay": "hold"})


def test_a_method_that_diverges_is_left_out_and_the_others_are_told(study):
    one = study(edit_layers=[2], finetune_lr=1e30)
    with pytest.warns(UserWarning, match="fine-tuning is left out: fine-tuning, plain, lr 1e.30: diverged"):
        repaired = repair_all(one, ["emmet", "finetuning"])
    assert [done.method for done in repaired] == ["emmet"]
    with pytest.raises(FloatingPointError, match="diverged"):
        repair_all(one, ["finetuning"])


def test_a_log_tells_what_a_step_did_to_kept_images(study, monkeypatch):
    monkeypatch.setattr(module, "WATCHED", 3)
    log = repair(study(edit_layers=[2]), "emmet").log
    assert set(log.kept_watched) == {3} and (log.kept_broken * 3 % 1 == 0).all()


def test_a_repair_takes_other_layers_than_the_studys(study):
    one = study(edit_layers=[2], edit_method=["emmet"])
    there, elsewhere = repair(one, "emmet"), repair(one, "emmet", layers=[0])
    assert not np.array_equal(there.after["val"], elsewhere.after["val"])
    below = study(edit_layers=[0], edit_method=["emmet"])
    assert np.array_equal(elsewhere.after["val"], repair(below, "emmet").after["val"])


@pytest.mark.parametrize("method", CONTROLS)
def test_a_control_is_saved_like_an_editor_and_can_be_put_back_in(study, tmp_path, method):
    one = study(edit_layers=[2], n_train=30)
    done = repair(one, method, save=tmp_path / "edits")
    assert not np.array_equal(done.after["test"], one.before["test"])
    with restored(one.vit):
        load_changes(one.vit, tmp_path / "edits" / f"{method}.safetensors")
        assert np.allclose(predict(one.vit, one.data.test), done.after["test"], rtol=0, atol=1e-6)
    with safe_open(tmp_path / "edits" / f"{method}.safetensors", "pt") as file:
        about, names = json.loads(file.metadata()["editkit"]), set(file.keys())
    assert about["method"] == method and [item["index"] for item in about["items"]] == one.candidates.indices.tolist()
    assert (method not in HEADS) == any(".mlp." in name for name in names)


@pytest.mark.parametrize("options", [{}, {"edit_mode": "lora"}], ids=["raw", "lora"])
def test_every_repair_changes_the_model_and_puts_it_back_even_after_an_error(study, monkeypatch, options):
    one = study(edit_options=options, edit_layers=[1, 2], n_train=30)
    mark, weights, scores = one.vit.fingerprint(), bits(one.vit), one.before["val"]
    forward, changed, failing = VisionModel.forward, [], False

    def watched(vit, pixels):
        if vit.fingerprint() != mark:
            changed.append(method)
            if failing:
                raise RuntimeError("in the middle")
        return forward(vit, pixels)

    monkeypatch.setattr(VisionModel, "forward", watched)
    for method in ALL:
        for failing in (False, True):
            with pytest.raises(RuntimeError, match="in the middle") if failing else nullcontext():
                repair(one, method)
            assert one.vit.fingerprint() == mark and bits(one.vit) == weights and not one.vit.has_adapters, method
    assert set(changed) == set(ALL)
    assert np.array_equal(predict(one.vit, one.data.val), scores)
    with pytest.raises(ValueError, match="unknown method 'prayer': must be one of rome.*finetuning"):
        repair(one, "prayer")


def test_what_is_known_before_is_of_the_model_before_also_inside_a_session(study):
    one, plain = study(edit_layers=[2]), study().before
    with session(one, "memit") as opened:
        opened.edit(repairs(one.candidates))
        assert np.array_equal(one.before["edited"], plain["edited"])


@pytest.mark.parametrize("options", [{}, {"edit_mode": "lora"}, {"replay": "buffer", "replay_rate": 1.0}])
def test_one_image_after_another_ends_in_the_final_state(study, options):
    one = study(sequential=True, edit_options=options, edit_layers=[1, 2], edit_method=["emmet"])
    done = repair(one, "emmet")
    log = done.log
    assert log.step.tolist() == [1, 2, 3, 4] and log["index"].nunique() == 4 and log.leakage.nunique() == 4
    assert log.after.iloc[-1] == log.final.iloc[-1] and log.leakage.iloc[-1] == done.leakage
    assert log.p_true_after.iloc[-1] == pytest.approx(log.p_true_final.iloc[-1], abs=1e-6)
    assert not np.allclose(log.p_true_after[:3], log.p_true_final[:3]), "later steps move earlier images"
    assert repair(one, "emmet", sequential=False).log.step.tolist() == [1] * 4


def test_adapters_give_the_same_evaluation_as_written_weights(study, tmp_path):
    reports, predicted = [], []
    for mode in ("raw", "lora"):
        one = study(edit_layers=[1, 2], edit_options={"edit_mode": mode})
        done = [repair(one, method, save=tmp_path / "edits") for method in ("alphaedit", "memit")]
        reports.append(measured(tables.report(one, done)))
        predicted.append(tables.predictions(one, done).filter(like="p(").to_numpy())
    assert_frame_equal(*reports, atol=1e-4, rtol=1e-4)
    assert np.allclose(*predicted, rtol=0, atol=1e-4) and not one.vit.has_adapters
    assert {path.name for path in (tmp_path / "edits").iterdir()} == {
        f"{method}{suffix}" for method in ("alphaedit", "memit") for suffix in ("", ".safetensors")
    }


def test_alphaedit_leaks_less_the_lower_its_threshold(study):
    one = study(edit_layers=[1], max_edits=1)
    values = torch.linalg.eigvalsh(costs(one, [1])[1])
    thresholds = (1.01 * values[[1, 10, 20, 31]]).tolist()
    found = tables.leakages(one, thresholds, ["memit", "alphaedit"])
    assert list(found.columns) == tables.LEAKS
    assert found.method.tolist() == ["memit"] + ["alphaedit"] * 5 and np.isnan(found.threshold[0])
    assert found.nullspace.tolist() == ["none", *["threshold"] * 4, "kept"]
    leaks = found.leakage[1:-1].to_numpy()
    assert (np.diff(leaks) > 0).all() and found.threshold[1:-1].tolist() == thresholds
    assert (leaks <= np.sqrt(np.array(thresholds) / 32)).all(), "C has a mean eigenvalue of 1 in 32 dimensions"


def test_variants_are_judged_like_the_repair_itself(study):
    one = study(edit_layers=[1, 2, 3])
    report = tables.report(one, [repair(one, "emmet")])[1:].reset_index(drop=True)
    variants = tables.variants(one, "emmet")
    names = ["at once, raw", "at once, LoRA", "one by one, replay none", "one by one, replay hold"]
    assert variants.variant.tolist() == names
    assert_frame_equal(measured(variants[:1].drop(columns="variant")), measured(report))


@pytest.mark.filterwarnings("ignore:accuracy on")
def test_without_a_mistake_the_tables_are_empty(study, easy):
    one = study(data=easy, epochs=4, lr=0.003, fresh_head_lr=0.01)
    assert not len(one.candidates) and one.before["edited"].shape == one.before["copies"].shape == (0, 2)
    for method in ("emmet", "finetuning"):
        with pytest.raises(ValueError, match="nothing to repair"):
            repair(one, method)
    empty = (tables.leakages(one, [0.1], ["memit"]), tables.variants(one, "emmet"))
    assert not any(len(table) for table in empty) and all(len(table.columns) > 1 for table in empty)
    assert not len(tables.by_method(tables.reports([]), tables.SCORES))


def studies_of(*seeds):
    """Made-up studies: each seed has the places and labels of its test images and what was predicted before, after."""

    def probabilities(labels):
        return np.eye(3)[np.array(labels)]

    done = []
    for seed, (places, labels, before, after) in enumerate(seeds):
        part = ImageSet(np.zeros((len(places), 1, 1), np.uint8), np.array(labels), np.array(places))
        panels = {name: SimpleNamespace(part=part) for name in ("edited", "val", "test")}
        found = {name: probabilities(before) for name in panels}, {name: probabilities(after) for name in panels}
        prepared = SimpleNamespace(panels=panels, before=found[0], spec=SimpleNamespace(seed=seed, promise=0.9))
        done.append((prepared, [SimpleNamespace(method="memit", after=found[1])]))
    return done


def test_certainty_counts_discordant_images_once_over_all_seeds():
    right, wrong = [0] * 10, [1] * 10
    before = right[:8] + wrong[:2]  # eight of ten are right
    after = wrong[:1] + right[:9]  # one of those is broken, both others are fixed
    apart = tables.certainty(studies_of((range(10), right, before, after), (range(10, 20), right, before, after)))
    (row,) = apart.to_dict("records")
    assert (row["seeds"], row["test_images"], row["test_fixed"], row["test_broken"]) == (2, 20, 4, 2)
    assert row["budget"] == 0.9
    assert row["p"] == row["p_holm"] == pytest.approx(binomtest(4, 6).pvalue)
    assert (row["fixed"], row["fixed_n"]) == (pytest.approx(18 / 20), 20)
    assert (row["kept"], row["kept_n"]) == (pytest.approx(14 / 16), 16) == (row["test_kept"], row["test_kept_n"])
    assert (row["kept_low"], row["kept_high"]) == pytest.approx(tuple(binomtest(14, 16).proportion_ci(method="exact")))
    again = tables.certainty(studies_of(*[(range(10), right, before, after)] * 2)).iloc[0]
    once = tables.certainty(studies_of((range(10), right, before, after))).iloc[0]
    assert again.drop("seeds").equals(once.drop("seeds")), "the same images again are no further evidence"
    undone = tables.certainty(studies_of((range(10), right, before, after), (range(10), right, after, before))).iloc[0]
    assert (undone.test_fixed, undone.test_broken, undone.p) == (0, 0, 1), "fixed once and broken once"
    assert tables.certainty([]).empty and tables.certainty_shown(tables.certainty([])).empty
    shown = tables.certainty_shown(apart).iloc[0]
    assert shown.kept == f"0.875 [{row['kept_low']:.3f}, {row['kept_high']:.3f}] of 16" and shown["p (Holm)"] == "0.69"


def test_holms_correction_is_over_the_methods_and_the_test_agrees_with_the_report(study):
    one = study(edit_layers=[2])
    done = [(one, repair_all(one, ["emmet", "memit", "finetuning"]))]
    found, report = tables.certainty(done), tables.reports(done)[1:]
    assert found.method.tolist() == report.method.tolist() and found.p.tolist() == report.test_mcnemar_p.tolist()
    for name in ("fixed", "kept", "test_kept", "test_fixed", "test_broken"):
        assert found[name].tolist() == pytest.approx(report[name].tolist()), name
    smallest = found.p.idxmin()
    assert found.p_holm[smallest] == pytest.approx(min(1, 3 * found.p[smallest]))
    assert (found.kept_low <= found.kept).all() and (found.kept <= found.kept_high).all()


def test_statistics_and_ranks_by_hand():
    rows = [
        ("mlp", layer, value + change) for layer, value in enumerate([0.1, 0.3, 0.2, 0.3]) for change in (-0.1, 0.1)
    ]
    statistics = layer_statistics(pd.DataFrame([*rows, ("residual", 0, 0.5)], columns=["kind", "layer", "recovered"]))
    first = statistics.iloc[0]
    half = 12.7062 * 0.1  # t of one degree of freedom times the standard error of ±0.1
    assert (first.value, first.low, first.high) == pytest.approx((0.1, 0.1 - half, 0.1 + half), abs=1e-4)
    assert statistics.n.tolist() == [2, 2, 2, 2, 1] and statistics.iloc[4][["low", "high"]].isna().all()
    assert rank_layers(statistics, 2) == [1, 3] and rank_layers(statistics, 3) == [1, 2, 3]
    assert rank_layers(statistics, 1) == [1] and rank_layers(statistics, 1, "residual") == [0]
    for n, kind in ((5, "mlp"), (0, "mlp"), (1, "attention")):
        with pytest.raises(ValueError, match=f"n = {n}, kind = '{kind}'"):
            rank_layers(statistics, n, kind)
    assert mean_interval([1.0, 1.0]) == (1.0, 1.0, 1.0)


def test_moved_margins_are_shown_a_row_a_class_and_a_column_a_method():
    columns = ["method", "class", "shift", "spread"]
    rows = [("memit", "b", -0.5, 0.25), ("memit", "a", 0.001, 1.0), ("finetuning", "b", 2.0, 0.5)]
    shown = tables.moved_shown(pd.DataFrame(rows, columns=columns))
    assert list(shown.index) == ["b", "a"] and list(shown) == ["MEMIT", "fine-tuning"]
    assert list(shown.MEMIT) == ["-0.50 ± 0.25", "0.00 ± 1.00"] and shown["fine-tuning"]["b"] == "+2.00 ± 0.50"
