"""Bars of the anatomy: whole, in order, legible."""

import pandas as pd

from editkit import figures
from editkit.figures.anatomy import COLOURS
from editkit.studies.anatomy import CLASSES


def frame(panel, n, methods=("emmet", "memit")):
    counts = dict(zip(CLASSES, (n - 6, 3, 2, 1, 0), strict=True))
    rows = [
        {"panel": panel, "method": method, "class": name, "count": count, "value": count / n, "n": n, "left_out": 1}
        | ({"low": 0.1, "high": 0.9} if name == "clean" else {})
        for method in methods
        for name, count in counts.items()
    ]
    return pd.DataFrame(rows)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_class_has_a_colour_that_white_letters_can_be_read_on():
    assert list(COLOURS) == list(CLASSES)
    assert all(1.05 / (luminance(colour) + 0.05) >= 4.5 for colour, _ in COLOURS.values())  # WCAG 2.2, 1.4.3


def test_bars_are_whole_with_shares_or_counts_and_the_interval(labelled):
    figure = figures.anatomy_bars(pd.concat([frame("many", 60), frame("few", 10, ("memit", "grace"))]), "a claim")
    labelled(figure, ["xaxis", "yaxis", "yaxis2"])
    bars = [trace for trace in figure.data if trace.type == "bar"]
    for axis in ("x", "x2"):
        assert round(sum(trace.x[0] for trace in bars if trace.xaxis == axis), 9) == 1
    assert bars[0].text[0] == "90%" and bars[5].text[0] == "4 of 10"
    assert list(figure.layout.yaxis.ticktext) == ["MEMIT", "EMMET"]
    marks = [trace for trace in figure.data if trace.type == "scatter"]
    assert marks[0].error_x.array[0] == 0.9 - 0.9 and round(marks[1].error_x.arrayminus[0], 6) == 0.3
    assert sum(trace.showlegend for trace in figure.data) == 5
    assert "1 edit without paraphrase or right neighbour left out" in figure.layout.title.subtitle.text
