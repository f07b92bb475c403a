"""The house rules: which way imports point, how long things may be, where a test lies, what a chapter looks like."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from importlinter.cli import lint_imports

from editkit.report.execute import is_chapter

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "tests" / "unit"
MODULES = sorted((ROOT / "editkit").rglob("*.py"))
NOTEBOOKS = {path.name: nbformat.read(path, 4) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
CHAPTERS = {name: notebook for name, notebook in NOTEBOOKS.items() if is_chapter(ROOT / "notebooks" / name)}
TAGS = {"parameters", "hide-input", "hide-output", "remove-cell", "front", "appendix"}  # editkit.report.preprocess
OF_THE_WHOLE = {  # of no single module
    *("test_benchmarks.py", "test_docs.py", "test_example.py", "test_families.py", "test_faults.py", "test_house.py"),
    *("test_kills.py", "test_packaging.py"),
}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_imports_keep_their_contracts(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)  # whose pyproject.toml holds them
    monkeypatch.setattr("logging.config.dictConfig", lambda config: None)  # it switches all other loggers off
    failed = lint_imports(no_cache=True, no_logo=True)
    assert not failed, capsys.readouterr().out


@pytest.mark.slow
def test_types_are_those_that_are_stated():
    command = [sys.executable, "-m", "mypy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def n_parameters(function: ast.FunctionDef) -> int:
    """How many parameters a function has, besides the object or class it belongs to."""
    of = function.args
    names = [one.arg for one in (*of.posonlyargs, *of.args, *of.kwonlyargs, of.vararg, of.kwarg) if one]
    return len(names) - (names[:1] in (["self"], ["cls"]))


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_modules_functions_and_parameter_lists_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400
    for function in functions(path):
        assert function.end_lineno - function.lineno < 60, function.name
        assert n_parameters(function) <= 8, function.name


UNPICKLE = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}  # modules whose files run code


def running(tree: ast.AST) -> list[str]:
    """What in a source would run code out of a file, or out of a repository of a hub."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            found += [name for name in names if name.split(".")[0] in UNPICKLE]
        if isinstance(node, ast.Call):
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            called = ast.unparse(node.func)
            found += [called] * (
                called in ("eval", "exec", "__import__", "torch.load", "pd.read_pickle", "torch.hub.load")
            )
            found += [called] * (called in ("np.load", "numpy.load") and given.get("allow_pickle") != "False")
            found += [called] * (called.endswith("yaml.load") and "Loader" not in ast.unparse(node).split("(", 1)[1])
            unsafe = {"trust_remote_code": "True", "allow_pickle": "True", "weights_only": "False"}
            found += [f"{name}={value}" for name, value in unsafe.items() if given.get(name) == value]
            if called.endswith(".from_pretrained") and "AutoModel" in called and "**options" not in ast.unparse(node):
                found += [called] * (given.get("use_safetensors") != "True")
    return found


def test_no_file_can_run_code():
    files = [*MODULES, *sorted((ROOT / "benchmarks").glob("*.py"))]
    sources = {named(path): path.read_text(encoding="utf-8") for path in files}
    sources |= {name: "\n".join(code_cells(chapter)) for name, chapter in CHAPTERS.items()}
    assert not {name: found for name, text in sources.items() if (found := running(ast.parse(text)))}
    for text in (
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name)",
        "yaml.load(text)",
        "exec(text)",
    ):
        assert running(ast.parse(text)), text


def test_unit_tests_mirror_the_rooms():
    homeless = []
    for path in sorted(UNIT.rglob("test_*.py")):
        module = path.relative_to(UNIT).with_name(path.name.removeprefix("test_"))
        if not (ROOT / "editkit" / module).is_file() and path.relative_to(UNIT).as_posix() not in OF_THE_WHOLE:
            homeless.append(named(path))
    assert not homeless, "these name no module of editkit"


def test_benchmarks_know_no_tests():
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert not re.search(r"^\s*(from|import) tests\b", path.read_text(), re.MULTILINE), named(path)


def code_cells(chapter) -> list[str]:
    return [cell.source for cell in chapter.cells if cell.cell_type == "code"]


def test_code_cells_are_short():
    lengths = [len(source.splitlines()) for chapter in CHAPTERS.values() for source in code_cells(chapter)]
    assert np.median(lengths) <= 5
    assert np.percentile(lengths, 90) <= 10


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_committed_exactly_where_they_are_compared(name):
    nbformat.validate(NOTEBOOKS[name])
    for cell in NOTEBOOKS[name].cells:
        if cell.cell_type == "code":
            checked = cell.source.startswith("# NBVAL_CHECK_OUTPUT")
            assert bool(cell.outputs) == checked
            assert (cell.execution_count is not None) == checked, "nbval compares cells that were run"


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_opens_with_its_question_and_closes_with_its_findings(name):
    cells = CHAPTERS[name].cells
    assert cells[0].cell_type == "markdown" and "?" in cells[0].source
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    headings = [line for line in prose.splitlines() if line.startswith("#")]
    assert headings[-1] == "## Findings"


def test_the_notebooks_are_seven_chapters_and_the_laboratory():
    assert NOTEBOOKS.keys() - CHAPTERS.keys() == {"07_playground.ipynb"} and len(CHAPTERS) == 7


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_tags_are_those_that_the_report_knows(name):
    assert {tag for cell in NOTEBOOKS[name].cells for tag in cell.metadata.get("tags", [])} <= TAGS


def test_every_chapter_takes_facts_from_any_source():
    code = {named(path): path.read_text() for path in (*MODULES, *sorted((ROOT / "params").glob("*.yaml")))}
    code |= {name: "\n".join(code_cells(chapter)) for name, chapter in CHAPTERS.items()}
    assert not [name for name, text in code.items() if "counterfact_path" in text], "facts_path says where"
