"""JupyterLab as people use it: a chapter run by its menu, and the laboratory's buttons, on a tiny model."""

import json
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import LONG

ROOT = Path(__file__).parents[2]
HPARAMS = """shared: {layers: [1, 2], v_num_grad_steps: 3, v_lr: 0.1, v_weight_decay: 0.1, clamp_norm_factor: 0.9,
  kl_factor: 0.0625, early_stop_loss: 0.0, n_contexts: 2, context_length: 4, mom2_update_weight: 1.0, l2: 1.0,
  update_norm_lambda: 0.01, emmet_lambda: 0.0, nullspace_threshold: 0.05, mom2_n_tokens: 300}
"""
SMALLEST = {"model": "../tiny", "methods": ["rome", "emmet"], "known_only": False, "controls": [], "sweep_layers": 0}
SMALLEST |= {"evaluation_texts": 0, "neighbour_budget": 0}
BEGUN = re.compile(r"\[(\*|\d+)\]:")  # the prompt of a cell that waits, runs or has run
MINUTES = 5  # after which a chapter has failed


class Jupyter(NamedTuple):
    """A server, and the folder that it shows."""

    address: str
    token: str
    folder: Path

    def open(self, visit, notebook: str) -> Page:
        """Open a notebook in a workspace of its own (a common one brings back what was open); wait for its kernel."""
        workspace = f"lab/workspaces/{Path(notebook).stem}"
        page, _, asked = visit(f"{self.address}/{workspace}/tree/notebooks/{notebook}?reset&token={self.token}")
        expect(page.locator(".jp-NotebookPanel")).to_have_count(1)
        expect(page.get_by_text("| Idle")).to_be_visible()
        assert not [place for place in asked if not place.startswith(self.address)], "it wants the network"
        return page

    def source(self, notebook: str):
        return nbformat.read(self.folder / "notebooks" / notebook, as_version=4)


@pytest.fixture(scope="module")
def jupyter(chromium_path, tmp_path_factory, tiny):
    """JupyterLab with nobody's settings, on copies of the notebooks and a tiny model beside them."""
    home = tmp_path_factory.mktemp("jupyter")
    folder = home / "checkout"
    for name in ("notebooks", "params"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "hparams").mkdir()
    (folder / "hparams" / "tiny.yaml").write_text(HPARAMS)
    lm = tiny()
    lm.model.save_pretrained(folder / "tiny")
    lm.tokenizer.save_pretrained(folder / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    options = {"ServerApp.ip": "127.0.0.1", "ServerApp.port": port, "ServerApp.port_retries": 0}
    options |= {"ServerApp.root_dir": folder, "ServerApp.token": token, "LabApp.news_url": None}
    options |= {"LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate"}
    words = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    words += [f"--{name}={value}" for name, value in options.items()]
    own = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "EDITKIT_CACHE")
    with pytest.MonkeyPatch.context() as patch, open(home / "log", "w") as log:
        for name in own:
            patch.setenv(name, str(home / name.lower()))
        patch.setenv("PYTHONPATH", str(ROOT))
        server = subprocess.Popen(words, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/api", server, home / "log")
        yield Jupyter(address, token, folder)
    finally:
        server.terminate()  # with its kernels
        server.wait(60)


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:  # not yet
            time.sleep(0.3)
    server.kill()
    pytest.fail(f"JupyterLab does not answer: {log.read_text()[-2000:]}")


def run_all(page: Page) -> None:
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    expect(page.locator(".jp-InputPrompt").get_by_text(BEGUN).first).to_be_visible()


def test_a_chapter_runs_by_its_menu_to_the_end(jupyter, visit):
    name = "01_baselines.ipynb"
    notebook = jupyter.source(name)
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    stated = (f"{key} = {value!r}" for key, value in SMALLEST.items())
    cell.source += "\n" + "\n".join(stated)
    nbformat.write(notebook, jupyter.folder / "notebooks" / name)
    page = jupyter.open(visit, name)
    run_all(page)
    until, left = time.monotonic() + 60 * MINUTES, ["all"]
    while left and time.monotonic() < until:
        page.wait_for_timeout(1000)
        page.keyboard.press("Control+s")
        cells = [cell for cell in jupyter.source(name).cells if cell.cell_type == "code"]
        left = [cell.source for cell in cells if cell.execution_count is None]
        assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert not left, f"after {MINUTES} minutes"
    figures = page.locator(".js-plotly-plot .main-svg")
    figures.first.scroll_into_view_if_needed()
    expect(figures.first).to_be_visible()
    expect(page.get_by_role("heading", name="Findings")).to_have_count(1)
    assert (jupyter.folder / "reports" / "notebook" / "results" / "baselines.csv").is_file()


@pytest.fixture(scope="module")
def laboratory(jupyter, visit) -> Page:
    """The laboratory's notebook, opened on the tiny model with searches so long that they can be stopped."""
    name = "07_playground.ipynb"
    notebook = jupyter.source(name)
    [cell] = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cell.source.endswith("playground()")
    cell.source = cell.source.removesuffix(")") + '"../tiny", hyperparameters={"v_num_grad_steps": 5000})'
    nbformat.write(notebook, jupyter.folder / "notebooks" / name)
    page = jupyter.open(visit, name)
    run_all(page)
    expect(page.get_by_text("clean model")).to_be_visible(timeout=5 * LONG)
    return page


def button(page: Page, words: str) -> Locator:
    """A button by its last words: marks stand before some."""
    return page.get_by_role("button", name=re.compile(rf"\b{words}$"))


def says(page: Page) -> Locator:
    """What the model says now, which follows a little later than what is typed and what becomes of the weights."""
    return page.get_by_text(re.compile("^says now:"))


def test_a_subject_that_is_not_in_the_prompt_is_told_and_edit_is_off(laboratory):
    subject, prompt = laboratory.get_by_label("subject", exact=True), laboratory.get_by_label("prompt", exact=True)
    before, untouched = (subject.input_value(), prompt.input_value()), says(laboratory).inner_text()
    prompt.fill("The city of Rome lies in")
    subject.fill("Atlantis")
    expect(laboratory.get_by_text("subject 'Atlantis' is not in the prompt")).to_be_visible()
    expect(button(laboratory, "Edit")).to_be_disabled()
    subject.fill("Rome")
    expect(button(laboratory, "Edit")).to_be_enabled()
    expect(says(laboratory)).not_to_have_text(untouched)
    subject.fill(before[0])
    prompt.fill(before[1])
    expect(button(laboratory, "Edit")).to_be_enabled()
    expect(says(laboratory)).to_have_text(untouched)


def test_stop_leaves_the_model_unedited(laboratory):
    untouched = says(laboratory).inner_text()
    button(laboratory, "Edit").click()
    expect(laboratory.get_by_text(re.compile(r"step \d+ of 5000"))).to_be_visible()
    button(laboratory, "Stop").click()
    expect(laboratory.get_by_text("stopped: the weights are as they were")).to_be_visible()
    expect(laboratory.get_by_text("clean model")).to_be_visible()
    expect(button(laboratory, "Undo")).to_be_disabled()
    expect(says(laboratory)).to_have_text(untouched)


def test_edit_see_undo_and_save_as_an_adapter(laboratory, jupyter):
    untouched = says(laboratory).inner_text()
    steps = laboratory.get_by_text("steps", exact=True).locator("..").get_by_role("slider")
    for key in ("Home", *["ArrowRight"] * 19):
        steps.press(key)
    expect(steps).to_have_attribute("aria-valuetext", "20")
    button(laboratory, "Edit").click()
    expect(laboratory.get_by_text("1 edit in the model")).to_be_visible()
    for words in ("Before", "After"):
        expect(laboratory.get_by_text(words, exact=True)).to_be_visible()
    expect(says(laboratory)).not_to_have_text(untouched)
    button(laboratory, "Undo").click()
    expect(laboratory.get_by_text("clean model")).to_be_visible()
    expect(says(laboratory)).to_have_text(untouched)
    button(laboratory, "adapter").first.click()
    button(laboratory, "Edit").click()
    expect(laboratory.get_by_text("1 edit in the model")).to_be_visible()
    laboratory.get_by_role("tab", name="Edits in the model").click()
    laboratory.get_by_label("folder", exact=True).fill("adapters/mine")
    button(laboratory, "Save adapter").click()
    expect(laboratory.get_by_text("saving took")).to_be_visible()
    made = jupyter.folder / "notebooks" / "adapters" / "mine"
    assert json.loads((made / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert (made / "adapter_model.safetensors").stat().st_size > 100
