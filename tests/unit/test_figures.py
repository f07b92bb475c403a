"""Figures: right data, fixed colours, titles and units, nothing that needs WebGL, and PNG files."""

import numpy as np
import pandas as pd
import plotly.io as pio
import pytest

from editkit import figures
from editkit.config import METHODS

SCORES = pd.DataFrame(
    [
        {"method": method, "batch_size": size, "seed": seed, "moment": moment}
        | {"ES": value + seed / 100, "PS": value, "NS": value, "S": value}
        for method in METHODS
        for size in (1, 8, 32)
        for seed in (1, 2, 3)
        for moment, value in (("pre", 0.25), ("immediate", 0.9), ("final", 0.8))
    ]
)
CURVES = pd.DataFrame(
    [
        {"fit": fit, "rank": rank, "score": score, "value": value, "low": value - 0.1, "high": value + 0.05}
        for score in ("ES", "PS", "NS", "S")
        for fit, rank, value in [
            ("svd", 4, 0.4),
            ("keys", 4, 0.5),
            ("keys", 8, 0.7),
            ("raw", np.nan, 0.9),
            ("none", np.nan, 0.2),
        ]
    ]
)
FIGURES = {
    "scores_by_batch": lambda: figures.scores_by_batch(SCORES),
    "score_bars": lambda: figures.score_bars(SCORES[SCORES["batch_size"] == 32]),
    "spectrum": lambda: figures.spectrum({4: [3.0, 1e-3, 0.1], 5: [2.0, -1e-9]}, threshold=0.02),
    "position_norms": lambda: figures.position_norms(
        pd.DataFrame(
            {
                "start_token": [True, True, False, False],
                "layer": 3,
                "position": [0, 1, 0, 1],
                "norm": [900.0, 20, 950, 25],
            }
        )
    ),
    "loss_curves": lambda: figures.loss_curves(pd.DataFrame({"step": [0, 1] * 4, "loss": [8.0, 1, 7, 2, 6, 3, 5, 4]})),
    "seconds_bars": lambda: figures.seconds_bars(
        pd.DataFrame({"method": ["emmet"] * 2, "seconds_targets": [3.0, 5.0], "seconds_solve": [1.0, 1.0]})
    ),
    "speedups": lambda: figures.speedups(
        pd.DataFrame({"name": ["targets", "scores"], "ratio": [8.0, 3.0], "lowest": [7.0, 2.9], "highest": [9.0, 3.5]})
    ),
    "growth": lambda: figures.growth(
        pd.DataFrame({"d_k": [1024, 2048], "ours": [0.1, 0.2], "public code": [1.0, 8.0]}),
        "d_k",
        {"ours": "ours", "public code": "public code"},
        title="Seconds by width",
        subtitle="one update",
        axes=("d_k", "seconds"),
    ),
    "retention_map": lambda: figures.retention_map(
        pd.DataFrame([[1.0, 0.5], [np.nan, 0.9]], index=[1, 2], columns=[1, 2]), title="EMMET, none"
    ),
    "forgetting_curves": lambda: figures.forgetting_curves(
        {score: pd.DataFrame({"EMMET, none": [1.0, 0.6]}, index=[0, 1]) for score in ("ES", "PS")}
    ),
    "along_the_sequence": lambda: figures.along_the_sequence(
        pd.DataFrame(
            {
                "run": "EMMET, none",
                "edits": [8, 16],
                "perplexity": [np.nan, 20.0],
                "kl": [np.nan, 0.1],
                "growth": [1.0, 1.1],
            }
        )
    ),
    "differences": lambda: figures.differences(
        pd.DataFrame({"run": ["a", "b"], "value": [0.1, 0.0], "low": [0.05, -0.1], "high": [0.2, 0.1]}),
        title="Against no replay",
        subtitle="paired",
    ),
    "lora_rank_vs_metrics": lambda: figures.lora_rank_vs_metrics(CURVES, subtitle="made up"),
    "update_spectrum": lambda: figures.update_spectrum(
        {6: [3.0, 1.0]}, pd.DataFrame({"fit": "keys", "rank": [4, 8], "fit_residual": [0.7, 0.5]}), subtitle="made up"
    ),
    "scores_by_tokens": lambda: figures.scores_by_tokens(
        pd.DataFrame({"method": "emmet", "tokens_per_dimension": [1, 10], "S": [0.8, 0.9], "NS": [0.7, 0.8]})
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_labelled_and_vector(name):
    figure = FIGURES[name]()
    layout = figure.layout
    assert layout.title.text and layout.width == figures.WIDTH and layout.height >= 240
    axes = [axis for axis in layout if axis.startswith(("xaxis", "yaxis"))]
    categories = {
        "score_bars": ["xaxis"],
        "seconds_bars": ["yaxis"],
        "speedups": ["yaxis"],
        "differences": ["yaxis"],
    }.get(name, [])
    shared = {
        "scores_by_batch": ["yaxis2", "yaxis4"],
        "lora_rank_vs_metrics": ["yaxis2", "yaxis4"],
        "position_norms": ["yaxis2"],
    }.get(name, [])
    for axis in set(axes) - set(categories) - set(shared):
        assert layout[axis].title.text, axis
    assert not [trace.type for trace in figure.data if trace.type.endswith("gl")]


def test_differences_are_filled_where_the_interval_excludes_zero():
    points = FIGURES["differences"]().data[0]
    assert points.marker.color[0] != "white" and points.marker.color[1] == "white"
    assert np.allclose(points.error_x.array, [0.1, 0.1]) and np.allclose(points.error_x.arrayminus, [0.05, 0.1])


def test_the_retention_map_is_blank_before_an_edit_and_reads_downwards():
    figure = FIGURES["retention_map"]()
    heat = figure.data[0]
    assert np.isnan(heat.z[1][0]) and heat.zmin == 0 and heat.zmax == 1
    assert figure.layout.yaxis.autorange == "reversed"


def test_ranks_have_a_line_a_fit_with_intervals_and_the_full_rank_across():
    lines = {line.name: line for line in reversed(FIGURES["lora_rank_vs_metrics"]().data)}
    assert list(lines) and set(lines) == {"keys", "svd", "raw, full rank", "no edit"}
    keys = lines["keys"]
    assert list(keys.customdata) == [4, 8] and list(keys.y) == [0.5, 0.7] and keys.line.color != lines["svd"].line.color
    assert np.allclose(keys.error_y.array, 0.05) and np.allclose(keys.error_y.arrayminus, 0.1)
    assert list(lines["raw, full rank"].y) == [0.9, 0.9] and list(lines["no edit"].y) == [0.2, 0.2]


def test_the_spectrum_of_an_update_is_a_share_of_its_norm():
    share, lost = FIGURES["update_spectrum"]().data
    assert np.allclose(share.y, [0.9, 1.0]) and list(share.x) == [1, 2]
    assert list(lost.x) == [4, 8] and list(lost.y) == [0.7, 0.5]


def test_what_was_not_measured_is_left_out_of_its_panel():
    lines = FIGURES["along_the_sequence"]().data
    assert [list(line.x) for line in lines] == [[16], [16], [8, 16]]


def test_colours_are_fixed_and_distinct():
    assert set(METHODS) <= set(figures.COLOURS) and len(set(figures.COLOURS.values())) == 5
    some = figures.score_bars(SCORES[SCORES["method"].isin(["memit", "alphaedit"])])
    bars = {bar.name: bar.marker.color for bar in some.data if bar.type == "bar"}
    assert bars == {"no edit": "#7F858D", "MEMIT": "#0072B2", "AlphaEdit": "#CC79A7"}


def test_scores_by_batch_shows_mean_spread_and_pre():
    figure = FIGURES["scores_by_batch"]()
    rome, before = (next(t for t in figure.data if t.name == name) for name in ("ROME", "no edit"))
    assert np.allclose(rome.y, 0.82) and list(rome.customdata) == [1, 8, 32]
    assert np.allclose(rome.error_y.array, 0.01) and np.allclose(rome.error_y.arrayminus, 0.01)
    assert np.allclose(before.y, 0.27) and before.line.dash == "dash"
    immediate = figures.scores_by_batch(SCORES, moment="immediate")
    assert np.allclose(next(t for t in immediate.data if t.name == "ROME").y, 0.92)


def test_one_seed_claims_no_spread():
    single = figures.scores_by_batch(SCORES[SCORES["seed"] == 1])
    assert single.layout.title.subtitle.text == "one seed"


def test_score_bars_have_a_dot_a_seed():
    figure = FIGURES["score_bars"]()
    dots = [trace for trace in figure.data if trace.type == "scatter"]
    assert len(dots) == 5 and all(len(trace.x) == 12 for trace in dots)


def test_spectrum_is_sorted_and_positive():
    figure = FIGURES["spectrum"]()
    assert [list(trace.y) for trace in figure.data] == [[3.0, 0.1, 1e-3], [2.0]]
    assert figure.layout.shapes[0].y0 == 0.02


def test_seconds_are_means_over_runs():
    figure = FIGURES["seconds_bars"]()
    assert {bar.name: list(bar.x) for bar in figure.data} == {"targets": [4.0], "solve": [1.0]}
    assert figure.layout.title.subtitle.text == "mean over 2 runs"


def test_import_leaves_the_default_template_alone():
    assert "editkit" in pio.templates and "editkit" not in str(pio.templates.default)


def test_save_without_a_browser_warns_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-such-browser"))
    with pytest.warns(UserWarning, match="apt-get install chromium"):
        assert figures.save(FIGURES["spectrum"](), tmp_path / "a.png") is None
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.skipif(figures.find_browser() is None, reason="no Chrome, Chromium or Edge to draw a PNG")
def test_save_writes_a_png(tmp_path):
    path = figures.save(FIGURES["loss_curves"](), tmp_path / "figures" / "loss.png")
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(content[16:20], "big") == 2 * figures.WIDTH


def test_moments_are_chosen_and_checked():
    without_final = SCORES[SCORES["moment"] != "final"]
    rome = next(t for t in figures.scores_by_batch(without_final).data if t.name == "ROME")
    assert np.allclose(rome.y, 0.92)
    with pytest.raises(ValueError, match="no rows of moment 'final'; the frame has immediate, pre"):
        figures.score_bars(without_final, moment="final")
