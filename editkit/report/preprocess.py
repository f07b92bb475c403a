"""What of an executed notebook is shown, and where: steps before nbconvert's exporter writes it.

A cell tagged ``front`` goes to the report's first screen, one tagged ``appendix`` to its end; ``hide-input``,
``hide-output`` and ``remove-cell`` leave out the code, the outputs or both.
"""

import re
from typing import Any

from nbconvert.filters import strip_ansi
from nbconvert.preprocessors import Preprocessor, TagRemovePreprocessor
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_output

WIDGET = "application/vnd.jupyter.widget-view+json"
HEADING = re.compile(r"(#{1,6}) ")
LEFT_OUT = {"remove-cell", "injected-parameters", "papermill-error-cell-tag"}


class Tags(TagRemovePreprocessor):
    """Leaves out what tags say; parameters are the appendix's matter."""

    remove_cell_tags = LEFT_OUT | {"parameters"}
    remove_input_tags = {"hide-input"}
    remove_all_outputs_tags = {"hide-output"}


class Outputs(Preprocessor):
    """Leaves out progress and widgets, and puts what a cell printed into one output ahead of the others."""

    def preprocess_cell(self, cell: NotebookNode, resources: dict[str, Any], index: int) -> tuple[NotebookNode, Any]:
        outputs = cell.get("outputs", [])
        printed = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
        shown = [o for o in outputs if o.output_type != "stream" and WIDGET not in o.get("data", {})]
        if cell.cell_type == "code":
            text = strip_ansi(printed).strip("\n")
            cell.outputs = [new_output("stream", name="stdout", text=text)] * bool(text.strip()) + shown
        return cell, resources


class Sections(Preprocessor):
    """Leaves out the headings of sections in which nothing is said or shown."""

    def preprocess(self, notebook: NotebookNode, resources: dict[str, Any]) -> tuple[NotebookNode, Any]:
        kept: list[NotebookNode] = []
        follows = 0  # the level of the next heading; 7 where there is something else
        for cell in reversed(notebook.cells):
            prose = cell.cell_type == "markdown"
            heading = HEADING.match(cell.source) if prose else None
            level = len(heading[1]) if heading else 7
            if heading and 1 < level >= follows and "\n" not in cell.source.strip():
                continue
            kept.append(cell)
            if prose or cell.get("outputs"):
                follows = level
        notebook.cells = kept[::-1]
        return notebook, resources


def parts(notebook: NotebookNode, name: str) -> dict[str, NotebookNode]:
    """Split a chapter by its cells' tags into ``front``, ``body`` and ``appendix``.

    A body without a title gets the chapter's name for one.
    """
    cells: dict[str, list[NotebookNode]] = {"front": [], "body": [], "appendix": []}
    for cell in notebook.cells:
        tags = set(cell.metadata.get("tags", []))
        place = next((place for place in ("front", "appendix") if place in tags), "body")
        cells[place].append(cell)
    if not any(cell.cell_type == "markdown" and re.match("# ", cell.source) for cell in cells["body"]):
        cells["body"].insert(0, new_markdown_cell(f"# {name}"))
    return {place: NotebookNode(notebook | {"cells": some}) for place, some in cells.items()}
