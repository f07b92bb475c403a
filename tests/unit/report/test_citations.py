"""The bibliography: every entry can be written, and every number of a method's source is one."""

import re

import pytest
from bs4 import BeautifulSoup

from editkit.methods import METHODS
from editkit.report.citations import REPORT, References


@pytest.fixture(scope="module")
def references():
    return References()


def test_labels_name_one_two_or_more_authors_and_the_year(references, tmp_path):
    assert references.label("meng2022rome") == "Meng et al., 2022"
    assert references.label(REPORT) == "The editkit authors, 2026"
    file = tmp_path / "two.bib"
    file.write_text("@misc{a, author={van Gogh, Vincent and Gauguin, Paul}, title={T}, year={1888}}")
    assert References(file).label("a") == "van Gogh and Gauguin, 1888"
    with pytest.raises(KeyError):
        references.label("nobody")


def test_no_two_entries_look_alike_in_the_text(references):
    labels = [references.label(key) for key in references.data.entries]
    alike = {label for label in labels if labels.count(label) > 1}
    assert not alike and references.label("gupta2025encore") == "Gupta et al., 2025a"


def test_entries_are_found_by_key_and_by_number(references):
    assert references.find("meng2022rome") == references.find("2202.05262") == "meng2022rome"
    assert references.find("1111.11111") is None


def test_the_source_of_every_method_is_in_the_bibliography(references):
    numbers = [found[0] for method in METHODS.values() if (found := re.findall(r"\d{4}\.\d{5}", method.source))]
    assert len(numbers) > 5 and all(references.find(number) for number in numbers)


def test_what_is_cited_is_listed_by_label_with_a_link_to_arxiv(references):
    listed = references.listed(["meng2023memit", "fang2024alphaedit", "meng2023memit"])
    assert list(listed) == ["fang2024alphaedit", "meng2023memit"]
    entry = BeautifulSoup(listed["meng2023memit"][1], "html.parser")
    assert entry.a["href"] == "https://arxiv.org/abs/2210.07229"
    text = " ".join(entry.get_text().split())
    assert text.startswith("K. Meng, A. Sen Sharma, A. Andonian") and "2023" in text
    assert len(references.listed(references.data.entries)) == len(references.data.entries)


def test_the_report_itself_can_be_cited(references, tmp_path):
    (tmp_path / "report.bib").write_text(references.bibtex(REPORT, note="Revision abc"))
    again = References(tmp_path / "report.bib")
    assert again.label(REPORT) == references.label(REPORT)
    assert again.data.entries[REPORT].fields["note"] == "Revision abc"
