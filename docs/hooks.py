"""What MkDocs does besides: a page of the API for each room of the package, and formulas as MathML."""

import ast
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).parents[1] / "editkit"
PAGE = "::: editkit.{0}\n    options: {{heading_level: 1, show_root_heading: true}}\n"
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)


def read(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def rooms() -> dict[str, str]:
    """Names of the package's folders and of the modules beside them, each with the first line of its docstring."""
    folders = {path.parent.name: path for path in PACKAGE.glob("*/__init__.py")}
    files = folders | {path.stem: path for path in PACKAGE.glob("[!_]*.py")}
    return {name: (ast.get_docstring(read(files[name])) or "").partition("\n")[0] for name in sorted(files)}


def public() -> list[str]:
    """Where each name lies that ``import editkit`` brings."""
    imports = [node for node in read(PACKAGE / "__init__.py").body if isinstance(node, ast.ImportFrom)]
    found = [f"{node.module}.{alias.name}" for node in imports for alias in node.names]
    return sorted(found, key=lambda name: name.rpartition(".")[2].lower())


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav.append({"API": ["api/index.md", *({room: f"api/{room}.md"} for room in rooms())]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    lines = ["# API", "", "::: editkit", "    options: {members: false}", "", "## What `import editkit` brings", ""]
    lines += [f"- [`{name.rpartition('.')[2]}`][{name}]" for name in public()]
    lines += ["", "## Rooms", "", *(f"- [`editkit.{room}`]({room}.md) {told}" for room, told in rooms().items())]
    files.append(File.generated(config, "api/index.md", content="\n".join(lines)))
    for room in rooms():
        files.append(File.generated(config, f"api/{room}.md", content=PAGE.format(room)))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    return FORMULA.sub(mathml, markdown)


def mathml(found: re.Match) -> str:
    """Write a formula as MathML; in a line, inside an element that begins no paragraph of its own."""
    return convert(found[1], display="block") if found[1] else f"<span>{convert(found[2])}</span>"
