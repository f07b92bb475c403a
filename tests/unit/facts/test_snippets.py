"""Reference texts in ROME's published layout."""

import json

import pytest

from editkit.facts import counterfact
from editkit.facts.snippets import read, references
from tests.unit.conftest import COUNTERFACT

SNIPPETS = [
    {"relation_id": "P36", "target_id": "Q220", "samples": [{"name": "Lazio", "text": "Lazio is a region of Italy."}]},
    {"relation_id": "P36", "target_id": "Q90", "samples": [{"name": "France", "text": "Paris lies in France."}]},
    {"relation_id": "P36", "target_id": "Q220", "samples": [{"name": "Italy", "text": "Rome is its capital."}]},
]


def written(tmp_path, name, value):
    path = tmp_path / name
    path.write_text(json.dumps(value))
    return path


def test_a_fact_has_the_texts_of_its_relation_and_new_object(tmp_path):
    snippets = read(written(tmp_path, "attribute_snippets.json", SNIPPETS))
    other = COUNTERFACT | {"case_id": 8, "requested_rewrite": COUNTERFACT["requested_rewrite"] | {"relation_id": "P1"}}
    records = written(tmp_path, "counterfact.json", [COUNTERFACT, other])
    found = references(records, snippets)
    assert found == {counterfact.read(records)[0].id: ["Lazio is a region of Italy.", "Rome is its capital."]}
    assert len(snippets) == 2


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"relation_id": "P36"}, "target_id"),
        (SNIPPETS[0] | {"samples": "Lazio"}, "samples is 'Lazio'; a list"),
        (SNIPPETS[0] | {"samples": ["Lazio"]}, "samples is 'Lazio'; an object"),
        (SNIPPETS[0] | {"samples": [{"name": "Lazio"}]}, "samples.text"),
    ],
)
def test_another_layout_is_named(tmp_path, record, told):
    with pytest.raises(ValueError, match=f"attribute_snippets.json: record 1 has another layout: .*{told}"):
        read(written(tmp_path, "attribute_snippets.json", [SNIPPETS[0], record]))
