"""The look of figures: fixed and distinct colours, and PNG files where a browser can draw them."""

import plotly.io as pio
import pytest

from editkit import figures
from editkit.figures import style
from editkit.methods import CONTROLS, METHODS


def spectrum():
    return figures.spectrum({4: [3.0, 1e-3, 0.1]})


def test_colours_are_fixed_and_distinct():
    names = [*METHODS, *CONTROLS]
    assert len({style.method_style(name)["line_color"] for name in names}) == len(names) >= 5
    assert style.BLUE == style.method_style("memit")["line_color"] and style.GREY == "#7F858D"


def test_import_leaves_the_default_template_alone():
    assert "editkit" in pio.templates and "editkit" not in str(pio.templates.default)


def test_save_without_a_browser_warns_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-such-browser"))
    with pytest.warns(UserWarning, match="apt-get install chromium"):
        assert figures.save(spectrum(), tmp_path / "a.png") is None
    figure = spectrum()
    with pytest.warns(UserWarning, match="apt-get install chromium"):
        assert figures.show(figure, tmp_path / "a.png") is figure
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.skipif(figures.find_browser() is None, reason="no Chrome, Chromium or Edge to draw a PNG")
def test_save_writes_a_png(tmp_path):
    path = figures.save(spectrum(), tmp_path / "figures" / "spectrum.png")
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(content[16:20], "big") == 2 * figures.WIDTH
    figure = spectrum()
    assert figures.show(figure, tmp_path / "shown.png") is figure and (tmp_path / "shown.png").is_file()
