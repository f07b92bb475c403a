"""The stages of a study of repairs, one by one and as a whole, from the command line and in the report."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from pandas.testing import assert_frame_equal

from editkit import load_images, load_vit
from editkit.methods import COMPARED, UNTOUCHED
from editkit.report import build_report, stages
from editkit.studies import prepared, repair_choice, repair_controls
from editkit.studies import repair_tables as tables
from editkit.studies.params import RunParams
from editkit.studies.repair_choice import traced
from editkit.studies.repair_spec import CONTROLS
from editkit.studies.repairs import repair
from editkit.studies.tables import rank_layers
from editkit.vision import domain, tracing, training
from editkit.vision.data import ImageData, ImageSet
from editkit.vision.forward import Panel
from editkit.vision.training import load_checkpoint, save_checkpoint
from tests.conftest import SHARED
from tests.unit.conftest import SMALL, WIDE, bits, measured, refuse
from tests.unit.vision.conftest import write

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("without_browser")

ALL = (*COMPARED, *CONTROLS)
SEEDED = {"edit_log", "head_edit_log", "class_report", "predictions", "confusion_matrix"}
TABLES = {
    "data_split_info": "index split label sha256",
    "training_history": "epoch loss seconds val_accuracy val_nll",
    "baseline_metrics": "split n accuracy macro_f1 nll ece",
    "layer_importance": "index class layer kind clean corrupted restored recovered share",
    "layer_statistics": "kind layer value low high n",
    "edit_log": "method step index true before p_true_before after p_true_after delta_norm leakage kept_broken "
    "kept_watched budget_weight final p_true_final layers",
    "head_edit_log": "step loss edited_accuracy penalty kept_accuracy change taken_back seconds method",
    "predictions": "method index true predicted",
    "evaluation_report": "method seed model dataset layers n_edits budget weight fixed generality kept test_kept "
    "val_fixed val_broken val_mcnemar_p test_fixed test_broken test_mcnemar_p test_accuracy test_macro_f1 "
    "test_nll test_ece heldout_change leakage seconds peak_memory_mb",
    "evaluation_certainty": "method seeds test_images budget fixed fixed_low fixed_high fixed_n kept kept_low "
    "kept_high kept_n test_kept test_kept_low test_kept_high test_kept_n test_fixed test_broken p p_holm",
    "class_report": "class precision recall f1 images method",
    "confusion_matrix": "true predicted before after difference method",
    "target_directions": "index true cosine share norm",
    "moved_margins": "method split class shift spread broken n",
    "frontier": (
        POINTS := "method n_edits point at_budget weight fixed generality kept test_kept test_accuracy "
        "heldout_change seconds"
    ),
    "frontier_edits": POINTS,
}
SWEEP = {"layer_sweep": "layers chosen margin weight fixed generality kept best"}  # where layers are swept


def read(path):
    return {file.stem: pd.read_csv(file) for file in sorted((path / "results").glob("*.csv"))}


MODELS = {"vit": dict(family="vit", size=224, patch=16, layers=3), "dinov2": dict(family="dinov2", layers=3)}
FAST = {"copies": 1, "finetune_steps": 3, "edit_options": WIDE | {"v_num_grad_steps": 5}}
TRACED = FAST | {"controls": ["head_closed", "retraining"]}
SWEPT = FAST | {"layer_selection": "swept", "kept_budget": 0.9, "margins": [0.5, 1.0]}
SWEPT |= {"controls": ["head_closed", "rehearsal"]}
CASES = [
    ("pneumoniamnist", "vit", 32, TRACED),
    ("pneumoniamnist", "dinov2", 28, TRACED),
    ("path", "vit", 224, SWEPT),
    ("path", "dinov2", 56, TRACED),
]


@pytest.mark.parametrize("data, family, pixels, options", CASES)
@pytest.mark.filterwarnings("ignore:pneumoniamnist")
def test_the_command_line_writes_every_table(run, folder, tmp_path, data, family, pixels, options):
    if data == "path":
        source, sizes, classes, extra = write(tmp_path / "path.npz", n=12), (36, 12, 12), 9, {}
    elif (source := SHARED / f"{data}.npz").exists():
        sizes, classes, extra = (3882, 524, 624), 2, {"n_train": 100, "epochs": 2}
    else:
        pytest.skip(f"needs {data}.npz in ../shared/data, which is absent here")
    with pytest.warns(UserWarning, match="no browser to draw"):
        assert run(data=source, model=folder(**MODELS[family]), image_size=pixels, seed=1, **extra, **options) == 0
    path = tmp_path / "runs" / f"vit-{data}"
    found = read(path)
    tables, controls = TABLES | (SWEEP if options is SWEPT else {}), options["controls"]
    assert found.keys() == tables.keys()
    for name, columns in tables.items():
        more = [f"p({label})" for label in range(classes)] if name == "predictions" else []
        more += ["seed"] * (name in SEEDED)
        more += ["val_accuracy", "val_nll"] * (name == "head_edit_log" and "retraining" in controls)
        assert set(found[name].columns) == {*columns.split(), *more}, name
    report, listed = found["evaluation_report"].set_index("method"), found["predictions"]
    methods = [UNTOUCHED, "emmet", "memit", "alphaedit", "rome", *controls]
    assert list(report.index) == methods and set(found["head_edit_log"].method) == set(controls)
    rows = {name: len(table) for name, table in found.items()}
    assert rows["data_split_info"] == sum(sizes) and rows["training_history"] == extra.get("epochs", 1)
    assert (rows["layer_importance"], rows["layer_statistics"], rows["edit_log"]) == (4 * 9, 9, 4 * 4)
    assert (rows["predictions"], rows["class_report"]) == (
        len(methods) * sizes[2],
        len(methods) * classes,
    )
    bounded = [method for method in methods[1:] if method != "retraining"]
    assert rows["frontier_edits"] == 2 * len(methods[1:]) and rows["target_directions"] == 4
    assert rows["frontier"] == 4 * 2 + len(controls) * (2 if options is SWEPT else 1)
    if options is SWEPT:
        sweep = found["layer_sweep"]
        assert sweep.chosen.tolist() == ["one layer"] * 2 + ["traced", "the last three", "margin"]
        assert set(report.layers[list(COMPARED)]) == set(sweep.layers[sweep.best]) and sweep.best.sum() == 1
        assert (report.kept[bounded] >= 0.9).all() and set(report.budget) == {0.9}
    assert np.allclose(listed.filter(like="p(").sum(axis=1), 1)
    baseline = found["baseline_metrics"].set_index("split")
    for name in ("accuracy", "macro_f1", "nll", "ece"):
        assert report.loc[UNTOUCHED, f"test_{name}"] == pytest.approx(baseline.loc["test", name])
    for method, rows in listed.groupby("method"):
        assert report.test_accuracy[method] == pytest.approx((rows.true == rows.predicted).mean())
    assert baseline.loc["test", "n"] == sizes[2] and report.fixed[UNTOUCHED] == 0 and report.kept[UNTOUCHED] == 1
    cells = found["confusion_matrix"]
    assert len(cells) == classes**2 and cells[["before", "after", "difference"]].sum().tolist() == [*sizes[2:] * 2, 0]
    assert (path / "checkpoint.safetensors").exists()
    assert {file.suffix for file in (path / "figures").iterdir()} == {".html", ".js"}, "no browser draws them here"
    assert {file.name for file in (path / "edits").iterdir()} == {
        f"{method}.safetensors" for method in (*COMPARED, *controls)
    }


def test_stages_one_by_one_give_what_the_whole_gives_and_repeat_nothing(run, tmp_path, monkeypatch):
    assert run(run_name="whole") == 0
    monkeypatch.setenv("EDITKIT_CACHE", str(cache := tmp_path / "another"))
    for stage in ("data", "train", "locate", "tune", "edit", "eval"):
        assert run(stage, run_name="parts") == 0
        assert (cache / "training").exists() == (stage != "data"), "data does not train"
        assert (cache / "trace").exists() == (stage not in ("data", "train")), "train does not trace"
        if stage == "train":
            monkeypatch.setattr(training, "_epoch", refuse)
        if stage == "locate":
            monkeypatch.setattr(tracing, "trace", refuse)
    whole, parts = (read(tmp_path / "runs" / name) for name in ("whole", "parts"))
    assert whole.keys() == TABLES.keys() == {*parts, "frontier", "frontier_edits"}
    for name in parts:
        assert_frame_equal(measured(whole[name]), measured(parts[name]))
    checkpoint = tmp_path / "runs" / "whole" / "checkpoint.safetensors"
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "empty"))
    assert run("train", run_name="read", checkpoint=checkpoint) == 0
    assert (
        run("eval", run_name="read", checkpoint=checkpoint, edit_layers=rank_layers(whole["layer_statistics"], 3)) == 0
    )
    found = read(tmp_path / "runs" / "read")
    evaluated = {"evaluation_report", "evaluation_certainty", "class_report", "predictions", "confusion_matrix"}
    assert found.keys() == {"baseline_metrics", *evaluated}
    for name in ("baseline_metrics", "predictions"):
        assert_frame_equal(found[name], whole[name])


def test_figures_hold_what_the_tables_hold(study):
    one = study()
    drawn = stages.train(one).figures | stages.locate(one).figures
    assert stages.tune(one).figures == {}, "nothing was tried"
    out = stages.evaluate([(one, [repair(one, "memit")])])
    drawn |= out.figures
    names = {"training_curve", "layer_importance", "patch_heat_map", "confusion_matrix", "repair_gallery", "repairs"}
    names |= {"broken_gallery"}
    assert names <= {name for listed in stages.DRAWN.values() for name in listed}, "as --help lists them"
    assert drawn.keys() == names and all(isinstance(figure, go.Figure) for figure in drawn.values())
    assert list(drawn["training_curve"].data[0].y) == one.training.history.loss.tolist()
    means = stages.locate(one).tables["layer_statistics"].set_index("kind").value
    assert [list(bar.y) for bar in drawn["layer_importance"].data] == [list(means[k]) for k in means.index.unique()]
    cells = out.tables["confusion_matrix"]
    heats = drawn["confusion_matrix"].data
    assert [np.ravel(h.z).tolist() for h in heats] == [cells[c].tolist() for c in ("before", "after", "difference")]
    captions = " ".join(str(note.text) for note in drawn["repair_gallery"].layout.annotations)
    assert captions.count("→") == len(one.candidates) == 4


@pytest.mark.parametrize("protocol", ["official", "held-out"])
def test_no_held_out_image_is_ever_learnt_from(study, monkeypatch, protocol):
    seen = {}

    def spy(where, name):
        real = getattr(where, name)

        def call(*args, **options):
            given = (*args, *options.values())
            parts = [part for part in given if isinstance(part, ImageSet)]
            parts += [panel.part for panel in given if isinstance(panel, Panel)]
            parts += [data.train for data in given if isinstance(data, ImageData)]
            seen.setdefault(name, set()).update(i for part in parts for i in part.indices.tolist())
            return real(*args, **options)

        monkeypatch.setattr(where, name, call)

    learning = {"stored_trace": repair_choice, "kept_moments": domain, "finetune": repair_controls}
    learning |= {"edit_head": repair_controls, "train": repair_controls, "heat_maps": stages}
    learning = list(learning.items())
    judging = [("RepairSession", prepared), ("Panel", repair_choice)]  # on val
    for name, where in learning + judging:
        spy(where, name)
    one = study(protocol=protocol, n_train=30, max_edits=0, max_samples=2, layer_selection="swept", kept_budget=0.9)
    stages.locate(one)
    repaired = [repair(one, method) for method in ALL]
    tables.leakages(one, [0.5], ["alphaedit"])
    closed, wide = set(one.data.test.indices), set(one.data.open.indices)
    assert seen.keys() == {name for name, _ in learning + judging} and not wide & closed
    assert set.union(*(seen[name] for name, _ in learning)) <= wide == {*one.data.train.indices, *one.data.pool.indices}
    assert set.union(*seen.values()) - wide == set(one.data.val.indices) and not closed & set.union(*seen.values())
    wrong = set(one.candidates.indices)
    assert wrong | set(one.kept.indices) <= wide and wrong <= set(one.data.pool.indices)
    assert seen["train"] == wrong | set(one.data.train.indices) and seen["finetune"] >= wrong
    assert set(traced(one, one.candidates)["index"]) <= wrong == set(repaired[0].log["index"])
    assert set(tables.predictions(one, repaired)["index"]) == closed


@pytest.mark.filterwarnings("ignore:accuracy on")
def test_a_perfect_model_is_told_and_left_alone(run, easy, tmp_path, capsys):
    options = dict(data=easy, epochs=4, lr=0.003, fresh_head_lr=0.01)
    assert run(**options) == 0
    assert "misclassifies no image of easy: nothing to repair" in capsys.readouterr().out
    path = tmp_path / "runs" / "vit-easy"
    assert read(path).keys() == {"data_split_info", "training_history", "baseline_metrics"}
    assert {entry.name for entry in path.iterdir()} == {"results", "figures", "checkpoint.safetensors"}


@pytest.mark.slow
def test_the_chapter_says_that_nothing_is_misclassified_and_shows_the_rest(folder, easy, tmp_path):
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "04_vit_alphaedit.ipynb", tmp_path / "notebooks")
    params = {"vit_data": [easy], "vit_model": folder(), "vit_n_train": 0, "vit_epochs": 10, "vit_lr": 0.003}
    params |= {"vit_image_noise": 0.0, "vit_edit_layers": [1], "vit_trained_layers": None, "vit_num_edit_layers": 2}
    (tmp_path / "easy.yaml").write_text(json.dumps(params))  # JSON is YAML
    report = build_report(tmp_path / "easy.yaml", tmp_path / "report", notebooks=tmp_path / "notebooks")
    assert report.ok, report.chapters[0].failure
    sentences = read(report.folder)["vit_findings"].finding.tolist()
    assert sentences == ["No image was misclassified, so nothing was repaired."]
    assert "nothing is repaired, and the sections below stay empty" in report.html.read_text()


def test_a_checkpoint_is_read_into_the_same_model_alone(folder, run, tmp_path):
    first, labels = folder(name="first"), ["a", "b", "c"]
    vit, other = load_vit(first, labels=labels, seed=1), load_vit(first, labels=labels, seed=2)
    data, else_divided = load_images(n_train=100), load_images(n_train=200)
    path = save_checkpoint(vit, data, tmp_path / "checkpoint.safetensors")
    load_checkpoint(other, data, path)
    assert bits(other) == bits(vit)
    assert run("edit", edit_layers=1, edit_method="memit") == 0
    updates = tmp_path / "runs" / "vit-made" / "edits" / "memit.safetensors"
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-10])
    deep, renamed = load_vit(folder(layers=3, name="deep"), labels=labels), load_vit(first, labels=["a", "b", "d"])
    larger = load_vit(first, labels=labels, image_size=2 * vit.image_size)
    for model, file, message in (
        (deep, path, f"'{first}', this is '{deep.name}'"),
        (renamed, path, r"labels \['a', 'b', 'c'\], here \['a', 'b', 'd'\]"),
        (larger, path, rf"pixels \[{vit.image_size}, .* here \[{larger.image_size}, "),
        (other, updates, "memit.safetensors is not a checkpoint"),
        (other, tmp_path / "cut.safetensors", "cut.safetensors is not a checkpoint"),
        (other, tmp_path / "none", "none is not a checkpoint"),
    ):
        before = bits(model)
        with pytest.raises(ValueError, match=message):
            load_checkpoint(model, data, file)
        assert bits(model) == before
    with pytest.raises(ValueError, match=f"data {data.hash()}, here {else_divided.hash()}"):
        load_checkpoint(other, else_divided, path)


def test_a_further_data_set_that_is_not_here_is_left_out_with_a_warning(folder, made, tmp_path):
    other, own = str(write(tmp_path / "other.npz", size=28, channels=(), classes=2)), {"max_edits": 2, "margins": [2.0]}
    none = str(tmp_path / "none.npz")
    small = {f"vit_{name}": value for name, value in SMALL.items()} | {"vit_edit_options": WIDE, "vit_n_train": 0}
    small |= {"vit_model": folder(), "vit_edit_layers": [2], "vit_edit_method": ["emmet"], "vit_trained_layers": None}
    params = RunParams(vit_data=[made, none, other], vit_data_options={other: own}, device="cpu", **small)
    with pytest.warns(UserWarning, match=r"none.npz is left out: .*none.npz does not exist"):
        out = stages.other_images(params)
    table = out.tables["other_images"]
    assert set(table.dataset) == {"other"} and out.figures.keys() == {"edits_other"}
    assert table.n_edits.tolist() == [1] * 3 + [2] * 3 and set(table.layers) == {"[2]"} and set(table.margin) == {2.0}
    assert table.method.tolist() == ["emmet", "head_closed", "finetuning"] * 2
    alone = stages.other_images(params.model_copy(update={"vit_data": [made]}))
    assert alone.tables["other_images"].columns.is_unique and {*alone.tables["other_images"]} == {*table}
    (tmp_path / "cut.npz").write_bytes(Path(other).read_bytes()[:500])
    broken = params.model_copy(update={"vit_data": [made, str(tmp_path / "cut.npz")], "vit_data_options": {}})
    with pytest.raises(ValueError, match="cut.npz is not a file in MedMNIST's layout"):
        stages.other_images(broken)
