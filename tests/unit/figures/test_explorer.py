"""The explorer's figure holds the table's numbers."""

import pandas as pd

from editkit.figures.explorer import scores_explored


def test_each_row_is_a_dot_in_every_panel_with_its_interval():
    frame = pd.DataFrame(
        {
            "name": ["a <b>", "c", "c"],
            "method": ["memit", "emmet", "memit"],
            "ES": [1.0, 0.5, 0.25],
            "ES_low": [0.75, 0.5, 0.0],
            "ES_high": [1.0, 0.75, 0.5],
            "NM": [-0.5, 0.5, None],
        }
    )
    figure = scores_explored(frame, ["ES", "NM"])
    memit, _, emmet, _ = figure.data
    assert list(memit.x) == [1.0, 0.25] and list(memit.y) == ["a &lt;b&gt;", "c"] and list(emmet.x) == [0.5]
    assert list(memit.error_x.array) == [0.0, 0.25] and list(memit.error_x.arrayminus) == [0.25, 0.25]
    assert figure.layout.xaxis.range[0] < -0.5 and figure.data[1].error_x.array is None
    assert list(figure.layout.yaxis.categoryarray) == ["a &lt;b&gt;", "c"]
    assert "3 rows" in figure.layout.title.subtitle.text
