"""Tables of the page."""

import pandas as pd
from bs4 import BeautifulSoup

from editkit.report.tables import Tables


def styled(frame: pd.DataFrame, tables=None, **more) -> BeautifulSoup:
    return BeautifulSoup((tables or Tables()).style(frame.to_html(**more)), "html.parser")


def test_numbers_stand_to_the_right_and_what_is_missing_is_a_dash():
    frame = pd.DataFrame({"name": ["a", "b"], "x": [1.5, None], "y": ["98 %", "2 ± 1"], "z": ["1 of 2", "3"]})
    soup = styled(frame)
    assert [cell.get_text() for cell in soup.select("td.number")] == ["1.5", "98 %", "–", "2 ± 1"]
    assert [head.get_text() for head in soup.select("th.number")] == ["x", "y"]


def test_an_index_with_a_name_has_one_row_of_heads_and_none_is_empty():
    frame = pd.DataFrame({"a": [1], "b": [2]}, index=pd.MultiIndex.from_tuples([("r", 1)], names=["method", "size"]))
    soup = styled(frame)
    assert [head.get_text() for head in soup.select("thead th")] == ["method", "size", "a", "b"]
    assert {head["scope"] for head in soup.select("thead th")} == {"col"} and len(soup.select("thead tr")) == 1
    bare = styled(pd.DataFrame({"a": [1]}, index=[3]))
    assert [(cell.name, cell.get_text()) for cell in bare.select("thead tr > *")] == [("td", ""), ("th", "a")]
    assert not styled(pd.DataFrame({"": [1]})).thead, "a head that says nothing is none"


def test_words_have_room_to_stand_beside_one_another():
    frame = pd.DataFrame({"method": ["head, closed form", "EMMET"], "of": ["two words", "one_long_name"], "n": [1, 2]})
    kept = {cell.get_text(): cell.get("style") for cell in styled(frame).select("tbody td")}
    assert kept["head, closed form"] == "min-width:16ch" and kept["two words"] == "min-width:9ch"
    assert kept["EMMET"] is kept["one_long_name"] is kept["1"] is None
    many = styled(frame.assign(**{f"column {n}": n for n in range(9)}))
    assert many.find("td", string="head, closed form")["style"] == "min-width:11ch"


def test_heads_of_two_levels_stay_two_rows():
    frame = pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_product([["kept"], ["min", "max"]]))
    soup = styled(frame)
    assert len(soup.select("thead tr")) == 2 and soup.find("th", string="kept")["scope"] == "colgroup"


def test_captions_are_numbered_through_the_page():
    tables = Tables()
    frame = pd.DataFrame({"a": [1]})
    captioned = [styled(frame, tables).table] + [
        BeautifulSoup(tables.style(frame.style.set_caption(text).to_html()), "html.parser").table
        for text in ("First", "Second")
    ]
    assert [table.caption and table.caption.get_text() for table in captioned] == [
        *(None, "Table 1. First", "Table 2. Second"),
    ]


def test_a_table_scrolls_in_a_frame_that_the_keyboard_reaches():
    frame = styled(pd.DataFrame({"a": [1]})).find(class_="table")
    assert frame["tabindex"] == "0" and frame["role"] == "group" and frame["aria-label"]
    assert Tables().style("<p>no table</p>") == "<p>no table</p>"


def test_a_column_has_no_more_decimals_than_are_read():
    frame = pd.DataFrame(
        {
            "S": [0.8841, 1.0],
            "MB": [1601.926, 12.0],
            "steps": [17.0, 0.0],
            "leakage": [0.00266, 0.02098],
            "ES": ["0.911 [0.858, 0.947]", "0.004 [-0.003, +0.012]"],
            "p (Holm)": [0.0, 0.0361],
            "lr": [1e-5, 0.5],
        }
    )
    cells = [[cell.get_text() for cell in row.find_all("td")] for row in styled(frame).select("tbody tr")]
    assert cells[0] == ["0.88", "1602", "17", "0.003", "0.91 [0.86, 0.95]", "< 0.001", "0.00001"]
    assert cells[1] == ["1.00", "12", "0", "0.021", "0.00 [0.00, +0.01]", "0.036", "0.50000"]


def test_python_is_not_what_a_reader_reads():
    frame = pd.DataFrame({"as_wanted": [True, False], "text": ["Paris.\n\nThe", "x"], "peak_memory_mb": [-1.5, 2.5]})
    soup = styled(frame)
    assert [cell.get_text() for cell in soup.select("td")] == ["yes", "Paris. ↵ The", "−1.5", "no", "x", "2.5"]
    assert [head.get_text() for head in soup.select("thead th")] == ["as wanted", "text", "peak memory (MB)"]


def test_markup_and_formulas_in_cells_stay():
    for cell, written in (
        ("<em>pre</em>",) * 2,
        ("<em>-0.1234</em>", "<em>−0.12</em>"),
        ("<math><mi>K</mi></math>",) * 2,
    ):
        assert written in Tables().style(f"<table><tbody><tr><td>{cell}</td></tr></tbody></table>")


def test_what_only_counts_rows_is_left_out_and_labels_are_not():
    assert [cell.get_text() for cell in styled(pd.DataFrame({"a": ["x", "y"]})).select("tbody tr > *")] == ["x", "y"]
    kept = styled(pd.DataFrame({"a": ["x", "y"]}, index=[4, 6]))
    assert [cell.get_text() for cell in kept.select("tbody th")] == ["4", "6"]


def test_one_sample_of_all_rows_is_said_once():
    frame = pd.DataFrame({"S": [0.1, 0.2, 0.3], "n": 64, "seeds": [1, 2, 2], "clusters": 17})
    soup = styled(frame)
    assert [head.get_text() for head in soup.select("th")] == ["S", "seeds"]
    assert soup.find(class_="sample").get_text() == "In every row n = 64, clusters = 17."
    assert not styled(frame[:2]).find(class_="sample"), "of two rows it is no saving"


def test_the_names_of_an_index_and_of_columns_share_a_head():
    wide = pd.DataFrame([[1, 2]], pd.Index(["train"], name="split"), pd.Index(["cat", "dog"], name="label"))
    assert [cell.get_text() for cell in styled(wide).select("thead th")] == ["split / label", "cat", "dog"]
    columns = pd.MultiIndex.from_tuples([("symbols", "acc")], names=["task", "metric"])
    deep = styled(pd.DataFrame([[1]], pd.Index(["ROME"], name="method"), columns))
    assert [[cell.get_text() for cell in row.find_all("th")] for row in deep.select("thead tr")] == [
        ["task", "symbols"],
        ["method / metric", "acc"],
    ]
