"""Figures of causal tracing: they hold the data given, on one scale, within the page."""

import numpy as np
import pandas as pd
import pytest

from editkit.figures.tracing import KINDS, effect_curves, effect_heat_maps, trace_heat_maps, traced_and_swept
from editkit.language import tracing
from editkit.language.tracing import POSITIONS, token_positions

LAYERS = 5
TEXTS = ["<s>", "The", " city", " of", " Rome", " is"]


@pytest.fixture
def traces():
    """One fact whose subject is one token, with one token after it."""
    rng = np.random.default_rng(0)
    rows = []
    for kind in tracing.KINDS:
        for layer in range(LAYERS):
            restored = rng.uniform(0.1, 0.9, len(TEXTS))
            for token, position in token_positions(range(4, 5), 6):
                rows.append(("f", "r", "Italy", kind, layer, token, TEXTS[token], position, 0.8, 0.2, restored[token]))
    columns = "fact relation answer kind layer token text position clean corrupted restored".split()
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def effects():
    rng = np.random.default_rng(1)
    rows = [
        (kind, position, layer, value := rng.uniform(-0.05, 0.4), value - 0.1, value + 0.1, 12, 4)
        for kind in tracing.KINDS
        for position in reversed(list(POSITIONS)[1:])
        for layer in range(LAYERS)
    ]
    return pd.DataFrame(rows, columns="kind position layer value low high n clusters".split())


def test_one_fact_is_mapped_token_by_layer_on_one_scale(traces, labelled):
    figure = trace_heat_maps(traces)
    assert list(KINDS) == list(tracing.KINDS) and len(figure.data) == 3
    for heat, kind in zip(figure.data, KINDS, strict=True):
        rows = traces[traces.kind == kind].drop_duplicates(["token", "layer"]).set_index(["token", "layer"])
        for token, layer in ((0, 0), (4, 3), (5, 4)):
            assert heat.z[token][layer] == rows.restored[token, layer]
        assert (heat.zmin, heat.zmax) == (0.2, traces.restored.max()) and list(heat.x) == list(range(LAYERS))
        assert heat.customdata[4][3] == " Rome*, layer 3"
    assert list(figure.layout.yaxis.ticktext) == ["&lt;s&gt;", *TEXTS[1:4], " Rome*", " is"], "no tags"
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1], "the first token on top"
    assert len({heat.colorscale for heat in figure.data}) == 3
    assert "Italy" in figure.layout.title.text and "0.800" in figure.layout.title.subtitle.text
    labelled(figure, bare=("yaxis", "yaxis2", "yaxis3"))
    with pytest.raises(ValueError, match="traces are of 2 facts: this figure is of one"):
        trace_heat_maps(pd.concat([traces, traces.assign(fact="g")]))
    with pytest.raises(ValueError, match="traces are of 0 facts"):
        trace_heat_maps(traces[:0])


def test_averages_are_mapped_position_by_layer_with_intervals_at_hand(effects, labelled):
    figure = effect_heat_maps(effects)
    assert list(figure.layout.yaxis.ticktext) == list(POSITIONS.values())[1:]
    for heat, kind in zip(figure.data, KINDS, strict=True):
        one = effects[(effects.kind == kind) & (effects.position == "last subject") & (effects.layer == 3)].iloc[0]
        assert heat.z[2][3] == one.value and (heat.zmin, heat.zmax) == (0, effects.value.max())
        assert heat.customdata[2][3] == f"last subject token, layer 3: [{one.low:.3f}, {one.high:.3f}]"
    assert "12 facts, 4 clusters" in figure.layout.title.subtitle.text
    labelled(figure, bare=("yaxis", "yaxis2", "yaxis3"))
    some = effects[effects.position != "middle subject"]
    assert len(effect_heat_maps(some).layout.yaxis.ticktext) == 5, "subjects of one or two tokens have no middle"


def test_curves_have_their_intervals_as_bands(effects, labelled):
    figure = effect_curves(effects)
    assert len(figure.data) == 3 * 6 * 3
    named = [line for line in figure.data if line.showlegend]
    assert [line.name for line in named] == list(POSITIONS.values())[1:]
    assert len({line.line.color for line in named}) == 6
    high, low, line = figure.data[:3]
    own = effects[(effects.kind == "residual") & (effects.position == "first subject")]
    assert list(line.y) == own.value.tolist() and low.fill == "tonexty"
    assert list(high.y) == own.high.tolist() and list(low.y) == own.low.tolist()
    labelled(figure, bare=("yaxis2", "yaxis3"))


def test_traced_and_swept_share_their_layers(labelled):
    layers = pd.DataFrame({"layer": range(4), "traced": [0.1, 0.3, 0.2, 0.0], "swept": [0.2, 0.5, 0.7, 0.1], "n": 8})
    for name in ("traced", "swept"):
        layers[f"{name}_low"], layers[f"{name}_high"] = layers[name] - 0.1, layers[name] + 0.1
    found = {"rank_correlation": 0.8, "traced_layer": 1, "swept_layer": 2, "difference": -0.2, "low": -0.3, "high": 0.0}
    figure = traced_and_swept(layers, found)
    above, ring, below, other = figure.data
    assert list(above.y) == layers.traced.tolist() and list(below.y) == layers.swept.tolist()
    assert np.allclose(above.error_y.array, 0.1) and np.allclose(below.error_y.arrayminus, 0.1)
    assert (list(ring.x), list(ring.y), list(other.x), list(other.y)) == ([1], [0.3], [2], [0.7])
    subtitle = figure.layout.title.subtitle.text
    assert "rank correlation +0.80" in subtitle and "−0.200 [−0.300, +0.000]" in subtitle and "8 facts" in subtitle
    labelled(figure, bare=("xaxis",))
