"""The figure of free speech: success solid and what is said dotted, over the number of edits."""

import numpy as np
import pandas as pd
import pytest

from editkit import figures

SHARES = {"success": 0.9, "accuracy": 0.8, "said": 0.5, "surviving": 0.55}
FRAME = pd.DataFrame(
    [
        {"method": method, "batch_size": size, "kind": kind, "rung": rung, "value": value - shift}
        for method, sizes, shift in (("pre", [0], 0.4), ("rome", [32, 8], 0.0), ("memit", [8, 32], 0.2))
        for size in sizes
        for kind in ("rewrite", "paraphrase", "neighbourhood")
        for rung, value in SHARES.items()
    ]
).assign(n=128, seeds=1, clusters=30)
FRAME = FRAME.assign(low=FRAME.value - 0.1, high=FRAME.value + 0.05)


def test_the_figure_is_labelled_and_titled_by_its_numbers(labelled):
    figure = figures.speech(FRAME)
    labelled(figure, bare=["yaxis2"])
    told = "32 edits: 70% to 90% of paraphrases succeed, 35% to 55% of these are said"
    assert figure.layout.title.text == told and "128 facts" in figure.layout.title.subtitle.text


def test_a_method_has_a_line_that_succeeds_and_one_that_is_said():
    lines = [trace for trace in figures.speech(FRAME).data if trace.x[0] is not None]
    first = {(trace.name, trace.line.dash): trace for trace in lines if trace.xaxis == "x"}
    assert first.keys() == {(name, dash) for name in ("ROME", "MEMIT") for dash in ("solid", "dot")}
    said = first["MEMIT", "dot"]
    assert said.marker.symbol == f"{first['MEMIT', 'solid'].marker.symbol}-open"
    assert np.allclose(said.y, 0.3) and list(said.customdata) == [8, 32]
    assert np.allclose(said.error_y.array, 0.05) and np.allclose(said.error_y.arrayminus, 0.1)
    assert len(lines) == 8 and sum(trace.showlegend for trace in lines) == 2


def test_no_edits_cannot_be_shown():
    with pytest.raises(ValueError, match="no edits to show"):
        figures.speech(FRAME[FRAME.method == "pre"])
