import pytest

from editkit import figures


@pytest.fixture
def labelled():
    """Return a check: a title, the width, a title at each axis but ``bare`` ones, and nothing that needs WebGL."""

    def check(figure, bare=()):
        layout = figure.layout
        assert layout.title.text and layout.width == figures.WIDTH and layout.height >= 240
        axes = {axis for axis in layout if axis.startswith(("xaxis", "yaxis"))}
        for axis in axes - set(bare):
            assert layout[axis].title.text, axis
        assert not [trace.type for trace in figure.data if trace.type.endswith("gl")]

    return check
