"""What of a notebook is shown, and where."""

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from editkit.report.preprocess import WIDGET, Outputs, Sections, Tags, parts


def tagged(source: str, *tags: str, **more):
    return new_code_cell(source, metadata={"tags": list(tags)}, **more)


def test_tags_leave_out_cells_code_or_outputs():
    shown = [new_output("stream", name="stdout", text="a")]
    names = ["remove-cell", "parameters", "injected-parameters", "hide-input", "hide-output", "front"]
    cells = [tagged(name, name, outputs=shown) for name in names]
    kept = Tags(enabled=True).preprocess(new_notebook(cells=cells), {})[0].cells
    assert [cell.source for cell in kept] == ["hide-input", "hide-output", "front"]
    hidden = [cell.metadata.get("transient", {}).get("remove_source", False) for cell in kept]
    assert hidden == [True, False, False]
    assert [len(cell.outputs) for cell in kept] == [1, 0, 1]


def test_what_is_printed_comes_first_and_progress_and_widgets_not_at_all():
    outputs = [
        new_output("display_data", data={WIDGET: {}, "text/plain": "HBox()"}),
        new_output("stream", name="stderr", text="noise"),
        new_output("stream", name="stdout", text="a\n"),
        new_output("display_data", data={"text/plain": "shown"}),
        new_output("stream", name="stdout", text="\x1b[1mb\x1b[0m\n"),
    ]
    cells = [new_code_cell("1", outputs=outputs), new_code_cell("2", outputs=outputs[:2])]
    first, second = Outputs(enabled=True).preprocess(new_notebook(cells=cells), {})[0].cells
    assert [o.get("text", o.get("data")) for o in first.outputs] == ["a\nb", {"text/plain": "shown"}]
    assert not second.outputs


def sections(*cells) -> list[str]:
    return [cell.source for cell in Sections(enabled=True).preprocess(new_notebook(cells=list(cells)), {})[0].cells]


def test_sections_without_content_lose_their_heading_and_keep_their_code():
    text, code = new_markdown_cell, new_code_cell("import os")
    full = new_code_cell("1", outputs=[new_output("stream", name="stdout", text="a")])
    assert sections(text("# T"), text("## A"), code, text("## B\n\nb"), text("## C"), full, text("## D")) == [
        *("# T", "import os", "## B\n\nb", "## C", "1"),
    ]
    assert sections(text("## A"), text("### B"), full) == ["## A", "### B", "1"]
    assert sections(text("# T"), text("## A"), text("A sentence.")) == ["# T", "## A", "A sentence."]


def test_a_chapter_is_split_by_its_tags_and_has_a_title():
    cells = [tagged("f", "front", "hide-input"), tagged("b"), tagged("a", "appendix"), new_markdown_cell("x")]
    split = parts(new_notebook(cells=cells), "00_first")
    assert {name: [cell.source for cell in one.cells] for name, one in split.items()} == {
        "front": ["f"],
        "body": ["# 00_first", "b", "x"],
        "appendix": ["a"],
    }
    for one in split.values():
        nbformat.validate(one)
