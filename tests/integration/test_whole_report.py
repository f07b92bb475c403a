"""The whole report on smoke parameters: executed, exported, reproducible."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from editkit.figures import find_browser
from editkit.report import build_report

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(lm, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "smoke"
    return build_report(ROOT / "params" / "smoke.yaml", out, notebooks=ROOT / "notebooks", at_once=1)


def test_every_notebook_ran_and_its_results_are_tidy(built):
    assert built.ok, [chapter.failure for chapter in built.chapters]
    frame = pd.read_csv(built.folder / "results" / "baselines.csv")
    assert set(frame.method) == {"pre", "rome", "memit", "emmet", "memit_control", "alphaedit"}
    assert set(frame.moment) == {"pre", "immediate"}
    cells = frame[frame.moment == "immediate"].groupby(["dataset", "method", "batch_size", "seed"]).size()
    assert (cells == 1).all() and len(cells) == 5 * 2
    assert frame[["ES", "PS", "NS", "S", "EA", "PA", "NA"]].stack().between(0, 1).all()
    assert {"layers", "v_lr", "seconds_targets", "peak_memory_mb", "model"} <= set(frame.columns)
    assert len(pd.read_csv(built.folder / "results" / "contexts.csv")) == 1


def test_the_summary_holds_every_configuration_with_its_protocol(built):
    final = pd.read_csv(built.folder / "results" / "final_summary.csv")
    assert set(final.chapter) == {"01_baselines", "02_replay", "03_lora"} and final.protocol.nunique() == 1
    assert set(final.arrival) == {"batch", "sequence", "adapters"} and set(final.moment) == {
        "pre",
        "immediate",
        "final",
    }
    scores = pd.read_csv(built.folder / "results" / "baseline_scores.csv").set_index(["method", "batch_size", "score"])
    batches = final[(final.part == "batches") & final.neighbour_budget.isna()]
    assert len(batches) == 1 + 5 * 2
    for row in batches.itertuples():
        assert row.S == pytest.approx(scores.value[row.method, row.batch_size, "S"])


def test_the_run_is_recorded(built):
    run = json.loads((built.folder / "run.json").read_text())
    assert run["status"] == "done" and run["parameters"]["n_facts"] == 2
    assert run["versions"]["torch"] and run["seconds"] > 0
    about = json.loads((built.folder / "results" / "baselines.json").read_text())
    assert about["parameters"]["seeds"] == [1] and list(about["facts"]) == ["1"]


def test_the_page_is_whole_and_the_rest_needs_a_browser(built):
    page = built.html.read_text()
    assert "<math" in page and "Findings" in page and page.count("<h1") == 1
    assert all(f'<h2 id="nb-{chapter.name}"' in page for chapter in built.chapters)
    if find_browser():
        assert built.pdf.read_bytes().startswith(b"%PDF")
        drawn = {path.stem for path in (built.folder / "figures").glob("*.png")}
        assert {"position_norms", "spectrum", "scores_by_batch", "loss_curves", "seconds", "summary_front"} <= drawn
    else:
        assert built.pdf is None and "Chrom" in built.pdf_reason


def test_one_notebook_by_hand_stays_in_the_checkout(tmp_path):
    root = tmp_path / "parent" / "checkout"
    for name in ("notebooks", "benchmarks"):
        shutil.copytree(ROOT / name, root / name)
    for cwd in (root, root / "notebooks"):
        words = [sys.executable, "-m", "papermill", root / "notebooks/06_speed.ipynb", tmp_path / "out.ipynb"]
        subprocess.run(words, cwd=cwd, env=os.environ | {"BROWSER_PATH": "/none"}, capture_output=True, check=True)
        assert (root / "reports/notebook/results/speedups.csv").is_file()
        assert {path.name for path in root.parent.iterdir()} == {"checkout"}
        shutil.rmtree(root / "reports")
