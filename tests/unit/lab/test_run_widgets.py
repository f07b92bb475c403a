"""The explorer's widgets, chosen as a front end would."""

import pytest
from bs4 import BeautifulSoup

from editkit.lab.run_widgets import explorer


@pytest.fixture
def shown(run_dir):
    return explorer(run_dir)


def drawn(shown):
    [output] = shown.figure.outputs
    return output["data"]["application/vnd.plotly.v1+json"]["data"]


def cells(shown):
    rows = BeautifulSoup(shown.table.value, "html.parser").find_all("tr")[1:]
    return [[cell.get_text() for cell in row.find_all("td")] for row in rows]


def choose(shown, name, value):
    [one] = [one for one in shown.filters.children if one.description == name]
    one.value = value


def test_table_and_figure_follow_the_dropdowns(shown, summary):
    assert "5 of 5 rows" in shown.notice.value and len(cells(shown)) == 5
    assert sum(len(trace["y"]) for trace in drawn(shown)) == 3 * 5
    choose(shown, "method", "memit")
    [small, large] = cells(shown)
    assert small == ["MEMIT, 8 at once", "32", "1.00 [0.90, 1.00]", "0.50", "0.75"]
    assert {trace["name"] for trace in drawn(shown)} == {"MEMIT"}
    choose(shown, "batch size", "32")
    assert cells(shown) == [large] and "1 of 5 rows" in shown.notice.value
    shown.rung.value = "said"
    assert shown.run.rung == "said" and len(cells(shown)[0]) == 5
    choose(shown, "rank", "4")
    assert cells(shown) == [] and shown.figure.outputs == () and "0 of 5 rows" in shown.notice.value


def test_another_table_brings_its_own_dropdowns(shown):
    choose(shown, "method", "memit")
    shown.name.value = "baselines"
    assert [one.description for one in shown.filters.children] == ["method", "seed"]
    assert [one.value for one in shown.filters.children] == ["all", "all"]
    assert [row[0] for row in cells(shown)] == ["EMMET, seed 1", "MEMIT, seed 2"]
    assert shown.rung.options == ("success",)


def test_nothing_from_a_table_is_markup(run_dir):
    path = run_dir / "results" / "final_summary.csv"
    path.write_text(path.read_text().replace("no edit", "<script>alert(1)</script>"))
    shown = explorer(run_dir)
    assert "<script>" not in shown.table.value and "&lt;script&gt;" in shown.table.value
    assert all("<script>" not in name for trace in drawn(shown) for name in trace["y"])
