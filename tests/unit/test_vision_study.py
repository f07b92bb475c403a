"""A study of repairs on tiny random models, as a library and from the command line."""

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from pandas.testing import assert_frame_equal
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTConfig, ViTForImageClassification

from editkit import METHODS, VisionModel, load_vit
from editkit.cli import main
from editkit.figures import style
from editkit.findings import vision_findings
from editkit.report import build_report
from editkit.tracing import rank_layers
from editkit.vision import stages, training
from editkit.vision import study as module
from editkit.vision.data import ImageSet, load_images
from editkit.vision.editing import leakage, repairs
from editkit.vision.evaluation import predict
from editkit.vision.study import CONTROLS, NO_EDIT, Study, StudySpec
from editkit.vision.training import load_checkpoint, save_checkpoint
from tests.conftest import SHARED
from tests.unit.test_vision_data import write

ROOT = Path(__file__).parents[2]

SMALL = dict(epochs=1, max_edits=4, num_ablations=1)
ALL = (*METHODS, *CONTROLS)
SEEDED = {"edit_log", "head_edit_log", "class_report", "predictions", "confusion_matrix"}
TABLES = {
    "data_split_info": "index split label sha256",
    "training_history": "epoch loss seconds val_accuracy val_nll",
    "baseline_metrics": "split n accuracy macro_f1 nll ece",
    "layer_importance": "index class layer kind clean corrupted restored recovered share",
    "layer_statistics": "kind layer value low high n",
    "edit_log": "method step index true before p_true_before after p_true_after delta_norm leakage kept_broken "
    "kept_watched final p_true_final layers",
    "head_edit_log": "step loss edited_accuracy penalty kept_accuracy change seconds method",
    "predictions": "method index true said",
    "evaluation_report": "method seed model dataset layers n_edits fixed generalisation kept val_fixed val_broken "
    "val_mcnemar_p test_fixed test_broken test_mcnemar_p test_accuracy test_macro_f1 test_nll test_ece heldout_change "
    "leakage seconds peak_memory_mb",
    "class_report": "class precision recall f1 images method",
    "confusion_matrix": "true said before after difference method",
}


@pytest.fixture(autouse=True)
def without_browser(monkeypatch):
    monkeypatch.setattr(style, "find_browser", lambda: None)


@pytest.fixture
def folder(tmp_path):
    """A random model in a folder, as the hub has them; ``vit`` on 224 pixels is google/vit-base-patch16-224's form."""

    def build(family="vit", *, size=28, patch=7, layers=4, name=""):
        torch.manual_seed(0)
        shape = dict(hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, image_size=size)
        shape |= dict(patch_size=patch, num_labels=7, initializer_range=0.3)
        path = tmp_path / (name or f"tiny-{family}-{size}")
        {
            "dinov2": lambda: Dinov2ForImageClassification(Dinov2Config(mlp_ratio=2, **shape)),
            "vit": lambda: ViTForImageClassification(ViTConfig(intermediate_size=32, **shape)),
        }[family]().save_pretrained(path)
        settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": size, "width": size}}
        (path / "preprocessor_config.json").write_text(json.dumps(settings))
        return str(path)

    return build


@pytest.fixture
def made(tmp_path):
    """Images of noise in three classes: a model gets most of them wrong, and some right."""
    return str(write(tmp_path / "made.npz", size=28, channels=(), classes=3))


@pytest.fixture
def study(folder, made):
    def build(**changes):
        return Study(StudySpec(**(SMALL | {"data": made, "model": folder()} | changes)), progress=False)

    return build


@pytest.fixture
def run(tmp_path, folder, made):
    """``run("edit", epochs=2)``: the exit code of a stage on the command line."""

    def call(stage="full", **options):
        words = ["vit", "--stage", stage, "--out", str(tmp_path / "runs")]
        for name, value in (SMALL | {"data": made, "model": folder()} | options).items():
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
        return main(words)

    return call


def tables(path):
    return {file.stem: pd.read_csv(file) for file in sorted((path / "results").glob("*.csv"))}


def bits(vit):
    return {name: tensor.numpy().tobytes() for name, tensor in vit.model.state_dict().items()}


def measured(frame):
    """All that does not depend on the machine's mood."""
    return frame.drop(columns=["seconds", "peak_memory_mb"], errors="ignore")


def refuse(*_, **__):
    pytest.fail("this was done before")


MODELS = {"vit": dict(family="vit", size=224, patch=16, layers=3), "dinov2": dict(family="dinov2", layers=3)}
CASES = [("pneumoniamnist", "vit", 32), ("pneumoniamnist", "dinov2", 28), ("path", "vit", 224), ("path", "dinov2", 56)]


@pytest.mark.parametrize("data, family, pixels", CASES)
@pytest.mark.filterwarnings("ignore:pneumoniamnist")
def test_the_command_line_writes_every_table(run, folder, tmp_path, data, family, pixels):
    if data == "path":
        source, sizes, classes, extra = write(tmp_path / "path.npz", n=12), (36, 12, 12), 9, {}
    elif (source := SHARED / f"{data}.npz").exists():
        sizes, classes, extra = (3882, 524, 624), 2, {"n_train": 100, "epochs": 2}
    else:
        pytest.skip(f"needs {data}.npz in ../shared/data, which is absent here")
    with pytest.warns(UserWarning, match="no browser to draw"):
        assert run(data=source, model=folder(**MODELS[family]), image_size=pixels, seed=1, **extra) == 0
    path = tmp_path / "runs" / f"vit-{data}"
    found = tables(path)
    assert found.keys() == TABLES.keys()
    for name, columns in TABLES.items():
        more = [f"p({label})" for label in range(classes)] if name == "predictions" else []
        more += ["seed"] * (name in SEEDED)
        assert set(found[name].columns) == {*columns.split(), *more}, name
    report, told = found["evaluation_report"].set_index("method"), found["predictions"]
    methods = [NO_EDIT, "alphaedit", "emmet", "memit", "rome", *CONTROLS]
    assert list(report.index) == methods and set(found["head_edit_log"].method) == set(CONTROLS)
    rows = {name: len(table) for name, table in found.items()}
    assert rows["data_split_info"] == sum(sizes) and rows["training_history"] == extra.get("epochs", 1)
    assert (rows["layer_importance"], rows["layer_statistics"], rows["edit_log"]) == (4 * 9, 9, 4 * 4)
    assert (rows["predictions"], rows["class_report"]) == (8 * sizes[2], 8 * classes)
    assert np.allclose(told.filter(like="p(").sum(axis=1), 1)
    baseline = found["baseline_metrics"].set_index("split")
    for name in ("accuracy", "macro_f1", "nll", "ece"):
        assert report.loc[NO_EDIT, f"test_{name}"] == pytest.approx(baseline.loc["test", name])
    for method, rows in told.groupby("method"):
        assert report.test_accuracy[method] == pytest.approx((rows.true == rows.said).mean())
    assert baseline.loc["test", "n"] == sizes[2] and report.fixed[NO_EDIT] == 0 and report.kept[NO_EDIT] == 1
    cells = found["confusion_matrix"]
    assert len(cells) == classes**2 and cells[["before", "after", "difference"]].sum().tolist() == [*sizes[2:] * 2, 0]
    assert (path / "checkpoint.safetensors").exists() and not (path / "figures").exists()
    assert {file.name for file in (path / "edits").iterdir()} == {f"{method}.safetensors" for method in METHODS}


def test_stages_one_by_one_give_what_the_whole_gives_and_repeat_nothing(run, tmp_path, monkeypatch):
    assert run(run_name="whole") == 0
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "another"))
    for stage in ("data", "train", "locate", "edit", "eval"):
        assert run(stage, run_name="parts") == 0
        if stage == "train":
            monkeypatch.setattr(training, "_epoch", refuse)
        if stage == "locate":
            monkeypatch.setattr(module, "trace", refuse)
    whole, parts = (tables(tmp_path / "runs" / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() == TABLES.keys()
    for name in TABLES:
        assert_frame_equal(measured(whole[name]), measured(parts[name]))
    checkpoint = tmp_path / "runs" / "whole" / "checkpoint.safetensors"
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "empty"))
    assert run("train", run_name="read", checkpoint=checkpoint) == 0
    assert (
        run("eval", run_name="read", checkpoint=checkpoint, edit_layers=rank_layers(whole["layer_statistics"], 3)) == 0
    )
    read = tables(tmp_path / "runs" / "read")
    assert read.keys() == {"baseline_metrics", "evaluation_report", "class_report", "predictions", "confusion_matrix"}
    for name in ("baseline_metrics", "predictions"):
        assert_frame_equal(read[name], whole[name])


def test_figures_hold_what_the_tables_hold(study):
    one = study()
    drawn = stages.train(one).figures | stages.locate(one).figures
    out = stages.evaluate(one, [one.repair("memit")])
    drawn |= out.figures
    names = {"training_curve", "layer_importance", "patch_heat_map", "confusion_matrix", "repair_gallery"}
    assert drawn.keys() == names and all(isinstance(figure, go.Figure) for figure in drawn.values())
    assert list(drawn["training_curve"].data[0].y) == one.training.history.loss.tolist()
    means = stages.locate(one).tables["layer_statistics"].set_index("kind").value
    assert [list(bar.y) for bar in drawn["layer_importance"].data] == [list(means[k]) for k in means.index.unique()]
    cells = out.tables["confusion_matrix"]
    heats = drawn["confusion_matrix"].data
    assert [np.ravel(h.z).tolist() for h in heats] == [cells[c].tolist() for c in ("before", "after", "difference")]
    captions = " ".join(str(note.text) for note in drawn["repair_gallery"].layout.annotations)
    assert captions.count("→") == len(one.candidates) == 4


def test_given_layers_come_before_traced_ones_and_those_before_the_last_three(study, monkeypatch):
    frame = pd.DataFrame({"kind": "mlp", "layer": range(4), "recovered": [0.3, 0.1, 0.9, 0.2]})
    monkeypatch.setattr(module, "trace", lambda *_, **__: frame)
    assert study(num_edit_layers=2).layers == ([0, 2], "traced")
    monkeypatch.setattr(module, "trace", refuse)
    assert study(num_edit_layers=0).layers == ([1, 2, 3], "the last three")
    one = study(edit_layers=[3, 1])
    assert one.layers == ([1, 3], "given")
    report = one.report([one.repair("emmet"), one.repair("fine-tuning"), one.repair("head, EWC")])
    assert report.layers.tolist() == ["[]", "[1, 3]", "[1, 2, 3]", "[]"]


def test_options_that_one_editor_does_not_take_are_refused_with_its_name_before_training(study, monkeypatch):
    monkeypatch.setattr(module, "train", refuse)
    with pytest.raises(ValueError, match="edit_method rome with edit_options {'replay': 'hold'}: .*one fact at a time"):
        _ = study(edit_options={"replay": "hold"}).vit


def test_a_method_that_diverges_is_left_out_and_the_others_are_told(study):
    one = study(edit_layers=[2], finetune_lr=1e30)
    with pytest.warns(UserWarning, match="fine-tuning is left out: fine-tuning, lr 1e.30: diverged"):
        repaired = stages.repair(one, ["emmet", "fine-tuning"])
    assert [done.method for done in repaired] == ["emmet"]
    with pytest.raises(FloatingPointError, match="diverged"):
        stages.repair(one, ["fine-tuning"])


def test_a_log_tells_what_a_step_did_to_kept_images(study, monkeypatch):
    monkeypatch.setattr(module, "WATCHED", 3)
    log = study(edit_layers=[2]).repair("emmet").log
    assert set(log.kept_watched) == {3} and (log.kept_broken * 3 % 1 == 0).all()


def test_a_repair_takes_other_layers_than_the_studys(study):
    one = study(edit_layers=[2], edit_method=["emmet"])
    there, elsewhere = one.repair("emmet"), one.repair("emmet", layers=[0])
    assert not np.array_equal(there.after["val"], elsewhere.after["val"])
    assert np.array_equal(
        elsewhere.after["val"], study(edit_layers=[0], edit_method=["emmet"]).repair("emmet").after["val"]
    )


@pytest.mark.parametrize("options", [{}, {"edit_mode": "lora"}], ids=["raw", "lora"])
def test_every_repair_changes_the_model_and_puts_it_back_even_after_an_error(study, monkeypatch, options):
    one = study(edit_options=options, edit_layers=[1, 2])
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
                one.repair(method)
            assert one.vit.fingerprint() == mark and bits(one.vit) == weights and not one.vit.has_adapters, method
    assert set(changed) == set(ALL)
    assert np.array_equal(predict(one.vit, one.data.val), scores)
    with pytest.raises(ValueError, match="unknown method 'prayer': must be one of rome.*fine-tuning"):
        one.repair("prayer")


def test_what_is_known_before_is_of_the_model_before_also_inside_a_session(study):
    one, plain = study(edit_layers=[2]), study().before
    with one.session("memit") as session:
        session.edit(repairs(one.candidates))
        assert np.array_equal(one.before["edited"], plain["edited"])


@pytest.mark.parametrize("options", [{}, {"edit_mode": "lora"}, {"replay": "buffer", "replay_rate": 1.0}])
def test_one_image_after_another_ends_in_the_final_state(study, options):
    done = study(sequential=True, edit_options=options, edit_layers=[1, 2], edit_method=["emmet"]).repair("emmet")
    log = done.log
    assert log.step.tolist() == [1, 2, 3, 4] and log["index"].nunique() == 4 and log.leakage.nunique() == 4
    assert log.after.iloc[-1] == log.final.iloc[-1] and log.leakage.iloc[-1] == done.leakage
    assert log.p_true_after.iloc[-1] == pytest.approx(log.p_true_final.iloc[-1], abs=1e-6)
    assert not np.allclose(log.p_true_after[:3], log.p_true_final[:3]), "later steps move earlier images"


def test_adapters_give_the_same_evaluation_as_written_weights(study, tmp_path):
    reports, said = [], []
    for mode in ("raw", "lora"):
        one = study(edit_layers=[1, 2], edit_options={"edit_mode": mode})
        done = [one.repair(method, save=tmp_path / "edits") for method in ("alphaedit", "memit")]
        reports.append(measured(one.report(done)))
        said.append(one.predictions(done).filter(like="p(").to_numpy())
    assert_frame_equal(*reports, atol=1e-4, rtol=1e-4)
    assert np.allclose(*said, rtol=0, atol=1e-4) and not one.vit.has_adapters
    assert {path.name for path in (tmp_path / "edits").iterdir()} == {
        f"{method}{suffix}" for method in ("alphaedit", "memit") for suffix in ("", ".safetensors")
    }


@pytest.mark.parametrize("protocol", ["official", "held-out"])
def test_no_held_out_image_is_ever_learnt_from(study, monkeypatch, protocol):
    seen = {}

    def spy(where, name):
        real = getattr(where, name)

        def call(*args, **options):
            parts = [part for part in (*args, *options.values()) if isinstance(part, ImageSet)]
            seen.setdefault(name, set()).update(i for part in parts for i in part.indices.tolist())
            return real(*args, **options)

        monkeypatch.setattr(where, name, call)

    learning = ("trace", "repairs", "RepairSession", "kept_moments", "edit_head", "finetune")
    for name in learning:
        spy(module, name)
    spy(stages, "heat_maps")
    one = study(protocol=protocol, n_train=30, max_edits=0, max_samples=2)
    stages.locate(one)
    repaired = [one.repair(method) for method in ALL]
    one.leakages([0.5], ["alphaedit"])
    closed, wide = set(one.data.test.indices), set(one.data.open.indices)
    assert seen.keys() == {*learning, "heat_maps"} and set.union(*seen.values()) == wide and not wide & closed
    assert (
        set(one.candidates.indices) | set(one.kept.indices) == wide == {*one.data.train.indices, *one.data.pool.indices}
    )
    assert set(one.traced["index"]) <= set(one.candidates.indices) == set(repaired[0].log["index"])
    assert set(one.predictions(repaired)["index"]) == closed


@pytest.fixture
def easy(tmp_path):
    """Dark and bright images: every model learns to tell them."""
    rng, parts = np.random.default_rng(0), {}
    for split, n in (("train", 60), ("val", 20), ("test", 20)):
        parts[f"{split}_labels"] = labels = np.arange(n) % 2
        parts[f"{split}_images"] = (rng.integers(0, 60, (n, 28, 28)) + 190 * labels[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "easy.npz", **parts)
    return str(tmp_path / "easy.npz")


@pytest.mark.filterwarnings("ignore:accuracy on")
def test_a_perfect_model_is_told_and_left_alone(run, study, easy, tmp_path, capsys):
    options = dict(data=easy, epochs=4, lr=0.003, fresh_head_lr=0.01)
    assert run(**options) == 0
    assert "misclassifies no training image of easy: nothing to repair" in capsys.readouterr().out
    path = tmp_path / "runs" / "vit-easy"
    assert tables(path).keys() == {"data_split_info", "training_history", "baseline_metrics"}
    assert {entry.name for entry in path.iterdir()} == {"results", "checkpoint.safetensors"}
    for method in ("emmet", "fine-tuning"):
        with pytest.raises(ValueError, match="nothing to repair"):
            study(**options).repair(method)


def test_findings_on_repairs_say_what_the_tables_say():
    columns = ["method", "seed", "n_edits", "fixed", "kept", "generalisation", "test_accuracy", "heldout_change"]
    rows = [("pre", 0, 20, 0.0, 1.0, 0.25, 0.9, 0.0), ("pre", 1, 30, 0.0, 1.0, 0.35, 0.92, 0.0)]
    rows += [("memit", 0, 20, 1.0, 0.98, 0.6, 0.91, 1.0), ("memit", 1, 30, 0.9, 1.0, 0.8, 0.9, -2.0)]
    traced = pd.DataFrame(
        [("mlp", 0, 0.1), ("mlp", 1, 0.3), ("residual", 0, 0.2), ("residual", 1, 0.9)],
        columns=["kind", "layer", "value"],
    )
    places = pd.DataFrame(
        [("memit", "[1]", "traced", 1.0, 0.9, -1.0)],
        columns=["method", "layers", "chosen", "fixed", "kept", "heldout_change"],
    )
    nan = float("nan")
    leaks = pd.DataFrame(
        [("memit", nan, 0.01, 0.9, 2.0), ("alphaedit", 0.1, 0.02, 1.0, 1.0), ("alphaedit", 0.01, 0.004, 0.5, 1.0)],
        columns=["method", "threshold", "leakage", "success", "norm"],
    )
    first, memit, tracing, where, leak = vision_findings(pd.DataFrame(rows, columns=columns), traced, places, leaks)
    assert "accuracy is 91.0%; 20 to 30 misclassified" in first and "(2 seeds)" in first and "30% are right" in first
    assert "MEMIT fixes 95% of them (worst seed 90%) and gets 70%" in memit
    assert "keeps 99.0%" in memit and "(98.0%)" in memit and "by -0.5 points (-2.0)" in memit
    assert tracing.endswith("restoring: mlp at layer 1 (+0.30); residual at layer 0 (+0.20).")
    assert where.endswith("MEMIT: layers [1] (traced) 100% fixed, 90.0% kept, -1.0 points.")
    assert (
        "MEMIT's, 0.01 at success 90%" in leak and "0.02, at threshold 0.1: not lower" in leak and "0.50 times" in leak
    )
    (leak,) = vision_findings(pd.DataFrame(rows, columns=columns), traced, places[:0], leaks[[True, False, True]])[3:]
    assert leak.endswith("AlphaEdit reaches that success at no threshold tried.")


@pytest.mark.slow
def test_the_chapter_says_that_nothing_is_misclassified_and_shows_the_rest(folder, easy, tmp_path):
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "04_vit_alphaedit.ipynb", tmp_path / "notebooks")
    params = {"vit_data": easy, "vit_model": folder(), "vit_n_train": 0, "vit_epochs": 10, "vit_lr": 0.003}
    params |= {"vit_image_noise": 0.0, "vit_edit_layers": [1], "vit_trained_layers": None, "vit_num_edit_layers": 2}
    (tmp_path / "easy.yaml").write_text(json.dumps(params))  # JSON is YAML
    report = build_report(tmp_path / "easy.yaml", tmp_path / "report", notebooks=tmp_path / "notebooks")
    assert report.ok, report.chapters[0].failure
    said = tables(report.folder)["vit_findings"].finding.tolist()
    assert said == ["No image was misclassified, so nothing was repaired."]
    assert "nothing is repaired, and the sections below stay empty" in report.html.read_text()


def test_alphaedit_leaks_less_the_lower_its_threshold(study):
    one = study(edit_layers=[1], max_edits=1)
    values = torch.linalg.eigvalsh(one.costs([1])[1])
    thresholds = (1.01 * values[[1, 10, 20, 31]]).tolist()
    found = one.leakages(thresholds, ["memit", "alphaedit"])
    assert set(found.columns) == {"method", "threshold", "leakage", "success", "kept", "norm"}
    assert found.method.tolist() == ["memit"] + ["alphaedit"] * 4 and np.isnan(found.threshold[0])
    leaks = found.leakage[1:].to_numpy()
    assert (np.diff(leaks) > 0).all() and found.threshold[1:].tolist() == thresholds
    assert (leaks <= np.sqrt(np.array(thresholds) / 32)).all(), "C has a mean eigenvalue of 1 in 32 dimensions"


def test_leakage_is_what_kept_keys_feel():
    torch.manual_seed(0)
    K, delta = torch.randn(8, 50).double(), torch.randn(5, 8).double()
    K[0] *= 10
    for change in (delta, delta * torch.tensor([0.0] + [1.0] * 7), delta * torch.tensor([1.0] + [0.0] * 7)):
        direct = (change @ K).norm() / (change.norm() * K.norm())
        assert leakage(change, K @ K.T / 50) == pytest.approx(direct.item())
    assert leakage(torch.zeros(5, 8), K @ K.T) == 0


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


BAD = {
    "missing": ({"data": "{tmp}/none.npz"}, "none.npz does not exist"),
    "truncated": ({"data": "{tmp}/cut.npz"}, "cut.npz is not a file in MedMNIST's layout"),
    "offline": ({"data": "pathmnist", "folder": "{tmp}"}, "pathmnist.npz does not exist and could not .* put it there"),
    "flag": ({"data": "pathmist"}, "unknown data set 'pathmist'.*pathmnist"),
    "number": ({"epochs": "x"}, "epochs = 'x': input should be a valid integer"),
    "layer": ({"edit_layers": 99}, "edit_layers = \\[99\\]: .* has 4 layers"),
    "twice": ({"edit_layers": [1, 1]}, "must be ascending, each once"),
    "layers": ({"num_edit_layers": 99}, "num_edit_layers = 99: .* has 4 layers"),
    "name": ({"run_name": "a/b"}, "--run-name 'a/b'"),
    "options": ({"edit_options": "nonsense"}, "edit_options = 'nonsense': input should be a valid dictionary"),
    "option": ({"edit_options": "{l3: 1}"}, "unknown key 'l3'"),
    "method": ({"edit_options": "{method: rome}"}, "edit_options .*edit_method"),
    "model": ({"model": "{tmp}/nowhere"}, "model '.*nowhere' could not be loaded"),
    "checkpoint": ({"checkpoint": "{tmp}/none"}, "none is not a checkpoint"),
}


@pytest.mark.parametrize("options, message", BAD.values(), ids=BAD)
def test_bad_input_ends_in_one_clear_line(run, made, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.setattr("torch.hub.download_url_to_file", Mock(side_effect=OSError("no network")))
    (tmp_path / "cut.npz").write_bytes(Path(made).read_bytes()[:500])
    texts = {n: v.replace("{tmp}", str(tmp_path)) if isinstance(v, str) else v for n, v in options.items()}
    assert run("edit", **texts) == 2
    assert re.match("error: .*" + message, capsys.readouterr().err.splitlines()[-1])


def test_training_that_diverges_is_a_failure_in_one_line(run, capsys):
    assert run("train", lr=1e20, fresh_head_lr=1e20, epochs=3) == 1
    assert "error: fine-tuning diverged in epoch" in capsys.readouterr().err.splitlines()[-1]
