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
    bare = styled(pd.DataFrame({"a": [1]}))
    assert [(cell.name, cell.get_text()) for cell in bare.select("thead tr > *")] == [("td", ""), ("th", "a")]
    assert not styled(pd.DataFrame({"": [1]})).thead, "a head that says nothing is none"


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
