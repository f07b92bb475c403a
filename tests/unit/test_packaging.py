"""Package lists agree, the lock is complete and hash-checked, and the make targets exist."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = PROJECT["dependencies"] + EXTRAS["test"]


def names(requirements) -> set[str]:
    """Package names in their normal form, without versions."""
    return {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower() for line in requirements}


def pins(file: str) -> dict[str, str]:
    """Every pinned requirement of a file, name to its whole entry with hashes."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "requirements" / file).read_text(), flags=re.MULTILINE)
    entries = re.split(r"\n(?=\S)", text.strip())
    return {next(iter(names([entry]))): entry for entry in entries}


def test_conda_environment_equals_pyproject():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert f"python{PROJECT['requires-python']}" in listed and "pip" in listed
    [through_pip] = [entry["pip"] for entry in listed if isinstance(entry, dict)]
    assert sorted(through_pip) == sorted(DIRECT)


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])
    assert (ROOT / "LICENSE").read_text().startswith(f"{PROJECT['license']} License")


def test_every_direct_dependency_is_pinned_with_hashes():
    lock = pins("lock.txt")
    assert names(DIRECT) - {"torch"} <= set(lock)
    assert names(EXTRAS["quantized"]) == set(pins("quantized.in")) == set(pins("quantized.txt"))
    for entry in [*lock.values(), *pins("models.txt").values(), *pins("quantized.txt").values()]:
        assert re.match(r"[\w.-]+==[\w.+!-]+ ", entry) and "--hash=sha256:" in entry, entry[:80]


def test_torch_is_installed_first_and_alone():
    assert list(pins("torch.txt").values()) == ["torch==2.13.0"]
    assert not [name for name in pins("lock.txt") if re.match(r"torch|triton|nvidia|cuda", name)]


def test_lock_covers_what_torch_brings():
    assert names(line for line in pins("lock.in").values()) <= set(pins("lock.txt"))


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").iterdir()), ids=lambda path: path.name)
def test_requirements_name_no_place(path):
    assert not re.search(r"://|index-url|find-links|(^|\s)/|file:", path.read_text())


def imported_modules(path: Path) -> set[str]:
    """Top-level modules that a file imports from outside its package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_every_import_is_declared():
    package_of = {"yaml": "pyyaml", "bs4": "beautifulsoup4", "markupsafe": "jinja2", "sklearn": "scikit-learn"}
    package_of |= {"IPython": "ipykernel", "traitlets": "ipykernel"}
    used = set().union(*map(imported_modules, (ROOT / "editkit").rglob("*.py")))
    outside = used - set(sys.stdlib_module_names) - {"editkit"}
    declared = PROJECT["dependencies"] + EXTRAS["quantized"]
    assert names(package_of.get(name, name) for name in outside) <= names(declared)


def test_every_file_of_the_package_is_installed_with_it():
    files = {path for path in (ROOT / "editkit").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    code = {path for path in files if path.suffix == ".py"}
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["editkit"]
    assert files - code == {path for pattern in patterns for path in (ROOT / "editkit").glob(pattern)}
    assert {path.with_name("__init__.py") for path in code} <= code, "a folder without it is left out"


def test_make_targets_exist():
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "report", "test", "lab", "lock", "clean"):
        assert f"make {target} " in shown


def test_too_old_python_is_told_so(tmp_path):
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    old.chmod(0o755)
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "requirements").mkdir()
    for name in ("torch", "lock", "models"):
        (tmp_path / "requirements" / f"{name}.txt").touch()
    done = subprocess.run(["make", "setup", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "needs Python 3.11 or newer, found: Python 3.9.2" in done.stdout


def test_ci_script_is_executable_and_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o100 and "make test" in script.read_text()
    assert not re.search(r"apt-get|pip install", script.read_text()), "make setup installs what there is to install"


def test_setup_ends_with_a_browser():
    words = ["make", "-sn", "--always-make", "setup"]
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m editkit.report.browser\n" in shown
