"""Notebooks: whose interpreter runs them, what bars of progress become, and which run beside each other."""

import json
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from editkit.models.placement import usable_cores
from editkit.report.execute import Chapter, execute, execute_all


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


WAITS = """
import os, pathlib, time
(pathlib.Path(run_dir) / own).touch()
until = time.monotonic() + 60
while not (pathlib.Path(run_dir) / other).exists():
    assert time.monotonic() < until, "nobody ran beside this"
    time.sleep(0.05)
os.environ.get("OMP_NUM_THREADS")
"""


def chapters(folder, **sources) -> list[Chapter]:
    """Chapters in the order given, each with what it declares and its one cell."""
    found = []
    for name, (declared, source) in sources.items():
        path = folder / f"{name}.ipynb"
        parameters = "\n".join(f"{key} = {value!r}" for key, value in declared.items())
        cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(source)]
        kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
        found.append(Chapter(path, folder / f"{name}.executed.ipynb", folder / f"{name}.log", declared))
    return found


def said(chapter: Chapter) -> str:
    [output] = nbformat.read(chapter.executed, as_version=4).cells[-1].outputs
    return output.data["text/plain"]


def test_chapters_that_measure_run_beside_each_other(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run_dir = {"run_dir": str(tmp_path)}
    given = chapters(
        tmp_path,
        first=({"own": "", **run_dir}, "import os; sorted(os.listdir(run_dir)).count('a')"),
        one=({"own": "a", "other": "b", **run_dir}, WAITS),
        two=({"own": "b", "other": "a", **run_dir}, WAITS),
        last=(run_dir, "import os; {'a', 'b'} <= set(os.listdir(run_dir))"),
    )
    ended = list(execute_all(given, run_dir, run_dir, at_once=2))
    assert [chapter.failure for chapter in ended] == [None] * 4
    assert [chapter.name for chapter in (ended[0], ended[-1])] == ["first", "last"]
    assert {id(chapter) for chapter in ended} == {id(chapter) for chapter in given}
    share = repr(str(max(1, usable_cores() // 2)))
    assert [said(chapter) for chapter in given] == ["0", share, share, "True"], "last reads what the others wrote"
    assert all(chapter.seconds > 0 and chapter.peak_memory_mb > 10 for chapter in given)


@pytest.mark.parametrize(
    ("fault", "told"), [("1 / 0", "ZeroDivisionError"), ("import os; os.kill(os.getppid(), 9)", "")]
)
def test_after_a_failure_no_chapter_begins(tmp_path, fault, told):
    own = {"n_facts": 1}
    sources = {"first": "1", "bad": fault, "slow": "import time; time.sleep(5); 'whole'", "late": "1", "last": "1"}
    given = chapters(tmp_path, **{name: ({} if name == "last" else own, text) for name, text in sources.items()})
    ended = list(execute_all(given, {}, {}, at_once=2))
    assert [chapter.status for chapter in given] == ["done", "failed", "done", "not run", "not run"]
    assert [chapter.name for chapter in ended] == ["first", "bad", "slow"] and said(given[2]) == "'whole'"
    assert told in given[1].failure.message and given[1].failure.message


def test_one_at_a_time_keeps_the_order(tmp_path):
    given = chapters(tmp_path, **{name: ({"n_facts": 1}, "1") for name in ("first", "second", "third")})
    assert [chapter.name for chapter in execute_all(given, {}, {})] == ["first", "second", "third"]
