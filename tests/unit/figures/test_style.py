"""The look of figures: fixed and distinct colours, and PNG files where a browser can draw them."""

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from PIL import Image

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
        assert figures.show(figure, tmp_path / "b.png") is figure
    assert {path.name for path in tmp_path.iterdir()} == {"a.html", "b.html", "plotly.min.js"}
    page = (tmp_path / "a.html").read_text()
    assert 'src="plotly.min.js"' in page and "https://" not in page, "it opens with the network off"


@pytest.mark.parametrize(("script", "starts"), [("exit 0", True), ("echo snap install chromium; exit 1", False)])
def test_a_browser_that_does_not_start_is_none(tmp_path, monkeypatch, script, starts):
    (browser := tmp_path / "chrome").write_text(f"#!/bin/sh\n{script}\n")
    monkeypatch.setenv("BROWSER_PATH", str(browser))
    assert figures.find_browser() is None  # it is no program yet
    browser.chmod(0o755)
    assert figures.find_browser() == (str(browser) if starts else None)


def test_another_browser_is_taken_where_the_first_does_not_start(tmp_path, monkeypatch):
    for name, code in (("downloaded", 1), ("installed", 0)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    found = {False: tmp_path / "downloaded", True: tmp_path / "installed"}
    monkeypatch.setattr(style.Chromium, "find_browser", lambda *, skip_local: found[skip_local])
    assert figures.find_browser() == str(tmp_path / "installed")


@pytest.mark.skipif(figures.find_browser() is None, reason="no Chrome, Chromium or Edge to draw a PNG")
def test_save_writes_a_png(tmp_path):
    (page := tmp_path / "figures" / "spectrum.html").parent.mkdir()
    page.touch()
    path = figures.save(spectrum(), tmp_path / "figures" / "spectrum.png")
    assert not page.exists(), "a page of a run without a browser"
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(content[16:20], "big") == 2 * figures.WIDTH
    figure = spectrum()
    assert figures.show(figure, tmp_path / "shown.png") is figure and (tmp_path / "shown.png").is_file()


@pytest.mark.skipif(figures.find_browser() is None, reason="no Chrome, Chromium or Edge to draw a PNG")
def test_a_long_title_is_not_cut_off(tmp_path):
    title = (
        "Fixed are 43% (head, EWC) to 100% (3 methods); held-out accuracy by −0.1 (AlphaEdit) to +2.1 points (EMMET)"
    )
    path = figures.save(style.finish(go.Figure(), title, ""), tmp_path / "long.png")
    ink = np.asarray(Image.open(path).convert("L"))[:100] < 128  # the title's band, in which nothing else is drawn
    right = int(ink.any(axis=0).nonzero()[0].max())
    assert 0.8 * ink.shape[1] < right < 0.99 * ink.shape[1]
