"""The pages made from the docstrings: built strictly, without a network, a page for each room."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

import editkit

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, env=os.environ | nowhere, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_every_room_has_a_page_and_every_public_name_a_link_to_it(site):
    rooms = {path.parent.name for path in (ROOT / "editkit").glob("*/__init__.py")}
    rooms |= {path.stem for path in (ROOT / "editkit").glob("[!_]*.py")}
    assert {path.stem for path in (site / "api").glob("*.html")} == rooms | {"index"}
    index = BeautifulSoup((site / "api" / "index.html").read_text(encoding="utf-8"), "html.parser")
    links = {link.get_text(): link["href"] for link in index.select("article a") if link.code}
    for name in editkit.__all__:
        page, anchor = links[name].split("#")
        assert f'id="{anchor}"' in (site / "api" / page).read_text(encoding="utf-8"), name


def test_the_pages_load_nothing_and_hold_no_markup_that_was_not_read(site):
    for path in site.rglob("*.html"):
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        loaded = [tag.get("src") or tag.get("href") for tag in page.select("script[src], img[src], link[href]")]
        assert not [url for url in loaded if url.startswith(("http:", "https:", "//"))], path.name
        text = page.article.get_text() if page.article else ""
        assert not re.search(r":(func|class|meth|mod):", text), path.name
    equation = (site / "equation.html").read_text(encoding="utf-8")
    assert equation.count("<math") > 20 and "$" not in BeautifulSoup(equation, "html.parser").article.get_text()


def test_what_contributing_names_is_there():
    told = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:benchmarks|editkit|params|tests)/[\w./*-]*)`", told))
    assert len(paths) > 50 and not [path for path in paths if not list(ROOT.glob(path))]
    names = re.findall(r"`(\w+)` (?:in|of) `([\w/]+\.py)`", told)
    assert len(names) > 5
    assert not [
        (name, path) for name, path in names if not re.search(rf"^\s*(def |class )?{name}\b", read(path), re.MULTILINE)
    ]


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")
