"""One notebook: whose interpreter runs it, and what bars of progress become."""

import json
import sys

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from editkit.report.execute import Chapter, execute


def test_the_kernel_is_this_interpreter_whatever_else_is_called_python3(tmp_path, monkeypatch):
    other = tmp_path / "share/kernels/python3"
    other.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "other", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    cells = [
        new_code_cell("n_facts = 1\nfacts_path = ''", metadata={"tags": ["parameters"]}),
        new_code_cell("import sys; print(sys.executable, n_facts, facts_path)"),
    ]
    kernel = {"name": "python3", "language": "python", "display_name": "other"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "00_probe.ipynb")
    declared = {"n_facts": 1, "facts_path": ""}
    chapter = Chapter(tmp_path / "00_probe.ipynb", tmp_path / "executed.ipynb", tmp_path / "log", declared)
    execute(chapter, {"n_facts": 2, "facts_path": "/data/a.json"}, {"n_facts": 2, "facts_path": "a.json"}, "probe")
    assert chapter.failure is None
    [output] = nbformat.read(chapter.executed, as_version=4).cells[-1].outputs
    assert output.text.split() == [sys.executable, "2", "/data/a.json"]
    assert chapter.parameters == {"n_facts": 2, "facts_path": "a.json"}


def test_bars_of_progress_are_lines_and_leave_no_widget(tmp_path):
    cells = [
        new_code_cell("n_facts = 3", metadata={"tags": ["parameters"]}),
        new_code_cell("from tqdm import auto\nfrom tqdm.auto import tqdm\nassert auto.tqdm is tqdm"),
        new_code_cell("import ipywidgets\nprint(len(list(tqdm(range(n_facts), desc='counting'))))"),
    ]
    kernel = {"name": "python3", "language": "python", "display_name": "other"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "00_probe.ipynb")
    chapter = Chapter(tmp_path / "00_probe.ipynb", tmp_path / "executed.ipynb", tmp_path / "log", {"n_facts": 3})
    execute(chapter, {}, {}, "probe")
    assert chapter.failure is None
    executed = nbformat.read(chapter.executed, as_version=4)
    printed = {"stdout": "", "stderr": ""}
    for output in executed.cells[-1].outputs:  # a widget's view has no name
        printed[output.name] += output.text
    assert printed["stdout"] == "3\n" and "counting: 100%" in printed["stderr"]
    assert "widgets" not in executed.metadata
